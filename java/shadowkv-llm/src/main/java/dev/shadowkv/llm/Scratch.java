package dev.shadowkv.llm;

import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.llm.checkpoint.ModelConfig;

/** What a layer computes on the way, for a number of rows; made once, so that a decode step allocates nothing. */
final class Scratch {
    final long capacity;
    final Rows normed;
    /** Queries, keys and values side by side. */
    final Rows projected;

    final DeviceBuffer queries;
    final DeviceBuffer keys;
    final DeviceBuffer values;
    /** Elements from row to row of the three. */
    final long stride;

    final Rows attended;
    /** Gates and ups side by side. */
    final Rows gateUp;

    final Rows gate;
    final Rows up;
    final Rows activated;

    Scratch(ModelConfig config, ElementType type, DeviceArena arena, long rows) {
        capacity = rows;
        long element = type.bytes();
        stride = config.queryWidth() + 2L * config.keyValueWidth();
        normed = Rows.of(arena.allocate(rows * config.hiddenSize() * element), type);
        DeviceBuffer projection = arena.allocate(rows * stride * element);
        projected = Rows.of(projection, type);
        queries = projection;
        keys = projection.slice(config.queryWidth() * element);
        values = projection.slice((config.queryWidth() + (long) config.keyValueWidth()) * element);
        attended = Rows.of(arena.allocate(rows * config.queryWidth() * element), type);
        long intermediate = config.intermediateSize();
        DeviceBuffer mlp = arena.allocate(rows * 2 * intermediate * element);
        gateUp = Rows.of(mlp, type);
        gate = new Rows(mlp, type, 2 * intermediate);
        up = new Rows(mlp.slice(intermediate * element), type, 2 * intermediate);
        activated = Rows.of(arena.allocate(rows * intermediate * element), type);
    }

    /** Bytes for so many rows. */
    static long bytes(ModelConfig config, ElementType type, long rows) {
        long row = config.hiddenSize()
                + config.queryWidth() + 2L * config.keyValueWidth()
                + config.queryWidth()
                + 3L * config.intermediateSize();
        return rows * row * type.bytes();
    }
}
