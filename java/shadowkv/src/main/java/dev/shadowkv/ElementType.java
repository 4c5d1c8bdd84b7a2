package dev.shadowkv;

/** How numbers are stored in device and pinned memory. */
public enum ElementType {
    /** IEEE 754 binary32. */
    F32(0, 4),
    /** The upper half of a binary32. */
    BF16(1, 2),
    /** IEEE 754 binary16. */
    F16(2, 2),
    /** Four exponent and three mantissa bits, no infinities; for values, one scale a chunk and head. */
    F8_E4M3(3, 1),
    /** Symmetric eight-bit integers; for landmarks, one scale a landmark. */
    I8(4, 1);

    private final int code;
    private final int bytes;

    ElementType(int code, int bytes) {
        this.code = code;
        this.bytes = bytes;
    }

    /** The number of this type in the native library's interface. */
    public int code() {
        return code;
    }

    /** Bytes of one element. */
    public int bytes() {
        return bytes;
    }

    /** Whether queries, keys and activations can have this type. */
    public boolean isFloat() {
        return this == F32 || this == BF16 || this == F16;
    }
}
