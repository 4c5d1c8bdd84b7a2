package dev.shadowkv.kernels;

import java.util.Objects;

import dev.shadowkv.ElementType;
import dev.shadowkv.ShadowKvException;
import dev.shadowkv.Status;

/**
 * What is fixed for a layer and the cache of it.
 *
 * @param chunk tokens a chunk, 8 or 16
 * @param rank columns of the coefficients
 * @param storageType keys, basis, outliers, recent window
 * @param valueType values in host memory: the storage type, F8_E4M3, F12_E4M7 or F6_E2M3. In slots they are of its
 *     {@link ElementType#unpacked()} type. On a GPU the last two need slots
 * @param landmarkType the storage type or I8
 * @param coefficientType the storage type, or I8: whole numbers, times what is in the rows of the basis
 * @param window tokens of the recent window, a multiple of {@code chunk}
 * @param slots value slots a key/value head; 0: values are read where they are
 */
public record Geometry(int queryHeads, int keyValueHeads, int headDim, int chunk, int rank, ElementType storageType,
                       ElementType valueType, ElementType landmarkType, ElementType coefficientType, int window,
                       int slots) {

    /** Largest head dim. */
    public static final int MAX_HEAD_DIM = 256;
    /** Most key/value heads. */
    public static final int MAX_KEY_VALUE_HEADS = 32;
    /** Most query heads for one key/value head. */
    public static final int MAX_GROUP = 16;
    /** Smallest rank. */
    public static final int MIN_RANK = 16;
    /** Largest rank. */
    public static final int MAX_RANK = 256;
    /** Most chunks that can be selected. */
    public static final int MAX_SELECT = 1024;
    /** Most value slots. */
    public static final int MAX_SLOTS = 4096;
    /** Most sessions of a batch. */
    public static final int MAX_BATCH = 1024;

    /** Refuses shapes that there are no kernels for, with the limits. */
    public Geometry {
        Objects.requireNonNull(storageType, "storageType");
        Objects.requireNonNull(valueType, "valueType");
        Objects.requireNonNull(landmarkType, "landmarkType");
        Objects.requireNonNull(coefficientType, "coefficientType");
        require(keyValueHeads >= 1 && keyValueHeads <= MAX_KEY_VALUE_HEADS,
                "keyValueHeads must be from 1 to " + MAX_KEY_VALUE_HEADS, keyValueHeads);
        require(queryHeads >= 1 && queryHeads % keyValueHeads == 0 && queryHeads / keyValueHeads <= MAX_GROUP,
                "queryHeads must be 1 to " + MAX_GROUP + " times keyValueHeads " + keyValueHeads, queryHeads);
        require(headDim >= 2 && headDim <= MAX_HEAD_DIM && headDim % 2 == 0,
                "headDim must be even and at most " + MAX_HEAD_DIM, headDim);
        require(chunk == 8 || chunk == 16, "chunk must be 8 or 16", chunk);
        require(rank >= MIN_RANK && rank <= MAX_RANK, "rank must be from " + MIN_RANK + " to " + MAX_RANK, rank);
        require(window >= chunk && window % chunk == 0, "window must be a positive multiple of chunk " + chunk, window);
        require(slots >= 0 && slots <= MAX_SLOTS, "slots must be from 0 to " + MAX_SLOTS, slots);
        require(storageType.isFloat(), "storageType must be F32, BF16 or F16", storageType);
        require(valueType == storageType || valueType.isScaled(),
                "valueType must be the storage type, F8_E4M3, F12_E4M7 or F6_E2M3", valueType);
        require(landmarkType == storageType || landmarkType == ElementType.I8,
                "landmarkType must be the storage type or I8", landmarkType);
        require(coefficientType == storageType || coefficientType == ElementType.I8,
                "coefficientType must be the storage type or I8", coefficientType);
    }

    /** The geometry of a dense cache. */
    public static Geometry dense(int queryHeads, int keyValueHeads, int headDim, ElementType storageType) {
        return new Geometry(queryHeads, keyValueHeads, headDim, 8, MIN_RANK, storageType, storageType, storageType,
                storageType, 8, 0);
    }

    /** Floats of the moments of a layer, all heads. */
    public long momentFloats() {
        return momentFloats(keyValueHeads, headDim);
    }

    /** Floats of the moments of a layer: a head's sums of {@code v k^T}, k, v and 1, to a multiple of four floats. */
    public static long momentFloats(int keyValueHeads, int headDim) {
        return (long) keyValueHeads * (headDim * headDim + 2 * headDim + 4);
    }

    /** Bytes of the values of a chunk of one head as they lie in host memory, and cross the link to a GPU. */
    public long hostChunkBytes() {
        return valueType.bytes((long) chunk * headDim);
    }

    /** Bytes of the values of a chunk of one head where attention reads them: in a slot, or in place without slots. */
    public long readChunkBytes() {
        ElementType read = slots > 0 ? valueType.unpacked() : valueType;
        return read.bytes((long) chunk * headDim);
    }

    /** Bytes of the value slots of a layer, {@code [K][slots][C][D]}. */
    public long slotValueBytes() {
        return keyValueHeads * slots * readChunkBytes();
    }

    private static void require(boolean condition, String limit, Object value) {
        if (!condition) {
            throw new ShadowKvException(Status.UNSUPPORTED, "geometry", limit + ": " + value);
        }
    }
}
