package dev.shadowkv.kernels;

import dev.shadowkv.DeviceBuffer;

/**
 * One layer of one session in a dense cache, as an entry of {@link DenseLayers}.
 *
 * @param keys {@code [K][capacity][D]} storage type, rotated; row = position
 * @param values {@code [K][capacity][D]} storage type
 * @param capacity tokens
 */
public record DenseLayer(DeviceBuffer keys, DeviceBuffer values, long capacity) {
}
