package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.internal.ffi.ShadowKv;
import dev.shadowkv.internal.ffi.skv_decode_layer_params;
import dev.shadowkv.internal.ffi.skv_dense_decode_layer_params;
import dev.shadowkv.internal.ffi.skv_low_rank_factor_params;
import dev.shadowkv.internal.ffi.skv_low_rank_project_params;
import dev.shadowkv.internal.ffi.skv_moment_update_params;
import dev.shadowkv.internal.ffi.skv_prefill_attention_params;
import dev.shadowkv.internal.ffi.skv_value_fit_params;

/** Bytes of workspace that operations need, asked for beforehand: for memory plans, and before a capture. */
public final class Workspaces {

    private final Params params;

    /** Workspaces of a device. */
    public Workspaces(Device device) {
        params = new Params(device);
    }

    /** Makes the device's workspace at least so large; waits for the stream when it has to grow. */
    public void reserve(long bytes) {
        params.context.reserveWorkspace(Params.notNegative("bytes", bytes));
    }

    /** Of {@link DecodeKernels#decodeLayer}. */
    public long decodeLayer(Geometry geometry, int batch, ElementType inputType, int rotaryDim, int select,
                            int shortlist, long maxChunks, boolean tail) {
        MemorySegment p = params.begin(skv_decode_layer_params.sizeof());
        try {
            skv_decode_layer_params.input_type(p, inputType.code());
            params.geometry(skv_decode_layer_params.geometry$offset(), geometry);
            skv_decode_layer_params.batch(p, batch);
            params.ropeShape(skv_decode_layer_params.rope$offset(), rotaryDim);
            skv_decode_layer_params.select(p, select);
            skv_decode_layer_params.shortlist(p, shortlist);
            skv_decode_layer_params.max_chunks(p, maxChunks);
            skv_decode_layer_params.tail(p, tail ? 1 : 0);
            return params.context.workspaceBytes("decode_layer", ShadowKv.SKV_OP_DECODE_LAYER(), p);
        } finally {
            params.end();
        }
    }

    /** Of {@link DecodeKernels#denseDecodeLayer}. */
    public long denseDecodeLayer(Geometry geometry, int batch, ElementType inputType, int rotaryDim, long maxLength) {
        MemorySegment p = params.begin(skv_dense_decode_layer_params.sizeof());
        try {
            skv_dense_decode_layer_params.input_type(p, inputType.code());
            params.geometry(skv_dense_decode_layer_params.geometry$offset(), geometry);
            skv_dense_decode_layer_params.batch(p, batch);
            params.ropeShape(skv_dense_decode_layer_params.rope$offset(), rotaryDim);
            skv_dense_decode_layer_params.max_length(p, maxLength);
            return params.context.workspaceBytes("dense_decode_layer", ShadowKv.SKV_OP_DENSE_DECODE_LAYER(), p);
        } finally {
            params.end();
        }
    }

    /** Of {@link TransformerKernels#prefillAttention}. */
    public long prefillAttention(Geometry geometry, ElementType inputType, long count, long firstPosition,
            long capacity) {
        MemorySegment p = params.begin(skv_prefill_attention_params.sizeof());
        try {
            skv_prefill_attention_params.query_type(p, inputType.code());
            skv_prefill_attention_params.output_type(p, inputType.code());
            params.geometry(skv_prefill_attention_params.geometry$offset(), geometry);
            skv_prefill_attention_params.count(p, count);
            skv_prefill_attention_params.first_position(p, firstPosition);
            skv_prefill_attention_params.capacity(p, capacity);
            return params.context.workspaceBytes("prefill_attention", ShadowKv.SKV_OP_PREFILL_ATTENTION(), p);
        } finally {
            params.end();
        }
    }

    /** Of {@link CacheKernels#lowRankFactor}. */
    public long lowRankFactor(ElementType type, ElementType coefficientType, long tokens, int keyValueHeads, int headDim,
                              int rank, int storedRank) {
        MemorySegment p = params.begin(skv_low_rank_factor_params.sizeof());
        try {
            skv_low_rank_factor_params.type(p, type.code());
            skv_low_rank_factor_params.coefficient_type(p, Params.coefficients(coefficientType, type).code());
            skv_low_rank_factor_params.tokens(p, tokens);
            skv_low_rank_factor_params.key_value_heads(p, keyValueHeads);
            skv_low_rank_factor_params.head_dim(p, headDim);
            skv_low_rank_factor_params.rank(p, rank);
            skv_low_rank_factor_params.stored_rank(p, storedRank);
            return params.context.workspaceBytes("low_rank_factor", ShadowKv.SKV_OP_LOW_RANK_FACTOR(), p);
        } finally {
            params.end();
        }
    }

    /** Of {@link CacheKernels#momentUpdate} of so many chunks at once. */
    public long momentUpdate(Geometry geometry, long chunks) {
        MemorySegment p = params.begin(skv_moment_update_params.sizeof());
        try {
            skv_moment_update_params.storage_type(p, geometry.storageType().code());
            skv_moment_update_params.key_value_heads(p, geometry.keyValueHeads());
            skv_moment_update_params.head_dim(p, geometry.headDim());
            skv_moment_update_params.chunk(p, geometry.chunk());
            skv_moment_update_params.capacity(p, Math.max(1, chunks) * geometry.chunk());
            skv_moment_update_params.chunks(p, chunks);
            skv_moment_update_params.chunk_capacity(p, chunks);
            return params.context.workspaceBytes("moment_update", ShadowKv.SKV_OP_MOMENT_UPDATE(), p);
        } finally {
            params.end();
        }
    }

    /** Of {@link CacheKernels#valueFit}. */
    public long valueFit(Geometry geometry, long tokens) {
        MemorySegment p = params.begin(skv_value_fit_params.sizeof());
        try {
            skv_value_fit_params.storage_type(p, geometry.storageType().code());
            skv_value_fit_params.coefficient_type(p, geometry.coefficientType().code());
            skv_value_fit_params.key_value_heads(p, geometry.keyValueHeads());
            skv_value_fit_params.head_dim(p, geometry.headDim());
            skv_value_fit_params.rank(p, geometry.rank());
            skv_value_fit_params.capacity(p, Math.max(1, tokens));
            skv_value_fit_params.tokens(p, tokens);
            return params.context.workspaceBytes("value_fit", ShadowKv.SKV_OP_VALUE_FIT(), p);
        } finally {
            params.end();
        }
    }

    /** Of {@link CacheKernels#lowRankProject}. */
    public long lowRankProject(ElementType type, ElementType coefficientType, long count, int keyValueHeads, int headDim,
                               int rank) {
        MemorySegment p = params.begin(skv_low_rank_project_params.sizeof());
        try {
            skv_low_rank_project_params.type(p, type.code());
            skv_low_rank_project_params.coefficient_type(p, Params.coefficients(coefficientType, type).code());
            skv_low_rank_project_params.count(p, count);
            skv_low_rank_project_params.key_value_heads(p, keyValueHeads);
            skv_low_rank_project_params.head_dim(p, headDim);
            skv_low_rank_project_params.rank(p, rank);
            return params.context.workspaceBytes("low_rank_project", ShadowKv.SKV_OP_LOW_RANK_PROJECT(), p);
        } finally {
            params.end();
        }
    }
}
