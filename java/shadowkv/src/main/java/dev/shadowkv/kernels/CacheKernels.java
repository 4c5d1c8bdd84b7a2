package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.RopeTable;
import dev.shadowkv.internal.ffi.ShadowKv;
import dev.shadowkv.internal.ffi.skv_chunk_gather_params;
import dev.shadowkv.internal.ffi.skv_landmark_build_params;
import dev.shadowkv.internal.ffi.skv_low_rank_factor_params;
import dev.shadowkv.internal.ffi.skv_low_rank_project_params;
import dev.shadowkv.internal.ffi.skv_moment_update_params;
import dev.shadowkv.internal.ffi.skv_outlier_select_params;
import dev.shadowkv.internal.ffi.skv_rebuild_keys_params;
import dev.shadowkv.internal.ffi.skv_store_tokens_params;
import dev.shadowkv.internal.ffi.skv_value_fit_params;
import dev.shadowkv.internal.ffi.skv_value_store_params;

/**
 * The operations that build a shadow cache: storing tokens, factoring keys, building the index, moving values out.
 *
 * <p>May be used from several threads, which take turns.
 */
public final class CacheKernels {

    private final Params params;

    /** Operations of a device. */
    public CacheKernels(Device device) {
        params = new Params(device);
    }

    /**
     * Stores tokens as a cache keeps them. What is null is left out.
     *
     * @param keys {@code [count][K][D]} before RoPE, or null
     * @param values {@code [count][K][D]}, or null
     * @param rotatedKeys takes the keys after RoPE, head by head
     * @param rawKeys takes the keys before RoPE, {@code [capacity][K*D]}
     * @param storedValues takes the values, head by head
     * @param capacity tokens of each of the three targets; a position lies in row {@code position % capacity}
     */
    public void storeTokens(Rows keys, Rows values, long count, long firstPosition, int keyValueHeads, int headDim,
                            Ring rotatedKeys, DeviceBuffer rawKeys, Ring storedValues, ElementType storageType,
                            long capacity, RopeTable rope) {
        long width = (long) Params.positive("keyValueHeads", keyValueHeads) * Params.positive("headDim", headDim);
        Params.floating("storageType", storageType);
        if (keys != null && values != null) {
        Params.same("values", values.type(), keys.type());
        }
        if (keys == null && (rotatedKeys != null || rawKeys != null) || values == null && storedValues != null) {
        throw new IllegalArgumentException("a target is given without its source");
        }
        Params.ring("rotatedKeys", rotatedKeys, storageType, capacity);
        Params.ring("storedValues", storedValues, storageType, capacity);
        Params.fits(rope, headDim);
        MemorySegment p = params.begin(skv_store_tokens_params.sizeof());
        try {
            skv_store_tokens_params.input_type(p, (keys == null ? values : keys).type().code());
            skv_store_tokens_params.storage_type(p, storageType.code());
            skv_store_tokens_params.key_value_heads(p, keyValueHeads);
            skv_store_tokens_params.head_dim(p, headDim);
            skv_store_tokens_params.count(p, Params.notNegative("count", count));
            skv_store_tokens_params.first_position(p, Params.notNegative("firstPosition", firstPosition));
            params.optional(skv_store_tokens_params.keys$offset(), "keys", keys == null ? null : keys.buffer(),
                    keys == null ? 0 : keys.bytes("keys", count, width));
            params.optional(skv_store_tokens_params.values$offset(), "values",
                    values == null ? null : values.buffer(), values == null ? 0 : values.bytes("values", count, width));
            skv_store_tokens_params.key_stride(p, keys == null ? 0 : keys.stride());
            skv_store_tokens_params.value_stride(p, values == null ? 0 : values.stride());
            params.optional(skv_store_tokens_params.rotated_keys$offset(), "rotated_keys",
                    rotatedKeys == null ? null : rotatedKeys.buffer(), Params.bytes(storageType, capacity, width));
            params.optional(skv_store_tokens_params.raw_keys$offset(), "raw_keys", rawKeys, Params.bytes(storageType,
                    capacity, width));
            params.optional(skv_store_tokens_params.stored_values$offset(), "stored_values",
                    storedValues == null ? null : storedValues.buffer(), Params.bytes(storageType, capacity, width));
            skv_store_tokens_params.capacity(p, capacity);
            params.rope(skv_store_tokens_params.rope$offset(), rope, firstPosition + count);
            params.context.runReserved("store_tokens", ShadowKv.SKV_OP_STORE_TOKENS(), ShadowKv::skv_store_tokens, p);
        } finally {
            params.end();
        }
    }

