package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.MomentChange;
import dev.shadowkv.kernels.Ring;

/**
 * Takes chunks out of the index of a layer and back into its recent window. Rows that the window still has are exact;
 * others are rebuilt from coefficients and fetched from host memory; chunks that were kept dense come back as they
 * were.
 */
final class Rewind {

    private final Moments moments;
    private final IndexReader reader;
    private final ShadowOptions options;
    private final Device device;
    private final LayerState state;
    private final SharedLayer shared;
    private final OwnLayer own;
    private final long chunkCapacity;
    private final int heads;
    private final int headDim;
    private final int chunk;

    Rewind(ShadowKvCache cache, Moments moments, ShadowSession session, int layer) {
        this.moments = moments;
        options = cache.options;
        Geometry geometry = options.geometry();
        device = cache.device;
        state = session.state(layer);
        shared = session.shared.layers[layer];
        own = session.own[layer];
        chunkCapacity = session.layout.chunks;
        reader = new IndexReader(cache, shared, chunkCapacity);
        heads = geometry.keyValueHeads();
        headDim = geometry.headDim();
        chunk = geometry.chunk();
    }

    /** Moves the begin of the recent window back, after the layer's length was set. */
    void unfold(long begin) {
        if (state.exact) {
            unfoldExact(begin);
            return;
        }
        long leaving = (state.recentBegin - begin) / chunk;
        long staying = begin / chunk;
        boolean anew = leaving > staying;
        if (!anew) {
            takeAway(begin);
        }
        long lost = Math.min(state.length, state.ringBegin) - begin;
        if (lost > 0) {
            reader.read(begin, lost, own.keyRing, own.valueRing);
            outliersBack(begin, lost);
            state.ringBegin = begin;
        }
        dropOutliers(Math.toIntExact(staying), !anew);
        if (anew) {
            moments.clear(shared);
            moments.updateFromIndex(reader, shared, 0, staying, chunkCapacity, MomentChange.ADD);
        }
        state.recentBegin = begin;
    }

    private void unfoldExact(long begin) {
        long lost = Math.min(state.length, state.ringBegin) - begin;
        if (lost > 0) {
            ShadowSession.copyTokens(device, shared.exactKeyRows, own.keyRing, begin, lost, heads, headDim);
            ShadowSession.copyTokens(device, shared.exactValueRows, own.valueRing, begin, lost, heads, headDim);
            state.ringBegin = begin;
        }
        state.outliers = Math.toIntExact(begin / chunk);
        state.recentBegin = begin;
    }

    /**
     * Takes what leaves the index away from the moments: as it was added, where the window still has it; otherwise as it
     * is in the index. Before the window changes, and while the radii still say what is an outlier.
     */
    private void takeAway(long begin) {
        long end = state.recentBegin / chunk;
        long intact = Math.min(end, (Math.max(begin, state.ringBegin) + chunk - 1) / chunk);
        moments.updateFromIndex(reader, shared, begin / chunk, intact, chunkCapacity, MomentChange.SUBTRACT);
        if (intact < end) {
            moments.update(shared, own.keyRing, own.valueRing, intact, end - intact, chunkCapacity,
                    MomentChange.SUBTRACT);
        }
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
     *
     * @param addBack whether the moments are to have those that return
     */
    private void dropOutliers(int chunks, boolean addBack) {
        int kept = state.chosen;
        for (int head = 0; head < heads; head++) {
            kept = Math.min(kept, survivors(head, chunks));
        }
        if (kept < state.chosen) {
            int[] ids = new int[heads * kept];
            float[] radius = new float[heads * kept];
            int[] returning = new int[heads];
            for (int head = 0; head < heads; head++) {
                int from = head * state.chosen;
                System.arraycopy(state.chosenIds, from, ids, head * kept, kept);
                System.arraycopy(state.chosenRadius, from, radius, head * kept, kept);
                returning[head] = survivors(head, chunks) - kept;
                for (int i = kept; i < kept + returning[head]; i++) {
                    float[] back = {state.chosenRadius[from + i]};
                    long entry = head * chunkCapacity + state.chosenIds[from + i];
                    device.copy(MemorySegment.ofArray(back), shared.radius.slice(4 * entry, 4));
                }
            }
            if (addBack) {
                moments.addOutliers(shared, kept, returning);
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
