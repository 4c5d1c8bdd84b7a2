package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Map;
import java.util.Optional;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Workspaces;

/**
 * A cache by the ShadowKV method (Sun et al., ICLR 2025, arXiv 2410.21465): keys as a low-rank factorization on the
 * device, values in pinned host memory, a landmark a chunk to decide which chunks a query needs, and outlier chunks and
 * recent tokens dense.
 *
 * <p>A prompt lies in staging memory until its layer is sealed. A session whose indexed tokens would be fewer than the
 * budget is kept dense and is exact; it changes over by itself when it outgrows that. New tokens enter the recent
 * window; when it is full, its oldest chunks are folded into the index, so that generation ends only at the session's
 * capacity.
 *
 * <p>Answers do not depend on how a prompt was cut into appends, on the other sessions of a batch, on forks, or on what
 * was resident.
 */
public final class ShadowKvCache extends CacheBase {

    /** Fewest chunks of a shortlist. */
    public static final int LEAST_SHORTLIST = 128;

    final ShadowOptions options;
    final ShadowIndex index;
    final Scratch scratch;
    final AppendedTokens appended;

    private final PinnedArena pinned;
    private final DeviceBuffer sharedPool;
    private final DeviceBuffer ownPool;
    private final MemorySegment pinnedPool;
    private final SlabPool sharedSlabs;
    private final SlabPool ownSlabs;
    private final SlabPool pinnedSlabs;
    private final Deque<Staging> staging = new ArrayDeque<>();

    private ShadowKvCache(CacheShape shape, ShadowOptions options, MemoryPlan plan) {
        super(shape, plan, "ShadowKvCache");
        this.options = options;
        PinnedArena host = device.newPinnedArena();
        pinned = host;
        try {
            scratch = new Scratch(arena, shape, options);
            index = new ShadowIndex(this);
            ShadowLayout layout = new ShadowLayout(options, plan.tokens());
            long shared = plan.sessions() * shape.layers * layout.sharedLayerBytes;
            long own = plan.sessions() * shape.layers * layout.ownLayerBytes;
            sharedPool = arena.allocate(shared);
            ownPool = arena.allocate(own);
            pinnedPool = host.allocate(plan.pinnedBytes(), 64);
            sharedSlabs = new SlabPool(shared);
            ownSlabs = new SlabPool(own);
            pinnedSlabs = new SlabPool(plan.pinnedBytes());
            for (int i = 0; i < plan.stagingLayers(); i++) {
                staging.add(new Staging(arena.allocate(Staging.bytes(shape, plan.stagingTokens())), shape,
                        plan.stagingTokens()));
            }
            appended = new AppendedTokens(this);
            new Workspaces(device).reserve(plan.workspaceBytes());
        } catch (RuntimeException e) {
            host.close();
            close();
            throw e;
        }
    }

    /** Starts building a cache. */
    public static Builder builder(Device device) {
        return new Builder(device);
    }

    /** Tokens that a step selects for each key/value head. */
    public int budget() {
        return options.select() * options.geometry().chunk();
    }

    /**
     * Chunks that a rerank shortlists for each key/value head: so many times what is selected, but at least
     * {@value #LEAST_SHORTLIST} and at most {@link Geometry#MAX_SELECT}. What a landmark may miss does not become fewer with
     * a smaller budget.
     *
     * @param factor 1 or less: no rerank, and 0 chunks
     * @param select chunks that a step selects
     */
    public static int shortlist(double factor, int select) {
        return factor > 1 ? (int) Math.clamp(Math.ceil(factor * select), LEAST_SHORTLIST, Geometry.MAX_SELECT) : 0;
    }

    /** Chunks of each key/value head that stay dense where a builder is told no number, for a budget in tokens. */
    public static int usualOutliers(int budget) {
        return Math.max(1, 24 * budget / 1024);
    }

    /** Shapes, types and sizes of the layers' memory. */
    public Geometry geometry() {
        return options.geometry();
    }

    @Override
    KvSession openSession(long capacity) {
        ShadowLayout layout = new ShadowLayout(options, capacity);
        return open(layout, newShared(layout));
    }

