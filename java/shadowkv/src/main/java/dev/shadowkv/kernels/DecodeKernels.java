package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.RopeTable;
import dev.shadowkv.internal.ffi.ShadowKv;
import dev.shadowkv.internal.ffi.skv_cache_plan_params;
import dev.shadowkv.internal.ffi.skv_decode_layer_params;
import dev.shadowkv.internal.ffi.skv_dense_attention_params;
import dev.shadowkv.internal.ffi.skv_dense_decode_layer_params;
import dev.shadowkv.internal.ffi.skv_landmark_topk_params;
import dev.shadowkv.internal.ffi.skv_rerank_params;
import dev.shadowkv.internal.ffi.skv_sparse_attention_params;
import dev.shadowkv.internal.ffi.skv_value_gather_params;

/**
 * The operations of a decode step, one by one and composed. A call allocates nothing.
 *
 * <p>{@code layers} and {@code states} are tables in device memory, of which {@code batch} consecutive entries
 * beginning
 * at {@code first} are used.
 *
 * <p>May be used from several threads, which take turns.
 */
public final class DecodeKernels {

    /** Bytes of one session's counters. */
    public static final int COUNTER_BYTES = 24;

    private final Params params;

    /** Operations of a device. */
    public DecodeKernels(Device device) {
        params = new Params(device);
    }

    /**
     * Picks chunks by landmark: the logit of chunk c for query head h is
     * {@code (q_h . mean_c + radiusWeight |q_h| radius_c) / sqrt(D)}, its score for a key/value head the largest over
     * the
     * head's query heads of logit minus logsumexp over all indexed chunks.
     *
     * @param queries {@code [B][H][D]} rotated, dense
     * @param maxChunks no session of the batch has more indexed chunks
     * @param selected {@code [B][K][S]} chunk ids, ascending; 32-bit integers
     * @param selectedCount {@code [B][K]} 32-bit integers
     * @param mass {@code [B][K]} floats, the softmax weight that the selection holds among the landmarks; or null
     * @param tail {@code [B][H]} floats, the natural logarithm of the weight of the indexed tokens that are not selected, by
     *     their landmarks without radius: of the sum of {@code C exp(q_h . mean_c / sqrt(D))}; minus infinity when all are
     *     selected; or null
     */
    public void landmarkTopK(Geometry geometry, int batch, Rows queries, ShadowLayers layers, long firstLayer,
                             SessionStates states, long firstState, float radiusWeight, int select, long maxChunks,
                             DeviceBuffer selected, DeviceBuffer selectedCount, DeviceBuffer mass, DeviceBuffer tail) {
        queries.dense("queries");
        long heads = (long) batch * geometry.keyValueHeads();
        Params.select(select);
        MemorySegment p = params.begin(skv_landmark_topk_params.sizeof());
        try {
            skv_landmark_topk_params.query_type(p, queries.type().code());
            params.geometry(skv_landmark_topk_params.geometry$offset(), geometry);
            skv_landmark_topk_params.batch(p, batch);
            params.rows(skv_landmark_topk_params.queries$offset(), "queries", queries, batch,
                    (long) geometry.queryHeads() * geometry.headDim());
            params.address(skv_landmark_topk_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_landmark_topk_params.states$offset(), states.address(params, firstState, batch));
            skv_landmark_topk_params.radius_weight(p, radiusWeight);
            skv_landmark_topk_params.select(p, select);
            skv_landmark_topk_params.max_chunks(p, maxChunks);
            params.pointer(skv_landmark_topk_params.selected$offset(), "selected", selected, 4 * heads * select);
            params.pointer(skv_landmark_topk_params.selected_count$offset(), "selected_count", selectedCount,
                    4 * heads);
            params.optional(skv_landmark_topk_params.mass$offset(), "mass", mass, 4 * heads);
            params.optional(skv_landmark_topk_params.tail$offset(), "tail", tail, 4L * batch * geometry.queryHeads());
            params.context.runReserved("landmark_topk", ShadowKv.SKV_OP_LANDMARK_TOPK(), ShadowKv::skv_landmark_topk,
                    p);
        } finally {
            params.end();
        }
    }

