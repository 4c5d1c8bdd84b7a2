package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.RopeTable;
import dev.shadowkv.internal.ffi.ShadowKv;
import dev.shadowkv.internal.ffi.skv_add_params;
import dev.shadowkv.internal.ffi.skv_argmax_params;
import dev.shadowkv.internal.ffi.skv_convert_params;
import dev.shadowkv.internal.ffi.skv_embed_params;
import dev.shadowkv.internal.ffi.skv_matmul_params;
import dev.shadowkv.internal.ffi.skv_prefill_attention_params;
import dev.shadowkv.internal.ffi.skv_random_fill_params;
import dev.shadowkv.internal.ffi.skv_rms_norm_params;
import dev.shadowkv.internal.ffi.skv_rope_params;
import dev.shadowkv.internal.ffi.skv_silu_multiply_params;

/**
 * The rest of a transformer layer: projections, norms, activations, embeddings, prefill attention. A call allocates
 * nothing, so that a decode loop can be built of these.
 *
 * <p>May be used from several threads, which take turns.
 */
public final class TransformerKernels {

    private final Params params;

    /** Operations of a device. */
    public TransformerKernels(Device device) {
        params = new Params(device);
    }

    /**
     * {@code output = input . weight^T (+ bias) (+ output)}, accumulated in fp32.
     *
     * @param input {@code [rows][inner]}
     * @param weight {@code [columns][inner]}, dense
     * @param bias {@code [columns]} of the weight's type, or null
     * @param output {@code [rows][columns]}
     * @param accumulate whether to add to what the output holds
     */
    public void matmul(Rows input, Rows weight, DeviceBuffer bias, Rows output, long rows, long columns, long inner,
                       boolean accumulate) {
        weight.dense("weight");
        MemorySegment p = params.begin(skv_matmul_params.sizeof());
        try {
            skv_matmul_params.input_type(p, input.type().code());
            skv_matmul_params.weight_type(p, weight.type().code());
            skv_matmul_params.output_type(p, output.type().code());
            params.rows(skv_matmul_params.input$offset(), "input", input, rows, inner);
            params.rows(skv_matmul_params.weight$offset(), "weight", weight, columns, inner);
            params.optional(skv_matmul_params.bias$offset(), "bias", bias, Params.bytes(weight.type(), columns));
            params.rows(skv_matmul_params.output$offset(), "output", output, rows, columns);
            skv_matmul_params.rows(p, rows);
            skv_matmul_params.columns(p, columns);
            skv_matmul_params.inner(p, inner);
            skv_matmul_params.input_stride(p, input.stride());
            skv_matmul_params.output_stride(p, output.stride());
            skv_matmul_params.accumulate(p, accumulate ? 1 : 0);
            params.context.runReserved("matmul", ShadowKv.SKV_OP_MATMUL(), ShadowKv::skv_matmul, p);
        } finally {
            params.end();
        }
    }

    /**
     * {@code output = input / sqrt(mean(input^2) + epsilon) * weight}, row by row. A residual is first added to the
     * input in place.
     *
     * @param input {@code [rows][width]}, dense
     * @param residual {@code [rows][width]} of the input's type, or null
     * @param weight {@code [width]}
     * @param output {@code [rows][width]}, dense, of any type
     */
    public void rmsNorm(Rows input, DeviceBuffer residual, Rows weight, Rows output, long rows, long width,
                        float epsilon) {
        input.dense("input");
        output.dense("output");
        MemorySegment p = params.begin(skv_rms_norm_params.sizeof());
        try {
            skv_rms_norm_params.type(p, input.type().code());
            skv_rms_norm_params.weight_type(p, weight.type().code());
            skv_rms_norm_params.output_type(p, output.type().code());
            params.rows(skv_rms_norm_params.input$offset(), "input", input, rows, width);
            params.optional(skv_rms_norm_params.residual$offset(), "residual", residual, Params.bytes(input.type(),
                    rows, width));
            params.rows(skv_rms_norm_params.weight$offset(), "weight", weight, 1, width);
            params.rows(skv_rms_norm_params.output$offset(), "output", output, rows, width);
            skv_rms_norm_params.rows(p, rows);
            skv_rms_norm_params.width(p, width);
            skv_rms_norm_params.epsilon(p, epsilon);
            params.context.runReserved("rms_norm", ShadowKv.SKV_OP_RMS_NORM(), ShadowKv::skv_rms_norm, p);
        } finally {
            params.end();
        }
    }

