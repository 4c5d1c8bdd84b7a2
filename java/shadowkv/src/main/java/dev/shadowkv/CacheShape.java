package dev.shadowkv;

import java.util.Objects;

import dev.shadowkv.kernels.Geometry;

/** What a builder collects for either cache. */
final class CacheShape {

    final Device device;
    int layers;
    int queryHeads;
    int keyValueHeads;
    int headDim;
    Rope rope;
    ElementType storageType;
    ElementType inputType;
    MemoryPlan memory;

    CacheShape(Device device) {
        this.device = Objects.requireNonNull(device, "device");
        storageType = device.defaultType();
        inputType = device.defaultType();
    }

    /** A copy that later calls of the builder do not change, with everything set. */
    CacheShape complete() {
        if (layers < 1) {
            throw new IllegalStateException("layers(...) must be set and positive: " + layers);
        }
        if (rope == null) {
            throw new IllegalStateException("rope(...) must be set");
        }
        if (memory == null) {
            throw new IllegalStateException("memory(...) must be set");
        }
        if (rope.rotaryDim() > headDim) {
            throw new ShadowKvException(Status.UNSUPPORTED, "build cache",
                    "rope rotates " + rope.rotaryDim() + " elements, but headDim is " + headDim);
        }
        if (!inputType.isFloat()) {
            throw new ShadowKvException(Status.UNSUPPORTED, "build cache",
                    "inputType must be F32, BF16 or F16: " + inputType);
        }
        if (!device.isCpu() && storageType != ElementType.BF16) {
            throw new ShadowKvException(Status.UNSUPPORTED, "build cache",
                    "storageType on a GPU must be BF16: " + storageType);
        }
        Geometry.dense(queryHeads, keyValueHeads, headDim, storageType);
        CacheShape copy = new CacheShape(device);
        copy.layers = layers;
        copy.queryHeads = queryHeads;
        copy.keyValueHeads = keyValueHeads;
        copy.headDim = headDim;
        copy.rope = rope;
        copy.storageType = storageType;
        copy.inputType = inputType;
        copy.memory = memory;
        return copy;
    }

    int keyWidth() {
        return keyValueHeads * headDim;
    }

    int queryWidth() {
        return queryHeads * headDim;
    }
}
