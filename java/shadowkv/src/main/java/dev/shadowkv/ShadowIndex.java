package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.MomentChange;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;

/** Builds the index of a layer at its sealing, and folds what leaves the recent window into it. */
final class ShadowIndex {

    /** Chunks whose values are sent together while a layer is filled, whatever the appends' sizes. */
    private static final int SEND_CHUNKS = 64;

    private final ShadowKvCache cache;
    private final ShadowOptions options;
    private final Geometry geometry;
    private final Device device;
    private final int heads;
    private final int headDim;
    private final int chunk;
    private final Moments moments;
    /** Layers that a step folds together. */
    private final boolean[] folding;

    ShadowIndex(ShadowKvCache cache) {
        this.cache = cache;
        options = cache.options;
        geometry = options.geometry();
        device = cache.device;
        heads = geometry.keyValueHeads();
        headDim = geometry.headDim();
        chunk = geometry.chunk();
        moments = new Moments(cache);
        folding = new boolean[cache.shape.layers];
    }

    /**
     * Begins to bring values of a layer that is being filled to the host, beside what is computed next: those of chunks
     * that will be indexed however long the layer gets, so that little is left to do when it is sealed.
     */
    void sendValues(ShadowSession session, int layer, Staging dense, long length) {
        int chunks = Math.toIntExact(Math.max(0, length / chunk - options.local()));
        int first = dense.sentChunks;
        if (chunks < options.select() || chunks - first < SEND_CHUNKS) {
            return;
        }
        SharedLayer shared = session.shared.layers[layer];
        device.meet(DeviceLane.VALUES);
        device.on(DeviceLane.VALUES, () -> storeValues(session, shared, dense, first, chunks));
        dense.sentChunks = chunks;
    }

    /** What is filled from a length on takes the place of rows whose values may be on their way. */
    void resend(Staging dense, long length) {
        dense.sentChunks = Math.toIntExact(Math.min(dense.sentChunks, length / chunk));
        device.meet(DeviceLane.VALUES);
    }

    private void storeValues(ShadowSession session, SharedLayer shared, Staging dense, int first, int end) {
        cache.cacheKernels.valueStore(dense.values, heads, headDim, chunk, first, end - first, shared.values,
                geometry.valueType(), shared.valueScales, session.layout.chunks);
    }

    void sealEmpty(ShadowSession session, int layer) {
        LayerState state = session.state(layer);
        state.sealed = true;
        state.exact = true;
        resetSlots(session.own[layer]);
    }

    /**
     * Seals a layer from a dense copy of it.
     *
     * @param outgrown whether the layer was exact and has become too long for it
     */
    void build(ShadowSession session, int layer, Staging dense, boolean outgrown) {
        LayerState state = session.state(layer);
        long length = state.length;
        int chunks = Math.toIntExact(Math.max(0, length / chunk - options.local()));
        SharedLayer shared = session.shared.layers[layer];
        OwnLayer own = session.own[layer];
        state.exact = chunks < options.select();
        // Where it was truncated, what was sent may lie where an exact copy goes; and staging memory is given back.
        device.meet(DeviceLane.VALUES);
        if (state.exact) {
            if (chunks > 0) {
                copy(dense.rotatedKeys, shared.exactKeyRows, 0, (long) chunks * chunk);
                copy(dense.values, shared.exactValueRows, 0, (long) chunks * chunk);
            }
            state.outliers = chunks;
        } else {
            factor(state, shared, dense);
            index(session, state, shared, dense, chunks);
        }
        state.recentBegin = (long) chunks * chunk;
        state.sealed = true;
        if (!outgrown) {
            state.anchorLength = length;
            state.anchorBegin = state.recentBegin;
            state.ringBegin = Math.max(0, length - geometry.window());
            copy(dense.rotatedKeys, own.keyRing, state.ringBegin, length - state.ringBegin);
            copy(dense.values, own.valueRing, state.ringBegin, length - state.ringBegin);
        }
        resetSlots(own);
    }

