package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;

/**
 * Takes chunks out of the index of a layer and back into its recent window. Rows that the window still has are exact;
 * others are rebuilt from coefficients and fetched from host memory; chunks that were kept dense come back as they
 * were.
 */
final class Rewind {

    private final ShadowKvCache cache;
    private final ShadowOptions options;
    private final Geometry geometry;
    private final Device device;
    private final LayerState state;
    private final SharedLayer shared;
    private final OwnLayer own;
    private final long chunkCapacity;
    private final int heads;
    private final int headDim;
    private final int chunk;

    Rewind(ShadowKvCache cache, ShadowSession session, int layer) {
        this.cache = cache;
        options = cache.options;
        geometry = options.geometry();
        device = cache.device;
        state = session.state(layer);
        shared = session.shared.layers[layer];
        own = session.own[layer];
        chunkCapacity = session.layout.chunks;
        heads = geometry.keyValueHeads();
        headDim = geometry.headDim();
        chunk = geometry.chunk();
    }

    /** Moves the begin of the recent window back, after the layer's length was set. */
    void unfold(long begin) {
        long lost = Math.min(state.length, state.ringBegin) - begin;
        if (lost > 0) {
            if (state.exact) {
                ShadowSession.copyTokens(device, shared.exactKeyRows, own.keyRing, begin, lost, heads, headDim);
                ShadowSession.copyTokens(device, shared.exactValueRows, own.valueRing, begin, lost, heads, headDim);
            } else {
                cache.cacheKernels.rebuildKeys(shared.coefficients, shared.basis, heads, headDim, geometry.rank(),
                        begin,
                        lost, own.keyRing, cache.ropeTable);
                valuesBack(begin, lost);
                outliersBack(begin, lost);
            }
            state.ringBegin = begin;
        }
        if (state.exact) {
            state.outliers = Math.toIntExact(begin / chunk);
        } else {
            dropOutliers(Math.toIntExact(begin / chunk));
        }
        state.recentBegin = begin;
    }

    private void valuesBack(long first, long count) {
        device.synchronize();
        float[] scales = shared.valueScales == null ? null
                : Scratch.floats(shared.valueScales, Math.toIntExact(heads * chunkCapacity));
        MemorySegment target = cache.scratch.hostValues;
        ElementType type = geometry.valueType();
        for (int head = 0; head < heads; head++) {
            for (long i = 0; i < count; i++) {
                long position = first + i;
                long entry = head * chunkCapacity + position / chunk;
                float scale = scales == null ? 1 : scales[Math.toIntExact(entry)];
                long from = (entry * chunk + position % chunk) * headDim;
                long to = (i * heads + head) * headDim;
                for (int d = 0; d < headDim; d++) {
                    target.setAtIndex(ValueLayout.JAVA_FLOAT, to + d,
                            Elements.toFloat(shared.values, type, from + d) * scale);
                }
            }
        }
        DeviceBuffer values = cache.scratch.values;
        device.copy(target.asSlice(0, 4 * count * heads * headDim), values);
        cache.cacheKernels.storeTokens(null, Rows.of(values, ElementType.F32), count, first, heads, headDim, null, null,
                own.valueRing, geometry.storageType(), geometry.window(), cache.ropeTable);
    }

    private void outliersBack(long first, long count) {
        for (int head = 0; head < heads; head++) {
            for (int i = 0; i < state.chosen; i++) {
                outlierBack(head, state.chosenIds[head * state.chosen + i], i, first, count);
            }
            for (int i = 0; i < state.residualIds.length; i++) {
                outlierBack(head, state.residualIds[i], state.chosen + i, first, count);
            }
        }
    }

    private void outlierBack(int head, long id, long place, long first, long count) {
        long begin = Math.max(first, id * chunk);
        long end = Math.min(first + count, (id + 1) * chunk);
        if (begin < end) {
            copyRows(head, shared.outlierKeys, own.keyRing, place, begin, end);
            copyRows(head, shared.outlierValues, own.valueRing, place, begin, end);
        }
    }

    private void copyRows(int head, DeviceBuffer outliers, Ring ring, long place, long begin, long end) {
        long row = (long) headDim * ring.type().bytes();
        long from = ((head * (long) options.outlierCapacity() + place) * chunk + begin % chunk) * row;
        long to = (head * ring.capacity() + begin % ring.capacity()) * row;
        long bytes = (end - begin) * row;
        device.copy(outliers.slice(from, bytes), ring.buffer().slice(to, bytes));
    }

    /**
     * Forgets outliers that are no longer before the recent window. All heads must have the same number, so that heads
     * which lose fewer put their last ones back into the index.
     */
    private void dropOutliers(int chunks) {
        int kept = state.chosen;
        for (int head = 0; head < heads; head++) {
            kept = Math.min(kept, survivors(head, chunks));
        }
        if (kept < state.chosen) {
            int[] ids = new int[heads * kept];
            float[] radius = new float[heads * kept];
            for (int head = 0; head < heads; head++) {
                int from = head * state.chosen;
                System.arraycopy(state.chosenIds, from, ids, head * kept, kept);
                System.arraycopy(state.chosenRadius, from, radius, head * kept, kept);
                for (int i = kept; i < survivors(head, chunks); i++) {
                    float[] back = {state.chosenRadius[from + i]};
                    long entry = head * chunkCapacity + state.chosenIds[from + i];
                    device.copy(MemorySegment.ofArray(back), shared.radius.slice(4 * entry, 4));
                }
            }
            state.chosenIds = ids;
            state.chosenRadius = radius;
            state.chosen = kept;
        }
        int residual = 0;
        while (residual < state.residualIds.length && state.residualIds[residual] < chunks) {
            residual++;
        }
        state.residualIds = Arrays.copyOf(state.residualIds, residual);
        state.residualRadius = Arrays.copyOf(state.residualRadius, residual * heads);
        state.outliers = kept + residual;
    }

    private int survivors(int head, int chunks) {
        int count = 0;
        while (count < state.chosen && state.chosenIds[head * state.chosen + count] < chunks) {
            count++;
        }
        return count;
    }
}
