package dev.shadowkv.kernels;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.RopeTable;
import dev.shadowkv.internal.NativeContext;
import dev.shadowkv.internal.ffi.skv_geometry;
import dev.shadowkv.internal.ffi.skv_rope;

/**
 * A parameter struct under construction, reused from call to call, and the one place where operands are checked against
 * the bytes that the callee will touch.
 */
final class Params {

    private static final int HOST_ALIGNMENT = 16;
    private static final long LARGEST = 1024;

    final Device device;
    final NativeContext context;
    final MemorySegment segment = Arena.ofAuto().allocate(LARGEST, 8);
    /** The first bytes of the segment, by their number: made once each, so that calls allocate nothing. */
    private final MemorySegment[] structs = new MemorySegment[(int) LARGEST / Integer.BYTES + 1];

    Params(Device device) {
        this.device = Objects.requireNonNull(device, "device");
        this.context = NativeContext.of(device);
    }

    /** Locks the context and clears the struct; to be followed by {@link #end()}. */
    MemorySegment begin(long size) {
        context.enter();
        int index = (int) size / Integer.BYTES;
        MemorySegment struct = structs[index];
        if (struct == null) {
            struct = segment.asSlice(0, size);
            structs[index] = struct;
        }
        struct.fill((byte) 0);
        struct.set(ValueLayout.JAVA_INT, 0, (int) size);
        return struct;
    }

    void end() {
        context.exit();
    }

    /** Stores the address of an operand of which the callee touches so many bytes. */
    void pointer(long offset, String name, DeviceBuffer buffer, long bytes) {
        segment.set(ValueLayout.JAVA_LONG, offset, address(name, buffer, bytes));
    }

    /** As above; null is null. */
    void optional(long offset, String name, DeviceBuffer buffer, long bytes) {
        segment.set(ValueLayout.JAVA_LONG, offset, buffer == null ? 0 : address(name, buffer, bytes));
    }

    /** The address of rows of {@code width} elements. */
    void rows(long offset, String name, Rows rows, long count, long width) {
        pointer(offset, name, rows.buffer(), rows.bytes(name, count, width));
    }

    long address(String name, DeviceBuffer buffer, long bytes) {
        return Operands.address(device, name, buffer, bytes);
    }

