package dev.shadowkv;

import dev.shadowkv.kernels.DecodeKernels;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayers;

/**
 * Attention of tokens that are appended to a sealed session: each is a row of a decode step whose session is this one, as
 * long as it is with that token. So each gets, bit by bit, what it would as a step of its own, and an answer does not
 * depend on how its question came in.
 *
 * <p>On a CPU several go together. Rows that shared value slots would evict each other's chunks, so values are then read
 * where they are, and what is in the slots stays. On a GPU they go one by one, through the slots: together, some rows
 * came out wrong there, for a reason that is not found.
 *
 * <p>One caller at a time.
 */
final class AppendedTokens {

    /** Most tokens at a time where the plan's batch is no larger. */
    private static final int FEW = 8;

    private final ShadowKvCache cache;
    private final Geometry geometry;
    private final ShadowLayers layers;
    private final SessionStates states;
    private final DeviceArena arena;
    private final DeviceBuffer counters;
    private final int rows;

    AppendedTokens(ShadowKvCache cache) {
        this.cache = cache;
        Device device = cache.device;
        rows = rows(device, cache.memoryPlan(), cache.options);
        geometry = geometry(device, cache.options.geometry());
        layers = new ShadowLayers(device, geometry, rows);
        states = new SessionStates(device, rows);
        arena = device.newArena();
        counters = arena.allocate((long) rows * DecodeKernels.COUNTER_BYTES);
        device.fill(counters, 0);
    }

    /** Tokens at a time: what the workspace of the plan's batch suffices for anyway, or a few. */
    static int rows(Device device, MemoryPlan plan, ShadowOptions options) {
        return device.isCpu()
                ? Math.min(options.foldTokens(), Math.max(FEW, Math.min(plan.sessions(), Geometry.MAX_BATCH)))
                : 1;
    }

    static Geometry geometry(Device device, Geometry g) {
        return device.isCpu()
                ? new Geometry(g.queryHeads(), g.keyValueHeads(), g.headDim(), g.chunk(), g.rank(), g.storageType(),
                        g.valueType(), g.landmarkType(), g.window(), 0)
                : g;
    }

    /** Device bytes of the tables. */
    static long bytes(int rows) {
        return rows * (ShadowLayers.entryBytes() + StepBatch.stateBytes(1) + DecodeKernels.COUNTER_BYTES);
    }

    /** Adds tokens to a sealed layer and attends over everything up to and with each. */
    void attend(ShadowSession session, int layer, long count, Rows queries, Rows keys, Rows values,
            DeviceBuffer output) {
        long keyWidth = cache.shape.keyWidth();
        long queryWidth = cache.shape.queryWidth();
        long e = queries.type().bytes();
        ShadowOptions o = cache.options;
        LayerState state = session.state(layer);
        for (long done = 0; done < count;) {
            cache.index.makeRoom(session, layer);
            long room = o.geometry().window() - (state.length - state.recentBegin);
            int n = (int) Math.min(Math.min(count - done, room), rows);
            int indexed = state.indexedChunks(o.geometry().chunk());
            session.countStep();
            for (int i = 0; i < n; i++) {
                layers.set(i, session.table(layer));
                states.set(i, state.length + 1 + i, state.recentBegin, indexed, state.outliers, session.stamp());
            }
            layers.upload();
            states.upload();
            session.grow(layer, n);
            cache.decodeKernels.decodeLayer(geometry, n, queries.type(), ShadowSession.from(queries, done, queryWidth).buffer(),
                    queries.stride(), ShadowSession.from(keys, done, keyWidth).buffer(), keys.stride(),
                    ShadowSession.from(values, done, keyWidth).buffer(), values.stride(), layers, 0, states, 0,
                    cache.ropeTable, state.length, o.radiusWeight(), o.select(), o.shortlist(), indexed,
                    output.slice(done * queryWidth * e), counters);
            done += n;
        }
    }

    void close() {
        layers.close();
        states.close();
        arena.close();
    }
}
