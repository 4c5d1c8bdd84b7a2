package dev.shadowkv;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayers;

/**
 * Attention of tokens that are appended to a sealed session, several at a time: each is a row of a decode step whose
 * session is this one, as long as it is with that token. So each gets, bit by bit, what it would as a step of its own, and
 * an answer does not depend on how its question came in. Rows that shared value slots would evict each other's chunks;
 * values are therefore read where they are, and what is in the slots stays.
 *
 * <p>One caller at a time.
 */
final class AppendedTokens {

    /** Most tokens at a time where the plan's batch is no larger. */
    private static final int FEW = 8;

    private final ShadowKvCache cache;
    private final Geometry inPlace;
    private final ShadowLayers layers;
    private final SessionStates states;
    private final int rows;

    AppendedTokens(ShadowKvCache cache) {
        this.cache = cache;
        rows = rows(cache.memoryPlan(), cache.options);
        inPlace = withoutSlots(cache.options.geometry());
        layers = new ShadowLayers(cache.device, inPlace, rows);
        states = new SessionStates(cache.device, rows);
    }

    /** Tokens at a time: what the workspace of the plan's batch suffices for anyway, or a few. */
    static int rows(MemoryPlan plan, ShadowOptions options) {
        return Math.min(options.foldTokens(), Math.max(FEW, Math.min(plan.sessions(), Geometry.MAX_BATCH)));
    }

    static Geometry withoutSlots(Geometry g) {
        return new Geometry(g.queryHeads(), g.keyValueHeads(), g.headDim(), g.chunk(), g.rank(), g.storageType(),
                g.valueType(), g.landmarkType(), g.window(), 0);
    }

    /** Device bytes of the tables. */
    static long bytes(int rows) {
        return rows * (ShadowLayers.entryBytes() + StepBatch.stateBytes(1));
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
            for (int i = 0; i < n; i++) {
                layers.set(i, session.table(layer));
                states.set(i, state.length + 1 + i, state.recentBegin, indexed, state.outliers, session.stamp());
            }
            layers.upload();
            states.upload();
            session.grow(layer, n);
            cache.decodeKernels.decodeLayer(inPlace, n, queries.type(), ShadowSession.from(queries, done, queryWidth).buffer(),
                    queries.stride(), ShadowSession.from(keys, done, keyWidth).buffer(), keys.stride(),
                    ShadowSession.from(values, done, keyWidth).buffer(), values.stride(), layers, 0, states, 0,
                    cache.ropeTable, state.length, o.radiusWeight(), o.select(), o.shortlist(), indexed, o.tail(),
                    output.slice(done * queryWidth * e), null);
            done += n;
        }
    }

    void close() {
        layers.close();
        states.close();
    }
}
