package dev.shadowkv.kernels;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.util.Random;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.ShadowKvException;
import dev.shadowkv.TestDevice;

/** Factorization, projection, moments and the fit of values against their definitions, in double precision. */
class CacheKernelsTest {

    private static final Random random = TestDevice.random(CacheKernelsTest.class);
    static final int HEADS = 3;
    static final int DIM = 40;
    static final int WIDTH = HEADS * DIM;
    static final int RANK = 24;

    static float[] read(DeviceBuffer buffer, int count) {
        float[] result = new float[count];
        buffer.device().copy(buffer.slice(0, 4L * count), MemorySegment.ofArray(result));
        return result;
    }

    @Test
    void factorsAreOrthonormalProjectAndCaptureWhatTheySay() {
        int tokens = 301;
        float[] keys = new float[tokens * WIDTH];
        double[][] directions = new double[WIDTH][WIDTH];
        for (double[] direction : directions) {
            for (int i = 0; i < WIDTH; i++) {
                direction[i] = random.nextGaussian();
            }
        }
        for (int t = 0; t < tokens; t++) {
            for (int r = 0; r < WIDTH; r++) {
                double weight = random.nextGaussian() * Math.pow(0.85, r);
                for (int i = 0; i < WIDTH; i++) {
                    keys[t * WIDTH + i] += (float) (weight * directions[r][i]);
                }
            }
        }
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu(), "a GPU stores bf16; its factorization has a native test");
            CacheKernels kernels = new CacheKernels(device);
            DeviceBuffer input = device.allocate(4L * keys.length);
            device.copy(MemorySegment.ofArray(keys), input);
            DeviceBuffer coefficients = device.allocate(4L * tokens * RANK);
            DeviceBuffer basis = device.allocate(4L * RANK * WIDTH);
            DeviceBuffer singular = device.allocate(4L * RANK);
            DeviceBuffer energy = device.allocate(8);
            Rows rows = Rows.of(input, ElementType.F32);
            kernels.lowRankFactor(rows, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, basis, singular, energy, null);
            float[] b = read(basis, RANK * WIDTH);
            float[] a = read(coefficients, tokens * RANK);
            double[][] basisRows = new double[RANK][WIDTH];
            for (int h = 0; h < HEADS; h++) {
                for (int r = 0; r < RANK; r++) {
                    for (int d = 0; d < DIM; d++) {
                        basisRows[r][h * DIM + d] = b[(h * RANK + r) * DIM + d];
                    }
                }
            }
            double rounding = 0x1p-24 * WIDTH * 4;
            for (int r = 0; r < RANK; r++) {
                for (int s = 0; s <= r; s++) {
                    double product = 0;
                    for (int i = 0; i < WIDTH; i++) {
                        product += basisRows[r][i] * basisRows[s][i];
                    }
                    assertThat(product).isCloseTo(r == s ? 1 : 0, within(rounding));
                }
            }
            double total = 0;
            double missed = 0;
            for (int t = 0; t < tokens; t++) {
                double norm = 0;
                double[] rest = new double[WIDTH];
                for (int i = 0; i < WIDTH; i++) {
                    rest[i] = keys[t * WIDTH + i];
                    norm += rest[i] * rest[i];
                }
                total += norm;
                for (int r = 0; r < RANK; r++) {
                    double product = 0;
                    for (int i = 0; i < WIDTH; i++) {
                        product += keys[t * WIDTH + i] * basisRows[r][i];
                    }
                    assertThat((double) a[t * RANK + r]).isCloseTo(product, within(rounding * Math.sqrt(norm)));
                    for (int i = 0; i < WIDTH; i++) {
                        rest[i] -= product * basisRows[r][i];
                    }
                }
                for (double x : rest) {
                    missed += x * x;
                }
            }
            float[] e = read(energy, 2);
            assertThat((double) e[0]).isCloseTo(total, within(total * 1e-5));
            assertThat((double) e[1]).isCloseTo(1 - missed / total, within(1e-4));
            // The best possible: power iteration with deflation on the Gram matrix, far past convergence.
            double best = total - leading(keys, tokens, RANK);
            assertThat(Math.sqrt(missed)).isLessThan(1.01 * Math.sqrt(best));