    /**
     * {@code output = silu(gate) * up}.
     *
     * @param gate {@code [rows][width]}
     * @param up the same, of the same type and stride
     * @param output {@code [rows][width]}, dense, of the same type
     */
    public void siluMultiply(Rows gate, Rows up, DeviceBuffer output, long rows, long width) {
        Params.same("up", up.type(), gate.type());
        if (up.stride() != gate.stride()) {
        throw new IllegalArgumentException("up has another stride than gate: " + up.stride() + ", " + gate.stride());
        }
        MemorySegment p = params.begin(skv_silu_multiply_params.sizeof());
        try {
            skv_silu_multiply_params.type(p, gate.type().code());
            params.rows(skv_silu_multiply_params.gate$offset(), "gate", gate, rows, width);
            params.rows(skv_silu_multiply_params.up$offset(), "up", up, rows, width);
            params.pointer(skv_silu_multiply_params.output$offset(), "output", output, Params.bytes(gate.type(), rows,
                    width));
            skv_silu_multiply_params.rows(p, rows);
            skv_silu_multiply_params.width(p, width);
            skv_silu_multiply_params.stride(p, gate.stride());
            params.context.runReserved("silu_multiply", ShadowKv.SKV_OP_SILU_MULTIPLY(), ShadowKv::skv_silu_multiply,
                    p);
        } finally {
            params.end();
        }
    }

    /**
     * Rows of a table. An id outside the vocabulary gives a row of NaN.
     *
     * @param table {@code [vocabulary][width]}, dense
     * @param ids {@code [count]} 32-bit integers
     * @param output {@code [count][width]}, dense
     */
    public void embed(Rows table, DeviceBuffer ids, Rows output, long count, long width, long vocabulary) {
        table.dense("table");
        output.dense("output");
        MemorySegment p = params.begin(skv_embed_params.sizeof());
        try {
            skv_embed_params.table_type(p, table.type().code());
            skv_embed_params.output_type(p, output.type().code());
            params.rows(skv_embed_params.table$offset(), "table", table, vocabulary, width);
            params.pointer(skv_embed_params.ids$offset(), "ids", ids, Math.multiplyExact(4,
                    Params.notNegative("count", count)));
            params.rows(skv_embed_params.output$offset(), "output", output, count, width);
            skv_embed_params.count(p, count);
            skv_embed_params.width(p, width);
            skv_embed_params.vocabulary(p, vocabulary);
            params.context.runReserved("embed", ShadowKv.SKV_OP_EMBED(), ShadowKv::skv_embed, p);
        } finally {
            params.end();
        }
    }

    /** {@code output = a + b}; the output may be an input. */
    public void add(DeviceBuffer a, DeviceBuffer b, DeviceBuffer output, ElementType type, long count) {
        Params.floating("type", type);
        MemorySegment p = params.begin(skv_add_params.sizeof());
        try {
            skv_add_params.type(p, type.code());
            params.pointer(skv_add_params.a$offset(), "a", a, Params.bytes(type, count));
            params.pointer(skv_add_params.b$offset(), "b", b, Params.bytes(type, count));
            params.pointer(skv_add_params.output$offset(), "output", output, Params.bytes(type, count));
            skv_add_params.count(p, count);
            params.context.runReserved("add", ShadowKv.SKV_OP_ADD(), ShadowKv::skv_add, p);
        } finally {
            params.end();
        }
    }

