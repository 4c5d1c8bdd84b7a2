package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Reads values of packed types in host memory. A chunk of a head, n elements, is one unit: for each element some low bits,
 * of all elements first, and then its upper ones.
 *
 * <pre>
 *   F12_E4M7  n bytes of the lowest eight bits; n/2 bytes of the upper four:
 *             of elements i and i + n/2 in the lower and the upper half of byte i
 *   F6_E2M3   n/2 bytes of the lowest four bits: of elements i and i + n/2 in the lower and the upper half of byte i;
 *             n/4 bytes of the upper two: of elements i, i + n/4, i + n/2, i + 3n/4 from the lowest bits of byte i upwards
 * </pre>
 *
 * <p>Not for the decode path.
 */
final class PackedChunk {

    private PackedChunk() {
    }

    /**
     * One number, without the chunk's scale.
     *
     * @param chunks units one after another
     * @param chunk which of them
     * @param elements n, of each
     */
    static float toFloat(MemorySegment chunks, ElementType type, long chunk, int elements, int index) {
        long unit = chunk * type.bytes(elements);
        return switch (type) {
            case F12_E4M7 -> f12(bits(chunks, unit, elements, index, 8)
                    | bits(chunks, unit + elements, elements, index, 4) << 8);
            case F6_E2M3 -> f6(bits(chunks, unit, elements, index, 4)
                    | bits(chunks, unit + elements / 2, elements, index, 2) << 4);
            default -> throw new IllegalArgumentException("type must be F12_E4M7 or F6_E2M3: " + type);
        };
    }

    /** A field of {@code width} bits; those in one byte are of elements that lie an equal part of all apart. */
    private static int bits(MemorySegment chunks, long fields, int elements, int index, int width) {
        int bytes = elements * width / Byte.SIZE;
        int both = chunks.get(ValueLayout.JAVA_BYTE, fields + index % bytes);
        return both >> index / bytes * width & (1 << width) - 1;
    }

    /** From the upper bit down: sign, four exponent bits (bias 7, 0 for subnormal numbers), seven mantissa bits. */
    static float f12(int code) {
        int exponent = code >> 7 & 15;
        int mantissa = code & 127;
        float magnitude = exponent == 0 ? Math.scalb((float) mantissa, 1 - 7 - 7) : Math.scalb(128f + mantissa, exponent - 7 - 7);
        return (code & 1 << 11) == 0 ? magnitude : -magnitude;
    }

    /** From the upper bit down: sign, two exponent and three mantissa bits, which are the lower ones of an e4m3 number. */
    static float f6(int code) {
        return Elements.e4m3((byte) ((code & 32) << 2 | code & 31));
    }
}
