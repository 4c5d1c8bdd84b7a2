package dev.shadowkv.bench;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;

import dev.shadowkv.ElementType;

/** Element types in plain Java, for making inputs and for reading results. Shares no code with the kernels. */
final class Numbers {

    private static final int GAUSSIANS = 1 << 16;
    private static final int PART = 1 << 18;
    private static final float[] GAUSSIAN = gaussians();

    private Numbers() {
    }

    /** A heap segment with the numbers in a type, rounded to nearest even. */
    static MemorySegment encode(float[] numbers, ElementType type) {
        return switch (type) {
            case F32 -> MemorySegment.ofArray(numbers);
            case BF16 -> {
                short[] out = new short[numbers.length];
                // Parts of their own for every processor: long contexts are hundreds of millions of numbers.
                IntStream.range(0, (out.length + PART - 1) / PART).parallel().forEach(part -> {
                    for (int i = part * PART; i < Math.min(out.length, (part + 1L) * PART); i++) {
                        int bits = Float.floatToRawIntBits(numbers[i]);
                        out[i] = (short) ((bits + 0x7FFF + ((bits >>> 16) & 1)) >>> 16);
                    }
                });
                yield MemorySegment.ofArray(out);
            }
            case F16 -> {
                short[] out = new short[numbers.length];
                for (int i = 0; i < out.length; i++) {
                    out[i] = Float.floatToFloat16(numbers[i]);
                }
                yield MemorySegment.ofArray(out);
            }
            default -> throw new IllegalArgumentException("inputs cannot be " + type);
        };
    }

    /** One number of a segment of a type; of scaled types without the scale. */
    static double decode(MemorySegment segment, ElementType type, long index) {
        return switch (type) {
            case F32 -> segment.get(ValueLayout.JAVA_FLOAT_UNALIGNED, 4 * index);
            case BF16 -> Float.intBitsToFloat(segment.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * index) << 16);
            case F16 -> Float.float16ToFloat(segment.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * index));
            case F8_E4M3 -> float8(segment.get(ValueLayout.JAVA_BYTE, index));
            case I8 -> segment.get(ValueLayout.JAVA_BYTE, index);
        };
    }

    /** The distance from 1 to the next number, halved: the largest relative rounding error. */
    static double epsilon(ElementType type) {
        return switch (type) {
            case F32 -> 0x1p-24;
            case BF16 -> 0x1p-8;
            case F16 -> 0x1p-11;
            case F8_E4M3 -> 0x1p-4;
            case I8 -> 0x1p-8;
        };
    }

    /** Normally distributed numbers, quickly: drawn from a table of 65536. */
    static void gaussian(float[] out, long seed, float deviation) {
        gaussian(out, 0, out.length, seed, deviation);
    }

    /** As above, for a part of the array. */
    static void gaussian(float[] out, int from, int to, long seed, float deviation) {
        long state = seed * 0x9E3779B97F4A7C15L + 0x632BE59BD9B4E019L;
        for (int i = from; i < to; i++) {
            state ^= state << 13;
            state ^= state >>> 7;
            state ^= state << 17;
            out[i] = deviation * GAUSSIAN[(int) (state * 0x2545F4914F6CDD1DL >>> 48)];
        }
    }

    static float[] gaussian(int count, long seed, float deviation) {
        float[] out = new float[count];
        gaussian(out, seed, deviation);
        return out;
    }

    private static float[] gaussians() {
        float[] table = new float[GAUSSIANS];
        java.util.Random random = new java.util.Random(20240521);
        for (int i = 0; i < GAUSSIANS; i++) {
            table[i] = (float) random.nextGaussian();
        }
        return table;
    }

    private static double float8(byte bits) {
        int exponent = bits >> 3 & 15;
        int mantissa = bits & 7;
        if (exponent == 15 && mantissa == 7) {
            return Double.NaN;
        }
        double magnitude = exponent == 0 ? mantissa * 0x1p-9 : Math.scalb(1 + mantissa / 8.0, exponent - 7);
        return bits < 0 ? -magnitude : magnitude;
    }
}