    private void factor(LayerState state, SharedLayer shared, Staging dense) {
        Scratch scratch = cache.scratch;
        cache.cacheKernels.lowRankFactor(Rows.of(dense.rawKeys, geometry.storageType()), state.length, heads, headDim,
                options.rank(), geometry.rank(), 0, 0, shared.coefficients, geometry.coefficientType(),
                shared.coefficientScales, shared.basis, scratch.singularValues, scratch.energy, shared.headScales);
        state.basisRows = options.rank();
        if (options.predictDropped()) {
            // Of the tokens that the columns of the coefficients are orthogonal over: all of the layer's.
            cache.cacheKernels.valueFit(shared.coefficients, geometry.coefficientType(), dense.values, heads, headDim,
                    geometry.rank(), 0, state.length, shared.valueBasis);
        }
    }

    private void index(ShadowSession session, LayerState state, SharedLayer shared, Staging dense, int chunks) {
        Scratch scratch = cache.scratch;
        long capacity = session.layout.chunks;
        cache.cacheKernels.landmarkBuild(dense.rotatedKeys, heads, headDim, chunk, 0, chunks, shared.landmarks,
                geometry.landmarkType(), shared.landmarkScales, shared.radius, scratch.cosine, capacity);
        int chosen = Math.min(options.outliers(), chunks);
        state.chosen = chosen;
        state.outliers = chosen;
        state.residualIds = new int[0];
        state.residualRadius = new float[0];
        if (chosen > 0) {
            // Rewinding may put an outlier back into the index, so its radius is kept.
            float[] radius = Scratch.floats(shared.radius, Math.toIntExact(heads * capacity));
            cache.cacheKernels.outlierSelect(scratch.cosine, heads, chunks, capacity, chosen, scratch.ids,
                    shared.radius);
            cache.cacheKernels.chunkGather(dense.rotatedKeys, heads, headDim, chunk, scratch.ids, chosen,
                    shared.outlierKeys, 0, options.outlierCapacity());
            cache.cacheKernels.chunkGather(dense.values, heads, headDim, chunk, scratch.ids, chosen,
                    shared.outlierValues, 0, options.outlierCapacity());
            state.chosenIds = Scratch.integers(scratch.ids, heads * chosen);
            state.chosenRadius = new float[heads * chosen];
            for (int i = 0; i < state.chosenIds.length; i++) {
                state.chosenRadius[i] = radius[Math.toIntExact(i / chosen * capacity + state.chosenIds[i])];
            }
        }
        if (dense.sentChunks < chunks) {
            storeValues(session, shared, dense, dense.sentChunks, chunks);
        }
        moments.update(shared, dense.rotatedKeys, dense.values, 0, chunks, capacity, MomentChange.REPLACE);
    }

    /** Makes room for one more token in the recent window of a layer. */
    void makeRoom(ShadowSession session, int layer) {
        makeRoom(session, layer, layer + 1);
    }

    /** As above for layers from one to another; waits for the device once, whatever their number. */
    void makeRoom(ShadowSession session, int from, int to) {
        boolean folds = false;
        for (int layer = from; layer < to; layer++) {
            LayerState state = session.state(layer);
            folding[layer] = false;
            if (state.length - state.recentBegin < geometry.window()) {
                continue;
            }
            cache.makeWritable(session);
            if (state.exact) {
                keepExact(session, layer, state);
            } else {
                folding[layer] = true;
                folds = true;
            }
        }
        if (!folds) {
            return;
        }
        foldLayers(session, from, to);
        if (options.residualLimit() < 1) {
            readResiduals(from, to);
        }
        for (int layer = from; layer < to; layer++) {
            if (folding[layer]) {
                settle(session, layer, session.state(layer));
            }
        }
    }

    /** As many layers at once as there is room for their keys before RoPE: a layer alone leaves most of a GPU idle. */
    private void foldLayers(ShadowSession session, int from, int to) {
        Staging dense = cache.scratch.dense;
        int places = Math.toIntExact(dense.tokens / options.foldTokens());
        long bytes = dense.rawKeys.byteSize() / dense.tokens * options.foldTokens();
        for (int at = from; at < to; at += places) {
            int first = at, end = Math.min(to, at + places);
            device.together(() -> {
                for (int each = first; each < end; each++) {
                    if (folding[each]) {
                        fold(session, each, session.state(each), dense.rawKeys.slice((each - first) * bytes, bytes));
                    }
                }
            });
        }
    }

