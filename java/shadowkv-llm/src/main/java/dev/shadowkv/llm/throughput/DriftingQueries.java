package dev.shadowkv.llm.throughput;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.TransformerKernels;
import dev.shadowkv.llm.checkpoint.ModelConfig;

/**
 * Queries of all layers whose resemblance from step to step can be set: each is a direction that stays plus fresh noise,
 * whose deviation is the drift. Random weights give queries that have nothing to do with those of the step before, as no
 * real model does.
 */
final class DriftingQueries implements AutoCloseable {
    private final TransformerKernels kernels;
    private final DeviceArena arena;
    private final ElementType type;
    private final long count;
    private final DeviceBuffer lasting;
    private final DeviceBuffer noise;
    private final DeviceBuffer queries;
    private long seed;
    private double drift;

    DriftingQueries(Device device, ModelConfig config, int batch, ElementType type, long seed) {
        kernels = new TransformerKernels(device);
        this.type = type;
        this.seed = seed;
        count = (long) config.layers() * batch * config.queryWidth();
        arena = device.newArena();
        try {
            lasting = arena.allocate(count * type.bytes());
            noise = arena.allocate(count * type.bytes());
            queries = arena.allocate(count * type.bytes());
            kernels.randomFill(lasting, type, count, ++this.seed, 0, 1);
        } catch (RuntimeException e) {
            arena.close();
            throw e;
        }
    }

    /** Device bytes for a batch. */
    static long bytes(ModelConfig config, int batch, ElementType type) {
        return 3L * config.layers() * batch * config.queryWidth() * type.bytes();
    }

    /** {@code [layers][batch][queryWidth]}, always in the same place. */
    DeviceBuffer queries() {
        return queries;
    }

    double drift() {
        return drift;
    }

    /** Deviation of the noise; the lasting part has 1. */
    void drift(double deviation) {
        drift = deviation;
    }

    /** Makes the queries of the next step. */
    void step() {
        kernels.randomFill(noise, type, count, ++seed, 0, (float) drift);
        kernels.add(lasting, noise, queries, type, count);
    }

    @Override
    public void close() {
        arena.close();
    }
}