    /**
     * Replaces a shortlist by the chunks of largest exact attention mass; their keys are rebuilt and scored.
     *
     * @param maxPositions positions that the sessions' coefficients can hold
     * @param shortlist {@code [B][K][shortlistStride]} ascending; 32-bit integers
     * @param shortlistCount {@code [B][K]} 32-bit integers
     * @param selected {@code [B][K][S]} ascending; 32-bit integers
     * @param selectedCount {@code [B][K]} 32-bit integers
     * @param tail {@code [B][H]} floats, what {@link #landmarkTopK} left out of the shortlist, changed: chunks of the
     *     shortlist that are not selected are added with their exact weight, with {@code dropped} only of layers without a
     *     basis of values; or null
     * @param dropped {@code [B][H]} floats, the natural logarithm of the exact weight of the tokens of those chunks, of the
     *     sum of {@code exp(q . key / sqrt(D))}; negative infinity where there are none or a layer has no basis of values. Or
     *     null
     * @param droppedValues {@code [B][H][D]} floats, with {@code dropped}: their value, their weighted mean coefficients
     *     times the basis of values; not written where there are none
     */
    public void rerank(Geometry geometry, int batch, Rows queries, ShadowLayers layers, long firstLayer,
                       SessionStates states, long firstState, RopeTable rope, long maxPositions, int shortlistStride,
                       DeviceBuffer shortlist, DeviceBuffer shortlistCount, int select, DeviceBuffer selected,
                       DeviceBuffer selectedCount, DeviceBuffer tail, DeviceBuffer dropped,
                       DeviceBuffer droppedValues) {
        queries.dense("queries");
        long heads = (long) batch * geometry.keyValueHeads();
        Params.select(select);
        if (shortlistStride < select) {
            throw new IllegalArgumentException("shortlistStride " + shortlistStride + " is less than select " + select);
        }
        MemorySegment p = params.begin(skv_rerank_params.sizeof());
        try {
            skv_rerank_params.query_type(p, queries.type().code());
            params.geometry(skv_rerank_params.geometry$offset(), geometry);
            skv_rerank_params.batch(p, batch);
            params.rows(skv_rerank_params.queries$offset(), "queries", queries, batch,
                    (long) geometry.queryHeads() * geometry.headDim());
            params.address(skv_rerank_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_rerank_params.states$offset(), states.address(params, firstState, batch));
            params.rope(skv_rerank_params.rope$offset(), rope, maxPositions);
            skv_rerank_params.shortlist_stride(p, shortlistStride);
            params.pointer(skv_rerank_params.shortlist$offset(), "shortlist", shortlist, 4 * heads * shortlistStride);
            params.pointer(skv_rerank_params.shortlist_count$offset(), "shortlist_count", shortlistCount, 4 * heads);
            skv_rerank_params.select(p, select);
            params.pointer(skv_rerank_params.selected$offset(), "selected", selected, 4 * heads * select);
            params.pointer(skv_rerank_params.selected_count$offset(), "selected_count", selectedCount, 4 * heads);
            long rows = (long) batch * geometry.queryHeads();
            params.optional(skv_rerank_params.tail$offset(), "tail", tail, 4 * rows);
            params.optional(skv_rerank_params.dropped$offset(), "dropped", dropped, 4 * rows);
            params.optional(skv_rerank_params.dropped_values$offset(), "dropped_values", droppedValues,
                    4 * rows * geometry.headDim());
            params.context.runReserved("rerank", ShadowKv.SKV_OP_RERANK(), ShadowKv::skv_rerank, p);
        } finally {
            params.end();
        }
    }

    /**
     * Decides which slot each selected chunk is in or goes to, least recently selected first, and what must be fetched.
     * Lists are 32-bit integers: {@code [B][K][S]}, counts {@code [B][K]}.
     */
    public void cachePlan(Geometry geometry, int batch, ShadowLayers layers, long firstLayer, SessionStates states,
                          long firstState, int select, DeviceBuffer selected, DeviceBuffer selectedCount,
                          DeviceBuffer selectedSlot, DeviceBuffer fetchChunk, DeviceBuffer fetchSlot,
                          DeviceBuffer fetchCount) {
        long heads = (long) batch * geometry.keyValueHeads();
        Params.select(select);
        MemorySegment p = params.begin(skv_cache_plan_params.sizeof());
        try {
            params.geometry(skv_cache_plan_params.geometry$offset(), geometry);
            skv_cache_plan_params.batch(p, batch);
            params.address(skv_cache_plan_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_cache_plan_params.states$offset(), states.address(params, firstState, batch));
            skv_cache_plan_params.select(p, select);
            params.pointer(skv_cache_plan_params.selected$offset(), "selected", selected, 4 * heads * select);
            params.pointer(skv_cache_plan_params.selected_count$offset(), "selected_count", selectedCount, 4 * heads);
            params.pointer(skv_cache_plan_params.selected_slot$offset(), "selected_slot", selectedSlot,
                    4 * heads * select);
            params.pointer(skv_cache_plan_params.fetch_chunk$offset(), "fetch_chunk", fetchChunk, 4 * heads * select);
            params.pointer(skv_cache_plan_params.fetch_slot$offset(), "fetch_slot", fetchSlot, 4 * heads * select);
            params.pointer(skv_cache_plan_params.fetch_count$offset(), "fetch_count", fetchCount, 4 * heads);
            params.context.runReserved("cache_plan", ShadowKv.SKV_OP_CACHE_PLAN(), ShadowKv::skv_cache_plan, p);
        } finally {
            params.end();
        }
    }