    /**
     * Factors keys of all heads of a layer together: {@code keys ~ coefficients . basis} with orthonormal basis rows. May
     * wait for the stream. With {@code headScales} the keys of every head are factored as if multiplied by its scale, a
     * power of two that brings the heads to the same mean square within a factor of two, and the basis of a head is
     * divided by it.
     *
     * <p>Coefficients of 8 bits are whole numbers from -127 to 127: those of a direction divided by its scale, which is a
     * 127th of twice the largest magnitude of them, and rounded. The direction's rows of the basis are multiplied by it, so
     * that the product is as ever. One column of ten refines one of the first directions, in steps of 1/254 of its
     * scale: of r columns, column {@code 2i + 1} has what rounding takes from column {@code 2i}, for i below r/10. A
     * direction of zeros, or of rounding alone, has the scale 0 and rows of zeros.
     *
     * @param keys {@code [tokens][K*D]} before RoPE
     * @param rank directions to find
     * @param storedRank r of the layouts, at least the rank; what is behind the rank is zeroed
     * @param oversampling extra directions iterated on; 0: default
     * @param iterations 0: default
     * @param coefficients {@code [tokens][r]}
     * @param coefficientType the keys' type or I8
     * @param coefficientScales {@code [r]} floats to be written, for I8; else null
     * @param basis {@code [K][r][D]} of the keys' type
     * @param singularValues {@code [rank]} floats, descending
     * @param energy two floats: sum of squares of the keys, and the share of it that the basis captures
     * @param headScales {@code [K]} floats to be written, or null: keys are factored as they are. With them the singular
     *     values and the energy are those of the scaled keys
     */
    public void lowRankFactor(Rows keys, long tokens, int keyValueHeads, int headDim, int rank, int storedRank,
                              int oversampling, int iterations, DeviceBuffer coefficients, ElementType coefficientType,
                              DeviceBuffer coefficientScales, DeviceBuffer basis, DeviceBuffer singularValues,
                              DeviceBuffer energy, DeviceBuffer headScales) {
        long width = (long) Params.positive("keyValueHeads", keyValueHeads) * Params.positive("headDim", headDim);
        if (rank < 1 || rank > storedRank) {
        throw new IllegalArgumentException("rank must be from 1 to storedRank " + storedRank + ": " + rank);
        }
        Params.coefficients(coefficientType, keys.type());
        MemorySegment p = params.begin(skv_low_rank_factor_params.sizeof());
        try {
            skv_low_rank_factor_params.type(p, keys.type().code());
            skv_low_rank_factor_params.coefficient_type(p, coefficientType.code());
            params.rows(skv_low_rank_factor_params.keys$offset(), "keys", keys, tokens, width);
            skv_low_rank_factor_params.tokens(p, tokens);
            skv_low_rank_factor_params.key_stride(p, keys.stride());
            skv_low_rank_factor_params.key_value_heads(p, keyValueHeads);
            skv_low_rank_factor_params.head_dim(p, headDim);
            skv_low_rank_factor_params.rank(p, rank);
            skv_low_rank_factor_params.stored_rank(p, storedRank);
            skv_low_rank_factor_params.oversampling(p, oversampling);
            skv_low_rank_factor_params.iterations(p, iterations);
            params.pointer(skv_low_rank_factor_params.coefficients$offset(), "coefficients", coefficients,
                    Params.bytes(coefficientType, tokens, storedRank));
            params.pointer(skv_low_rank_factor_params.basis$offset(), "basis", basis, Params.bytes(keys.type(),
                    storedRank, width));
            params.pointer(skv_low_rank_factor_params.singular_values$offset(), "singular_values", singularValues,
                    4L * rank);
            params.pointer(skv_low_rank_factor_params.energy$offset(), "energy", energy, 8);
            params.optional(skv_low_rank_factor_params.head_scales$offset(), "head_scales", headScales,
                    4L * keyValueHeads);
            params.coefficientScales(skv_low_rank_factor_params.coefficient_scales$offset(), coefficientType,
                    coefficientScales, storedRank);
            params.context.runReserved("low_rank_factor", ShadowKv.SKV_OP_LOW_RANK_FACTOR(),
                    ShadowKv::skv_low_rank_factor, p);
        } finally {
            params.end();
        }
    }

