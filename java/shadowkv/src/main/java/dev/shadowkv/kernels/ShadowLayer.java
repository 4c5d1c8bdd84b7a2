package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.DeviceBuffer;

/**
 * One layer of one session in a shadow cache, as an entry of {@link ShadowLayers}. Chunk c holds the tokens at
 * positions
 * {@code [c*C, (c+1)*C)}.
 *
 * @param coefficients {@code [chunkCapacity*C][r]} coefficient type, row = position
 * @param basis {@code [K][r][D]} storage type; for I8 coefficients each row times its direction's scale
 * @param landmarks {@code [K][chunkCapacity][D]} landmark type
 * @param landmarkScales {@code [K][chunkCapacity]} floats for I8, else null
 * @param radius {@code [K][chunkCapacity]} floats; negative: the chunk is not in this head's index
 * @param outlierKeys {@code [K][outlierCapacity][C][D]} storage type, rotated; null with capacity 0
 * @param outlierValues {@code [K][outlierCapacity][C][D]} storage type; null with capacity 0
 * @param recentKeys {@code [K][window][D]} storage type, rotated; position p in row {@code p % window}
 * @param recentValues {@code [K][window][D]} storage type
 * @param values {@code [K][chunkCapacity][C][D]} value type, pinned host memory aligned to 16 bytes
 * @param valueScales {@code [K][chunkCapacity]} floats for value types with a scale, else null
 * @param slotValues {@code [K][slots][C][D]} value type, unpacked; null with no slots, or with slotKeys: values are then read
 *     where they are
 * @param slotChunk {@code [K][slots]} 32-bit integers: which chunk a slot holds, -1 none; null with no slots
 * @param slotStamp {@code [K][slots]} 32-bit integers: step in which it was last selected; null with no slots
 * @param moments {@code [K][D*D + 2*D + 4]} floats: sums over the tokens of a head's index of {@code v k^T}
 *     ({@code [D][D]}, a row an element of v), k, v and 1, three floats unused; or null: tokens that are not selected take
 *     no part
 * @param slotKeys {@code [K][slots][C][D]} storage type, rotated: rebuilt keys of the chunks in the slots, so that a
 *     decode layer rebuilds only those of chunks that are in none; on a CPU only. In a table without slots they say that rebuilt keys are rounded as kept ones
 *     are. Or null: keys are rebuilt in every step
 * @param valueBasis {@code [K][r][D]} storage type: a value is about its token's coefficients times that, which stands for
 *     the tokens that a rerank drops; or null: they are part of what is not selected
 */
public record ShadowLayer(DeviceBuffer coefficients, DeviceBuffer basis, DeviceBuffer landmarks,
                          DeviceBuffer landmarkScales, DeviceBuffer radius, DeviceBuffer outlierKeys,
                          DeviceBuffer outlierValues, DeviceBuffer recentKeys, DeviceBuffer recentValues,
                          MemorySegment values, DeviceBuffer valueScales, DeviceBuffer slotValues,
                          DeviceBuffer slotChunk, DeviceBuffer slotStamp, DeviceBuffer moments, DeviceBuffer slotKeys,
                          DeviceBuffer valueBasis, long chunkCapacity, long outlierCapacity) {
}
