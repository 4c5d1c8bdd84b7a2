package dev.shadowkv.bench;

import java.lang.foreign.MemorySegment;
import java.util.stream.IntStream;

import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.MomentChange;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.ShadowLayer;

/**
 * One sealed session of a shadow cache, and the same tokens as a dense cache has them. Keys have a falling spectrum and
 * resemble each other within a chunk, as a model's do.
 */
final class ShadowSession {

    private static final double DECAY = 24;

    final int chunks;
    final int outliers;
    final long recentBegin;
    /** As in {@code skv_shadow_layer}; one entry a copy of the layer. */
    final ShadowLayer[] layers;
    /** {@code [K][context][D]}; null unless asked for. */
    final DeviceBuffer keys;
    final DeviceBuffer values;

    ShadowSession(DecodeState state, Geometry g, int copies, boolean shadow, boolean dense, long seed) {
        int heads = g.keyValueHeads();
        int context = state.context;
        recentBegin = (context - g.window() / 2L) / g.chunk() * g.chunk();
        chunks = (int) (recentBegin / g.chunk());
        outliers = state.outlierChunks(chunks);
        ElementType type = g.storageType();
        long tokenWidth = (long) heads * g.headDim();
        float[] numbers = coefficients(context, g, seed);
        float[] rows = basis(g, seed);
        if (g.coefficientType() == ElementType.I8) {
            toWholeNumbers(numbers, rows, g);
        }
        DeviceBuffer coefficients = state.upload(numbers, g.coefficientType());
        DeviceBuffer basis = state.upload(rows, type);
        try (DeviceArena scratch = state.open.newArena()) {
            DeviceArena owner = dense ? state.arena : scratch;
            keys = owner.allocate(context * tokenWidth * type.bytes());
            values = owner.allocate(context * tokenWidth * type.bytes());
            state.transformer.randomFill(values, type, context * tokenWidth, seed + 5, 0, 1);
            state.cache.rebuildKeys(coefficients, g.coefficientType(), basis, heads, g.headDim(), g.rank(), 0, context,
                    new Ring(keys, type, context), state.rope);
            layers = new ShadowLayer[shadow ? copies : 0];
            if (shadow) {
                seal(state, g, coefficients, basis, scratch);
            }
            state.open.synchronize();
        }
    }

    private void seal(DecodeState state, Geometry g, DeviceBuffer coefficients, DeviceBuffer basis, DeviceArena scratch) {
        int heads = g.keyValueHeads();
        ElementType type = g.storageType();
        Ring keyRing = new Ring(keys, type, state.context);
        Ring valueRing = new Ring(values, type, state.context);
        long capacity = (state.context + g.chunk() - 1L) / g.chunk();
        boolean scaledLandmarks = g.landmarkType() == ElementType.I8;
        boolean scaledValues = g.valueType().isScaled();
        DeviceBuffer landmarks = state.allocate(g.landmarkType(), heads, capacity, g.headDim());
        DeviceBuffer landmarkScales = scaledLandmarks ? state.allocate(ElementType.F32, heads, capacity) : null;
        DeviceBuffer radius = state.allocate(ElementType.F32, heads, capacity);
        DeviceBuffer cosine = scratch.allocate(4L * heads * capacity);
        state.cache.landmarkBuild(keyRing, heads, g.headDim(), g.chunk(), 0, chunks, landmarks, g.landmarkType(),
                landmarkScales, radius, cosine, capacity);
        DeviceBuffer outlierKeys = null;
        DeviceBuffer outlierValues = null;
        if (outliers > 0) {
            DeviceBuffer ids = scratch.allocate(4L * heads * outliers);
            state.cache.outlierSelect(cosine, heads, chunks, capacity, outliers, ids, radius);
            outlierKeys = state.allocate(type, heads, outliers, g.chunk(), g.headDim());
            outlierValues = state.allocate(type, heads, outliers, g.chunk(), g.headDim());
            state.cache.chunkGather(keyRing, heads, g.headDim(), g.chunk(), ids, outliers, outlierKeys, 0, outliers);
            state.cache.chunkGather(valueRing, heads, g.headDim(), g.chunk(), ids, outliers, outlierValues, 0, outliers);
        }
        MemorySegment hostValues = state.pinned.allocate(
                g.valueType().bytes(heads * capacity * g.chunk() * g.headDim()), 64);
        DeviceBuffer valueScales = scaledValues ? state.allocate(ElementType.F32, heads, capacity) : null;
        state.cache.valueStore(valueRing, heads, g.headDim(), g.chunk(), 0, chunks, hostValues, g.valueType(), valueScales,
                capacity);
        DeviceBuffer moments = state.allocate(ElementType.F32, g.momentFloats());
        state.cache.momentUpdate(keyRing, valueRing, heads, g.headDim(), g.chunk(), 0, chunks, radius, capacity,
                MomentChange.REPLACE, moments);
        DeviceBuffer recentKeys = recent(state, g, keys);
        DeviceBuffer recentValues = recent(state, g, values);
        DeviceBuffer full = padded(state, g, coefficients, capacity);
        for (int copy = 0; copy < layers.length; copy++) {
            boolean first = copy == 0;
            // Copies share the host values: queries that are elsewhere in their drift read other parts of them.
            layers[copy] = new ShadowLayer(first ? full : state.copyOf(full), basis,
                    first ? landmarks : state.copyOf(landmarks), landmarkScales, first ? radius : state.copyOf(radius),
                    outlierKeys, outlierValues, first ? recentKeys : state.copyOf(recentKeys),
                    first ? recentValues : state.copyOf(recentValues), hostValues, valueScales,
                    g.slots() == 0 ? null : state.allocate(g.valueType().unpacked(), heads, g.slots(), g.chunk(), g.headDim()),
                    g.slots() == 0 ? null : state.filledInts((long) heads * g.slots()),
                    g.slots() == 0 ? null : state.filledInts((long) heads * g.slots()),
                    first ? moments : state.copyOf(moments), null, null, capacity, outliers);
        }
    }