    /** As above, with coefficients of the keys' type. */
    public void lowRankFactor(Rows keys, long tokens, int keyValueHeads, int headDim, int rank, int storedRank,
                              int oversampling, int iterations, DeviceBuffer coefficients, DeviceBuffer basis,
                              DeviceBuffer singularValues, DeviceBuffer energy, DeviceBuffer headScales) {
        lowRankFactor(keys, tokens, keyValueHeads, headDim, rank, storedRank, oversampling, iterations, coefficients,
                keys.type(), null, basis, singularValues, energy, headScales);
    }

    /**
     * Projects new keys onto an existing basis. Coefficients of 8 bits that are beyond what their scale can say become
     * -127 or 127, which the residual tells.
     *
     * @param keys {@code [count][K*D]} before RoPE
     * @param basis {@code [K][r][D]} of the keys' type
     * @param coefficients {@code [count][r]}
     * @param coefficientType the keys' type or I8
     * @param coefficientScales {@code [r]} floats that {@link #lowRankFactor} wrote with the basis, for I8; else null
     * @param residual {@code [count]} floats, the share of each key's energy that the basis misses; or null
     * @param headScales {@code [K]} floats that {@link #lowRankFactor} wrote with the basis; null where it wrote none
     */
    public void lowRankProject(Rows keys, long count, int keyValueHeads, int headDim, int rank, DeviceBuffer basis,
                               DeviceBuffer coefficients, ElementType coefficientType, DeviceBuffer coefficientScales,
                               DeviceBuffer residual, DeviceBuffer headScales) {
        Params.coefficients(coefficientType, keys.type());
        long width = (long) Params.positive("keyValueHeads", keyValueHeads) * Params.positive("headDim", headDim);
        MemorySegment p = params.begin(skv_low_rank_project_params.sizeof());
        try {
            skv_low_rank_project_params.type(p, keys.type().code());
            skv_low_rank_project_params.coefficient_type(p, coefficientType.code());
            params.rows(skv_low_rank_project_params.keys$offset(), "keys", keys, count, width);
            skv_low_rank_project_params.count(p, count);
            skv_low_rank_project_params.key_stride(p, keys.stride());
            skv_low_rank_project_params.key_value_heads(p, keyValueHeads);
            skv_low_rank_project_params.head_dim(p, headDim);
            skv_low_rank_project_params.rank(p, Params.positive("rank", rank));
            params.pointer(skv_low_rank_project_params.basis$offset(), "basis", basis, Params.bytes(keys.type(), rank,
                    width));
            params.pointer(skv_low_rank_project_params.coefficients$offset(), "coefficients", coefficients,
                    Params.bytes(coefficientType, count, rank));
            params.optional(skv_low_rank_project_params.residual$offset(), "residual", residual, Math.multiplyExact(4,
                    count));
            params.optional(skv_low_rank_project_params.head_scales$offset(), "head_scales", headScales,
                    4L * keyValueHeads);
            params.coefficientScales(skv_low_rank_project_params.coefficient_scales$offset(), coefficientType,
                    coefficientScales, rank);
            params.context.runReserved("low_rank_project", ShadowKv.SKV_OP_LOW_RANK_PROJECT(),
                    ShadowKv::skv_low_rank_project, p);
        } finally {
            params.end();
        }
    }

    /** As above, with coefficients of the keys' type. */
    public void lowRankProject(Rows keys, long count, int keyValueHeads, int headDim, int rank, DeviceBuffer basis,
                               DeviceBuffer coefficients, DeviceBuffer residual, DeviceBuffer headScales) {
        lowRankProject(keys, count, keyValueHeads, headDim, rank, basis, coefficients, keys.type(), null, residual,
                headScales);
    }