    /** Changes the element type among F32, BF16 and F16, to nearest even. */
    public void convert(DeviceBuffer input, ElementType inputType, DeviceBuffer output, ElementType outputType,
                        long count) {
        Params.floating("inputType", inputType);
        Params.floating("outputType", outputType);
        MemorySegment p = params.begin(skv_convert_params.sizeof());
        try {
            skv_convert_params.input_type(p, inputType.code());
            skv_convert_params.output_type(p, outputType.code());
            params.pointer(skv_convert_params.input$offset(), "input", input, Params.bytes(inputType, count));
            params.pointer(skv_convert_params.output$offset(), "output", output, Params.bytes(outputType, count));
            skv_convert_params.count(p, count);
            params.context.runReserved("convert", ShadowKv.SKV_OP_CONVERT(), ShadowKv::skv_convert, p);
        } finally {
            params.end();
        }
    }

    /**
     * Index of the largest element of each row; ties: the lower; -1 for a row with a NaN.
     *
     * @param input {@code [rows][width]}, dense
     * @param ids {@code [rows]} 32-bit integers
     */
    public void argmax(Rows input, long rows, long width, DeviceBuffer ids) {
        input.dense("input");
        MemorySegment p = params.begin(skv_argmax_params.sizeof());
        try {
            skv_argmax_params.type(p, input.type().code());
            params.rows(skv_argmax_params.input$offset(), "input", input, rows, width);
            skv_argmax_params.rows(p, rows);
            skv_argmax_params.width(p, width);
            params.pointer(skv_argmax_params.ids$offset(), "ids", ids, Math.multiplyExact(4,
                    Params.notNegative("rows", rows)));
            params.context.runReserved("argmax", ShadowKv.SKV_OP_ARGMAX(), ShadowKv::skv_argmax, p);
        } finally {
            params.end();
        }
    }

    /** Normally distributed numbers; the same on every device up to rounding. */
    public void randomFill(DeviceBuffer output, ElementType type, long count, long seed, float mean, float deviation) {
        Params.floating("type", type);
        MemorySegment p = params.begin(skv_random_fill_params.sizeof());
        try {
            skv_random_fill_params.type(p, type.code());
            params.pointer(skv_random_fill_params.output$offset(), "output", output, Params.bytes(type, count));
            skv_random_fill_params.count(p, count);
            skv_random_fill_params.seed(p, seed);
            skv_random_fill_params.mean(p, mean);
            skv_random_fill_params.deviation(p, deviation);
            params.context.runReserved("random_fill", ShadowKv.SKV_OP_RANDOM_FILL(), ShadowKv::skv_random_fill, p);
        } finally {
            params.end();
        }
    }

    /**
     * Rotates heads, or rotates them back; the output may be the input.
     *
     * @param input {@code [count][heads][D]}
     * @param output the same, of the same type
     * @param firstPosition of row 0, the others follow; unless positions are given
     * @param positions {@code [count]} 64-bit integers, or null
     * @param maxPosition the largest of the positions; not used without them
     */
    public void rope(Rows input, Rows output, long count, int heads, int headDim, long firstPosition,
                     DeviceBuffer positions, long maxPosition, RopeTable rope, boolean inverse) {
        rope(input, 0, output, count, heads, headDim, firstPosition, positions, maxPosition, rope, inverse);
    }

