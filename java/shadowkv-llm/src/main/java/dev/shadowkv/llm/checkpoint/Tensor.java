package dev.shadowkv.llm.checkpoint;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.List;
import java.util.Objects;

/**
 * A named tensor: row-major, little-endian, read-only memory of exactly its size. The memory belongs to the file that
 * it came from and is gone when that is closed; it need not be aligned to its element size, since safetensors does not
 * promise that.
 *
 * @param name the name in the file; for a slice of a fused tensor, that tensor's name
 * @param type the element type
 * @param shape the sizes of its dimensions, outermost first; empty for a scalar
 * @param data the elements
 */
public record Tensor(String name, TensorType type, List<Long> shape, MemorySegment data) {
    private static final ValueLayout.OfShort SHORT =
            ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    public Tensor {
        Objects.requireNonNull(name, "name");
        Objects.requireNonNull(type, "type");
        shape = List.copyOf(shape);
        long bytes = type.byteSize();
        for (long dimension : shape) {
            bytes = Math.multiplyExact(bytes, Objects.checkIndex(dimension, Long.MAX_VALUE));
        }
        if (data.byteSize() != bytes) {
            throw new IllegalArgumentException("tensor " + name + " " + type + shape + " takes " + bytes
                    + " bytes, the memory given has " + data.byteSize());
        }
    }

    /** The number of elements. */
    public long elementCount() {
        return data.byteSize() / type.byteSize();
    }

    /** The size of one dimension. */
    public long dimension(int index) {
        return shape.get(index);
    }

    /** Rows {@code [first, first + count)} of the outermost dimension, without a copy. */
    public Tensor rows(long first, long count) {
        if (shape.isEmpty()) {
            throw new IllegalArgumentException("tensor " + name + " is a scalar and has no rows");
        }
        Objects.checkFromIndexSize(first, count, shape.getFirst());
        long rowBytes = shape.getFirst() == 0 ? 0 : data.byteSize() / shape.getFirst();
        List<Long> sliced = new java.util.ArrayList<>(shape);
        sliced.set(0, count);
        return new Tensor(name, type, sliced, data.asSlice(first * rowBytes, count * rowBytes));
    }

    /** The element at a flat index as a number; any floating-point type. */
    public float floatAt(long index) {
        Objects.checkIndex(index, elementCount());
        return switch (type) {
            case F32 -> Float.intBitsToFloat(data.get(INT, index * Integer.BYTES));
            case F16 -> Float.float16ToFloat(data.get(SHORT, index * Short.BYTES));
            case BF16 -> Float.intBitsToFloat(data.get(SHORT, index * Short.BYTES) << Short.SIZE);
            case F64 -> (float) Double.longBitsToDouble(data.get(LONG, index * Long.BYTES));
            default -> throw new CheckpointException(
                    "tensor " + name + ": expected a floating-point type of at least 16 bits, found " + type.code());
        };
    }

    /** The element at a flat index as an integer; any integer type but U64. */
    public long longAt(long index) {
        Objects.checkIndex(index, elementCount());
        return switch (type) {
            case I64 -> data.get(LONG, index * Long.BYTES);
            case I32 -> data.get(INT, index * Integer.BYTES);
            case U32 -> Integer.toUnsignedLong(data.get(INT, index * Integer.BYTES));
            case I16 -> data.get(SHORT, index * Short.BYTES);
            case U16 -> Short.toUnsignedLong(data.get(SHORT, index * Short.BYTES));
            case I8 -> data.get(ValueLayout.JAVA_BYTE, index);
            case U8 -> Byte.toUnsignedLong(data.get(ValueLayout.JAVA_BYTE, index));
            default -> throw new CheckpointException(
                    "tensor " + name + ": expected an integer type, found " + type.code());
        };
    }

    /** All elements widened or narrowed to float. For tensors that fit a Java array. */
    public float[] toFloats() {
        float[] values = new float[arrayLength()];
        for (int i = 0; i < values.length; i++) {
            values[i] = floatAt(i);
        }
        return values;
    }

    /** All elements of an integer tensor. For tensors that fit a Java array. */
    public long[] toLongs() {
        long[] values = new long[arrayLength()];
        for (int i = 0; i < values.length; i++) {
            values[i] = longAt(i);
        }
        return values;
    }

    private int arrayLength() {
        long count = elementCount();
        if (count > Integer.MAX_VALUE - 8) {
            throw new IllegalArgumentException("tensor " + name + " has " + count + " elements, more than an array holds");
        }
        return (int) count;
    }
}
