package dev.shadowkv.bench;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;

import dev.shadowkv.ElementType;

/** Element types in plain Java, for making inputs and for reading results. Shares no code with the kernels. */
final class Numbers {

    /** The largest of the symmetric eight-bit integers. */
    static final int LARGEST_I8 = 127;

    private static final int GAUSSIANS = 1 << 16;
    private static final int PART = 1 << 18;
    private static final float[] GAUSSIAN = gaussians();

    private Numbers() {
    }

    /** A heap segment with the numbers in a type, rounded to nearest even; as I8, what is beyond 127 becomes 127. */
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
            case I8 -> {
                byte[] out = new byte[numbers.length];
                for (int i = 0; i < out.length; i++) {
                    out[i] = (byte) Math.clamp(Math.rint(numbers[i]), -LARGEST_I8, LARGEST_I8);
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
            default -> throw new IllegalArgumentException("elements of " + type + " lie in packed chunks");
        };
    }

    /**
     * One number of the values on the host, without the scale.
     *
     * @param chunk of those of all heads
     * @param size elements of a chunk
     */
    static double value(MemorySegment values, ElementType type, long chunk, int size, int index) {
        long at = chunk * type.bytes(size);
        return switch (type) {
            case F12_E4M7 -> {
                int low = values.get(ValueLayout.JAVA_BYTE, at + index) & 0xFF;
                int pair = values.get(ValueLayout.JAVA_BYTE, at + size + index % (size / 2));
                int high = (index < size / 2 ? pair : pair >> 4) & 0xF;
                yield number(high >> 3, (high & 7) << 1 | low >> 7, (low & 0x7F) / 128.0);
            }
            case F6_E2M3 -> {
                int pair = values.get(ValueLayout.JAVA_BYTE, at + index % (size / 2));
                int low = (index < size / 2 ? pair : pair >> 4) & 0xF;
                int four = values.get(ValueLayout.JAVA_BYTE, at + size / 2 + index % (size / 4));
                int high = four >> 2 * (index / (size / 4)) & 3;
                yield number(high >> 1, (high & 1) << 1 | low >> 3, (low & 7) / 8.0);
            }
            default -> decode(values, type, chunk * size + index);
        };
    }

    /** Of four exponent bits, bias 7, of which 0 are subnormal numbers. */
    private static double number(int sign, int exponent, double fraction) {
        double magnitude = exponent == 0 ? Math.scalb(fraction, -6) : Math.scalb(1 + fraction, exponent - 7);
        return sign == 0 ? magnitude : -magnitude;
    }

    /** The distance from the smallest number of a scaled type to zero, halved: the largest rounding error of small ones. */
    static double smallestError(ElementType type) {
        return type == ElementType.F12_E4M7 ? 0x1p-14 : 0x1p-10;
    }

    /** The distance from 1 to the next number, halved: the largest relative rounding error. */
    static double epsilon(ElementType type) {
        return switch (type) {
            case F32 -> 0x1p-24;
            case BF16 -> 0x1p-8;
            case F16 -> 0x1p-11;
            case F8_E4M3, F6_E2M3 -> 0x1p-4;
            case F12_E4M7 -> 0x1p-8;
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
        return number(bits < 0 ? 1 : 0, exponent, mantissa / 8.0);
    }
}