    private void keepExact(ShadowSession session, int layer, LayerState state) {
        int fold = options.foldTokens();
        SharedLayer shared = session.shared.layers[layer];
        OwnLayer own = session.own[layer];
        if (state.outliers + fold / chunk < options.select()) {
            copy(own.keyRing, shared.exactKeyRows, state.recentBegin, fold);
            copy(own.valueRing, shared.exactValueRows, state.recentBegin, fold);
            state.outliers += fold / chunk;
            state.recentBegin += fold;
            return;
        }
        // Too long from here on: the index is built where the dense copy lies, so that moves away first.
        Staging dense = cache.scratch.dense;
        if (state.recentBegin > 0) {
            copy(shared.exactKeyRows, dense.rotatedKeys, 0, state.recentBegin);
            copy(shared.exactValueRows, dense.values, 0, state.recentBegin);
        }
        copy(own.keyRing, dense.rotatedKeys, state.recentBegin, state.length - state.recentBegin);
        copy(own.valueRing, dense.values, state.recentBegin, state.length - state.recentBegin);
        unrotate(dense.rotatedKeys, 0, state.length, dense.rawKeys);
        build(session, layer, dense, true);
        session.moved();
    }

    private void fold(ShadowSession session, int layer, LayerState state, DeviceBuffer rawKeys) {
        int count = options.foldTokens();
        long first = state.recentBegin;
        long firstChunk = first / chunk;
        long capacity = session.layout.chunks;
        SharedLayer shared = session.shared.layers[layer];
        OwnLayer own = session.own[layer];
        unrotate(own.keyRing, first, count, rawKeys);
        project(shared, first, count, rawKeys, residual(layer));
        cache.cacheKernels.landmarkBuild(own.keyRing, heads, headDim, chunk, firstChunk, count / chunk,
                shared.landmarks,
                geometry.landmarkType(), shared.landmarkScales, shared.radius, null, capacity);
        cache.cacheKernels.valueStore(own.valueRing, heads, headDim, chunk, firstChunk, count / chunk, shared.values,
                geometry.valueType(), shared.valueScales, capacity);
    }

    /** What of folding needs the residuals on the host; repeating both parts up to here gives the same. */
    private void settle(ShadowSession session, int layer, LayerState state) {
        int count = options.foldTokens();
        long first = state.recentBegin;
        long firstChunk = first / chunk;
        FoldEvent event = FoldEvent.on() ? new FoldEvent() : null;
        if (event != null) {
            event.begin();
            event.dense = -state.outliers;
        }
        keepWhatTheBasisMisses(session, layer, state, firstChunk, count / chunk);
        OwnLayer own = session.own[layer];
        moments.update(session.shared.layers[layer], own.keyRing, own.valueRing, firstChunk, count / chunk,
                session.layout.chunks, MomentChange.ADD);
        state.recentBegin += count;
        if (event != null) {
            event.layer = layer;
            event.first = first;
            event.tokens = count;
            event.residual = mean(Scratch.floats(residual(layer), count));
            event.dense += state.outliers;
            event.commit();
        }
    }

    private static float mean(float[] numbers) {
        float sum = 0;
        for (float number : numbers) {
            sum += number;
        }
        return sum / numbers.length;
    }

    private DeviceBuffer residual(int layer) {
        long bytes = 4L * options.foldTokens();
        return cache.scratch.residual.slice(layer * bytes, bytes);
    }

    /** Waits for the device. */
    private void readResiduals(int from, int to) {
        long bytes = 4L * options.foldTokens();
        device.copy(cache.scratch.residual.slice(from * bytes, (to - from) * bytes),
                cache.scratch.hostResidual.asSlice(from * bytes, (to - from) * bytes));
    }

    private void project(SharedLayer shared, long first, long count, DeviceBuffer rawKeys, DeviceBuffer residual) {
        long row = geometry.coefficientType().bytes(geometry.rank());
        cache.cacheKernels.lowRankProject(Rows.of(rawKeys, geometry.storageType()), count, heads, headDim,
                geometry.rank(), shared.basis, shared.coefficients.slice(first * row), geometry.coefficientType(),
                shared.coefficientScales, residual, shared.headScales);
    }

