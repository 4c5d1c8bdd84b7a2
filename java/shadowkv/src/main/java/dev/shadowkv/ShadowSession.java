package dev.shadowkv;

import java.io.IOException;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.ShadowLayer;

/**
 * One sequence of a shadow cache. Before a layer is sealed its tokens lie in staging memory; afterwards in the shared
 * slab (index, or the dense copy of a short session) and the own slab (recent window, value slots).
 */
final class ShadowSession extends SessionBase {

    final ShadowLayout layout;
    final long ownOffset;
    final OwnLayer[] own;
    SharedSlab shared;

    private final ShadowKvCache cache;
    private final DeviceBuffer ownSlab;
    private final LayerState[] states;
    private final Staging[] staging;
    /** Counts the times that the session's memory has moved. */
    private int version;
    /** Counts decode steps: what value slots are stamped with. */
    private int stamp;

    ShadowSession(ShadowKvCache cache, ShadowLayout layout, SharedSlab shared, DeviceBuffer ownSlab, long ownOffset) {
        super(cache, layout.capacity);
        this.cache = cache;
        this.layout = layout;
        this.shared = shared;
        this.ownSlab = ownSlab;
        this.ownOffset = ownOffset;
        int layers = cache.shape.layers;
        own = new OwnLayer[layers];
        states = new LayerState[layers];
        staging = new Staging[layers];
        for (int layer = 0; layer < layers; layer++) {
            own[layer] = new OwnLayer(ownSlab.slice(layer * layout.ownLayerBytes, layout.ownLayerBytes), layout,
                    cache.options);
            states[layer] = new LayerState();
        }
    }

    int version() {
        return version;
    }

    int stamp() {
        return stamp;
    }

    LayerState state(int layer) {
        return states[layer];
    }

    /** What the device is to know of a layer. */
    ShadowLayer table(int layer) {
        SharedLayer s = shared.layers[layer];
        OwnLayer o = own[layer];
        boolean exact = states[layer].exact;
        return new ShadowLayer(s.coefficients, s.basis, s.landmarks, s.landmarkScales, s.radius,
                exact ? s.exactKeys : s.outlierKeys, exact ? s.exactValues : s.outlierValues, o.recentKeys,
                        o.recentValues,
                s.values, s.valueScales, o.slotValues, o.slotChunk, o.slotStamp, exact ? null : s.moments, o.slotKeys,
                exact ? null : s.valueBasis, layout.chunks,
                exact ? layout.exactChunks : cache.options.outlierCapacity());
    }

    @Override
    public long length(int layer) {
        return states[layer].length;
    }

    @Override
    public boolean sealed() {
        for (LayerState state : states) {
            if (!state.sealed) {
                return false;
            }
        }
        return true;
    }

    @Override
    void storeTokens(int layer, long count, Rows queries, Rows keys, Rows values, DeviceBuffer output) {
        LayerState state = states[layer];
        if (!state.sealed) {
            stage(layer, count, queries, keys, values, output);
        } else if (queries == null) {
            store(layer, count, keys, values);
        } else {
            long bytes = count * cache.shape.queryWidth() * queries.type().bytes();
            java.util.Objects.checkFromIndexSize(0, bytes, output.byteSize());
            cache.appended.attend(this, layer, count, queries, keys, values, output);
        }
    }

    private void stage(int layer, long count, Rows queries, Rows keys, Rows values, DeviceBuffer output) {
        LayerState state = states[layer];
        if (state.length + count > cache.memoryPlan().stagingTokens()) {
            throw new IllegalStateException("layer " + layer + " would hold " + (state.length + count)
                    + " tokens before sealing; the plan's staging memory is for " + cache.memoryPlan().stagingTokens());
        }
        if (staging[layer] == null) {
            staging[layer] = cache.takeStaging(layer);
        }
        Staging s = staging[layer];
        cache.cacheKernels.storeTokens(keys, values, count, state.length, cache.shape.keyValueHeads,
                cache.shape.headDim,
                s.rotatedKeys, s.rawKeys, s.values, cache.shape.storageType, s.tokens, cache.ropeTable);
        cache.index.sendValues(this, layer, s, state.length + count);
        if (queries != null) {
            Prefill.attend(cache, cache.options.geometry(), queries, count, state.length, s.rotatedKeys, s.values,
                    output);
        }
        state.length += count;
    }

    private void store(int layer, long count, Rows keys, Rows values) {
        long width = cache.shape.keyWidth();
        LayerState state = states[layer];
        for (long done = 0; done < count;) {
            cache.index.makeRoom(this, layer);
            long n = Math.min(count - done, cache.options.geometry().window() - (state.length - state.recentBegin));
            OwnLayer o = own[layer];
            cache.cacheKernels.storeTokens(from(keys, done, width), from(values, done, width), n, state.length,
                    cache.shape.keyValueHeads, cache.shape.headDim, o.keyRing, null, o.valueRing,
                            cache.shape.storageType,
                    o.keyRing.capacity(), cache.ropeTable);
            grow(layer, n);
            done += n;
        }
    }

    /** Rows from a token on. */
    static Rows from(Rows rows, long token, long width) {
        long stride = rows.stride() == 0 ? width : rows.stride();
        return new Rows(rows.buffer().slice(token * stride * rows.type().bytes()), rows.type(), rows.stride());
    }

    /** Counts more tokens in a layer. */
    void grow(int layer, long count) {
        LayerState state = states[layer];
        state.length += count;
        state.ringBegin = Math.max(state.ringBegin, state.length - cache.options.geometry().window());
    }

