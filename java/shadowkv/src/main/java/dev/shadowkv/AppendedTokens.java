package dev.shadowkv;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayer;
import dev.shadowkv.kernels.ShadowLayers;

/**
 * Attention of tokens that are appended to a sealed session, several at a time: each is a row of a decode step whose
 * session is this one, as long as it is with that token. So each gets, bit by bit, what it would as a step of its own, and
 * an answer does not depend on how its question came in. Rows that shared value slots would evict each other's chunks: in
 * a cache with slots a few rows are taken at a time, with slots of their own that are empty at first, and what is in the
 * session's slots stays. Without slots, or with slots that are there for keys, values are read where they are.
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
    private final int rows;
    /** {@code [rows][K][slots][C][D]} and {@code [rows][K][slots]}; null where values are read in place. */
    private final DeviceBuffer slotValues;
    private final DeviceBuffer slotChunk;
    private final DeviceBuffer slotStamp;

    AppendedTokens(ShadowKvCache cache) {
        this.cache = cache;
        rows = rows(cache.memoryPlan(), cache.options);
        geometry = geometry(cache.options);
        boolean slots = geometry.slots() > 0;
        slotValues = slots ? cache.arena.allocate(rows * geometry.slotValueBytes()) : null;
        slotChunk = slots ? cache.arena.allocate(rows * tableBytes(geometry)) : null;
        slotStamp = slots ? cache.arena.allocate(rows * tableBytes(geometry)) : null;
        layers = new ShadowLayers(cache.device, geometry, rows);
        states = new SessionStates(cache.device, rows);
    }

    /** Tokens at a time: what the workspace of the plan's batch suffices for anyway, or a few. */
    static int rows(MemoryPlan plan, ShadowOptions options) {
        int most = ownSlots(options) ? FEW : Math.max(FEW, Math.min(plan.sessions(), Geometry.MAX_BATCH));
        return Math.min(options.foldTokens(), most);
    }

    /** Of a row: without slots, or with as many as a step selects. */
    static Geometry geometry(ShadowOptions options) {
        Geometry g = options.geometry();
        return new Geometry(g.queryHeads(), g.keyValueHeads(), g.headDim(), g.chunk(), g.rank(), g.storageType(),
                g.valueType(), g.landmarkType(), g.coefficientType(), g.window(),
                ownSlots(options) ? options.select() : 0);
    }

    private static boolean ownSlots(ShadowOptions options) {
        Geometry g = options.geometry();
        return g.slots() > 0 && !options.keepKeys();
    }

    /** Device bytes of the tables, and of the slots where rows have them. */
    static long bytes(MemoryPlan plan, ShadowOptions options) {
        Geometry g = geometry(options);
        return rows(plan, options)
                * (ShadowLayers.entryBytes() + StepBatch.stateBytes(1) + g.slotValueBytes() + 2 * tableBytes(g));
    }

    private static long tableBytes(Geometry g) {
        return 4L * g.keyValueHeads() * g.slots();
    }

    /** What the device is to know of a layer for a row. */
    private ShadowLayer table(ShadowLayer layer, int row) {
        if (slotValues == null) {
            return layer;
        }
        long values = geometry.slotValueBytes();
        long table = tableBytes(geometry);
        return new ShadowLayer(layer.coefficients(), layer.basis(), layer.landmarks(), layer.landmarkScales(), layer.radius(),
                layer.outlierKeys(), layer.outlierValues(), layer.recentKeys(), layer.recentValues(), layer.values(),
                layer.valueScales(), slotValues.slice(row * values, values), slotChunk.slice(row * table, table),
                slotStamp.slice(row * table, table), layer.moments(), layer.slotKeys(), layer.valueBasis(),
                layer.chunkCapacity(), layer.outlierCapacity());
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
                layers.set(i, table(session.table(layer), i));
                states.set(i, state.length + 1 + i, state.recentBegin, indexed, state.outliers, session.stamp());
            }
            layers.upload();
            states.upload();
            if (slotValues != null) {
                // They hold chunks of whatever layer and session had the rows before.
                cache.device.fill(slotChunk, 0xff);
                cache.device.fill(slotStamp, 0);
            }
            session.grow(layer, n);
            cache.decodeKernels.decodeLayer(geometry, n, queries.type(), ShadowSession.from(queries, done, queryWidth).buffer(),
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
