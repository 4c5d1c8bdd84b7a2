package dev.shadowkv.kernels;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.util.Random;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.ShadowKvException;
import dev.shadowkv.TestDevice;

/** The operations of a transformer layer against plain double precision, on floats of 32 bits. */
class KernelsTest {

    private static final Random random = TestDevice.random(KernelsTest.class);
    private static final double EPS = 0x1p-24;

    private Device device;
    private TransformerKernels kernels;

    @BeforeEach
    void open() {
        device = TestDevice.open();
        kernels = new TransformerKernels(device);
    }

    @AfterEach
    void close() {
        device.close();
    }

    private static float[] normal(int count) {
        float[] result = new float[count];
        for (int i = 0; i < count; i++) {
            result[i] = (float) random.nextGaussian();
        }
        return result;
    }

    private DeviceBuffer upload(float[] values) {
        DeviceBuffer buffer = device.allocate(4L * values.length);
        device.copy(MemorySegment.ofArray(values), buffer);
        return buffer;
    }

    private float[] floats(DeviceBuffer buffer, int count) {
        float[] result = new float[count];
        device.copy(buffer.slice(0, 4L * count), MemorySegment.ofArray(result));
        return result;
    }

    private static Rows rows(DeviceBuffer buffer, long stride) {
        return new Rows(buffer, ElementType.F32, stride);
    }

