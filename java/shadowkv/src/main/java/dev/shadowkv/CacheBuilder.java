package dev.shadowkv;

import java.util.Objects;

/**
 * What both caches are built from.
 *
 * @param <B> the builder itself
 */
public abstract sealed class CacheBuilder<B extends CacheBuilder<B>>
        permits DenseKvCache.Builder, ShadowKvCache.Builder {

    final CacheShape shape;

    CacheBuilder(Device device) {
        shape = new CacheShape(device);
    }

    /** Layers of the model. */
    public B layers(int count) {
        shape.layers = count;
        return self();
    }

    /** Query heads of a layer: 1 to 16 times the key/value heads. */
    public B queryHeads(int count) {
        shape.queryHeads = count;
        return self();
    }

    /** Key/value heads of a layer, 1 to 32. */
    public B keyValueHeads(int count) {
        shape.keyValueHeads = count;
        return self();
    }

    /** Elements of a head: even, at most 256. */
    public B headDim(int elements) {
        shape.headDim = elements;
        return self();
    }

    /** How queries and keys are rotated. */
    public B rope(Rope rotation) {
        shape.rope = Objects.requireNonNull(rotation);
        return self();
    }

    /** How keys and values are kept: F32, BF16 or F16 on a CPU (default F32), BF16 on a GPU. */
    public B storageType(ElementType type) {
        shape.storageType = Objects.requireNonNull(type);
        return self();
    }

    /** What device operands are made of: F32, BF16 or F16. Default: F32 on a CPU, BF16 on a GPU. */
    public B inputType(ElementType type) {
        shape.inputType = Objects.requireNonNull(type);
        return self();
    }

    /** For how many sessions of how many tokens to allocate. */
    public B memory(MemoryPlan plan) {
        shape.memory = Objects.requireNonNull(plan);
        return self();
    }

    /** The bytes that {@link #build} will allocate, before anything is allocated. */
    public abstract MemoryPlan plan();

    /**
     * Allocates the pools.
     *
     * @throws ShadowKvException with {@link Status#UNSUPPORTED} and the limits for shapes without kernels, with
     *     {@link Status#OUT_OF_DEVICE_MEMORY} and the plan if it does not fit
     */
    public abstract KvCache build();

    abstract B self();
}