    private static DeviceBuffer padded(DecodeState state, Geometry g, DeviceBuffer coefficients, long capacity) {
        long bytes = g.coefficientType().bytes(capacity * g.chunk() * g.rank());
        if (coefficients.byteSize() == bytes) {
            return coefficients;
        }
        DeviceBuffer larger = state.arena.allocate(bytes);
        state.open.fill(larger, 0);
        state.open.copy(coefficients, larger.slice(0, coefficients.byteSize()));
        return larger;
    }

    /** The tokens of the recent window: position p in row p % window. */
    private DeviceBuffer recent(DecodeState state, Geometry g, DeviceBuffer ring) {
        long row = (long) g.headDim() * g.storageType().bytes();
        DeviceBuffer window = state.allocate(g.storageType(), g.keyValueHeads(), g.window(), g.headDim());
        state.open.fill(window, 0);
        for (int head = 0; head < g.keyValueHeads(); head++) {
            for (long position = recentBegin; position < state.context; ) {
                long target = position % g.window();
                long count = Math.min(state.context - position, g.window() - target);
                state.open.copy(ring.slice((head * (long) state.context + position) * row, count * row),
                        window.slice((head * (long) g.window() + target) * row, count * row));
                position += count;
            }
        }
        return window;
    }

    /** {@code [context][r]}: what a chunk's tokens have in common, and what each has of its own. */
    private static float[] coefficients(int context, Geometry g, long seed) {
        int rank = g.rank();
        float[] out = new float[Math.multiplyExact(context, rank)];
        float[] scale = new float[rank];
        for (int i = 0; i < rank; i++) {
            scale[i] = (float) (1 / (1 + i / DECAY));
        }
        IntStream.range(0, (context + g.chunk() - 1) / g.chunk()).parallel().forEach(chunk -> {
            int first = chunk * g.chunk();
            int last = Math.min(context, first + g.chunk());
            float[] common = new float[rank];
            Numbers.gaussian(common, seed * 1_000_003 + first, 0.8f);
            Numbers.gaussian(out, first * rank, last * rank, (seed + 1) * 1_000_003 + first, 0.6f);
            for (int token = first; token < last; token++) {
                for (int i = 0; i < rank; i++) {
                    out[token * rank + i] = (out[token * rank + i] + common[i]) * scale[i];
                }
            }
        });
        return out;
    }

    /** As coefficients of 8 bits are kept: a direction's in 127ths of the largest of them, and its rows times such a part. */
    private static void toWholeNumbers(float[] coefficients, float[] basis, Geometry g) {
        int rank = g.rank();
        float[] largest = new float[rank];
        for (int i = 0; i < coefficients.length; i++) {
            largest[i % rank] = Math.max(largest[i % rank], Math.abs(coefficients[i]));
        }
        for (int i = 0; i < coefficients.length; i++) {
            coefficients[i] *= Numbers.LARGEST_I8 / largest[i % rank];
        }
        for (int i = 0; i < basis.length; i++) {
            basis[i] *= largest[i / g.headDim() % rank] / Numbers.LARGEST_I8;
        }
    }

    /** {@code [K][r][D]}, scaled so that elements of keys have variance 1. */
    private static float[] basis(Geometry g, long seed) {
        double energy = 0;
        for (int i = 0; i < g.rank(); i++) {
            energy += 1 / ((1 + i / DECAY) * (1 + i / DECAY));
        }
        return Numbers.gaussian(g.keyValueHeads() * g.rank() * g.headDim(), seed + 2, (float) (1 / Math.sqrt(energy)));
    }
}
