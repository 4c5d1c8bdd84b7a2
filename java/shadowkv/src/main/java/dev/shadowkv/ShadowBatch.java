package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

import dev.shadowkv.kernels.DecodeKernels;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayers;

/** Sessions of a shadow cache that decode together. */
final class ShadowBatch extends StepBatch {

    private final ShadowKvCache cache;
    private final ShadowLayers layers;
    private final SessionStates states;
    private final DeviceArena arena;
    private final DeviceBuffer counters;
    private final MemorySegment hostCounters;
    /** Which version of a session's addresses the table holds. */
    private final int[] versions;
    private final long capacityChunks;
    private long chunks;
    private long longest;
    /** Key/value heads, over steps, layers and sessions, that selected by landmark. */
    private long selections;
    private long reportedSelected;
    private long reportedFetched;

    ShadowBatch(ShadowKvCache cache, SessionBase[] members, long capacity) {
        super(cache, members, capacity);
        this.cache = cache;
        layers = new ShadowLayers(cache.device, cache.options.geometry(), entries());
        states = new SessionStates(cache.device, entries());
        arena = cache.device.newArena();
        counters = arena.allocate((long) members.length * DecodeKernels.COUNTER_BYTES);
        hostCounters = Arena.ofAuto().allocate(counters.byteSize(), 8);
        cache.device.fill(counters, 0);
        versions = new int[members.length];
        java.util.Arrays.fill(versions, -1);
        int chunk = cache.options.geometry().chunk();
        capacityChunks = (capacity + chunk - 1) / chunk;
    }

    @Override
    void changed(int row) {
        versions[row] = -1;
    }

    /** Brings the addresses of sessions up to date whose memory has moved. */
    private void refresh() {
        boolean changed = false;
        int size = members.length;
        for (int i = 0; i < size; i++) {
            ShadowSession session = (ShadowSession) members[i];
            if (session != null && versions[i] != session.version()) {
                for (int layer = 0; layer < cache.shape.layers; layer++) {
                    layers.set((long) layer * size + i, session.table(layer));
                }
                versions[i] = session.version();
                changed = true;
            }
        }
        if (changed) {
            layers.upload();
        }
    }

    @Override
    void describe() {
        refresh();
        int chunk = cache.options.geometry().chunk();
        int heads = cache.shape.keyValueHeads;
        chunks = 0;
        longest = 0;
        for (int layer = 0; layer < cache.shape.layers; layer++) {
            for (int i = 0; i < members.length; i++) {
                ShadowSession session = (ShadowSession) members[i];
                if (session == null) {
                    states.set((long) layer * members.length + i, 0, 0, 0, 0, 0);
                    continue;
                }
                LayerState state = session.state(layer);
                int indexed = state.indexedChunks(chunk);
                states.set((long) layer * members.length + i, state.length, state.recentBegin, indexed, state.outliers,
                        session.stamp());
                chunks = Math.max(chunks, indexed);
                longest = Math.max(longest, state.length);
                selections += indexed > 0 ? heads : 0;
            }
        }
        states.upload();
    }

    @Override
    void decode(int layer, ElementType type, DeviceBuffer queries, long queryStride, DeviceBuffer keys, long keyStride,
                DeviceBuffer values, long valueStride, DeviceBuffer output) {
        ShadowOptions o = cache.options;
        boolean capturing = cache.device.capturing();
        long first = (long) layer * members.length;
        cache.decodeKernels.decodeLayer(o.geometry(), members.length, type, queries, queryStride, keys, keyStride,
                values,
                valueStride, layers, first, states, first, cache.ropeTable, capturing ? capacity : longest,
                o.radiusWeight(), o.select(), o.shortlist(), capturing ? capacityChunks : chunks, o.tail(), output,
                counters);
    }

    @Override
    void finished() {
        if (!FetchEvent.on() || cache.device.capturing()) {
            return;
        }
        FetchEvent fetch = new FetchEvent();
        fetch.begin();
        Statistics now = statistics();
        fetch.selectedChunks = now.selectedChunks() - reportedSelected;
        fetch.fetchedChunks = now.fetchedChunks() - reportedFetched;
        fetch.bytes = fetch.fetchedChunks * cache.options.geometry().hostChunkBytes();
        fetch.hitRate = fetch.selectedChunks == 0 ? 1 : 1 - (double) fetch.fetchedChunks / fetch.selectedChunks;
        reportedSelected = now.selectedChunks();
        reportedFetched = now.fetchedChunks();
        fetch.commit();
    }

    @Override
    public Statistics statistics() {
        lifetime.check();
        cache.device.copy(counters, hostCounters);
        long selected = 0;
        long fetched = 0;
        double mass = 0;
        for (int i = 0; i < members.length; i++) {
            long at = (long) i * DecodeKernels.COUNTER_BYTES;
            selected += hostCounters.get(ValueLayout.JAVA_LONG, at);
            fetched += hostCounters.get(ValueLayout.JAVA_LONG, at + 8);
            mass += hostCounters.get(ValueLayout.JAVA_DOUBLE, at + 16);
        }
        return new Statistics(steps, selected, fetched, selections == 0 ? 0 : mass / selections);
    }

    @Override
    void free() {
        layers.close();
        states.close();
        arena.close();
    }

    /** Device bytes of a batch. */
    static long bytes(int batch, int layerCount) {
        return batch * (layerCount * ShadowLayers.entryBytes() + stateBytes(layerCount) + DecodeKernels.COUNTER_BYTES);
    }
}
