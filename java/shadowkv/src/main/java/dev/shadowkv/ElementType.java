package dev.shadowkv;

/**
 * How numbers are stored in device and pinned memory.
 *
 * <p>Three types are for values in host memory alone, with one scale for each chunk and head, by which what is stored is
 * multiplied ({@link #isScaled()}). Two of them are packed: their elements have no whole bytes, and a chunk of a head is
 * one unit. On the device, such values lie {@link #unpacked()}.
 */
public enum ElementType {
    /** IEEE 754 binary32. */
    F32(0, 32),
    /** The upper half of a binary32. */
    BF16(1, 16),
    /** IEEE 754 binary16. */
    F16(2, 16),
    /**
     * Four exponent and three mantissa bits, no infinities; for values, one scale a chunk and head: the largest magnitude
     * / 448. A value is off by at most 1/16 of itself.
     */
    F8_E4M3(3, 8),
    /** Symmetric eight-bit integers; for landmarks, one scale a landmark. */
    I8(4, 8),
    /**
     * Twelve bits, packed: BF16 whose exponent has four bits, counted down from that of the largest magnitude of the chunk
     * and head; no infinities. For values in host memory; slots have BF16. Numbers of BF16 are exact from the largest's power
     * of two down to 2^-14 of it, smaller ones are within 2^-22 of it. Numbers of F32 and F16 are rounded as to BF16. The scale
     * is a power of two.
     */
    F12_E4M7(5, 12),
    /**
     * Six bits, packed: those numbers of F8_E4M3 that have the lowest four of its exponents. For values in host memory, with
     * the largest magnitude / (7.5 / 64) as the scale; slots have F8_E4M3 of the same scale. A value is off by at most 1/16 of
     * itself or 1/120 of the chunk's largest, whichever is more.
     */
    F6_E2M3(6, 6);

    private final int code;
    private final int bits;

    ElementType(int code, int bits) {
        this.code = code;
        this.bits = bits;
    }

    /** The number of this type in the native library's interface. */
    public int code() {
        return code;
    }

    /**
     * Bytes of one element.
     *
     * @throws UnsupportedOperationException for a packed type, whose elements have no whole bytes: see {@link #bytes(long)}
     */
    public int bytes() {
        if (isPacked()) {
            throw new UnsupportedOperationException(this + " has " + bits + " bits an element: ask for the bytes of a chunk");
        }
        return bits / Byte.SIZE;
    }

    /**
     * Bytes of so many elements; of a packed type, of the elements of whole chunks.
     *
     * @throws IllegalArgumentException if elements of a packed type do not fill whole bytes, or the number is negative
     * @throws ArithmeticException if the number does not fit a long
     */
    public long bytes(long elements) {
        if (elements < 0) {
            throw new IllegalArgumentException("elements must not be negative: " + elements);
        }
        if (!isPacked()) {
            return Math.multiplyExact(elements, bytes());
        }
        long all = Math.multiplyExact(elements, bits);
        if (all % Byte.SIZE != 0) {
            throw new IllegalArgumentException(elements + " elements of " + this + " do not fill whole bytes");
        }
        return all / Byte.SIZE;
    }

    /** Whether queries, keys and activations can have this type. */
    public boolean isFloat() {
        return this == F32 || this == BF16 || this == F16;
    }

    /** Whether values of this type have one scale a chunk and head, a 32-bit float. */
    public boolean isScaled() {
        return this == F8_E4M3 || isPacked();
    }

    /** Whether a chunk of a head is one unit, of elements that have no whole bytes. */
    public boolean isPacked() {
        return bits % Byte.SIZE != 0;
    }

    /** What values of this type are in slots: BF16 for F12_E4M7, F8_E4M3 of the same scale for F6_E2M3, else the same. */
    public ElementType unpacked() {
        return switch (this) {
            case F12_E4M7 -> BF16;
            case F6_E2M3 -> F8_E4M3;
            default -> this;
        };
    }
}
