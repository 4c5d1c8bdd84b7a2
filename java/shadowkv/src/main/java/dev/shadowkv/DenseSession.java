package dev.shadowkv;

import java.io.IOException;

import dev.shadowkv.kernels.DenseLayer;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;

/** One sequence of a dense cache: rotated keys and values of all layers, {@code [K][capacity][D]}. */
final class DenseSession extends SessionBase {

    private final DenseKvCache cache;
    private final long slab;
    private final Ring[] keys;
    private final Ring[] values;
    private final long[] lengths;
    private final boolean[] sealed;

    DenseSession(DenseKvCache cache, long capacity, long slab) {
        super(cache, capacity);
        this.cache = cache;
        this.slab = slab;
        int layers = cache.shape.layers;
        keys = new Ring[layers];
        values = new Ring[layers];
        lengths = new long[layers];
        sealed = new boolean[layers];
        long half = cache.halfLayerBytes(capacity);
        long bytes = capacity * cache.shape.keyWidth() * cache.shape.storageType.bytes();
        for (int layer = 0; layer < layers; layer++) {
            long at = slab + 2 * layer * half;
            keys[layer] = new Ring(cache.pool.slice(at, bytes), cache.shape.storageType, capacity);
            values[layer] = new Ring(cache.pool.slice(at + half, bytes), cache.shape.storageType, capacity);
        }
    }

    DenseLayer layer(int layer) {
        return new DenseLayer(keys[layer].buffer(), values[layer].buffer(), capacity);
    }

    @Override
    public long length(int layer) {
        return lengths[layer];
    }

    @Override
    public boolean sealed() {
        for (boolean one : sealed) {
            if (!one) {
                return false;
            }
        }
        return true;
    }

    @Override
    void storeTokens(int layer, long count, Rows queries, Rows newKeys, Rows newValues, DeviceBuffer output) {
        long first = lengths[layer];
        cache.cacheKernels.storeTokens(newKeys, newValues, count, first, cache.shape.keyValueHeads, cache.shape.headDim,
                keys[layer], null, values[layer], cache.shape.storageType, capacity, cache.ropeTable);
        if (queries != null) {
            Prefill.attend(cache, cache.geometry, queries, count, first, keys[layer], values[layer], output);
        }
        lengths[layer] = first + count;
    }

    @Override
    void sealLayer(int layer) {
        sealed[layer] = true;
    }

    @Override
    void rewind(long length) {
        java.util.Arrays.fill(lengths, length);
    }

    @Override
    SessionBase copy() {
        DenseSession fork = cache.openSession(capacity);
        long e = cache.shape.storageType.bytes();
        long pitch = capacity * cache.shape.headDim * e;
        for (int layer = 0; layer < lengths.length; layer++) {
            long width = lengths[layer] * cache.shape.headDim * e;
            if (width > 0) {
                int heads = cache.shape.keyValueHeads;
                cache.device.copyRows(keys[layer].buffer(), pitch, fork.keys[layer].buffer(), pitch, width, heads);
                cache.device.copyRows(values[layer].buffer(), pitch, fork.values[layer].buffer(), pitch, width, heads);
            }
            fork.lengths[layer] = lengths[layer];
            fork.sealed[layer] = true;
        }
        return fork;
    }

    @Override
    void makeRoom() {
        // Row = position: there is room up to the capacity.
    }

    @Override
    void grow() {
        for (int layer = 0; layer < lengths.length; layer++) {
            lengths[layer]++;
        }
    }

    @Override
    void transfer(SessionFile.Transfer file) throws IOException {
        long e = cache.shape.storageType.bytes();
        long pitch = capacity * cache.shape.headDim * e;
        for (int layer = 0; layer < lengths.length; layer++) {
            lengths[layer] = file.number("length", lengths[layer], 0, capacity);
            sealed[layer] = true;
            long width = lengths[layer] * cache.shape.headDim * e;
            file.rows(keys[layer].buffer(), pitch, width, cache.shape.keyValueHeads);
            file.rows(values[layer].buffer(), pitch, width, cache.shape.keyValueHeads);
        }
    }

    @Override
    void release() {
        cache.release(slab, capacity);
    }
}