    /**
     * Rebuilds rotated keys into a ring.
     *
     * @param coefficients {@code [position][r]}
     * @param coefficientType the ring's type or I8
     * @param basis {@code [K][r][D]} of the ring's type
     */
    public void rebuildKeys(DeviceBuffer coefficients, ElementType coefficientType, DeviceBuffer basis, int keyValueHeads,
                            int headDim, int rank, long firstPosition, long count, Ring rotatedKeys, RopeTable rope) {
        long width = (long) Params.positive("keyValueHeads", keyValueHeads) * Params.positive("headDim", headDim);
        ElementType type = rotatedKeys.type();
        Params.coefficients(coefficientType, type);
        Params.fits(rope, headDim);
        MemorySegment p = params.begin(skv_rebuild_keys_params.sizeof());
        try {
            skv_rebuild_keys_params.type(p, type.code());
            skv_rebuild_keys_params.coefficient_type(p, coefficientType.code());
            params.pointer(skv_rebuild_keys_params.coefficients$offset(), "coefficients", coefficients,
                    Params.bytes(coefficientType, Math.addExact(firstPosition, count), rank));
            params.pointer(skv_rebuild_keys_params.basis$offset(), "basis", basis, Params.bytes(type, rank, width));
            skv_rebuild_keys_params.key_value_heads(p, keyValueHeads);
            skv_rebuild_keys_params.head_dim(p, headDim);
            skv_rebuild_keys_params.rank(p, Params.positive("rank", rank));
            skv_rebuild_keys_params.first_position(p, Params.notNegative("firstPosition", firstPosition));
            skv_rebuild_keys_params.count(p, Params.notNegative("count", count));
            params.pointer(skv_rebuild_keys_params.rotated_keys$offset(), "rotated_keys", rotatedKeys.buffer(),
                    rotatedKeys.bytes(keyValueHeads, headDim));
            skv_rebuild_keys_params.capacity(p, rotatedKeys.capacity());
            params.rope(skv_rebuild_keys_params.rope$offset(), rope, firstPosition + count);
            params.context.runReserved("rebuild_keys", ShadowKv.SKV_OP_REBUILD_KEYS(), ShadowKv::skv_rebuild_keys, p);
        } finally {
            params.end();
        }
    }

    /** As above, with coefficients of the ring's type. */
    public void rebuildKeys(DeviceBuffer coefficients, DeviceBuffer basis, int keyValueHeads, int headDim, int rank,
                            long firstPosition, long count, Ring rotatedKeys, RopeTable rope) {
        rebuildKeys(coefficients, rotatedKeys.type(), basis, keyValueHeads, headDim, rank, firstPosition, count,
                rotatedKeys, rope);
    }

    /**
     * Landmarks of whole chunks.
     *
     * @param landmarks {@code [K][chunkCapacity][D]}: means of the members
     * @param landmarkScales {@code [K][chunkCapacity]} floats, for I8; else null
     * @param radius {@code [K][chunkCapacity]} floats: largest distance of a member from the mean
     * @param cosine {@code [K][chunkCapacity]} floats: smallest cosine of a member with the mean; or null
     */
    public void landmarkBuild(Ring rotatedKeys, int keyValueHeads, int headDim, int chunk, long firstChunk,
                              long chunks, DeviceBuffer landmarks, ElementType landmarkType,
                              DeviceBuffer landmarkScales, DeviceBuffer radius, DeviceBuffer cosine,
                              long chunkCapacity) {
        Params.range("chunks", firstChunk, chunks, chunkCapacity);
        long entries = Math.multiplyExact(Params.positive("keyValueHeads", keyValueHeads), chunkCapacity);
        MemorySegment p = params.begin(skv_landmark_build_params.sizeof());
        try {
            skv_landmark_build_params.storage_type(p, rotatedKeys.type().code());
            skv_landmark_build_params.landmark_type(p, landmarkType.code());
            skv_landmark_build_params.key_value_heads(p, keyValueHeads);
            skv_landmark_build_params.head_dim(p, Params.positive("headDim", headDim));
            skv_landmark_build_params.chunk(p, Params.positive("chunk", chunk));
            params.pointer(skv_landmark_build_params.rotated_keys$offset(), "rotated_keys", rotatedKeys.buffer(),
                    rotatedKeys.bytes(keyValueHeads, headDim));
            skv_landmark_build_params.capacity(p, rotatedKeys.capacity());
            skv_landmark_build_params.first_chunk(p, firstChunk);
            skv_landmark_build_params.chunks(p, chunks);
            params.pointer(skv_landmark_build_params.landmarks$offset(), "landmarks", landmarks,
                    Params.bytes(landmarkType, entries, headDim));
            params.optional(skv_landmark_build_params.landmark_scales$offset(), "landmark_scales", landmarkScales,
                    Math.multiplyExact(4, entries));
            params.pointer(skv_landmark_build_params.radius$offset(), "radius", radius, Math.multiplyExact(4, entries));
            params.optional(skv_landmark_build_params.cosine$offset(), "cosine", cosine, Math.multiplyExact(4,
                    entries));
            skv_landmark_build_params.chunk_capacity(p, chunkCapacity);
            params.context.runReserved("landmark_build", ShadowKv.SKV_OP_LANDMARK_BUILD(),
                    ShadowKv::skv_landmark_build, p);
        } finally {
            params.end();
        }
    }