            DeviceBuffer projected = device.allocate(4L * tokens * RANK);
            DeviceBuffer residual = device.allocate(4L * tokens);
            kernels.lowRankProject(rows, tokens, HEADS, DIM, RANK, basis, projected, residual, null);
            double sum = 0;
            float[] shares = read(residual, tokens);
            for (int t = 0; t < tokens; t++) {
                double norm = 0;
                for (int i = 0; i < WIDTH; i++) {
                    norm += (double) keys[t * WIDTH + i] * keys[t * WIDTH + i];
                }
                sum += shares[t] * norm;
            }
            assertThat(sum).isCloseTo(missed, within(1e-3 * missed + total * 1e-5));
        }
    }

    /** Numbers that every storage type has exactly. */
    static float[] coarse(int count) {
        float[] result = new float[count];
        for (int i = 0; i < count; i++) {
            result[i] = Math.round(random.nextGaussian() * 32) / 32f;
        }
        return result;
    }

    @Test
    void momentsAreTheSumsOfWhatCounts() {
        int chunk = 8;
        int capacity = 13 * chunk;
        int chunkCapacity = 40;
        float[] keys = coarse(WIDTH * capacity);
        float[] values = coarse(WIDTH * capacity);
        float[] radius = new float[HEADS * chunkCapacity];
        for (int i = 0; i < radius.length; i++) {
            radius[i] = random.nextInt(4) == 0 ? -1 : random.nextInt(2);
        }
        try (Device device = TestDevice.open()) {
            CacheKernels kernels = new CacheKernels(device);
            ElementType type = device.defaultType();
            Ring keyRing = new Ring(stored(device, keys), type, capacity);
            Ring valueRing = new Ring(stored(device, values), type, capacity);
            DeviceBuffer radii = device.allocate(4L * radius.length);
            device.copy(MemorySegment.ofArray(radius), radii);
            int floats = (int) Geometry.momentFloats(HEADS, DIM);
            DeviceBuffer moments = device.allocate(4L * floats);
            device.fill(moments, 0xff);
            double[] sums = new double[floats];
            double[] sizes = new double[floats];
            kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 20, 7, radii, chunkCapacity, MomentChange.REPLACE,
                    moments);
            add(sums, sizes, keys, values, capacity, chunk, 20, 7, radius, chunkCapacity, 1);
            kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 27, 13, radii, chunkCapacity, MomentChange.ADD,
                    moments);
            add(sums, sizes, keys, values, capacity, chunk, 27, 13, radius, chunkCapacity, 1);
            kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 22, 3, radii, chunkCapacity, MomentChange.SUBTRACT,
                    moments);
            add(sums, sizes, keys, values, capacity, chunk, 22, 3, radius, chunkCapacity, -1);
            kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 5, 1, null, chunkCapacity, MomentChange.ADD, moments);
            add(sums, sizes, keys, values, capacity, chunk, 5, 1, null, chunkCapacity, 1);
            float[] actual = read(moments, floats);
            for (int i = 0; i < floats; i++) {
                if (i % (floats / HEADS) <= DIM * DIM + 2 * DIM) {
                    assertThat((double) actual[i]).as("float %s", i).isCloseTo(sums[i], within(0x1p-24 * 64 * sizes[i]));
                }
            }
            kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 0, 0, radii, chunkCapacity, MomentChange.REPLACE,
                    moments);
            assertThat(read(moments, DIM * DIM + 2 * DIM + 1)).containsOnly(0);

            assertThatThrownBy(() -> kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 30, 11, radii, chunkCapacity,
                    MomentChange.ADD, moments)).isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("chunks");
            assertThatThrownBy(() -> kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 0, 1, radii, chunkCapacity + 1,
                    MomentChange.ADD, moments)).isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("radius");
            assertThatThrownBy(() -> kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 0, 1, radii, chunkCapacity,
                    MomentChange.ADD, moments.slice(0, 4L * floats - 1))).isInstanceOf(IndexOutOfBoundsException.class)
                    .hasMessageContaining("moments");
            Ring shorter = new Ring(valueRing.buffer(), type, capacity - 1);
            assertThatThrownBy(() -> kernels.momentUpdate(keyRing, shorter, HEADS, DIM, chunk, 0, 1, radii, chunkCapacity,
                    MomentChange.ADD, moments)).isInstanceOf(IllegalArgumentException.class).hasMessageContaining("values");
            assertThatThrownBy(() -> kernels.momentUpdate(keyRing, valueRing, HEADS, DIM, chunk, 0, 14, radii, chunkCapacity,
                    MomentChange.ADD, moments)).isInstanceOf(ShadowKvException.class).hasMessageContaining("holds 13");
        }
    }

    @Test
    void valuesAreFittedRowByRow() {
        int tokens = 333;
        int capacity = 350;
        int first = 71;
        float[] coefficients = coarse(RANK * (first + tokens));
        float[] values = coarse(WIDTH * capacity);
        for (int t = 0; t < first + tokens; t++) {
            for (int j = 0; j < RANK; j++) {
                // A falling spectrum; then a column that is too small to say anything, and one of zeros.
                float size = j < RANK - 2 ? Math.scalb(1f, -j / 4) : j < RANK - 1 ? 0x1p-14f : 0;
                coefficients[t * RANK + j] *= size;
            }
        }
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu(), "values are fitted on a CPU");
            CacheKernels kernels = new CacheKernels(device);
            ElementType type = device.defaultType();
            DeviceBuffer rows = stored(device, coefficients);
            Ring ring = new Ring(stored(device, values), type, capacity);
            DeviceBuffer valueBasis = device.allocate(4L * RANK * WIDTH);
            device.fill(valueBasis, 0xff);
            kernels.valueFit(rows, ring, HEADS, DIM, RANK, first, tokens, valueBasis);
            float[] actual = read(valueBasis, RANK * WIDTH);
            for (int i = 0; i < actual.length; i++) {
                int head = i / DIM / RANK;
                int j = i / DIM % RANK;
                double sum = 0;
                double size = 0;
                double squares = 0;
                for (int p = first; p < first + tokens; p++) {
                    double a = coefficients[p * RANK + j];
                    double product = a * values[(head * capacity + p % capacity) * DIM + i % DIM];
                    sum += product;
                    size += Math.abs(product);
                    squares += a * a;
                }
                double expected = j < RANK - 2 ? sum / squares : 0;
                double tolerance = j < RANK - 2 ? 0x1p-24 * (2 * 150 * size / squares + Math.abs(expected)) : 0;
                assertThat((double) actual[i]).as("float %s", i).isCloseTo(expected, within(tolerance));
            }
            kernels.valueFit(rows, ring, HEADS, DIM, RANK, 0, 0, valueBasis);
            assertThat(read(valueBasis, RANK * WIDTH)).containsOnly(0);

            assertThatThrownBy(() -> kernels.valueFit(rows, ring, HEADS, DIM, RANK, 0, capacity + 1, valueBasis))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("values");
            assertThatThrownBy(() -> kernels.valueFit(rows, ring, HEADS, DIM, RANK, first + 1, tokens, valueBasis))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficients");
            assertThatThrownBy(() -> kernels.valueFit(rows, ring, HEADS + 1, DIM, RANK, 0, tokens, valueBasis))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("values");
            assertThatThrownBy(() -> kernels.valueFit(rows, ring, HEADS, DIM, RANK, 0, tokens,
                    valueBasis.slice(0, 4L * RANK * WIDTH - 1))).isInstanceOf(IndexOutOfBoundsException.class)
                    .hasMessageContaining("value_basis");
            assertThatThrownBy(() -> kernels.valueFit(rows, ring, HEADS, DIM, 8, 0, tokens, valueBasis))
                    .isInstanceOf(ShadowKvException.class).hasMessageContaining("rank is 8");
            assertThatThrownBy(() -> kernels.valueFit(rows, ring, HEADS, DIM, RANK, -1, tokens, valueBasis))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("firstPosition");
        }
    }

    static DeviceBuffer stored(Device device, float[] numbers) {
        DeviceBuffer wide = device.allocate(4L * numbers.length);
        device.copy(MemorySegment.ofArray(numbers), wide);
        DeviceBuffer narrow = device.allocate((long) device.defaultType().bytes() * numbers.length);
        new TransformerKernels(device).convert(wide, ElementType.F32, narrow, device.defaultType(), numbers.length);
        return narrow;
    }

    /** Adds to sums, and their magnitudes to sizes. */
    private static void add(double[] sums, double[] sizes, float[] keys, float[] values, int capacity, int chunk, int first,
            int chunks, float[] radius, int chunkCapacity, int sign) {
        int floats = sums.length / HEADS;
        for (int h = 0; h < HEADS; h++) {
            for (int p = first * chunk; p < (first + chunks) * chunk; p++) {
                if (radius != null && radius[h * chunkCapacity + p / chunk] < 0) {
                    continue;
                }
                int row = (h * capacity + p % capacity) * DIM;
                for (int i = 0; i < DIM; i++) {
                    for (int j = 0; j < DIM; j++) {
                        put(sums, sizes, h * floats + i * DIM + j, sign * (double) values[row + i] * keys[row + j]);
                    }
                    put(sums, sizes, h * floats + DIM * DIM + i, sign * keys[row + i]);
                    put(sums, sizes, h * floats + DIM * DIM + DIM + i, sign * values[row + i]);
                }
                put(sums, sizes, h * floats + DIM * DIM + 2 * DIM, sign);
            }
        }
    }

    private static void put(double[] sums, double[] sizes, int at, double number) {
        sums[at] += number;
        sizes[at] += Math.abs(number);
    }

    /** Sum of the largest eigenvalues of the Gram matrix. */
    private static double leading(float[] keys, int tokens, int count) {
        double[][] gram = new double[WIDTH][WIDTH];
        for (int t = 0; t < tokens; t++) {
            for (int i = 0; i < WIDTH; i++) {
                for (int j = 0; j < WIDTH; j++) {
                    gram[i][j] += (double) keys[t * WIDTH + i] * keys[t * WIDTH + j];
                }
            }
        }
        double sum = 0;
        for (int k = 0; k < count; k++) {
            double[] v = new double[WIDTH];
            for (int i = 0; i < WIDTH; i++) {
                v[i] = random.nextGaussian();
            }
            double value = 0;
            for (int step = 0; step < 400; step++) {
                double[] w = new double[WIDTH];
                double norm = 0;
                for (int i = 0; i < WIDTH; i++) {
                    for (int j = 0; j < WIDTH; j++) {
                        w[i] += gram[i][j] * v[j];
                    }
                    norm += w[i] * w[i];
                }
                value = Math.sqrt(norm);
                for (int i = 0; i < WIDTH; i++) {
                    v[i] = w[i] / value;
                }
            }
            sum += value;
            for (int i = 0; i < WIDTH; i++) {
                for (int j = 0; j < WIDTH; j++) {
                    gram[i][j] -= value * v[i] * v[j];
                }
            }
        }
        return sum;
    }
}
