package dev.shadowkv.eval.fidelity;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.PinnedArena;
import dev.shadowkv.Rope;
import dev.shadowkv.RopeTable;
import dev.shadowkv.ShadowKvCache;
import dev.shadowkv.kernels.CacheKernels;
import dev.shadowkv.kernels.DecodeKernels;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.MomentChange;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayer;
import dev.shadowkv.kernels.ShadowLayers;
import dev.shadowkv.kernels.TransformerKernels;
import dev.shadowkv.llm.CacheOptions;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import java.util.function.LongConsumer;

/**
 * One captured layer as a shadow cache would have it, made of the kernels that such a cache is made of, so that one can
 * look at what it selects. The prompt before the first step is indexed. What the steps add stays dense, or is
 * folded when the cache would fold it.
 */
final class IndexedLayer implements AutoCloseable {
    /** Chunks before the end that stay dense, as in the cache. */
    private static final int LOCAL = 4;
    /** Tokens that the cache folds at once, and that its window holds beside the local chunks. */
    private static final int FOLD = 64;
    /** Mean share of a folded chunk's key energy that the basis may miss, and chunks that stay dense beyond it. */
    private static final float RESIDUAL_LIMIT = 0.5f;

    private static final int RESIDUAL_OUTLIERS = 16;
    /** The radius of a chunk that is not in the index. */
    private static final float ABSENT = -1;

    /** What a step attended and gave: tokens by key/value head, and {@code [queryHeads][headDim]}. */
    record Attended(BitSet[] tokens, float[] output) {}

    private final Device device;
    private final LayerCapture capture;
    private final CacheOptions options;
    private final Geometry geometry;
    private final DeviceArena arena;
    private final PinnedArena pinned;
    private final RopeTable rope;
    private final ShadowLayers layers;
    private final SessionStates states;
    private final CacheKernels cache;
    private final DecodeKernels decode;
    private final int sealed;
    private final boolean folding;
    /** Chunks in the index at first, and after the last step. */
    private final int firstIndexed;

    private final int indexed;
    private final int select;
    private final int shortlist;
    private final int outliers;
    private final int[] outlierIds;
    /** Folded chunks that stay dense in every head, ascending. */
    private final List<Integer> residualIds = new ArrayList<>();
    /** Share of the energy that the basis misses, of each token behind the first index; empty where nothing is folded. */
    private float[] residual = {};
    /** Sums over the chunks that are in the index at a step, and how many chunks they are of now; null without a tail. */
    private DeviceBuffer moments;

    private LongConsumer sumMoments;
    private int summed = -1;

    /** {@code [steps][queryHeads][headDim]} and {@code [tokens][keyValueHeads][headDim]}, rotated. */
    final float[] rotatedQueries;

    final float[] rotatedKeys;
    private final DeviceBuffer queries;

    IndexedLayer(Device device, Rope rotation, LayerCapture capture, CacheOptions options) {
        this(device, rotation, capture, options, false);
    }