    /**
     * The chunks of each head with the smallest cosines; ties: the lower id.
     *
     * @param cosine {@code [K][chunkCapacity]} floats, of which the first {@code chunks} count
     * @param ids {@code [K][count]} 32-bit integers, ascending
     * @param radius {@code [K][chunkCapacity]} floats, set to -1 for the selected; or null
     */
    public void outlierSelect(DeviceBuffer cosine, int keyValueHeads, long chunks, long chunkCapacity, int count,
                              DeviceBuffer ids, DeviceBuffer radius) {
        Params.range("chunks", 0, chunks, chunkCapacity);
        if (count < 0 || count > chunks) {
        throw new IllegalArgumentException("count must be from 0 to chunks " + chunks + ": " + count);
        }
        long entries = Math.multiplyExact(Params.positive("keyValueHeads", keyValueHeads), chunkCapacity);
        MemorySegment p = params.begin(skv_outlier_select_params.sizeof());
        try {
            skv_outlier_select_params.key_value_heads(p, keyValueHeads);
            params.pointer(skv_outlier_select_params.cosine$offset(), "cosine", cosine, Math.multiplyExact(4, entries));
            skv_outlier_select_params.chunks(p, chunks);
            skv_outlier_select_params.chunk_capacity(p, chunkCapacity);
            skv_outlier_select_params.count(p, count);
            params.pointer(skv_outlier_select_params.ids$offset(), "ids", ids, 4L * keyValueHeads * count);
            params.optional(skv_outlier_select_params.radius$offset(), "radius", radius, Math.multiplyExact(4,
                    entries));
            params.context.runReserved("outlier_select", ShadowKv.SKV_OP_OUTLIER_SELECT(),
                    ShadowKv::skv_outlier_select, p);
        } finally {
            params.end();
        }
    }

    /**
     * Copies chunks to consecutive places.
     *
     * @param ids {@code [K][count]} chunk ids, 32-bit integers
     * @param target {@code [K][targetCapacity][C][D]} of the source's type
     */
    public void chunkGather(Ring source, int keyValueHeads, int headDim, int chunk, DeviceBuffer ids, int count,
                            DeviceBuffer target, long targetFirst, long targetCapacity) {
        Params.range("target", targetFirst, count, targetCapacity);
        MemorySegment p = params.begin(skv_chunk_gather_params.sizeof());
        try {
            skv_chunk_gather_params.type(p, source.type().code());
            skv_chunk_gather_params.key_value_heads(p, Params.positive("keyValueHeads", keyValueHeads));
            skv_chunk_gather_params.head_dim(p, Params.positive("headDim", headDim));
            skv_chunk_gather_params.chunk(p, Params.positive("chunk", chunk));
            params.pointer(skv_chunk_gather_params.source$offset(), "source", source.buffer(),
                    source.bytes(keyValueHeads, headDim));
            skv_chunk_gather_params.capacity(p, source.capacity());
            params.pointer(skv_chunk_gather_params.ids$offset(), "ids", ids, 4L * keyValueHeads * count);
            skv_chunk_gather_params.count(p, count);
            params.pointer(skv_chunk_gather_params.target$offset(), "target", target, Params.bytes(source.type(),
                    keyValueHeads, targetCapacity, chunk, headDim));
            skv_chunk_gather_params.target_first(p, targetFirst);
            skv_chunk_gather_params.target_capacity(p, targetCapacity);
            params.context.runReserved("chunk_gather", ShadowKv.SKV_OP_CHUNK_GATHER(), ShadowKv::skv_chunk_gather, p);
        } finally {
            params.end();
        }
    }