    private void keepWhatTheBasisMisses(ShadowSession session, int layer, LayerState state, long firstChunk,
            int chunks) {
        if (options.residualLimit() >= 1) {
            return;
        }
        long bytes = 4L * chunks * chunk;
        MemorySegment residual = cache.scratch.hostResidual.asSlice(layer * bytes, bytes);
        SharedLayer shared = session.shared.layers[layer];
        OwnLayer own = session.own[layer];
        if (options.basisReserve() > 0
                && missed(residual, chunks) > options.outlierCapacity() - state.outliers) {
            long first = firstChunk * chunk;
            int tokens = chunks * chunk;
            // Other layers may have been folded since.
            unrotate(own.keyRing, first, tokens, cache.scratch.dense.rawKeys);
            int added = BasisExtension.extend(cache, shared, state, tokens);
            if (added > 0) {
                project(shared, first, tokens, cache.scratch.dense.rawKeys, residual(layer));
                readResiduals(layer, layer + 1);
            }
        }
        for (int i = 0; i < chunks && state.outliers < options.outlierCapacity(); i++) {
            if (mean(residual, i) > options.residualLimit()) {
                keepDense(shared, own, state, Math.toIntExact(firstChunk + i), session.layout.chunks);
            }
        }
    }

    private int missed(MemorySegment residual, int chunks) {
        int count = 0;
        for (int i = 0; i < chunks; i++) {
            count += mean(residual, i) > options.residualLimit() ? 1 : 0;
        }
        return count;
    }

    private float mean(MemorySegment residual, int chunkOfFold) {
        float sum = 0;
        for (int i = 0; i < chunk; i++) {
            sum += residual.getAtIndex(ValueLayout.JAVA_FLOAT, (long) chunkOfFold * chunk + i);
        }
        return sum / chunk;
    }

    private void keepDense(SharedLayer shared, OwnLayer own, LayerState state, int id, long capacity) {
        DeviceBuffer column = cache.scratch.column;
        DeviceBuffer radius = shared.radius.slice(4L * id);
        device.copyRows(radius, 4 * capacity, column, 4, 4, heads);
        state.addResidualOutlier(id, Scratch.floats(column, heads));
        device.copyRows(cache.scratch.absent, 4, radius, 4 * capacity, 4, heads);
        copyChunk(own.keyRing, shared.outlierKeys, id, state.outliers);
        copyChunk(own.valueRing, shared.outlierValues, id, state.outliers);
        state.outliers++;
    }

    private void copyChunk(Ring source, DeviceBuffer outliers, long id, long place) {
        long row = (long) headDim * source.type().bytes();
        long bytes = chunk * row;
        device.copyRows(source.buffer().slice(id * chunk % source.capacity() * row), source.capacity() * row,
                outliers.slice(place * bytes), options.outlierCapacity() * bytes, bytes, heads);
    }

    /** Keys before RoPE out of rotated ones, {@code [count][K*D]}. */
    private void unrotate(Ring rotated, long first, long count, DeviceBuffer raw) {
        long e = rotated.type().bytes();
        long width = (long) heads * headDim;
        for (long done = 0; done < count;) {
            long row = (first + done) % rotated.capacity();
            long n = Math.min(count - done, rotated.capacity() - row);
            Rows from = new Rows(rotated.buffer().slice(row * headDim * e), rotated.type(), headDim);
            Rows to = new Rows(raw.slice(done * width * e), rotated.type(), width);
            cache.transformer.rope(from, rotated.capacity() * headDim, to, n, heads, headDim, first + done, null, 0,
                    cache.ropeTable, true);
            done += n;
        }
    }

    void rewind(ShadowSession session, int layer, long length) {
        LayerState state = session.state(layer);
        // Where the window begins when the next token comes: what was folded for it need not be taken back.
        long begin = length >= state.anchorLength
                ? state.recentBegin(length + 1, geometry.window(), options.foldTokens())
                : Math.max(0, length / chunk - options.local()) * chunk;
        if (length < state.anchorLength) {
            state.anchorLength = length;
            state.anchorBegin = begin;
        }
        state.length = length;
        if (begin < state.recentBegin) {
            if (!state.exact) {
                cache.makeWritable(session);
            }
            new Rewind(cache, moments, session, layer).unfold(begin);
            resetSlots(session.own[layer]);
        }
    }

    private void copy(Ring source, Ring target, long first, long count) {
        ShadowSession.copyTokens(device, source, target, first, count, heads, headDim);
    }

    /** Forgets what the slots hold. */
    void resetSlots(OwnLayer own) {
        if (own.slotChunk != null) {
            device.fill(own.slotChunk, 0xff);
            device.fill(own.slotStamp, 0);
        }
    }
}