    void rope(long offset, RopeTable table, long positions) {
        Objects.requireNonNull(table, "rope");
        if (table.positions() < positions) {
            throw new IndexOutOfBoundsException(
                    "rope covers " + table.positions() + " positions, but " + positions + " are needed");
        }
        int pairs = table.rope().rotaryDim() / 2;
        MemorySegment p = segment;
        pointer(offset + skv_rope.coarse$offset(), "rope", table.coarse(), table.coarseRows() * 8L * pairs);
        pointer(offset + skv_rope.fine$offset(), "rope", table.fine(), table.fineRows() * 8L * pairs);
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.coarse_rows$offset(), table.coarseRows());
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.fine_rows$offset(), table.fineRows());
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.rotary_dim$offset(), 2 * pairs);
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.pairing$offset(), table.rope().pairing().ordinal());
        p.set(ValueLayout.JAVA_FLOAT, offset + skv_rope.scale$offset(), (float) table.rope().scale());
    }

    /** What of a rotation sizes a workspace. */
    void ropeShape(long offset, int rotaryDim) {
        MemorySegment p = segment;
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.coarse_rows$offset(), 1);
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.fine_rows$offset(), 1);
        p.set(ValueLayout.JAVA_INT, offset + skv_rope.rotary_dim$offset(), rotaryDim);
        p.set(ValueLayout.JAVA_FLOAT, offset + skv_rope.scale$offset(), 1f);
    }

    void geometry(long offset, Geometry g) {
        MemorySegment p = segment;
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.query_heads$offset(), g.queryHeads());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.key_value_heads$offset(), g.keyValueHeads());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.head_dim$offset(), g.headDim());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.chunk$offset(), g.chunk());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.rank$offset(), g.rank());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.storage_type$offset(), g.storageType().code());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.value_type$offset(), g.valueType().code());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.landmark_type$offset(), g.landmarkType().code());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.coefficient_type$offset(), g.coefficientType().code());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.window$offset(), g.window());
        p.set(ValueLayout.JAVA_INT, offset + skv_geometry.slots$offset(), g.slots());
    }

    /** Stores an address that was checked where it came from. */
    void address(long offset, long address) {
        segment.set(ValueLayout.JAVA_LONG, offset, address);
    }

    static long strided(String name, ElementType type, long count, long width, long stride) {
        if (stride != 0 && stride < width) {
            throw new IllegalArgumentException(name + " has stride " + stride + ", less than its width " + width);
        }
        return count == 0 ? 0
                : Math.multiplyExact(type.bytes(), (notNegative("count",
                        count) - 1) * (stride == 0 ? width : stride) + width);
    }

    /** Host memory that a device reads or writes by itself, 16 bytes at a time. */
    static MemorySegment host(String name, MemorySegment segment, long bytes) {
        if (!segment.isNative()) {
            throw new IllegalArgumentException(name + " must be pinned memory, not on the heap");
        }
        if (segment.byteSize() < bytes) {
            throw new IndexOutOfBoundsException(
                    name + " has " + segment.byteSize() + " bytes, but " + bytes + " will be touched");
        }
        if (segment.address() % HOST_ALIGNMENT != 0) {
            throw new IllegalArgumentException(name + " must be aligned to " + HOST_ALIGNMENT + " bytes");
        }
        return segment;
    }

    static void ring(String name, Ring ring, ElementType type, long capacity) {
        if (ring != null) {
            same(name, ring.type(), type);
            if (ring.capacity() != capacity) {
                throw new IllegalArgumentException(name + " must have capacity " + capacity + ": " + ring.capacity());
            }
        }
    }

    static void range(String name, long first, long count, long capacity) {
        if (first < 0 || count < 0 || first + count > capacity) {
            throw new IndexOutOfBoundsException(
                    name + " " + first + " to " + (first + count) + " do not lie within " + capacity);
        }
    }

    static void select(int select) {
        if (select < 1 || select > Geometry.MAX_SELECT) {
            throw new IllegalArgumentException("select must be from 1 to " + Geometry.MAX_SELECT + ": " + select);
        }
    }

    static void fits(RopeTable rope, int headDim) {
        if (rope.rope().rotaryDim() > headDim) {
            throw new IllegalArgumentException(
                    "rope rotates " + rope.rope().rotaryDim() + " elements, more than headDim " + headDim);
        }
    }

    static long bytes(ElementType type, long... sizes) {
        long elements = 1;
        for (long size : sizes) {
            elements = Math.multiplyExact(elements, notNegative("size", size));
        }
        return type.bytes(elements);
    }

    static long notNegative(String name, long value) {
        if (value < 0) {
            throw new IllegalArgumentException(name + " must not be negative: " + value);
        }
        return value;
    }

    static int positive(String name, int value) {
        if (value <= 0) {
            throw new IllegalArgumentException(name + " must be positive: " + value);
        }
        return value;
    }

    static ElementType floating(String name, ElementType type) {
        if (!type.isFloat()) {
            throw new IllegalArgumentException(name + " must be F32, BF16 or F16: " + type);
        }
        return type;
    }

    /** Coefficients are as everything is stored, or have 8 bits. */
    static ElementType coefficients(ElementType type, ElementType stored) {
        if (type != stored && type != ElementType.I8) {
            throw new IllegalArgumentException("coefficientType must be " + stored + " or I8: " + type);
        }
        return type;
    }

    /** The scales that coefficients of 8 bits have, and others have not. */
    void coefficientScales(long offset, ElementType type, DeviceBuffer scales, int rank) {
        if (type == ElementType.I8) {
            pointer(offset, "coefficient_scales", scales, 4L * rank);
        }
    }

    static void same(String name, ElementType type, ElementType expected) {
        if (type != expected) {
            throw new IllegalArgumentException(name + " must have type " + expected + ": " + type);
        }
    }
}