    /**
     * Moves values of whole chunks to pinned host memory.
     *
     * @param values {@code [K][chunkCapacity][C][D]} in memory of a {@link dev.shadowkv.PinnedArena} of the device, aligned to 16
     *     bytes
     * @param valueType the source's type, F8_E4M3, F12_E4M7 or F6_E2M3
     * @param valueScales {@code [K][chunkCapacity]} floats in device memory, for the types with a scale; else null
     */
    public void valueStore(Ring source, int keyValueHeads, int headDim, int chunk, long firstChunk, long chunks,
                           MemorySegment values, ElementType valueType, DeviceBuffer valueScales, long chunkCapacity) {
        Params.range("chunks", firstChunk, chunks, chunkCapacity);
        long entries = Math.multiplyExact(Params.positive("keyValueHeads", keyValueHeads), chunkCapacity);
        MemorySegment p = params.begin(skv_value_store_params.sizeof());
        try {
            skv_value_store_params.storage_type(p, source.type().code());
            skv_value_store_params.value_type(p, valueType.code());
            skv_value_store_params.key_value_heads(p, keyValueHeads);
            skv_value_store_params.head_dim(p, Params.positive("headDim", headDim));
            skv_value_store_params.chunk(p, Params.positive("chunk", chunk));
            params.pointer(skv_value_store_params.source$offset(), "source", source.buffer(),
                    source.bytes(keyValueHeads, headDim));
            skv_value_store_params.capacity(p, source.capacity());
            skv_value_store_params.first_chunk(p, firstChunk);
            skv_value_store_params.chunks(p, chunks);
            skv_value_store_params.values(p, Params.host("values", values, Params.bytes(valueType, entries, chunk,
                    headDim)));
            params.optional(skv_value_store_params.value_scales$offset(), "value_scales", valueScales,
                    Math.multiplyExact(4, entries));
            skv_value_store_params.chunk_capacity(p, chunkCapacity);
            params.context.runReserved("value_store", ShadowKv.SKV_OP_VALUE_STORE(), ShadowKv::skv_value_store, p);
        } finally {
            params.end();
        }
    }

    /**
     * Adds whole chunks to the moments of a layer, or takes them away: for each key/value head, over the tokens of those
     * chunks that are in its index, the sums of {@code v k^T}, k, v and 1. Of them follows the value that tokens left out
     * of a selection have for a query, were keys and values jointly normal.
     *
     * @param rotatedKeys {@code [K][capacity][D]}; position p lies in row {@code p % capacity}
     * @param values of the same type and capacity
     * @param radius {@code [K][chunkCapacity]} floats: where it is negative the chunk does not count; or null: all do
     * @param moments {@code [K][D*D + 2*D + 4]} floats, {@link Geometry#momentFloats()} in all: {@code [D][D]} with a row
     *     an element of v, k, v, the number of tokens, and three floats unused
     */
    public void momentUpdate(Ring rotatedKeys, Ring values, int keyValueHeads, int headDim, int chunk, long firstChunk,
                             long chunks, DeviceBuffer radius, long chunkCapacity, MomentChange change,
                             DeviceBuffer moments) {
        Params.range("chunks", firstChunk, chunks, chunkCapacity);
        Params.ring("values", values, rotatedKeys.type(), rotatedKeys.capacity());
        long entries = Math.multiplyExact(Params.positive("keyValueHeads", keyValueHeads), chunkCapacity);
        MemorySegment p = params.begin(skv_moment_update_params.sizeof());
        try {
            skv_moment_update_params.storage_type(p, rotatedKeys.type().code());
            skv_moment_update_params.key_value_heads(p, keyValueHeads);
            skv_moment_update_params.head_dim(p, Params.positive("headDim", headDim));
            skv_moment_update_params.chunk(p, Params.positive("chunk", chunk));
            params.pointer(skv_moment_update_params.rotated_keys$offset(), "rotated_keys", rotatedKeys.buffer(),
                    rotatedKeys.bytes(keyValueHeads, headDim));
            params.pointer(skv_moment_update_params.values$offset(), "values", values.buffer(),
                    values.bytes(keyValueHeads, headDim));
            skv_moment_update_params.capacity(p, rotatedKeys.capacity());
            skv_moment_update_params.first_chunk(p, firstChunk);
            skv_moment_update_params.chunks(p, chunks);
            params.optional(skv_moment_update_params.radius$offset(), "radius", radius, Math.multiplyExact(4, entries));
            skv_moment_update_params.chunk_capacity(p, chunkCapacity);
            skv_moment_update_params.replace(p, change == MomentChange.REPLACE ? 1 : 0);
            skv_moment_update_params.subtract(p, change == MomentChange.SUBTRACT ? 1 : 0);
            params.pointer(skv_moment_update_params.moments$offset(), "moments", moments,
                    Math.multiplyExact(4, Geometry.momentFloats(keyValueHeads, headDim)));
            params.context.runReserved("moment_update", ShadowKv.SKV_OP_MOMENT_UPDATE(), ShadowKv::skv_moment_update, p);
        } finally {
            params.end();
        }
    }

