package dev.shadowkv;

import dev.shadowkv.kernels.DenseLayers;
import dev.shadowkv.kernels.SessionStates;

/** Sessions of a dense cache that decode together. */
final class DenseBatch extends StepBatch {

    private final DenseKvCache cache;
    private final DenseLayers layers;
    private final SessionStates states;
    private long longest;
    private boolean stale;

    DenseBatch(DenseKvCache cache, SessionBase[] members, long capacity) {
        super(cache, members, capacity);
        this.cache = cache;
        layers = new DenseLayers(cache.device, cache.geometry, entries());
        states = new SessionStates(cache.device, members.length);
        for (int i = 0; i < members.length; i++) {
            changed(i);
        }
    }

    @Override
    void changed(int row) {
        DenseSession session = (DenseSession) members[row];
        if (session == null) {
            return;
        }
        for (int layer = 0; layer < cache.shape.layers; layer++) {
            layers.set((long) layer * members.length + row, session.layer(layer));
        }
        stale = true;
    }

    @Override
    void describe() {
        if (stale) {
            layers.upload();
            stale = false;
        }
        longest = 0;
        for (int i = 0; i < members.length; i++) {
            long length = members[i] == null ? 0 : members[i].length(0);
            longest = Math.max(longest, length);
            states.set(i, length, 0, 0, 0, (int) steps);
        }
        states.upload();
    }

    @Override
    void decode(int layer, ElementType type, DeviceBuffer queries, long queryStride, DeviceBuffer keys, long keyStride,
                DeviceBuffer values, long valueStride, DeviceBuffer output) {
        long bound = cache.device.capturing() ? capacity : longest;
        cache.decodeKernels.denseDecodeLayer(cache.geometry, members.length, type, queries, queryStride, keys,
                keyStride,
                values, valueStride, layers, (long) layer * members.length, states, 0, cache.ropeTable, bound, bound,
                output);
    }

    @Override
    void finished() {
        // Nothing is counted.
    }

    @Override
    public Statistics statistics() {
        lifetime.check();
        cache.device.synchronize();
        return new Statistics(steps, 0, 0, 0);
    }

    @Override
    void free() {
        layers.close();
        states.close();
    }
}