    /**
     * Brings the values of a fetch list from host memory into their slots.
     *
     * @param blocks thread blocks of a GPU to use; 0: default
     */
    public void valueGather(Geometry geometry, int batch, ShadowLayers layers, long firstLayer, int select,
                            DeviceBuffer fetchChunk, DeviceBuffer fetchSlot, DeviceBuffer fetchCount, int blocks) {
        long heads = (long) batch * geometry.keyValueHeads();
        Params.select(select);
        MemorySegment p = params.begin(skv_value_gather_params.sizeof());
        try {
            params.geometry(skv_value_gather_params.geometry$offset(), geometry);
            skv_value_gather_params.batch(p, batch);
            params.address(skv_value_gather_params.layers$offset(), layers.address(params, firstLayer, batch));
            skv_value_gather_params.select(p, select);
            params.pointer(skv_value_gather_params.fetch_chunk$offset(), "fetch_chunk", fetchChunk, 4 * heads * select);
            params.pointer(skv_value_gather_params.fetch_slot$offset(), "fetch_slot", fetchSlot, 4 * heads * select);
            params.pointer(skv_value_gather_params.fetch_count$offset(), "fetch_count", fetchCount, 4 * heads);
            skv_value_gather_params.blocks(p, blocks);
            params.context.runReserved("value_gather", ShadowKv.SKV_OP_VALUE_GATHER(), ShadowKv::skv_value_gather, p);
        } finally {
            params.end();
        }
    }

    /**
     * Attention of one query token a session over its selected chunks, whose keys are rebuilt on the fly, its outliers
     * and its recent window.
     *
     * @param tail {@code [B][H]} floats, the natural logarithm of the weight of the indexed tokens that are not selected.
     *     They take part in the softmax with that weight and the value {@code mean(v) + cov(v, k) q_h / sqrt(D)} of the
     *     layer's moments; sessions without moments have no such part. Or null
     * @param dropped {@code [B][H]} floats, the natural logarithm of the weight of a further part of the softmax, as
     *     {@link #rerank} gives it; no such part where it is not finite. Or null
     * @param droppedValues {@code [B][H][D]} floats, with {@code dropped}: the value of that part
     * @param output {@code [B][H][D]}, dense
     * @param logSumExp {@code [B][H]} floats, the natural logarithm of the softmax denominator; or null
     */
    public void sparseAttention(Geometry geometry, int batch, Rows queries, ShadowLayers layers, long firstLayer,
                                SessionStates states, long firstState, RopeTable rope, long maxPositions, int select,
                                DeviceBuffer selected, DeviceBuffer selectedSlot, DeviceBuffer selectedCount,
                                DeviceBuffer tail, DeviceBuffer dropped, DeviceBuffer droppedValues, Rows output,
                                DeviceBuffer logSumExp) {
        queries.dense("queries");
        output.dense("output");
        long heads = (long) batch * geometry.keyValueHeads();
        Params.select(select);
        long width = (long) geometry.queryHeads() * geometry.headDim();
        MemorySegment p = params.begin(skv_sparse_attention_params.sizeof());
        try {
            skv_sparse_attention_params.query_type(p, queries.type().code());
            skv_sparse_attention_params.output_type(p, output.type().code());
            params.geometry(skv_sparse_attention_params.geometry$offset(), geometry);
            skv_sparse_attention_params.batch(p, batch);
            params.rows(skv_sparse_attention_params.queries$offset(), "queries", queries, batch, width);
            params.address(skv_sparse_attention_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_sparse_attention_params.states$offset(), states.address(params, firstState, batch));
            params.rope(skv_sparse_attention_params.rope$offset(), rope, maxPositions);
            skv_sparse_attention_params.select(p, select);
            params.pointer(skv_sparse_attention_params.selected$offset(), "selected", selected, 4 * heads * select);
            params.pointer(skv_sparse_attention_params.selected_slot$offset(), "selected_slot", selectedSlot,
                    4 * heads * select);
            params.pointer(skv_sparse_attention_params.selected_count$offset(), "selected_count", selectedCount,
                    4 * heads);
            params.optional(skv_sparse_attention_params.tail$offset(), "tail", tail, 4L * batch * geometry.queryHeads());
            params.optional(skv_sparse_attention_params.dropped$offset(), "dropped", dropped,
                    4L * batch * geometry.queryHeads());
            params.optional(skv_sparse_attention_params.dropped_values$offset(), "dropped_values", droppedValues,
                    4L * batch * width);
            params.rows(skv_sparse_attention_params.output$offset(), "output", output, batch, width);
            params.optional(skv_sparse_attention_params.log_sum_exp$offset(), "log_sum_exp", logSumExp,
                    4L * batch * geometry.queryHeads());
            params.context.runReserved("sparse_attention", ShadowKv.SKV_OP_SPARSE_ATTENTION(),
                    ShadowKv::skv_sparse_attention, p);
        } finally {
            params.end();
        }
    }

