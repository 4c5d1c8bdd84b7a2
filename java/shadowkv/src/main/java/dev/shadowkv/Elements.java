package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Reads and writes single elements of any type that has whole bytes, in host memory. Not for the decode path. */
final class Elements {

    private Elements() {
    }

    static float toFloat(MemorySegment segment, ElementType type, long index) {
        return switch (type) {
            case F32 -> segment.getAtIndex(ValueLayout.JAVA_FLOAT, index);
            case BF16 -> Float.intBitsToFloat(segment.getAtIndex(ValueLayout.JAVA_SHORT, index) << 16);
            case F16 -> Float.float16ToFloat(segment.getAtIndex(ValueLayout.JAVA_SHORT, index));
            case F8_E4M3 -> e4m3(segment.get(ValueLayout.JAVA_BYTE, index));
            case I8 -> segment.get(ValueLayout.JAVA_BYTE, index);
            case F12_E4M7, F6_E2M3 -> throw new IllegalArgumentException("elements of " + type + " lie in packed chunks");
        };
    }

    static void set(MemorySegment segment, ElementType type, long index, float value) {
        switch (type) {
            case F32 -> segment.setAtIndex(ValueLayout.JAVA_FLOAT, index, value);
            case BF16 -> segment.setAtIndex(ValueLayout.JAVA_SHORT, index, bfloat16(value));
            case F16 -> segment.setAtIndex(ValueLayout.JAVA_SHORT, index, Float.floatToFloat16(value));
            default -> throw new IllegalArgumentException("type must be F32, BF16 or F16: " + type);
        }
    }

    private static short bfloat16(float value) {
        int bits = Float.floatToRawIntBits(value);
        if (Float.isNaN(value)) {
            return (short) 0x7fc0;
        }
        // To nearest, ties to even.
        return (short) (bits + 0x7fff + (bits >>> 16 & 1) >>> 16);
    }

    /** One sign, four exponent (bias 7) and three mantissa bits; all ones is NaN, there is no infinity. */
    static float e4m3(byte bits) {
        int exponent = bits >> 3 & 15;
        int mantissa = bits & 7;
        if (exponent == 15 && mantissa == 7) {
            return Float.NaN;
        }
        float magnitude = exponent == 0 ? mantissa * 0x1p-9f : (8 + mantissa) * Math.scalb(1f, exponent - 10);
        return bits < 0 ? -magnitude : magnitude;
    }
}
