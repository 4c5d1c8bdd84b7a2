package dev.shadowkv.kernels;

import java.util.Objects;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;

/**
 * Rows of floats in device memory, such as tokens.
 *
 * @param buffer begins with the first row
 * @param type F32, BF16 or F16
 * @param stride elements from row to row; 0: the rows are dense
 */
public record Rows(DeviceBuffer buffer, ElementType type, long stride) {

    /** Checks the type. */
    public Rows {
        Objects.requireNonNull(buffer, "buffer");
        Params.floating("type", type);
        Params.notNegative("stride", stride);
    }

    /** Dense rows. */
    public static Rows of(DeviceBuffer buffer, ElementType type) {
        return new Rows(buffer, type, 0);
    }

    /** Bytes from the first to the last element of {@code count} rows. */
    long bytes(String name, long count, long width) {
        if (stride != 0 && stride < width) {
            throw new IllegalArgumentException(name + " has stride " + stride + ", less than its width " + width);
        }
        if (Params.notNegative("count", count) == 0) {
            return 0;
        }
        long elements = Math.addExact(Math.multiplyExact(count - 1, stride == 0 ? width : stride), width);
        return Math.multiplyExact(elements, type.bytes());
    }

    void dense(String name) {
        if (stride != 0) {
            throw new IllegalArgumentException(name + " must be dense, but has stride " + stride);
        }
    }
}
