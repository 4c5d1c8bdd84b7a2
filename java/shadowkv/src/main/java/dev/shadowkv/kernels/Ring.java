package dev.shadowkv.kernels;

import java.util.Objects;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;

/**
 * Tokens head by head, {@code [K][capacity][D]}; position p lies in row {@code p % capacity}.
 *
 * @param capacity tokens
 */
public record Ring(DeviceBuffer buffer, ElementType type, long capacity) {

    /** Checks type and capacity. */
    public Ring {
        Objects.requireNonNull(buffer, "buffer");
        Params.floating("type", type);
        if (capacity <= 0) {
            throw new IllegalArgumentException("capacity must be positive: " + capacity);
        }
    }

    long bytes(int keyValueHeads, int headDim) {
        return Params.bytes(type, keyValueHeads, capacity, headDim);
    }
}