    @Override
    void sealLayer(int layer) {
        LayerState state = states[layer];
        if (state.sealed) {
            return;
        }
        SealEvent event = SealEvent.on() ? new SealEvent() : null;
        if (event != null) {
            event.begin();
        }
        Staging s = staging[layer];
        if (s == null) {
            cache.index.sealEmpty(this, layer);
        } else {
            cache.index.build(this, layer, s, false);
            staging[layer] = null;
            cache.giveStaging(s);
        }
        version++;
        if (event != null) {
            event.layer = layer;
            event.tokens = state.length;
            event.exact = state.exact;
            event.energy = state.exact || state.length == 0 ? 1 : Scratch.floats(cache.scratch.energy, 2)[1];
            event.pinnedBytes = state.exact ? 0 : state.recentBegin / cache.options.geometry().chunk()
                    * cache.shape.keyValueHeads * cache.options.geometry().hostChunkBytes();
            event.commit();
        }
    }

    @Override
    void rewind(long length) {
        for (int layer = 0; layer < states.length; layer++) {
            if (states[layer].sealed) {
                cache.index.rewind(this, layer, length);
            } else {
                states[layer].length = length;
                if (staging[layer] != null) {
                    cache.index.resend(staging[layer], length);
                }
            }
        }
    }

    /** The addresses have changed: tables that hold them are stale. */
    void moved() {
        version++;
    }

    @Override
    SessionBase copy() {
        ShadowSession fork = cache.openFork(this);
        try {
            cache.device.copy(ownSlab, fork.ownSlab);
        } catch (RuntimeException e) {
            fork.close();
            throw e;
        }
        for (int layer = 0; layer < states.length; layer++) {
            fork.states[layer] = states[layer].copy();
        }
        fork.stamp = stamp;
        return fork;
    }

    @Override
    void makeRoom() {
        cache.index.makeRoom(this, 0, states.length);
    }

    @Override
    void grow() {
        stamp++;
        for (int layer = 0; layer < states.length; layer++) {
            grow(layer, 1);
        }
    }

    @Override
    void transfer(SessionFile.Transfer file) throws IOException {
        Geometry g = cache.options.geometry();
        long e = g.storageType().bytes();
        int heads = g.keyValueHeads();
        long rowBytes = g.headDim() * e;
        stamp = (int) file.number("stamp", stamp, 0, Integer.MAX_VALUE);
        for (int layer = 0; layer < states.length; layer++) {
            LayerState state = states[layer];
            ShadowStateFile.transfer(file, state, layout, cache.options, capacity);
            SharedLayer s = shared.layers[layer];
            long tokens = state.recentBegin;
            long chunks = tokens / g.chunk();
            if (state.exact) {
                if (tokens > 0) {
                    long pitch = layout.exactChunks * g.chunk() * rowBytes;
                    file.rows(s.exactKeys, pitch, tokens * rowBytes, heads);
                    file.rows(s.exactValues, pitch, tokens * rowBytes, heads);
                }
            } else {
                file.rows(s.coefficients, 0, g.coefficientType().bytes(tokens * g.rank()), 1);
                if (s.coefficientScales != null) {
                    file.rows(s.coefficientScales, 0, s.coefficientScales.byteSize(), 1);
                }
                file.rows(s.basis, 0, s.basis.byteSize(), 1);
                if (s.headScales != null) {
                    file.rows(s.headScales, 0, s.headScales.byteSize(), 1);
                }
                long landmark = (long) g.headDim() * g.landmarkType().bytes();
                file.rows(s.landmarks, layout.chunks * landmark, chunks * landmark, heads);
                if (s.landmarkScales != null) {
                    file.rows(s.landmarkScales, layout.chunks * 4, chunks * 4, heads);
                }
                file.rows(s.radius, layout.chunks * 4, chunks * 4, heads);
                if (s.valueScales != null) {
                    file.rows(s.valueScales, layout.chunks * 4, chunks * 4, heads);
                }
                if (state.outliers > 0) {
                    long pitch = cache.options.outlierCapacity() * g.chunk() * rowBytes;
                    file.rows(s.outlierKeys, pitch, state.outliers * g.chunk() * rowBytes, heads);
                    file.rows(s.outlierValues, pitch, state.outliers * g.chunk() * rowBytes, heads);
                }
                if (s.moments != null) {
                    file.rows(s.moments, 0, s.moments.byteSize(), 1);
                }
                if (s.valueBasis != null) {
                    file.rows(s.valueBasis, 0, s.valueBasis.byteSize(), 1);
                }
                long values = cache.options.geometry().hostChunkBytes();
                file.hostRows(s.values, layout.chunks * values, chunks * values, heads);
            }
            file.rows(own[layer].recentKeys, 0, own[layer].recentKeys.byteSize(), 1);
            file.rows(own[layer].recentValues, 0, own[layer].recentValues.byteSize(), 1);
            if (!file.writing()) {
                // The slots are those of whoever had the memory before.
                cache.index.resetSlots(own[layer]);
            }
        }
        version++;
    }

    /** Copies tokens between rings, in the two parts that a wrap makes. */
    static void copyTokens(Device device, Ring source, Ring target, long first, long count, int heads, int headDim) {
        long rowBytes = (long) headDim * source.type().bytes();
        for (long done = 0; done < count;) {
            long from = (first + done) % source.capacity();
            long to = (first + done) % target.capacity();
            long n = Math.min(count - done, Math.min(source.capacity() - from, target.capacity() - to));
            device.copyRows(source.buffer().slice(from * rowBytes), source.capacity() * rowBytes,
                    target.buffer().slice(to * rowBytes), target.capacity() * rowBytes, n * rowBytes, heads);
            done += n;
        }
    }

    @Override
    void release() {
        for (int layer = 0; layer < staging.length; layer++) {
            if (staging[layer] != null) {
                cache.giveStaging(staging[layer]);
                staging[layer] = null;
            }
        }
        cache.release(this);
    }
}