    /** @param folding whether tokens of the steps are folded into the index as the cache does it */
    IndexedLayer(Device device, Rope rotation, LayerCapture capture, CacheOptions options, boolean folding) {
        this.device = device;
        this.folding = folding;
        this.capture = capture;
        this.options = options;
        sealed = capture.tokens() - capture.steps();
        int chunk = options.chunk();
        firstIndexed = Math.max(0, sealed / chunk - LOCAL);
        indexed = begin(capture.steps() - 1) / chunk;
        select = options.budget() / chunk;
        if (firstIndexed < select) {
            throw new IllegalArgumentException("a budget of " + options.budget() + " tokens covers the whole index of "
                    + (long) firstIndexed * chunk + ": such a session is exact");
        }
        int wish = ShadowKvCache.shortlist(options.rerank(), select);
        shortlist = wish > select ? wish : 0;
        outliers = Math.min(firstIndexed, options.outlierChunks());
        int heads = capture.keyValueHeads();
        int dim = capture.headDim();
        int recent = capture.tokens() - firstIndexed * chunk;
        ElementType valueType = options.valueTypeOn(device);
        int rank = options.rankFor(heads * dim);
        geometry = new Geometry(
                capture.queryHeads(), heads, dim, chunk, Math.max(rank, Geometry.MIN_RANK), options.storageTypeOn(device), valueType,
                options.landmarkTypeOn(device), options.coefficientTypeOn(device), Math.ceilDiv(recent, chunk) * chunk,
                valueType.isPacked() ? select : 0);
        cache = new CacheKernels(device);
        decode = new DecodeKernels(device);
        arena = device.newArena();
        pinned = device.newPinnedArena();
        rope = new RopeTable(device, rotation, capture.tokens());
        layers = new ShadowLayers(device, geometry, 1);
        states = new SessionStates(device, 1);
        try {
            TransformerKernels transformer = new TransformerKernels(device);
            queries = rotated(transformer, capture.queries(), capture.steps(), capture.queryHeads(), sealed);
            rotatedQueries = floats(queries, capture.queries().length);
            rotatedKeys = floats(
                    rotated(transformer, capture.keys(), capture.tokens(), heads, 0), capture.keys().length);
            outlierIds = build(rank);
        } catch (RuntimeException e) {
            close();
            throw e;
        }
    }

    private DeviceBuffer rotated(TransformerKernels transformer, float[] rows, int count, int heads, long first) {
        DeviceBuffer buffer = upload(rows);
        Rows at = Rows.of(buffer, ElementType.F32);
        transformer.rope(at, at, count, heads, capture.headDim(), first, null, 0, rope, false);
        return buffer;
    }

    private DeviceBuffer upload(float[] values) {
        DeviceBuffer buffer = arena.allocate(4L * values.length);
        device.copy(MemorySegment.ofArray(values), buffer);
        return buffer;
    }