    private ShadowSession open(ShadowLayout layout, SharedSlab shared) {
        long bytes = shape.layers * layout.ownLayerBytes;
        long offset = ownSlabs.allocate(bytes);
        if (offset < 0) {
            release(shared, layout);
            throw outOfPool(device.isCpu() ? Status.OUT_OF_HOST_MEMORY : Status.OUT_OF_DEVICE_MEMORY,
                    "recent window and slots", layout, bytes, ownSlabs);
        }
        return new ShadowSession(this, layout, shared, ownPool.slice(offset, bytes), offset);
    }

    ShadowSession openFork(ShadowSession session) {
        session.shared.users++;
        return open(session.layout, session.shared);
    }

    private SharedSlab newShared(ShadowLayout layout) {
        long bytes = shape.layers * layout.sharedLayerBytes;
        long offset = sharedSlabs.allocate(bytes);
        if (offset < 0) {
            throw outOfPool(device.isCpu() ? Status.OUT_OF_HOST_MEMORY : Status.OUT_OF_DEVICE_MEMORY, "index", layout,
                    bytes, sharedSlabs);
        }
        long pinnedBytes = shape.layers * layout.pinnedLayerBytes;
        long pinnedOffset = pinnedSlabs.allocate(pinnedBytes);
        if (pinnedOffset < 0) {
            sharedSlabs.release(offset, bytes);
            throw outOfPool(Status.OUT_OF_HOST_MEMORY, "values", layout, pinnedBytes, pinnedSlabs);
        }
        return new SharedSlab(sharedPool.slice(offset, bytes), offset, pinnedPool.asSlice(pinnedOffset, pinnedBytes),
                pinnedOffset, layout, options, shape.layers);
    }

    private ShadowKvException outOfPool(Status status, String what, ShadowLayout layout, long bytes, SlabPool pool) {
        return new ShadowKvException(status, "open session", "the " + what + " of a session of " + layout.capacity
                + " tokens takes " + bytes + " bytes, but the largest free range of the pool has " + pool.largest());
    }

    /** Before a change of what forks share: gives the session a copy of its own if others use it too. */
    void makeWritable(ShadowSession session) {
        SharedSlab old = session.shared;
        if (old.users == 1) {
            return;
        }
        SharedSlab copy = newShared(session.layout);
        device.copy(old.device, copy.device);
        // Values on their way to the host must have arrived before they are copied.
        device.synchronize();
        MemorySegment.copy(old.pinned, 0, copy.pinned, 0, copy.pinned.byteSize());
        old.users--;
        session.shared = copy;
        session.moved();
    }

    void release(ShadowSession session) {
        // Work under way may still use the memory; what comes next on the stream comes after it, but host memory may
        // be written by another session's copy at once.
        device.synchronize();
        release(session.shared, session.layout);
        ownSlabs.release(session.ownOffset, shape.layers * session.layout.ownLayerBytes);
    }

    private void release(SharedSlab shared, ShadowLayout layout) {
        if (--shared.users == 0) {
            sharedSlabs.release(shared.deviceOffset, shape.layers * layout.sharedLayerBytes);
            pinnedSlabs.release(shared.pinnedOffset, shape.layers * layout.pinnedLayerBytes);
        }
    }

    Staging takeStaging(int layer) {
        Staging free = staging.poll();
        if (free == null) {
            throw new IllegalStateException("no staging memory is left for layer " + layer + ": all "
                    + memoryPlan().stagingLayers() + " hold layers that are not sealed; seal some, or plan more with"
                    + " MemoryPlan.withStaging");
        }
        return free;
    }

    void giveStaging(Staging memory) {
        memory.sentChunks = 0;
        staging.push(memory);
    }

    @Override
    StepBatch newBatch(SessionBase[] members, long capacity) {
        return new ShadowBatch(this, members, capacity);
    }

    @Override
    Map<String, String> identity() {
        Map<String, String> fields = super.identity();
        Geometry g = options.geometry();
        fields.put("rank", Integer.toString(options.rank()));
        fields.put("basisReserve", Integer.toString(options.basisReserve()));
        fields.put("chunk", Integer.toString(g.chunk()));
        fields.put("budget", Integer.toString(options.budget()));
        fields.put("outliers", Integer.toString(options.outliers()));
        fields.put("residualOutliers", Integer.toString(options.residualOutliers()));
        fields.put("local", Integer.toString(options.local()));
        fields.put("window", Integer.toString(g.window()));
        fields.put("valueType", g.valueType().name());
        fields.put("landmarkType", g.landmarkType().name());
        fields.put("coefficientType", g.coefficientType().name());
        fields.put("tail", Boolean.toString(options.tail()));
        fields.put("predictDropped", Boolean.toString(options.predictDropped()));
        fields.put("balanceHeads", Boolean.toString(options.balanceHeads()));
        return fields;
    }