    /**
     * Exact attention of one query token a session over a dense cache.
     *
     * @param maxLength no session of the batch is longer
     * @param output {@code [B][H][D]}, dense
     * @param logSumExp {@code [B][H]} floats, or null
     */
    public void denseAttention(Geometry geometry, int batch, Rows queries, DenseLayers layers, long firstLayer,
                               SessionStates states, long firstState, long maxLength, Rows output,
                               DeviceBuffer logSumExp) {
        queries.dense("queries");
        output.dense("output");
        long width = (long) geometry.queryHeads() * geometry.headDim();
        MemorySegment p = params.begin(skv_dense_attention_params.sizeof());
        try {
            skv_dense_attention_params.query_type(p, queries.type().code());
            skv_dense_attention_params.output_type(p, output.type().code());
            params.geometry(skv_dense_attention_params.geometry$offset(), geometry);
            skv_dense_attention_params.batch(p, batch);
            params.rows(skv_dense_attention_params.queries$offset(), "queries", queries, batch, width);
            params.address(skv_dense_attention_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_dense_attention_params.states$offset(), states.address(params, firstState, batch));
            skv_dense_attention_params.max_length(p, maxLength);
            params.rows(skv_dense_attention_params.output$offset(), "output", output, batch, width);
            params.optional(skv_dense_attention_params.log_sum_exp$offset(), "log_sum_exp", logSumExp,
                    4L * batch * geometry.queryHeads());
            params.context.runReserved("dense_attention", ShadowKv.SKV_OP_DENSE_ATTENTION(),
                    ShadowKv::skv_dense_attention, p);
        } finally {
            params.end();
        }
    }