    /**
     * The same for input whose heads lie apart, as in a ring {@code [K][capacity][D]}: its rows are then the tokens of
     * one head.
     *
     * @param headStride elements from head to head; 0: side by side
     */
    public void rope(Rows input, long headStride, Rows output, long count, int heads, int headDim, long firstPosition,
                     DeviceBuffer positions, long maxPosition, RopeTable rope, boolean inverse) {
        Params.same("output", output.type(), input.type());
        long width = (long) Params.positive("heads", heads) * Params.positive("headDim", headDim);
        Params.fits(rope, headDim);
        MemorySegment p = params.begin(skv_rope_params.sizeof());
        try {
            skv_rope_params.type(p, input.type().code());
            if (headStride == 0) {
                params.rows(skv_rope_params.input$offset(), "input", input, count, width);
            } else {
                params.pointer(skv_rope_params.input$offset(), "input", input.buffer(),
                        Math.addExact(input.bytes("input", count, headDim),
                                count == 0 ? 0 : Math.multiplyExact(heads - 1,
                                        Math.multiplyExact(Params.notNegative("headStride", headStride), input.type().bytes()))));
            }
            skv_rope_params.input_head_stride(p, headStride);
            params.rows(skv_rope_params.output$offset(), "output", output, count, width);
            skv_rope_params.count(p, count);
            skv_rope_params.input_stride(p, input.stride());
            skv_rope_params.output_stride(p, output.stride());
            skv_rope_params.heads(p, heads);
            skv_rope_params.head_dim(p, headDim);
            skv_rope_params.first_position(p, Params.notNegative("firstPosition", firstPosition));
            params.optional(skv_rope_params.positions$offset(), "positions", positions, Math.multiplyExact(8, count));
            skv_rope_params.inverse(p, inverse ? 1 : 0);
            params.rope(skv_rope_params.rope$offset(), rope,
                    positions == null ? firstPosition + count : maxPosition + 1);
            params.context.runReserved("rope", ShadowKv.SKV_OP_ROPE(), ShadowKv::skv_rope_rotate, p);
        } finally {
            params.end();
        }
    }

    /**
     * Causal attention of consecutive query tokens over the keys up to and with each.
     *
     * @param queries {@code [count][H][D]} rotated
     * @param firstPosition of the first query token
     * @param keys {@code [K][capacity][D]} rotated, of the storage type, row = position
     * @param values {@code [K][capacity][D]}
     * @param output {@code [count][H][D]}, dense
     */
    public void prefillAttention(Geometry geometry, Rows queries, long count, long firstPosition, DeviceBuffer keys,
                                 DeviceBuffer values, long capacity, Rows output) {
        output.dense("output");
        if (capacity < Math.addExact(Params.notNegative("firstPosition", firstPosition), Params.notNegative("count",
                count))) {
        throw new IndexOutOfBoundsException("capacity " + capacity + " is less than firstPosition " + firstPosition
        + " + count " + count);
        }
        long width = (long) geometry.queryHeads() * geometry.headDim();
        MemorySegment p = params.begin(skv_prefill_attention_params.sizeof());
        try {
            skv_prefill_attention_params.query_type(p, queries.type().code());
            skv_prefill_attention_params.output_type(p, output.type().code());
            params.geometry(skv_prefill_attention_params.geometry$offset(), geometry);
            params.rows(skv_prefill_attention_params.queries$offset(), "queries", queries, count, width);
            skv_prefill_attention_params.query_stride(p, queries.stride());
            skv_prefill_attention_params.count(p, count);
            skv_prefill_attention_params.first_position(p, firstPosition);
            params.pointer(skv_prefill_attention_params.keys$offset(), "keys", keys,
                    Params.bytes(geometry.storageType(), geometry.keyValueHeads(), capacity, geometry.headDim()));
            params.pointer(skv_prefill_attention_params.values$offset(), "values", values,
                    Params.bytes(geometry.storageType(), geometry.keyValueHeads(), capacity, geometry.headDim()));
            skv_prefill_attention_params.capacity(p, capacity);
            params.rows(skv_prefill_attention_params.output$offset(), "output", output, count, width);
            params.context.runReserved("prefill_attention", ShadowKv.SKV_OP_PREFILL_ATTENTION(),
                    ShadowKv::skv_prefill_attention, p);
        } finally {
            params.end();
        }
    }
}