    /**
     * Fits the map from coefficients to values, {@code v ~ a . valueBasis}, by least squares over the given tokens, without
     * a constant: row j of a head is {@code sum(a_j v) / sum(a_j^2)}. The columns of the coefficients must be orthogonal over
     * those tokens, as {@link #lowRankFactor} makes them of its tokens. A column that is rounding alone, with at most 2^-24 of
     * the largest sum of squares (BF16: 2^-20), gives a row of zeros.
     *
     * @param coefficients {@code [firstPosition + tokens][r]}; row = position
     * @param coefficientType the values' type or I8
     * @param values at least {@code tokens} of them; position p lies in row {@code p % capacity}
     * @param valueBasis {@code [K][r][D]} of the values' type
     */
    public void valueFit(DeviceBuffer coefficients, ElementType coefficientType, Ring values, int keyValueHeads,
                         int headDim, int rank, long firstPosition, long tokens, DeviceBuffer valueBasis) {
        Params.notNegative("firstPosition", firstPosition);
        if (Params.notNegative("tokens", tokens) > values.capacity()) {
            throw new IndexOutOfBoundsException("values has " + values.capacity() + " tokens, fewer than " + tokens);
        }
        ElementType type = values.type();
        Params.coefficients(coefficientType, type);
        Params.positive("rank", rank);
        MemorySegment p = params.begin(skv_value_fit_params.sizeof());
        try {
            skv_value_fit_params.storage_type(p, type.code());
            skv_value_fit_params.coefficient_type(p, coefficientType.code());
            skv_value_fit_params.key_value_heads(p, Params.positive("keyValueHeads", keyValueHeads));
            skv_value_fit_params.head_dim(p, Params.positive("headDim", headDim));
            skv_value_fit_params.rank(p, rank);
            params.pointer(skv_value_fit_params.coefficients$offset(), "coefficients", coefficients,
                    Params.bytes(coefficientType, Math.addExact(firstPosition, tokens), rank));
            params.pointer(skv_value_fit_params.values$offset(), "values", values.buffer(),
                    values.bytes(keyValueHeads, headDim));
            skv_value_fit_params.capacity(p, values.capacity());
            skv_value_fit_params.first_position(p, firstPosition);
            skv_value_fit_params.tokens(p, tokens);
            params.pointer(skv_value_fit_params.value_basis$offset(), "value_basis", valueBasis,
                    Params.bytes(type, keyValueHeads, rank, headDim));
            params.context.runReserved("value_fit", ShadowKv.SKV_OP_VALUE_FIT(), ShadowKv::skv_value_fit, p);
        } finally {
            params.end();
        }
    }

    /** As above, with coefficients of the values' type. */
    public void valueFit(DeviceBuffer coefficients, Ring values, int keyValueHeads, int headDim, int rank,
                         long firstPosition, long tokens, DeviceBuffer valueBasis) {
        valueFit(coefficients, values.type(), values, keyValueHeads, headDim, rank, firstPosition, tokens, valueBasis);
    }
}