    @Override
    void closePools() {
        // Null when the constructor failed before it.
        if (appended != null) {
            appended.close();
        }
        pinned.close();
    }

    /** Options of a shadow cache. */
    public static final class Builder extends CacheBuilder<Builder> {

        private int rank = 160;
        private int basisReserve;
        private int chunk = 8;
        private int budget = 2048;
        private int outliers = -1;
        private int residualOutliers = 16;
        private float residualLimit = 0.5f;
        private int local = 4;
        private int window;
        private float radiusWeight = 0.5f;
        private double rerank;
        private Optional<Boolean> tail = Optional.empty();
        private Optional<Boolean> predictDropped = Optional.empty();
        private boolean balanceHeads = true;
        private int slots = -1;
        private boolean keepKeys;
        private ElementType valueType;
        private ElementType landmarkType;
        private ElementType coefficientType;

        private Builder(Device device) {
            super(device);
        }

        /** Rank of the keys, 16 to 256 and at most the joint width of the key/value heads. Default 160. */
        public Builder rank(int directions) {
            rank = directions;
            return this;
        }

        /**
         * Directions kept free for what only later tokens need; rank and reserve are at most 256, with coefficients of I8 the
         * reserve at most four times the rank. Default 0.
         */
        public Builder basisReserve(int directions) {
            basisReserve = directions;
            return this;
        }

        /** Tokens a chunk, 8 or 16. Default 8. */
        public Builder chunk(int tokens) {
            chunk = tokens;
            return this;
        }

        /** Tokens that a step selects for each key/value head, rounded down to whole chunks. Default 2048. */
        public Builder budget(int tokens) {
            budget = tokens;
            return this;
        }

        /** Chunks a key/value head that stay dense. Default 24 for each 1024 tokens of budget. */
        public Builder outliers(int chunks) {
            if (chunks < 0) {
                throw new IllegalArgumentException("outliers must not be negative: " + chunks);
            }
            outliers = chunks;
            return this;
        }

        /** Later chunks that may stay dense because the basis misses them. Default 16. */
        public Builder residualOutliers(int chunks) {
            residualOutliers = chunks;
            return this;
        }

        /**
         * Mean share of a later chunk's key energy that the basis may miss before it stays dense; 1: any. Default 0.5.
         */
        public Builder residualLimit(float share) {
            residualLimit = share;
            return this;
        }

        /** Chunks before the end that always stay dense. Default 4. */
        public Builder local(int chunks) {
            local = chunks;
            return this;
        }

        /** Tokens that the dense recent window holds. Default: the local chunks and 64 tokens. */
        public Builder window(int tokens) {
            window = tokens;
            return this;
        }

        /** Weight of a landmark's radius in its logit; 0 is the paper's method. Default 0.5. */
        public Builder radiusWeight(float weight) {
            radiusWeight = weight;
            return this;
        }

        /**
         * Shortlists by landmark, as {@link ShadowKvCache#shortlist} says, and picks the budget from it by exact attention; 1
         * or less: off. Default: off.
         */
        public Builder rerank(double factor) {
            rerank = factor;
            return this;
        }

        /**
         * Whether the indexed tokens that a step does not select take part in its softmax all the same: with the weight
         * that their landmarks say, and the value that they would have on average for the query if keys and values were
         * jointly normal, {@code mean(v) + cov(v, k) q / sqrt(D)}. Takes {@code K*(D*D + 2*D + 4)} floats a layer. The
         * paper's method leaves them out. Sessions short enough to be exact have no such tokens. Default: as there is a
         * rerank; without one, what landmarks miss weighs more than what the rest is worth.
         */
        public Builder tail(boolean takesPart) {
            tail = Optional.of(takesPart);
            return this;
        }

        /**
         * Whether the tokens that reranking drops take part with the values that their coefficients predict, {@code v ~ a R},
         * at the exact weight of their rebuilt keys, and not with the tail's value. R is fitted when a layer is sealed, by least
         * squares over its tokens, and takes the memory of one more basis a layer. Needs a rerank and a tail. Default: as there
         * are both.
         */
        public Builder predictDropped(boolean predicts) {
            predictDropped = Optional.of(predicts);
            return this;
        }

