package dev.shadowkv;

import dev.shadowkv.kernels.DenseLayers;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Workspaces;

/**
 * A cache that keeps every key and value exactly, in device memory: what a shadow cache is compared with.
 *
 * <p>{@link KvSession#fork()} copies; {@link KvSession#seal()} only ends the prompt.
 */
public final class DenseKvCache extends CacheBase {

    final Geometry geometry;
    final DeviceBuffer pool;
    private final SlabPool slabs;

    private DenseKvCache(CacheShape shape, MemoryPlan plan) {
        super(shape, plan, "DenseKvCache");
        geometry = geometry(shape);
        try {
            long bytes = plan.sessions() * plan.sessionDeviceBytes();
            pool = arena.allocate(bytes);
            slabs = new SlabPool(bytes);
            new Workspaces(device).reserve(plan.workspaceBytes());
        } catch (RuntimeException e) {
            close();
            throw e;
        }
    }

    /** Starts building a cache. */
    public static Builder builder(Device device) {
        return new Builder(device);
    }

    @Override
    DenseSession openSession(long capacity) {
        long bytes = sessionBytes(shape, capacity);
        long slab = slabs.allocate(bytes);
        if (slab < 0) {
            throw new ShadowKvException(device.isCpu() ? Status.OUT_OF_HOST_MEMORY : Status.OUT_OF_DEVICE_MEMORY,
                    "open session", "a session of " + capacity + " tokens takes " + bytes
                    + " bytes, but the largest free range of the pool has " + slabs.largest());
        }
        return new DenseSession(this, capacity, slab);
    }

    @Override
    StepBatch newBatch(SessionBase[] members, long capacity) {
        return new DenseBatch(this, members, capacity);
    }

    @Override
    void closePools() {
        // The arena owns the pool.
    }

    void release(long slab, long capacity) {
        slabs.release(slab, sessionBytes(shape, capacity));
    }

    /** Keys or values of one layer. */
    long halfLayerBytes(long capacity) {
        return halfLayerBytes(shape, capacity);
    }

    private static long halfLayerBytes(CacheShape shape, long capacity) {
        return SlabPool.align(capacity * shape.keyWidth() * shape.storageType.bytes());
    }

    private static long sessionBytes(CacheShape shape, long capacity) {
        return 2 * shape.layers * halfLayerBytes(shape, capacity);
    }

    private static Geometry geometry(CacheShape shape) {
        return Geometry.dense(shape.queryHeads, shape.keyValueHeads, shape.headDim, shape.storageType);
    }

    /** Options of a dense cache. */
    public static final class Builder extends CacheBuilder<Builder> {

        private Builder(Device device) {
            super(device);
        }

        @Override
        public MemoryPlan plan() {
            return plan(shape.complete());
        }

        @Override
        public DenseKvCache build() {
            CacheShape complete = shape.complete();
            return new DenseKvCache(complete, plan(complete));
        }

        @Override
        Builder self() {
            return this;
        }

        private static MemoryPlan plan(CacheShape shape) {
            MemoryPlan wish = shape.memory;
            int batch = Math.min(wish.sessions(), Geometry.MAX_BATCH);
            long tables = CacheBase.commonBytes(shape, wish)
                    + batch * (shape.layers * DenseLayers.entryBytes() + StepBatch.stateBytes(1));
            Workspaces workspaces = new Workspaces(shape.device);
            Geometry geometry = geometry(shape);
            int prefill = CacheBase.prefillTokens(wish);
            long workspace = Math.max(
                    workspaces.denseDecodeLayer(geometry, batch, shape.inputType, shape.rope.rotaryDim(),
                            wish.tokens()),
                    workspaces.prefillAttention(geometry, shape.inputType, prefill, wish.tokens() - prefill,
                            wish.tokens()));
            return new MemoryPlan(wish.sessions(), wish.tokens(), wish.stagingTokens(), shape.layers,
                    sessionBytes(shape, wish.tokens()), 0, 0, tables, workspace);
        }
    }
}
