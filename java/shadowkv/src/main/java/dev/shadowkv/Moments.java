package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.MomentChange;
import dev.shadowkv.kernels.Ring;

/**
 * The sums over a layer's indexed tokens by which those that a step does not select take part in it; see
 * {@link dev.shadowkv.kernels.CacheKernels#momentUpdate}. They follow the index: what enters it is added, what leaves it is
 * taken away. Does nothing in a cache without them.
 */
final class Moments {

    private final ShadowKvCache cache;
    private final ShadowOptions options;
    private final Geometry geometry;
    private final int chunk;

    Moments(ShadowKvCache cache) {
        this.cache = cache;
        options = cache.options;
        geometry = options.geometry();
        chunk = geometry.chunk();
    }

    /** Chunks at their positions in rings, those of each head that are in its index. */
    void update(SharedLayer shared, Ring keys, Ring values, long firstChunk, long chunks, long chunkCapacity,
            MomentChange change) {
        if (options.tail()) {
            cache.cacheKernels.momentUpdate(keys, values, geometry.keyValueHeads(), geometry.headDim(), chunk, firstChunk,
                    chunks, shared.radius, chunkCapacity, change, shared.moments);
        }
    }

    /** Chunks as the index has them, in pieces: keys are rebuilt, values come from host memory. */
    void updateFromIndex(IndexReader reader, SharedLayer shared, long firstChunk, long endChunk, long chunkCapacity,
            MomentChange change) {
        if (!options.tail()) {
            return;
        }
        Staging rows = cache.scratch.dense;
        long most = rows.tokens / chunk;
        for (long at = firstChunk; at < endChunk; at += most) {
            long chunks = Math.min(most, endChunk - at);
            reader.read(at * chunk, chunks * chunk, rows.rotatedKeys, rows.values);
            update(shared, rows.rotatedKeys, rows.values, at, chunks, chunkCapacity, change);
        }
    }

    void clear(SharedLayer shared) {
        if (options.tail()) {
            cache.device.fill(shared.moments, 0);
        }
    }

    /**
     * Outliers that return to the index, where they still lie.
     *
     * @param places {@code [K]}: how many of the places from {@code first} on return
     */
    void addOutliers(SharedLayer shared, int first, int[] places) {
        int most = Arrays.stream(places).max().orElse(0);
        if (!options.tail() || most == 0) {
            return;
        }
        int capacity = options.outlierCapacity();
        float[] counts = new float[places.length * capacity];
        Arrays.fill(counts, -1);
        for (int head = 0; head < places.length; head++) {
            int from = head * capacity + first;
            Arrays.fill(counts, from, from + places[head], 0);
        }
        cache.device.copy(MemorySegment.ofArray(counts), cache.scratch.returning);
        cache.cacheKernels.momentUpdate(shared.outlierKeyRows, shared.outlierValueRows, geometry.keyValueHeads(),
                geometry.headDim(), chunk, first, most, cache.scratch.returning, capacity, MomentChange.ADD,
                shared.moments);
    }
}