    private static void close(double expected, double actual, double tolerance, String what) {
        assertThat(Math.abs(expected - actual)).as(what + ": " + expected + ", " + actual)
                .isLessThanOrEqualTo(tolerance);
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 1", "3, 17, 130", "70, 33, 65", "1, 300, 257", "5, 64, 1024"})
    void matmul(int rows, int columns, int inner) {
        float[] input = normal(rows * (inner + 3));
        float[] weight = normal(columns * inner);
        float[] bias = normal(columns);
        float[] before = normal(rows * (columns + 5));
        DeviceBuffer output = upload(before);
        kernels.matmul(rows(upload(input), inner + 3), rows(upload(weight), 0), upload(bias), rows(output,
                columns + 5), rows,
                columns, inner, true);
        float[] actual = floats(output, before.length);
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < columns; c++) {
                double sum = (double) bias[c] + before[r * (columns + 5) + c];
                double size = Math.abs(sum);
                for (int i = 0; i < inner; i++) {
                    double product = (double) input[r * (inner + 3) + i] * weight[c * inner + i];
                    sum += product;
                    size += Math.abs(product);
                }
                // On a GPU 32-bit operands may be multiplied as they are or in parts; in fp32 sums either way.
                close(sum, actual[r * (columns + 5) + c], (inner + 3) * EPS * size, "element " + r + ", " + c);
            }
            for (int c = columns; c < columns + 5 && r < rows - 1; c++) {
                assertThat(actual[r * (columns + 5) + c]).isEqualTo(before[r * (columns + 5) + c]);
            }
        }
    }

    @Test
    void rmsNorm() {
        int rows = 7;
        int width = 333;
        float[] input = normal(rows * width);
        float[] residual = normal(rows * width);
        float[] weight = normal(width);
        DeviceBuffer in = upload(input);
        DeviceBuffer out = device.allocate(4L * rows * width);
        kernels.rmsNorm(rows(in, 0), upload(residual), rows(upload(weight), 0), rows(out, 0), rows, width, 1e-5f);
        float[] summed = floats(in, rows * width);
        float[] actual = floats(out, rows * width);
        for (int r = 0; r < rows; r++) {
            double squares = 0;
            for (int i = 0; i < width; i++) {
                double x = (double) input[r * width + i] + residual[r * width + i];
                close(x, summed[r * width + i], EPS * Math.abs(x), "sum");
                squares += x * x;
            }
            double scale = 1 / Math.sqrt(squares / width + 1e-5f);
            for (int i = 0; i < width; i++) {
                double x = ((double) input[r * width + i] + residual[r * width + i]) * scale * weight[i];
                close(x, actual[r * width + i], (width / 2.0 + 8) * EPS * Math.abs(x) + 1e-30, "norm");
            }
        }
    }

    @Test
    void siluMultiplyAddAndConvert() {
        int rows = 5;
        int width = 77;
        float[] both = normal(rows * 2 * width);
        DeviceBuffer fused = upload(both);
        DeviceBuffer out = device.allocate(4L * rows * width);
        kernels.siluMultiply(rows(fused, 2 * width), rows(fused.slice(4L * width), 2 * width), out, rows, width);
        float[] actual = floats(out, rows * width);
        for (int r = 0; r < rows; r++) {
            for (int i = 0; i < width; i++) {
                double gate = both[r * 2 * width + i];
                double expected = gate / (1 + Math.exp(-gate)) * both[r * 2 * width + width + i];
                close(expected, actual[r * width + i], 16 * EPS * Math.abs(expected) + 1e-30, "silu");
            }
        }
        float[] a = normal(1001);
        float[] b = normal(1001);
        DeviceBuffer left = upload(a);
        kernels.add(left, upload(b), left, ElementType.F32, 1001);
        float[] sums = floats(left, 1001);
        for (int i = 0; i < 1001; i++) {
            assertThat(sums[i]).isEqualTo(a[i] + b[i]);
        }
        for (ElementType type : new ElementType[] {ElementType.BF16, ElementType.F16}) {
            DeviceBuffer narrow = device.allocate(2 * 1001);
            DeviceBuffer wide = device.allocate(4 * 1001);
            kernels.convert(upload(a), ElementType.F32, narrow, type, 1001);
            kernels.convert(narrow, type, wide, ElementType.F32, 1001);
            float[] back = floats(wide, 1001);
            for (int i = 0; i < 1001; i++) {
                float expected = type == ElementType.F16 ? Float.float16ToFloat(Float.floatToFloat16(a[i]))
                        : nearestBfloat16(a[i]);
                assertThat(back[i]).isEqualTo(expected);
            }
        }
    }

    /** Of the two neighbours with sixteen bits the nearer one, or the even one. */
    private static float nearestBfloat16(float value) {
        int bits = Float.floatToRawIntBits(value);
        float below = Float.intBitsToFloat(bits & 0xffff0000);
        float above = Float.intBitsToFloat((bits & 0xffff0000) + 0x10000);
        double down = Math.abs((double) value - below);
        double up = Math.abs((double) above - value);
        return down < up || down == up && (bits >>> 16 & 1) == 0 ? below : above;
    }

    @Test
    void embedAndArgmax() {
        float[] table = normal(50 * 33);
        int[] ids = {0, 49, 7, -1, 50, 7};
        DeviceBuffer at = device.allocate(4L * ids.length);
        device.copy(MemorySegment.ofArray(ids), at);
        DeviceBuffer out = device.allocate(4L * ids.length * 33);
        kernels.embed(rows(upload(table), 0), at, rows(out, 0), ids.length, 33, 50);
        float[] actual = floats(out, ids.length * 33);
        for (int i = 0; i < ids.length; i++) {
            for (int j = 0; j < 33; j++) {
                if (ids[i] < 0 || ids[i] >= 50) {
                    assertThat(actual[i * 33 + j]).isNaN();
                } else {
                    assertThat(actual[i * 33 + j]).isEqualTo(table[ids[i] * 33 + j]);
                }
            }
        }
        int width = 1003;
        float[] logits = normal(4 * width);
        logits[5] = logits[900] = 9;
        logits[width + 1002] = 11;
        logits[2 * width + 3] = Float.NaN;
        logits[3 * width] = 12;
        DeviceBuffer best = device.allocate(16);
        kernels.argmax(rows(upload(logits), 0), 4, width, best);
        int[] result = new int[4];
        device.copy(best, MemorySegment.ofArray(result));
        assertThat(result).containsExactly(5, 1002, -1, 0);
    }

    @Test
    void randomNumbersAreNormalAndRepeat() {
        int count = 100_000;
        DeviceBuffer buffer = device.allocate(4L * count);
        long seed = random.nextLong();
        kernels.randomFill(buffer, ElementType.F32, count, seed, 2, 3);
        float[] first = floats(buffer, count);
        double mean = 0;
        double square = 0;
        double fourth = 0;
        for (float x : first) {
            double z = (x - 2) / 3;
            mean += z / count;
            square += z * z / count;
            fourth += z * z * z * z / count;
        }
        // Six standard deviations of each estimate.
        close(0, mean, 6 / Math.sqrt(count), "mean");
        close(1, square, 6 * Math.sqrt(2.0 / count), "variance");
        close(3, fourth, 6 * Math.sqrt(96.0 / count), "fourth moment");
        kernels.randomFill(buffer, ElementType.F32, count, seed, 2, 3);
        assertThat(floats(buffer, count)).isEqualTo(first);
        kernels.randomFill(buffer, ElementType.F32, count, seed + 1, 2, 3);
        assertThat(floats(buffer, count)).isNotEqualTo(first);
    }

    @ParameterizedTest
    @CsvSource({"8, 2, 64, 37, 100", "7, 1, 96, 20, 0", "16, 1, 128, 9, 200", "3, 3, 34, 65, 3", "4, 1, 256, 5, 50"})
    void prefillAttention(int queryHeads, int keyValueHeads, int headDim, int count, int first) {
        org.junit.jupiter.api.Assumptions.assumeTrue(device.isCpu(),
                "a GPU stores bf16; its prefill has a native test");
        int capacity = first + count + 3;
        float[] queries = normal(count * queryHeads * headDim);
        float[] keys = normal(keyValueHeads * capacity * headDim);
        float[] values = normal(keyValueHeads * capacity * headDim);
        DeviceBuffer out = device.allocate(4L * queries.length);
        Geometry geometry = Geometry.dense(queryHeads, keyValueHeads, headDim, ElementType.F32);
        kernels.prefillAttention(geometry, rows(upload(queries), 0), count, first, upload(keys), upload(values),
                capacity,
                rows(out, 0));
        float[] actual = floats(out, queries.length);
        for (int t = 0; t < count; t++) {
            for (int h = 0; h < queryHeads; h++) {
                int head = h / (queryHeads / keyValueHeads);
                int length = first + t + 1;
                double[] weights = new double[length];
                double largest = Double.NEGATIVE_INFINITY;
                for (int p = 0; p < length; p++) {
                    for (int d = 0; d < headDim; d++) {
                        weights[p] += (double) queries[(t * queryHeads + h) * headDim + d]
                                * keys[(head * capacity + p) * headDim + d] / Math.sqrt(headDim);
                    }
                    largest = Math.max(largest, weights[p]);
                }
                double sum = 0;
                double[] expected = new double[headDim];
                for (int p = 0; p < length; p++) {
                    double weight = Math.exp(weights[p] - largest);
                    sum += weight;
                    for (int d = 0; d < headDim; d++) {
                        expected[d] += weight * values[(head * capacity + p) * headDim + d];
                    }
                }
                for (int d = 0; d < headDim; d++) {
                    // Logits are sums of headDim products of size about one; weights err by as much.
                    close(expected[d] / sum, actual[(t * queryHeads + h) * headDim + d],
                            4 * EPS * (headDim + Math.sqrt(length) + 8), "token " + t + " head " + h);
                }
            }
        }
    }

    @Test
    void operandsThatAreTooSmallForeignOrWrongAreRefused() {
        DeviceBuffer small = device.allocate(15);
        DeviceBuffer enough = device.allocate(64);
        assertThatThrownBy(() -> kernels.add(small, enough, enough, ElementType.F32, 4))
                .isInstanceOf(IndexOutOfBoundsException.class).hasMessage("a has 15 bytes, but 16 will be touched");
        assertThatThrownBy(() -> kernels.add(enough, small, enough, ElementType.F32, 4))
                .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("b has");
        assertThatThrownBy(() -> kernels.add(enough, enough, small, ElementType.F32, 4))
                .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("output has");
        assertThatThrownBy(() -> kernels.add(enough, enough, null, ElementType.F32, 4))
                .isInstanceOf(NullPointerException.class).hasMessage("output");
        assertThatThrownBy(() -> kernels.add(enough, enough, enough, ElementType.I8, 4))
                .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("type");
        assertThatThrownBy(() -> kernels.add(enough, enough, enough, ElementType.F32, -1))
                .isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> kernels.add(enough, enough, enough, ElementType.F32, Long.MAX_VALUE / 2))
                .isInstanceOf(ArithmeticException.class);
        assertThatThrownBy(() -> new Rows(enough, ElementType.F8_E4M3, 0)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new Geometry(8, 2, 64, 8, 300, ElementType.F32, ElementType.F32, ElementType.F32,
                ElementType.F32, 64, 0))
                .isInstanceOf(ShadowKvException.class).hasMessageContaining("rank must be from 16 to 256: 300");
        try (Device other = TestDevice.open()) {
            DeviceBuffer foreign = other.allocate(64);
            assertThatThrownBy(() -> kernels.add(foreign, enough, enough, ElementType.F32, 4))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("another device");
        }
        // Nothing of it has harmed the device.
        kernels.add(enough, enough, enough, ElementType.F32, 16);
        device.synchronize();
    }
}
