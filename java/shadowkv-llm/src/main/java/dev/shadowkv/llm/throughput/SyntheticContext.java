package dev.shadowkv.llm.throughput;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvSession;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.TransformerKernels;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.lang.foreign.MemorySegment;

/**
 * Fills sessions with keys and values as a long prompt would leave them, made on the device, through the cache's public
 * way in: append and seal, layer by layer, so that each session owns everything that it would own after a prompt.
 *
 * <p>Keys before RoPE are {@code coefficients . basis + noise}: direction {@code i} has the deviation {@code 1 / (1 + i /
 * 24)}, the tokens of eight neighbours share 64 % of the coefficients' variance, and the noise of full rank holds 1 % of
 * the energy. Values are normal; all layers and sessions get copies of the same ones.
 */
final class SyntheticContext implements AutoCloseable {
    /** Tokens that share a part of their coefficients. */
    private static final int NEIGHBOURS = 8;

    private static final int BLOCK = 8192;
    private static final int DIRECTIONS = 256;
    private static final double DECAY = 24;
    private static final float SHARED = 0.8f;
    private static final float OWN = 0.6f;
    private static final float NOISE = 0.1f;

    private final Device device;
    private final TransformerKernels kernels;
    private final ElementType type;
    private final DeviceArena arena;
    private final long width;
    private final int directions;
    private final DeviceBuffer coefficients;
    private final DeviceBuffer shared;
    private final DeviceBuffer keys;
    private final DeviceBuffer values;
    private final DeviceBuffer gaussian;
    private final DeviceBuffer basis;
    private final Rows spectrum;
    private final Rows identity;
    private long seed;

    SyntheticContext(Device device, ModelConfig config, ElementType type, long seed) {
        this.device = device;
        this.type = type;
        this.seed = seed;
        kernels = new TransformerKernels(device);
        width = config.keyValueWidth();
        directions = (int) Math.min(DIRECTIONS, width);
        arena = device.newArena();
        try {
            coefficients = rows(BLOCK, directions);
            shared = rows(BLOCK / NEIGHBOURS, directions);
            keys = rows(BLOCK, width);
            values = rows(BLOCK, width);
            gaussian = rows(width, directions);
            basis = rows(width, directions);
            spectrum = diagonal(true);
            identity = diagonal(false);
            kernels.randomFill(values, type, BLOCK * width, next(), 0, 1);
        } catch (RuntimeException e) {
            arena.close();
            throw e;
        }
    }

    private DeviceBuffer rows(long count, long columns) {
        return arena.allocate(count * columns * type.bytes());
    }

    private Rows diagonal(boolean falling) {
        float[] matrix = new float[directions * directions];
        double energy = 0;
        for (int i = 0; i < directions; i++) {
            energy += 1 / ((1 + i / DECAY) * (1 + i / DECAY));
        }
        for (int i = 0; i < directions; i++) {
            // Elements of keys then have the variance 1, but for the noise.
            matrix[i * (directions + 1)] = falling ? (float) (1 / ((1 + i / DECAY) * Math.sqrt(energy))) : 1;
        }
        DeviceBuffer out = rows(directions, directions);
        try (DeviceArena own = device.newArena()) {
            DeviceBuffer wide = own.allocate(4L * matrix.length);
            device.copy(MemorySegment.ofArray(matrix), wide);
            kernels.convert(wide, ElementType.F32, out, type, matrix.length);
            device.synchronize();
        }
        return Rows.of(out, type);
    }

    private long next() {
        return ++seed;
    }

    /**
     * Fills one layer of an empty session and seals it, but for the last tokens, which are appended afterwards, as a
     * sequence has them that has been decoded for a while.
     */
    void fill(KvSession session, int layer, long tokens, int afterSealing) {
        kernels.randomFill(gaussian, type, width * directions, next(), 0, 1);
        kernels.matmul(
                Rows.of(gaussian, type), spectrum, null, Rows.of(basis, type), width, directions, directions, false);
        append(session, layer, tokens - afterSealing);
        session.seal(layer);
        append(session, layer, afterSealing);
    }

    private void append(KvSession session, int layer, long tokens) {
        for (long done = 0; done < tokens; done += BLOCK) {
            int count = (int) Math.min(BLOCK, tokens - done);
            makeKeys(count);
            session.append(layer, count, keys, width, values, width);
        }
    }

    private void makeKeys(int count) {
        int groups = (count + NEIGHBOURS - 1) / NEIGHBOURS;
        kernels.randomFill(coefficients, type, (long) count * directions, next(), 0, OWN);
        kernels.randomFill(shared, type, (long) groups * directions, next(), 0, SHARED);
        long row = (long) directions * type.bytes();
        for (int i = 0; i < NEIGHBOURS; i++) {
            int members = (count - i + NEIGHBOURS - 1) / NEIGHBOURS;
            if (members > 0) {
                Rows every = new Rows(coefficients.slice(i * row), type, (long) NEIGHBOURS * directions);
                kernels.matmul(Rows.of(shared, type), identity, null, every, members, directions, directions, true);
            }
        }
        kernels.randomFill(keys, type, count * width, next(), 0, NOISE);
        kernels.matmul(
                Rows.of(coefficients, type), Rows.of(basis, type), null, Rows.of(keys, type), count, width, directions, true);
    }

    @Override
    public void close() {
        device.synchronize();
        arena.close();
    }
}