    /**
     * One layer of a decode step of a shadow cache: rotates the new tokens, adds them to the recent windows, selects,
     * plans,
     * fetches and attends. The states hold the lengths with the new token.
     *
     * @param inputType of queries, keys, values and output
     * @param queries {@code [B][H][D]} before RoPE
     * @param keys {@code [B][K][D]} before RoPE
     * @param values {@code [B][K][D]}
     * @param shortlist chunks to rerank, more than {@code select}; 0: no rerank
     * @param tail whether indexed tokens that are not selected take part, by their landmarks and the layers' moments; those
     *     of a shortlist by their exact weight and, where a layer has a basis of values, by what that predicts
     * @param output {@code [B][H][D]}, dense
     * @param counters {@code [B]} of {@link #COUNTER_BYTES}, added to: selected chunks and fetched chunks (64-bit
     * integers),
     *     captured landmark mass (64-bit float); or null
     */
    public void decodeLayer(Geometry geometry, int batch, ElementType inputType, DeviceBuffer queries,
                            long queryStride, DeviceBuffer keys, long keyStride, DeviceBuffer values,
                            long valueStride, ShadowLayers layers, long firstLayer, SessionStates states,
                            long firstState, RopeTable rope, long maxPositions, float radiusWeight, int select,
                            int shortlist, long maxChunks, boolean tail, DeviceBuffer output,
                            DeviceBuffer counters) {
        Params.floating("inputType", inputType);
        Params.select(select);
        int width = geometry.queryHeads() * geometry.headDim();
        int keyWidth = geometry.keyValueHeads() * geometry.headDim();
        MemorySegment p = params.begin(skv_decode_layer_params.sizeof());
        try {
            skv_decode_layer_params.input_type(p, inputType.code());
            params.geometry(skv_decode_layer_params.geometry$offset(), geometry);
            skv_decode_layer_params.batch(p, batch);
            params.pointer(skv_decode_layer_params.queries$offset(), "queries", queries, Params.strided("queries",
                    inputType, batch, width, queryStride));
            params.pointer(skv_decode_layer_params.keys$offset(), "keys", keys, Params.strided("keys", inputType,
                    batch, keyWidth, keyStride));
            params.pointer(skv_decode_layer_params.values$offset(), "values", values, Params.strided("values",
                    inputType, batch, keyWidth, valueStride));
            skv_decode_layer_params.query_stride(p, queryStride);
            skv_decode_layer_params.key_stride(p, keyStride);
            skv_decode_layer_params.value_stride(p, valueStride);
            params.address(skv_decode_layer_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_decode_layer_params.states$offset(), states.address(params, firstState, batch));
            params.rope(skv_decode_layer_params.rope$offset(), rope, maxPositions);
            skv_decode_layer_params.radius_weight(p, radiusWeight);
            skv_decode_layer_params.select(p, select);
            skv_decode_layer_params.shortlist(p, shortlist);
            skv_decode_layer_params.max_chunks(p, maxChunks);
            skv_decode_layer_params.tail(p, tail ? 1 : 0);
            params.pointer(skv_decode_layer_params.output$offset(), "output", output, Params.strided("output",
                    inputType, batch, width, 0));
            params.optional(skv_decode_layer_params.counters$offset(), "counters", counters,
                    (long) COUNTER_BYTES * batch);
            params.context.runReserved("decode_layer", ShadowKv.SKV_OP_DECODE_LAYER(), ShadowKv::skv_decode_layer, p);
        } finally {
            params.end();
        }
    }

    /**
     * One layer of a decode step of a dense cache: rotates, appends, attends exactly. Operands as in
     * {@link #decodeLayer}.
     */
    public void denseDecodeLayer(Geometry geometry, int batch, ElementType inputType, DeviceBuffer queries,
                                 long queryStride, DeviceBuffer keys, long keyStride, DeviceBuffer values,
                                 long valueStride, DenseLayers layers, long firstLayer, SessionStates states,
                                 long firstState, RopeTable rope, long maxPositions, long maxLength,
                                 DeviceBuffer output) {
        Params.floating("inputType", inputType);
        int width = geometry.queryHeads() * geometry.headDim();
        int keyWidth = geometry.keyValueHeads() * geometry.headDim();
        MemorySegment p = params.begin(skv_dense_decode_layer_params.sizeof());
        try {
            skv_dense_decode_layer_params.input_type(p, inputType.code());
            params.geometry(skv_dense_decode_layer_params.geometry$offset(), geometry);
            skv_dense_decode_layer_params.batch(p, batch);
            params.pointer(skv_dense_decode_layer_params.queries$offset(), "queries", queries,
                    Params.strided("queries", inputType, batch, width, queryStride));
            params.pointer(skv_dense_decode_layer_params.keys$offset(), "keys", keys, Params.strided("keys",
                    inputType, batch, keyWidth, keyStride));
            params.pointer(skv_dense_decode_layer_params.values$offset(), "values", values, Params.strided("values",
                    inputType, batch, keyWidth, valueStride));
            skv_dense_decode_layer_params.query_stride(p, queryStride);
            skv_dense_decode_layer_params.key_stride(p, keyStride);
            skv_dense_decode_layer_params.value_stride(p, valueStride);
            params.address(skv_dense_decode_layer_params.layers$offset(), layers.address(params, firstLayer, batch));
            params.address(skv_dense_decode_layer_params.states$offset(), states.address(params, firstState, batch));
            params.rope(skv_dense_decode_layer_params.rope$offset(), rope, maxPositions);
            skv_dense_decode_layer_params.max_length(p, maxLength);
            params.pointer(skv_dense_decode_layer_params.output$offset(), "output", output, Params.strided("output",
                    inputType, batch, width, 0));
            params.context.runReserved("dense_decode_layer", ShadowKv.SKV_OP_DENSE_DECODE_LAYER(),
                    ShadowKv::skv_dense_decode_layer, p);
        } finally {
            params.end();
        }
    }
}
