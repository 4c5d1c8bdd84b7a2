package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

import dev.shadowkv.kernels.Geometry;

/** Temporaries of sealing, folding and rewinding, one set a cache. */
final class Scratch {

    /** A dense copy of a session that outgrows being exact, and keys before RoPE of what is folded. */
    final Staging dense;
    /** {@code [K][chunks]} floats. */
    final DeviceBuffer cosine;
    /** {@code [K][outliers]} chunk ids. */
    final DeviceBuffer ids;
    final DeviceBuffer singularValues;
    /** Two floats. */
    final DeviceBuffer energy;
    /** {@code [window]} floats. */
    final DeviceBuffer residual;
    /** {@code [K]} floats of -1: the radius of what is not in the index. */
    final DeviceBuffer absent;
    /** {@code [K]} floats. */
    final DeviceBuffer column;
    /** {@code [K][outlierCapacity]} floats: the radius by which outliers count that return to the index. */
    final DeviceBuffer returning;
    /** {@code [window][K*D]} 32-bit values on their way back from the host. */
    final DeviceBuffer values;
    final MemorySegment hostValues;
    final MemorySegment hostResidual;

    Scratch(DeviceArena arena, CacheShape shape, ShadowOptions options) {
        Geometry g = options.geometry();
        ShadowLayout largest = new ShadowLayout(options, shape.memory.tokens());
        int heads = g.keyValueHeads();
        dense = new Staging(arena.allocate(Staging.bytes(shape, denseTokens(options, largest))), shape,
                denseTokens(options, largest));
        cosine = arena.allocate(heads * largest.chunks * 4);
        ids = arena.allocate(Math.max(1, heads * options.outliers()) * 4L);
        singularValues = arena.allocate(g.rank() * 4L);
        energy = arena.allocate(8);
        residual = arena.allocate(g.window() * 4L);
        absent = arena.allocate(heads * 4L);
        column = arena.allocate(heads * 4L);
        returning = arena.allocate(returningBytes(options));
        long valueBytes = 4L * g.window() * shape.keyWidth();
        values = arena.allocate(valueBytes);
        hostValues = Arena.ofAuto().allocate(valueBytes, 64);
        hostResidual = Arena.ofAuto().allocate(g.window() * 4L, 64);
        float[] minusOne = new float[heads];
        java.util.Arrays.fill(minusOne, -1f);
        arena.device().copy(MemorySegment.ofArray(minusOne), absent);
    }

    static long denseTokens(ShadowOptions options, ShadowLayout largest) {
        return largest.exactChunks * options.geometry().chunk() + options.geometry().window();
    }

    static long bytes(CacheShape shape, ShadowOptions options) {
        Geometry g = options.geometry();
        ShadowLayout largest = new ShadowLayout(options, shape.memory.tokens());
        long heads = g.keyValueHeads();
        return Staging.bytes(shape, denseTokens(options, largest)) + heads * largest.chunks * 4
                + Math.max(1, heads * options.outliers()) * 4 + g.rank() * 4L + 8 + g.window() * 4L + heads * 8
                + returningBytes(options) + 4L * g.window() * shape.keyWidth();
    }

    private static long returningBytes(ShadowOptions options) {
        return Math.max(1, options.geometry().keyValueHeads() * (long) options.outlierCapacity()) * 4;
    }

    /** Reads floats from the device; waits for it. */
    static float[] floats(DeviceBuffer buffer, int count) {
        float[] result = new float[count];
        buffer.device().copy(buffer.slice(0, 4L * count), MemorySegment.ofArray(result));
        return result;
    }

    /** Reads 32-bit integers from the device; waits for it. */
    static int[] integers(DeviceBuffer buffer, int count) {
        int[] result = new int[count];
        buffer.device().copy(buffer.slice(0, 4L * count), MemorySegment.ofArray(result));
        return result;
    }

    static final ValueLayout.OfFloat FLOAT = ValueLayout.JAVA_FLOAT;
}