        /**
         * Whether the keys of the heads of a layer, which share one factorization, are brought to the same length for it, by
         * powers of two. Without, as in the paper's method, the directions go to the heads of the longest keys, and heads
         * of short ones, whose attention may matter as much, are rebuilt badly. Default: true.
         */
        public Builder balanceHeads(boolean balances) {
            balanceHeads = balances;
            return this;
        }

        /** Value slots a key/value head; 0 reads values in place. Default: 0 on a CPU, the budget's chunks on a GPU. */
        public Builder slots(int count) {
            if (count < 0) {
                throw new IllegalArgumentException("slots must not be negative: " + count);
            }
            slots = count;
            return this;
        }

        /**
         * Whether rebuilt keys stay in the slots from step to step, so that a step rebuilds only those of the chunks that are
         * not there. On a CPU, where values are read in place; the slots default to what a step scores by its keys: the
         * shortlist's chunks, or the budget's. Default: false.
         */
        public Builder keepKeys(boolean keep) {
            keepKeys = keep;
            return this;
        }

        /**
         * How values are kept in host memory: the storage type, F8_E4M3, F12_E4M7 or F6_E2M3. The last two are packed and cross
         * the link to a GPU so, but lie in the slots as BF16 and F8_E4M3; on a GPU they need slots. Default: the storage type.
         */
        public Builder valueType(ElementType type) {
            valueType = type;
            return this;
        }

        /** How landmarks are kept: the storage type or I8. Default: the storage type. */
        public Builder landmarkType(ElementType type) {
            landmarkType = type;
            return this;
        }

        /**
         * How the coefficients of the keys are kept, the largest part of what a long session has on the device: the storage
         * type or I8, with one scale a direction, a 127th of twice its largest coefficient. Default: the storage type.
         */
        public Builder coefficientType(ElementType type) {
            coefficientType = type;
            return this;
        }

        @Override
        public MemoryPlan plan() {
            CacheShape complete = shape.complete();
            return plan(complete, options(complete));
        }

        @Override
        public ShadowKvCache build() {
            CacheShape complete = shape.complete();
            ShadowOptions options = options(complete);
            return new ShadowKvCache(complete, options, plan(complete, options));
        }

        private ShadowOptions options(CacheShape s) {
            Limits.check("chunk", chunk == 8 || chunk == 16, "8 or 16", chunk);
            int select = budget / chunk;
            Limits.check("budget", budget >= chunk, "at least one chunk of " + chunk + " tokens", budget);
            Limits.check("budget", select <= Geometry.MAX_SELECT,
                    "at most " + Geometry.MAX_SELECT + " chunks of " + chunk + " tokens", budget);
            int width = s.keyWidth();
            int highest = Math.min(Geometry.MAX_RANK, width);
            int lowest = Math.min(Geometry.MIN_RANK, width);
            Limits.check("rank", rank >= lowest && rank <= highest, "from " + lowest + " to " + highest, rank);
            Limits.check("basisReserve", basisReserve >= 0 && rank + basisReserve <= highest,
                    "from 0 to " + (highest - rank), basisReserve);
            // Keys narrower than the smallest rank of the kernels have all their directions; the rest stays zero.
            int reserve = Math.max(basisReserve, Geometry.MIN_RANK - rank);
            // Else columns of the reserve would be refinements of directions that the prompt has.
            Limits.check("basisReserve", coefficientType != ElementType.I8 || reserve <= 4 * rank,
                    "at most four times the rank " + rank + " with coefficients of I8", reserve);
            Limits.check("local", local >= 0 && local <= 1024, "from 0 to 1024", local);
            int recent = window == 0 ? local * chunk + 64 : window;
            Limits.check("window", recent > local * chunk && recent % chunk == 0,
                    "a multiple of chunk " + chunk + " and more than the " + local + " local chunks", recent);
            Limits.check("residualOutliers", residualOutliers >= 0, "not negative", residualOutliers);
            Limits.check("residualLimit", residualLimit >= 0, "not negative", residualLimit);
            Limits.check("radiusWeight", Float.isFinite(radiusWeight), "finite", radiusWeight);
            int shortlist = shortlist(rerank, select);
            Limits.check("rerank", !(rerank > 1) || shortlist > select,
                    "such that the shortlist has more chunks than the budget and at most " + Geometry.MAX_SELECT,
                            rerank);
            boolean leftOutTakesPart = tail.orElse(shortlist > 0);
            boolean canPredict = shortlist > 0 && leftOutTakesPart;
            boolean predicts = predictDropped.orElse(canPredict);
            Limits.check("predictDropped", !predicts || canPredict, "false, except with a rerank and a tail", predicts);
            int scored = Math.max(select, shortlist);
            int slotCount = slots >= 0 ? slots : !s.device.isCpu() ? select : keepKeys ? scored : 0;
            Limits.check("slots", slotCount == 0 || slotCount >= select && slotCount <= Geometry.MAX_SLOTS,
                    "0, or from the budget's " + select + " chunks to " + Geometry.MAX_SLOTS, slotCount);
            Limits.check("keepKeys", !keepKeys || s.device.isCpu() && slotCount >= scored,
                    "false, except on a CPU with slots for the " + scored + " chunks that a step scores by their keys",
                    keepKeys);
            ElementType values = valueType == null ? s.storageType : valueType;
            Limits.check("slots", s.device.isCpu() || slotCount > 0 || !values.isPacked(),
                    "at least the budget's " + select + " chunks, as " + values + " values on a GPU are used from slots alone", slotCount);
            Geometry geometry = new Geometry(s.queryHeads, s.keyValueHeads, s.headDim, chunk, rank + reserve,
                    s.storageType, values,
                    landmarkType == null ? s.storageType : landmarkType,
                    coefficientType == null ? s.storageType : coefficientType, recent, slotCount);
            int dense = outliers >= 0 ? outliers : usualOutliers(budget);
            return new ShadowOptions(geometry, rank, reserve, budget, dense, residualOutliers, residualLimit, local,
                    radiusWeight, shortlist, leftOutTakesPart, predicts, balanceHeads, keepKeys);
        }

