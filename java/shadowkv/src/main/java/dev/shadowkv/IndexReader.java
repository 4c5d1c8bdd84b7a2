package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;

/** Reads tokens as the index of a layer has them: keys rebuilt from coefficients, values from host memory. */
final class IndexReader {

    private final ShadowKvCache cache;
    private final Geometry geometry;
    private final Device device;
    private final SharedLayer shared;
    private final long chunkCapacity;
    private final int heads;
    private final int headDim;
    private final int chunk;
    /** {@code [K][chunkCapacity]}, read when first needed. */
    private float[] scales;

    IndexReader(ShadowKvCache cache, SharedLayer shared, long chunkCapacity) {
        this.cache = cache;
        this.shared = shared;
        this.chunkCapacity = chunkCapacity;
        geometry = cache.options.geometry();
        device = cache.device;
        heads = geometry.keyValueHeads();
        headDim = geometry.headDim();
        chunk = geometry.chunk();
    }

    /** Puts tokens into rings, rotated keys and values. */
    void read(long first, long count, Ring keys, Ring values) {
        cache.cacheKernels.rebuildKeys(shared.coefficients, geometry.coefficientType(), shared.basis, heads, headDim,
                geometry.rank(), first, count, keys, cache.ropeTable);
        if (geometry.valueType() == geometry.storageType()) {
            copyValues(first, count, values);
        } else {
            for (long done = 0; done < count; done += geometry.window()) {
                scaleValues(first + done, Math.min(geometry.window(), count - done), values);
            }
        }
    }

    /** Values of a head lie token after token. */
    private void copyValues(long first, long count, Ring target) {
        long row = (long) headDim * geometry.valueType().bytes();
        for (int head = 0; head < heads; head++) {
            for (long done = 0; done < count;) {
                long to = (first + done) % target.capacity();
                long n = Math.min(count - done, target.capacity() - to);
                long from = head * chunkCapacity * chunk + first + done;
                device.copy(shared.values.asSlice(from * row, n * row),
                        target.buffer().slice((head * target.capacity() + to) * row, n * row));
                done += n;
            }
        }
    }

    private void scaleValues(long first, long count, Ring values) {
        device.synchronize();
        if (scales == null) {
            scales = Scratch.floats(shared.valueScales, Math.toIntExact(heads * chunkCapacity));
        }
        MemorySegment target = cache.scratch.hostValues;
        for (int head = 0; head < heads; head++) {
            for (long i = 0; i < count; i++) {
                long position = first + i;
                long entry = head * chunkCapacity + position / chunk;
                float scale = scales[Math.toIntExact(entry)];
                int from = (int) (position % chunk) * headDim;
                long to = (i * heads + head) * headDim;
                for (int d = 0; d < headDim; d++) {
                    target.setAtIndex(ValueLayout.JAVA_FLOAT, to + d, stored(entry, from + d) * scale);
                }
            }
        }
        DeviceBuffer rows = cache.scratch.values;
        device.copy(target.asSlice(0, 4 * count * heads * headDim), rows);
        cache.cacheKernels.storeTokens(null, Rows.of(rows, ElementType.F32), count, first, heads, headDim, null, null,
                values, geometry.storageType(), values.capacity(), cache.ropeTable);
    }

    /** An element of a chunk of a head in host memory, without its scale. */
    private float stored(long entry, int index) {
        ElementType type = geometry.valueType();
        int elements = chunk * headDim;
        return type.isPacked() ? PackedChunk.toFloat(shared.values, type, entry, elements, index)
                : Elements.toFloat(shared.values, type, entry * elements + index);
    }
}