    private float[] floats(DeviceBuffer buffer, int count) {
        try (Arena host = Arena.ofConfined()) {
            MemorySegment segment = host.allocate(4L * count, 64);
            device.copy(buffer.slice(0, segment.byteSize()), segment);
            return segment.toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    private int[] integers(DeviceBuffer buffer, int count) {
        try (Arena host = Arena.ofConfined()) {
            MemorySegment segment = host.allocate(4L * count, 64);
            device.copy(buffer.slice(0, segment.byteSize()), segment);
            return segment.toArray(ValueLayout.JAVA_INT);
        }
    }

    private DeviceBuffer allocate(ElementType type, long... shape) {
        long bytes = type.bytes();
        for (long length : shape) {
            bytes = Math.multiplyExact(bytes, length);
        }
        DeviceBuffer buffer = arena.allocate(bytes);
        device.fill(buffer, 0);
        return buffer;
    }

    private int[] build(int rank) {
        Geometry g = geometry;
        int heads = g.keyValueHeads();
        int dim = g.headDim();
        int tokens = capture.tokens();
        ElementType type = g.storageType();
        long chunks = Math.ceilDiv(tokens, g.chunk());
        Ring keys = new Ring(allocate(type, heads, tokens, dim), type, tokens);
        Ring values = new Ring(allocate(type, heads, tokens, dim), type, tokens);
        DeviceBuffer raw = allocate(type, tokens, heads, dim);
        cache.storeTokens(
                Rows.of(upload(capture.keys()), ElementType.F32), Rows.of(upload(capture.values()), ElementType.F32), tokens, 0, heads,
                dim, keys, raw, values, type, tokens, rope);
        DeviceBuffer coefficients = allocate(g.coefficientType(), chunks, g.chunk(), g.rank());
        DeviceBuffer coefficientScales = g.coefficientType() == ElementType.I8 ? allocate(ElementType.F32, g.rank()) : null;
        DeviceBuffer basis = allocate(type, heads, g.rank(), dim);
        DeviceBuffer headScales = options.balancesHeads() ? allocate(ElementType.F32, heads) : null;
        cache.lowRankFactor(
                Rows.of(raw, type), sealed, heads, dim, rank, g.rank(), 0, 0, coefficients, g.coefficientType(), coefficientScales,
                basis, arena.allocate(4L * rank), arena.allocate(8), headScales);
        if (folding) {
            project(raw, coefficients, coefficientScales, basis, headScales);
        }
        DeviceBuffer landmarks = allocate(g.landmarkType(), heads, chunks, dim);
        DeviceBuffer landmarkScales = g.landmarkType() == ElementType.I8 ? allocate(ElementType.F32, heads, chunks) : null;
        DeviceBuffer radius = allocate(ElementType.F32, heads, chunks);
        DeviceBuffer cosine = allocate(ElementType.F32, heads, chunks);
        cache.landmarkBuild(
                keys, heads, dim, g.chunk(), 0, indexed, landmarks, g.landmarkType(), landmarkScales, radius, cosine, chunks);
        DeviceBuffer outlierKeys = null;
        DeviceBuffer outlierValues = null;
        int[] ids = new int[0];
        int places = outliers + residualIds.size();
        if (places > 0) {
            outlierKeys = allocate(type, heads, places, g.chunk(), dim);
            outlierValues = allocate(type, heads, places, g.chunk(), dim);
        }
        if (outliers > 0) {
            DeviceBuffer chosen = arena.allocate(4L * heads * outliers);
            cache.outlierSelect(cosine, heads, firstIndexed, chunks, outliers, chosen, radius);
            cache.chunkGather(keys, heads, dim, g.chunk(), chosen, outliers, outlierKeys, 0, places);
            cache.chunkGather(values, heads, dim, g.chunk(), chosen, outliers, outlierValues, 0, places);
            ids = integers(chosen, heads * outliers);
        }
        for (int i = 0; i < residualIds.size(); i++) {
            int id = residualIds.get(i);
            DeviceBuffer one = uploadAll(heads, id);
            cache.chunkGather(keys, heads, dim, g.chunk(), one, 1, outlierKeys, outliers + i, places);
            cache.chunkGather(values, heads, dim, g.chunk(), one, 1, outlierValues, outliers + i, places);
            device.copyRows(uploadAll(heads, Float.floatToRawIntBits(ABSENT)), 4, radius.slice(4L * id), 4 * chunks, 4, heads);
        }
        MemorySegment host = pinned.allocate(g.valueType().bytes(heads * chunks * g.chunk() * dim), 64);
        DeviceBuffer valueScales = g.valueType().isScaled() ? allocate(ElementType.F32, heads, chunks) : null;
        cache.valueStore(values, heads, dim, g.chunk(), 0, indexed, host, g.valueType(), valueScales, chunks);
        moments = options.tailTakesPart() ? allocate(ElementType.F32, g.momentFloats()) : null;
        if (moments != null) {
            sumMoments = chunksNow -> cache.momentUpdate(
                    keys, values, heads, dim, g.chunk(), 0, chunksNow, radius, chunks, MomentChange.REPLACE, moments);
        }
        DeviceBuffer valueBasis = null;
        if (predicts()) {
            valueBasis = allocate(type, heads, g.rank(), dim);
            cache.valueFit(coefficients, g.coefficientType(), values, heads, dim, g.rank(), 0, sealed, valueBasis);
        }
        // Values are read where they are, but for packed ones: a GPU has those in slots alone.
        boolean slots = g.slots() > 0;
        DeviceBuffer slotValues = slots ? allocate(g.valueType().unpacked(), heads, g.slots(), g.chunk(), dim) : null;
        DeviceBuffer slotStamp = slots ? allocate(ElementType.F32, heads, g.slots()) : null;
        DeviceBuffer slotChunk = slots ? arena.allocate(slotStamp.byteSize()) : null;
        if (slots) {
            device.fill(slotChunk, 0xff);
        }
        layers.set(0, new ShadowLayer(
                coefficients, basis, landmarks, landmarkScales, radius, outlierKeys, outlierValues, recent(keys), recent(values), host,
                valueScales, slotValues, slotChunk, slotStamp, moments, null, valueBasis, chunks, places));
        layers.upload();
        return ids;
    }

    /** As the cache decides it. */
    private boolean predicts() {
        return shortlist > 0 && options.predictsDropped();
    }

    /** As folding does it, with the basis of the prompt. */
    private void project(
            DeviceBuffer raw, DeviceBuffer coefficients, DeviceBuffer coefficientScales, DeviceBuffer basis, DeviceBuffer headScales) {
        Geometry g = geometry;
        long first = (long) firstIndexed * g.chunk();
        int count = capture.tokens() - (int) first;
        long width = (long) g.keyValueHeads() * g.headDim() * g.storageType().bytes();
        DeviceBuffer missed = arena.allocate(4L * count);
        cache.lowRankProject(
                Rows.of(raw.slice(first * width), g.storageType()), count, g.keyValueHeads(), g.headDim(), g.rank(), basis,
                coefficients.slice(g.coefficientType().bytes(first * g.rank())), g.coefficientType(), coefficientScales, missed,
                headScales);
        residual = floats(missed, count);
        for (int chunk = firstIndexed; chunk < indexed && residualIds.size() < RESIDUAL_OUTLIERS; chunk++) {
            float sum = 0;
            for (int i = 0; i < g.chunk(); i++) {
                sum += residual[(chunk - firstIndexed) * g.chunk() + i];
            }
            if (sum / g.chunk() > RESIDUAL_LIMIT) {
                residualIds.add(chunk);
            }
        }
    }

    /** A number for each head. */
    private DeviceBuffer uploadAll(int heads, int number) {
        DeviceBuffer buffer = arena.allocate(4L * heads);
        int[] all = new int[heads];
        Arrays.fill(all, number);
        device.copy(MemorySegment.ofArray(all), buffer);
        return buffer;
    }

    /** All tokens behind the first index, position p in row p % window; a step sees those up to its length. */
    private DeviceBuffer recent(Ring tokens) {
        long row = (long) geometry.headDim() * tokens.type().bytes();
        int window = geometry.window();
        DeviceBuffer ring = allocate(tokens.type(), geometry.keyValueHeads(), window, geometry.headDim());
        for (int head = 0; head < geometry.keyValueHeads(); head++) {
            for (long position = (long) firstIndexed * geometry.chunk(); position < capture.tokens(); ) {
                long target = position % window;
                long count = Math.min(capture.tokens() - position, window - target);
                device.copy(
                        tokens.buffer().slice((head * tokens.capacity() + position) * row, count * row),
                        ring.slice((head * (long) window + target) * row, count * row));
                position += count;
            }
        }
        return ring;
    }

    /** Tokens that a step's query sees. */
    int length(int step) {
        return sealed + step + 1;
    }

    /** Where a step's window begins: the cache folds when it is full. */
    private int begin(int step) {
        int chunk = options.chunk();
        int first = firstIndexed * chunk;
        int beyond = sealed + step - first - (LOCAL * chunk + FOLD);
        return folding && beyond >= 0 ? first + (beyond / FOLD + 1) * FOLD : first;
    }

    /** Share of the energy of a step's own key that the basis of the prompt misses. */
    float residual(int step) {
        return residual[sealed + step - firstIndexed * options.chunk()];
    }

    Attended attend(int step) {
        Geometry g = geometry;
        int heads = g.keyValueHeads();
        int begin = begin(step);
        int indexedNow = begin / g.chunk();
        states.set(0, length(step), begin, indexedNow, outliers + dense(indexedNow), step + 1);
        if (moments != null && indexedNow != summed) {
            sumMoments.accept(indexedNow);
            summed = indexedNow;
        }
        states.upload();
        long width = (long) g.queryHeads() * g.headDim();
        Rows query = Rows.of(queries.slice(4 * step * width, 4 * width), ElementType.F32);
        try (DeviceArena scratch = device.newArena()) {
            int listed = shortlist > 0 ? shortlist : select;
            DeviceBuffer list = scratch.allocate(4L * heads * listed);
            DeviceBuffer listCount = scratch.allocate(4L * heads);
            DeviceBuffer tail = options.tailTakesPart() ? scratch.allocate(4L * g.queryHeads()) : null;
            decode.landmarkTopK(
                    g, 1, query, layers, 0, states, 0, options.radiusWeight(), listed, indexedNow, list, listCount, null, tail);
            DeviceBuffer dropped = predicts() ? scratch.allocate(4L * g.queryHeads()) : null;
            DeviceBuffer droppedValues = predicts() ? scratch.allocate(4 * width) : null;
            DeviceBuffer selected = list;
            DeviceBuffer count = listCount;
            if (shortlist > 0) {
                selected = scratch.allocate(4L * heads * select);
                count = scratch.allocate(4L * heads);
                decode.rerank(
                        g, 1, query, layers, 0, states, 0, rope, capture.tokens(), shortlist, list, listCount, select, selected, count,
                        tail, dropped, droppedValues);
            }
            DeviceBuffer output = scratch.allocate(4 * width);
            decode.sparseAttention(
                    g, 1, query, layers, 0, states, 0, rope, capture.tokens(), select, selected,
                    slotsOf(scratch, selected, count), count, tail, dropped, droppedValues, Rows.of(output, ElementType.F32), null);
            return new Attended(
                    tokens(integers(selected, heads * select), integers(count, heads), begin, length(step)),
                    floats(output, (int) width));
        }
    }

    /** The slots of the selected chunks, with their values in them; where values are read in place, the chunks. */
    private DeviceBuffer slotsOf(DeviceArena scratch, DeviceBuffer selected, DeviceBuffer count) {
        Geometry g = geometry;
        if (g.slots() == 0) {
            return selected;
        }
        DeviceBuffer selectedSlot = scratch.allocate(selected.byteSize());
        DeviceBuffer fetchChunk = scratch.allocate(selected.byteSize());
        DeviceBuffer fetchSlot = scratch.allocate(selected.byteSize());
        DeviceBuffer fetchCount = scratch.allocate(count.byteSize());
        decode.cachePlan(
                g, 1, layers, 0, states, 0, select, selected, count, selectedSlot, fetchChunk, fetchSlot, fetchCount);
        decode.valueGather(g, 1, layers, 0, select, fetchChunk, fetchSlot, fetchCount, 0);
        return selectedSlot;
    }

    /** How many of an index's folded chunks stay dense. */
    private int dense(int indexedNow) {
        return (int) residualIds.stream().filter(id -> id < indexedNow).count();
    }

    private BitSet[] tokens(int[] selected, int[] count, int begin, int length) {
        BitSet[] all = new BitSet[geometry.keyValueHeads()];
        int chunk = geometry.chunk();
        for (int head = 0; head < all.length; head++) {
            all[head] = new BitSet(length);
            all[head].set(begin, length);
            for (int i = 0; i < count[head]; i++) {
                int first = selected[head * select + i] * chunk;
                all[head].set(first, first + chunk);
            }
            for (int i = 0; i < outliers; i++) {
                int first = outlierIds[head * outliers + i] * chunk;
                all[head].set(first, first + chunk);
            }
            for (int id : residualIds.subList(0, dense(begin / chunk))) {
                all[head].set(id * chunk, (id + 1) * chunk);
            }
        }
        return all;
    }

    @Override
    public void close() {
        states.close();
        layers.close();
        rope.close();
        pinned.close();
        arena.close();
    }
}