        private static MemoryPlan plan(CacheShape s, ShadowOptions o) {
            MemoryPlan wish = s.memory;
            int stagingLayers = wish.stagingLayers() == 0 ? s.layers : wish.stagingLayers();
            int batch = Math.min(wish.sessions(), Geometry.MAX_BATCH);
            Geometry g = o.geometry();
            ShadowLayout layout = new ShadowLayout(o, wish.tokens());
            long tables = CacheBase.commonBytes(s, wish) + Scratch.bytes(s, o) + ShadowBatch.bytes(batch, s.layers)
                    + AppendedTokens.bytes(wish, o);
            Workspaces w = new Workspaces(s.device);
            int prefill = CacheBase.prefillTokens(wish);
            long workspace = w.decodeLayer(g, batch, s.inputType, s.rope.rotaryDim(), o.select(), o.shortlist(),
                    layout.chunks, o.tail());
            workspace = Math.max(workspace, w.decodeLayer(AppendedTokens.geometry(o), AppendedTokens.rows(wish, o),
                    s.inputType, s.rope.rotaryDim(), o.select(), o.shortlist(), layout.chunks, o.tail()));
            workspace = Math.max(workspace, w.prefillAttention(g, s.inputType, prefill, wish.stagingTokens() - prefill,
                    wish.stagingTokens()));
            long dense = Math.max(wish.stagingTokens(), Scratch.denseTokens(o, layout));
            workspace = Math.max(workspace, w.lowRankFactor(g.storageType(), g.coefficientType(), dense,
                    g.keyValueHeads(), g.headDim(), o.rank(), g.rank()));
            workspace = Math.max(workspace, w.lowRankProject(g.storageType(), g.coefficientType(), g.window(),
                    g.keyValueHeads(), g.headDim(), g.rank()));
            if (o.tail()) {
                workspace = Math.max(workspace, w.momentUpdate(g, dense / g.chunk()));
            }
            if (o.predictDropped()) {
                workspace = Math.max(workspace, w.valueFit(g, dense));
            }
            return new MemoryPlan(wish.sessions(), wish.tokens(), wish.stagingTokens(), stagingLayers,
                    s.layers * (layout.sharedLayerBytes + layout.ownLayerBytes), s.layers * layout.pinnedLayerBytes,
                    stagingLayers * Staging.bytes(s, wish.stagingTokens()), tables, workspace);
        }

        @Override
        Builder self() {
            return this;
        }
    }
}
