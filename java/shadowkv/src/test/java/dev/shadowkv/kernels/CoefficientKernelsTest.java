package dev.shadowkv.kernels;

import static dev.shadowkv.kernels.CacheKernelsTest.DIM;
import static dev.shadowkv.kernels.CacheKernelsTest.HEADS;
import static dev.shadowkv.kernels.CacheKernelsTest.RANK;
import static dev.shadowkv.kernels.CacheKernelsTest.WIDTH;
import static dev.shadowkv.kernels.CacheKernelsTest.coarse;
import static dev.shadowkv.kernels.CacheKernelsTest.read;
import static dev.shadowkv.kernels.CacheKernelsTest.stored;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.util.Random;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;

import dev.shadowkv.CoefficientColumns;
import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.Rope;
import dev.shadowkv.RopeTable;
import dev.shadowkv.TestDevice;

/** What is made of coefficients of 8 bits, and of them, in double precision. */
class CoefficientKernelsTest {

    private static final Random random = TestDevice.random(CoefficientKernelsTest.class);

    /**
     * Whole numbers of the orthonormal coefficients, by a scale that brings the largest of a direction to half of 127; the basis has
     * the scale, so that keys are rebuilt of both alone. Refinements are what rounding takes from the column before.
     */
    @Test
    void coefficientsOfEightBitsAreWholeNumbersOfTheirScales() {
        int tokens = 301;
        int rank = 20;
        float[] keys = spectrum(tokens, 30);
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu(), "a GPU stores bf16; its factorization has a native test");
            CacheKernels kernels = new CacheKernels(device);
            DeviceBuffer input = device.allocate(4L * keys.length);
            device.copy(MemorySegment.ofArray(keys), input);
            Rows rows = Rows.of(input, ElementType.F32);
            DeviceBuffer coefficients = device.allocate((long) tokens * RANK);
            DeviceBuffer scales = device.allocate(4L * RANK);
            DeviceBuffer basis = device.allocate(4L * RANK * WIDTH);
            DeviceBuffer headScales = device.allocate(4L * HEADS);
            device.fill(scales, 0xff);
            kernels.lowRankFactor(rows, tokens, HEADS, DIM, rank, RANK, 0, 0, coefficients, ElementType.I8, scales, basis,
                    device.allocate(4L * rank), device.allocate(8), headScales);
            byte[] numbers = bytes(coefficients, tokens * RANK);
            float[] s = read(scales, RANK);
            float[] h = read(headScales, HEADS);
            float[] b = read(basis, RANK * WIDTH);
            double rounding = 0x1p-24 * WIDTH * 4;
            // Behind the rank there is nothing.
            assertThat(java.util.Arrays.copyOfRange(s, rank, RANK)).containsOnly(0);
            double[][] directions = new double[rank][WIDTH];
            for (int r = 0; r < rank; r++) {
                for (int i = 0; i < WIDTH; i++) {
                    directions[r][i] = (double) b[(i / DIM * RANK + r) * DIM + i % DIM] * h[i / DIM] / s[r];
                }
                for (int other = 0; other <= r; other++) {
                    boolean same = r == other || CoefficientColumns.refined(r, RANK) == other;
                    assertThat(dot(directions[r], directions[other])).isCloseTo(same ? 1 : 0, within(rounding));
                }
                if (CoefficientColumns.refined(r, RANK) >= 0) {
                    assertThat((double) s[r]).isCloseTo(s[r - 1] / 254.0, within(0x1p-23 * s[r]));
                }
            }
            double[] largest = new double[rank];
            for (int t = 0; t < tokens; t++) {
                double[] key = scaled(keys, t, h);
                for (int r = 0; r < RANK; r++) {
                    double exact = r < rank ? steps(key, directions, s, numbers, t, r) : 0;
                    assertThat((double) numbers[t * RANK + r]).isCloseTo(exact,
                            within(r < rank ? 0.5 + rounding * Math.sqrt(dot(key, key)) / s[r] : 0));
                    if (r < rank) {
                        largest[r] = Math.max(largest[r], Math.abs(numbers[t * RANK + r]));
                    }
                }
            }
            for (int r = 0; r < rank; r++) {
                boolean refines = CoefficientColumns.refined(r, RANK) >= 0;
                assertThat(largest[r]).isBetween(refines ? 120.0 : 63.0, refines ? 127.0 : 64.0);
            }

            // The same tokens, projected: but for numbers that a sum in another order rounds otherwise, the same.
            DeviceBuffer projected = device.allocate((long) tokens * RANK);
            DeviceBuffer residual = device.allocate(4L * tokens);
            kernels.lowRankProject(rows, tokens, HEADS, DIM, RANK, basis, projected, ElementType.I8, scales, residual, headScales);
            byte[] again = bytes(projected, tokens * RANK);
            int others = 0;
            for (int i = 0; i < again.length; i++) {
                boolean refines = CoefficientColumns.refined(i % RANK, RANK) >= 0;
                int coarse = refines ? 254 * (again[i - 1] - numbers[i - 1]) : 0;
                assertThat(Math.abs(again[i] - numbers[i] + coarse)).isLessThanOrEqualTo(1);
                others += again[i] == numbers[i] ? 0 : 1;
            }
            assertThat(others).isLessThan(tokens * RANK / 100);
            checkResidual(keys, again, b, read(residual, tokens));

            // Tokens that are longer than any before: what is beyond 127 is missed, as the residual tells.
            float[] longer = keys.clone();
            for (int i = 0; i < longer.length; i++) {
                longer[i] *= 3;
            }
            device.copy(MemorySegment.ofArray(longer), input);
            kernels.lowRankProject(rows, tokens, HEADS, DIM, RANK, basis, projected, ElementType.I8, scales, residual, headScales);
            byte[] clamped = bytes(projected, tokens * RANK);
            for (int t = 0; t < tokens; t++) {
                double[] key = scaled(longer, t, h);
                for (int r = 0; r < rank; r++) {
                    double exact = Math.clamp(steps(key, directions, s, clamped, t, r), -127, 127);
                    assertThat((double) clamped[t * RANK + r]).isCloseTo(exact,
                            within(0.5 + rounding * Math.sqrt(dot(key, key)) / s[r]));
                }
            }
            checkResidual(longer, clamped, b, read(residual, tokens));
        }
    }

    /** The number of a column before it is rounded; what a refinement refines is taken as it is. */
    private static double steps(double[] key, double[][] directions, float[] scales, byte[] numbers, int token, int column) {
        int refined = CoefficientColumns.refined(column, RANK);
        double had = refined < 0 ? 0 : (double) numbers[token * RANK + refined] * scales[refined];
        return (dot(key, directions[column]) - had) / scales[column];
    }

    /** The share of the keys as they are that whole numbers and basis miss. */
    private static void checkResidual(float[] keys, byte[] numbers, float[] basis, float[] residual) {
        for (int t = 0; t < residual.length; t++) {
            double missed = 0;
            double all = 0;
            for (int i = 0; i < WIDTH; i++) {
                double rest = keys[t * WIDTH + i];
                all += rest * rest;
                for (int r = 0; r < RANK; r++) {
                    rest -= numbers[t * RANK + r] * (double) basis[(i / DIM * RANK + r) * DIM + i % DIM];
                }
                missed += rest * rest;
            }
            assertThat((double) residual[t]).isCloseTo(missed / all, within(1e-3 * missed / all + 1e-5));
        }
    }

    /** Keys of zeros have scales of zero, and neither divide by them nor come back as anything but zeros. */
    @Test
    void keysOfZerosHaveScalesOfZero() {
        int tokens = 40;
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu(), "a GPU stores bf16; its factorization has a native test");
            CacheKernels kernels = new CacheKernels(device);
            DeviceBuffer input = device.allocate(4L * tokens * WIDTH);
            device.fill(input, 0);
            DeviceBuffer coefficients = device.allocate((long) tokens * RANK);
            DeviceBuffer scales = device.allocate(4L * RANK);
            DeviceBuffer basis = device.allocate(4L * RANK * WIDTH);
            DeviceBuffer residual = device.allocate(4L * tokens);
            device.fill(coefficients, 0x55);
            Rows rows = Rows.of(input, ElementType.F32);
            kernels.lowRankFactor(rows, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, ElementType.I8, scales, basis,
                    device.allocate(4L * RANK), device.allocate(8), null);
            assertThat(read(scales, RANK)).containsOnly(0);
            for (float element : read(basis, RANK * WIDTH)) {
                assertThat(Math.abs(element)).isZero();
            }
            assertThat(bytes(coefficients, tokens * RANK)).containsOnly(0);
            device.copy(MemorySegment.ofArray(spectrum(tokens, 5)), input);
            kernels.lowRankProject(rows, tokens, HEADS, DIM, RANK, basis, coefficients, ElementType.I8, scales, residual, null);
            assertThat(bytes(coefficients, tokens * RANK)).containsOnly(0);
            for (float missed : read(residual, tokens)) {
                // Two sums of the same squares.
                assertThat((double) missed).isCloseTo(1, within(2 * 0x1p-24 * WIDTH));
            }
        }
    }

    /** With scales of their own they would be as large as any. */
    @Test
    void directionsOfRoundingAloneHaveScalesOfZero() {
        int tokens = 150;
        int some = 10;
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu(), "a GPU stores bf16; its factorization has a native test");
            CacheKernels kernels = new CacheKernels(device);
            DeviceBuffer input = device.allocate(4L * tokens * WIDTH);
            device.copy(MemorySegment.ofArray(spectrum(tokens, some)), input);
            DeviceBuffer coefficients = device.allocate((long) tokens * RANK);
            DeviceBuffer scales = device.allocate(4L * RANK);
            DeviceBuffer basis = device.allocate(4L * RANK * WIDTH);
            kernels.lowRankFactor(Rows.of(input, ElementType.F32), tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients,
                    ElementType.I8, scales, basis, device.allocate(4L * RANK), device.allocate(8), null);
            float[] s = read(scales, RANK);
            byte[] numbers = bytes(coefficients, tokens * RANK);
            float[] b = read(basis, RANK * WIDTH);
            for (int r = 0; r < RANK; r++) {
                boolean there = CoefficientColumns.direction(r, RANK) < some;
                assertThat(s[r] > 0).as("scale %s of column %s", s[r], r).isEqualTo(there);
                for (int t = 0; !there && t < tokens; t++) {
                    assertThat(numbers[t * RANK + r]).isZero();
                }
                for (int i = 0; !there && i < WIDTH; i++) {
                    assertThat(Math.abs(b[(i / DIM * RANK + r) * DIM + i % DIM])).isZero();
                }
            }
        }
    }

    @Test
    void keysAreRebuiltOfWholeNumbers() {
        int first = 19;
        int count = 50;
        int capacity = 64;
        byte[] numbers = new byte[RANK * (first + count)];
        for (int i = 0; i < numbers.length; i++) {
            numbers[i] = (byte) (random.nextInt(255) - 127);
        }
        float[] rows = coarse(RANK * WIDTH);
        Rope rope = Rope.standard(DIM, 10_000);
        try (Device device = TestDevice.open(); RopeTable table = new RopeTable(device, rope, first + count)) {
            ElementType type = device.defaultType();
            CacheKernels kernels = new CacheKernels(device);
            DeviceBuffer coefficients = device.allocate(numbers.length);
            device.copy(MemorySegment.ofArray(numbers), coefficients);
            DeviceBuffer basis = stored(device, rows);
            DeviceBuffer wide = device.allocate(4L * WIDTH * capacity);
            Ring ring = new Ring(device.allocate((long) type.bytes() * WIDTH * capacity), type, capacity);
            kernels.rebuildKeys(coefficients, ElementType.I8, basis, HEADS, DIM, RANK, first, count, ring, table);
            new TransformerKernels(device).convert(ring.buffer(), type, wide, ElementType.F32, (long) WIDTH * capacity);
            float[] keys = read(wide, WIDTH * capacity);
            for (int p = first; p < first + count; p++) {
                for (int head = 0; head < HEADS; head++) {
                    double[] exact = new double[DIM];
                    double[] sizes = new double[DIM];
                    for (int j = 0; j < RANK; j++) {
                        for (int d = 0; d < DIM; d++) {
                            double product = numbers[p * RANK + j] * (double) rows[(head * RANK + j) * DIM + d];
                            exact[d] += product;
                            sizes[d] += Math.abs(product);
                        }
                    }
                    for (int d = 0; d < DIM; d++) {
                        int pair = (d + DIM / 2) % DIM;
                        double angle = p * rope.inverseFrequencies()[d % (DIM / 2)];
                        double rotated = exact[d] * Math.cos(angle) + (d < DIM / 2 ? -1 : 1) * exact[pair] * Math.sin(angle);
                        double size = Math.abs(exact[d]) + Math.abs(exact[pair]);
                        // A kernel may round before and after the rotation; each partial sum is rounded, and the angle's table.
                        double allowed = 2 * TestDevice.epsilon(type) * size + 0x1p-24 * (RANK * (sizes[d] + sizes[pair]) + 8 * size);
                        assertThat((double) keys[(head * capacity + p % capacity) * DIM + d])
                                .as("token %s, head %s, element %s", p, head, d).isCloseTo(rotated, within(allowed));
                    }
                }
            }
        }
    }

    @Test
    void valuesAreFittedToWholeNumbers() {
        int tokens = 333;
        byte[] numbers = new byte[RANK * tokens];
        float[] values = coarse(WIDTH * tokens);
        for (int i = 0; i < numbers.length; i++) {
            // The last column is one of zeros.
            numbers[i] = (byte) (i % RANK == RANK - 1 ? 0 : random.nextInt(255) - 127);
        }
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu(), "values are fitted on a CPU");
            CacheKernels kernels = new CacheKernels(device);
            DeviceBuffer coefficients = device.allocate(numbers.length);
            device.copy(MemorySegment.ofArray(numbers), coefficients);
            Ring ring = new Ring(stored(device, values), device.defaultType(), tokens);
            DeviceBuffer valueBasis = device.allocate(4L * RANK * WIDTH);
            device.fill(valueBasis, 0xff);
            kernels.valueFit(coefficients, ElementType.I8, ring, HEADS, DIM, RANK, 0, tokens, valueBasis);
            float[] actual = read(valueBasis, RANK * WIDTH);
            for (int i = 0; i < actual.length; i++) {
                int j = i / DIM % RANK;
                double sum = 0;
                double size = 0;
                double squares = 0;
                for (int t = 0; t < tokens; t++) {
                    double product = numbers[t * RANK + j] * (double) values[(i / DIM / RANK * tokens + t) * DIM + i % DIM];
                    sum += product;
                    size += Math.abs(product);
                    squares += numbers[t * RANK + j] * numbers[t * RANK + j];
                }
                // The values that a refinement stands for are those of the column before.
                boolean none = squares == 0 || CoefficientColumns.refined(j, RANK) >= 0;
                double expected = none ? 0 : sum / squares;
                double tolerance = none ? 0 : 0x1p-24 * (2 * 150 * size / squares + Math.abs(expected));
                assertThat((double) actual[i]).as("float %s", i).isCloseTo(expected, within(tolerance));
            }
        }
    }

    @Test
    void coefficientsOfEightBitsAreChecked() {
        int tokens = 50;
        try (Device device = TestDevice.open(); RopeTable rope = new RopeTable(device, Rope.standard(DIM, 10_000), tokens)) {
            CacheKernels kernels = new CacheKernels(device);
            ElementType type = device.defaultType();
            Rows keys = Rows.of(device.allocate((long) type.bytes() * tokens * WIDTH), type);
            DeviceBuffer coefficients = device.allocate((long) tokens * RANK);
            DeviceBuffer scales = device.allocate(4L * RANK);
            DeviceBuffer basis = device.allocate((long) type.bytes() * RANK * WIDTH);
            DeviceBuffer floats = device.allocate(4L * RANK);
            Ring ring = new Ring(keys.buffer(), type, tokens);
            device.fill(keys.buffer(), 0);
            kernels.lowRankFactor(keys, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, ElementType.I8, scales, basis, floats,
                    floats, null);

            DeviceBuffer few = coefficients.slice(0, (long) tokens * RANK - 1);
            DeviceBuffer tooShort = scales.slice(0, 4L * RANK - 4);
            assertThatThrownBy(() -> kernels.lowRankFactor(keys, tokens, HEADS, DIM, RANK, RANK, 0, 0, few, ElementType.I8, scales,
                    basis, floats, floats, null)).isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficients");
            assertThatThrownBy(() -> kernels.lowRankFactor(keys, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, ElementType.I8,
                    tooShort, basis, floats, floats, null)).isInstanceOf(IndexOutOfBoundsException.class)
                    .hasMessageContaining("coefficient_scales");
            assertThatThrownBy(() -> kernels.lowRankFactor(keys, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, ElementType.I8,
                    null, basis, floats, floats, null)).isInstanceOf(NullPointerException.class).hasMessage("coefficient_scales");
            assertThatThrownBy(() -> kernels.lowRankFactor(keys, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients,
                    ElementType.F16, null, basis, floats, floats, null)).isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("coefficientType must be " + type + " or I8: F16");
            // As the keys are stored they take more than a byte each.
            assertThatThrownBy(() -> kernels.lowRankFactor(keys, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, basis, floats,
                    floats, null)).isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficients");

            assertThatThrownBy(() -> kernels.lowRankProject(keys, tokens, HEADS, DIM, RANK, basis, few, ElementType.I8, scales, null,
                    null)).isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficients");
            assertThatThrownBy(() -> kernels.lowRankProject(keys, tokens, HEADS, DIM, RANK, basis, coefficients, ElementType.I8,
                    tooShort, null, null)).isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficient_scales");
            assertThatThrownBy(() -> kernels.lowRankProject(keys, tokens, HEADS, DIM, RANK, basis, coefficients, ElementType.I8,
                    null, null, null)).isInstanceOf(NullPointerException.class).hasMessage("coefficient_scales");
            assertThatThrownBy(() -> kernels.lowRankProject(keys, tokens, HEADS, DIM, RANK, basis, coefficients,
                    ElementType.F8_E4M3, null, null, null)).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("coefficientType");

            assertThatThrownBy(() -> kernels.rebuildKeys(few, ElementType.I8, basis, HEADS, DIM, RANK, 0, tokens, ring, rope))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficients");
            assertThatThrownBy(() -> kernels.rebuildKeys(coefficients, ElementType.F16, basis, HEADS, DIM, RANK, 0, 1, ring, rope))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("coefficientType");
            assertThatThrownBy(() -> kernels.valueFit(few, ElementType.I8, ring, HEADS, DIM, RANK, 0, tokens, basis))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("coefficients");
            assertThatThrownBy(() -> kernels.valueFit(coefficients, ElementType.F6_E2M3, ring, HEADS, DIM, RANK, 0, tokens, basis))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("coefficientType");
        }
    }

    /** Keys with a falling spectrum, the heads of unequal length. */
    private static float[] spectrum(int tokens, int rank) {
        double[][] directions = new double[rank][WIDTH];
        for (double[] direction : directions) {
            java.util.Arrays.setAll(direction, i -> random.nextGaussian() * Math.scalb(1, -2 * (i / DIM)));
        }
        float[] keys = new float[tokens * WIDTH];
        for (int t = 0; t < tokens; t++) {
            for (int r = 0; r < rank; r++) {
                double weight = random.nextGaussian() * Math.pow(0.85, r);
                for (int i = 0; i < WIDTH; i++) {
                    keys[t * WIDTH + i] += (float) (weight * directions[r][i]);
                }
            }
        }
        return keys;
    }

    private static double[] scaled(float[] keys, int token, float[] headScales) {
        double[] key = new double[WIDTH];
        java.util.Arrays.setAll(key, i -> (double) keys[token * WIDTH + i] * headScales[i / DIM]);
        return key;
    }

    private static double dot(double[] a, double[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; i++) {
            sum += a[i] * b[i];
        }
        return sum;
    }

    private static byte[] bytes(DeviceBuffer buffer, int count) {
        byte[] result = new byte[count];
        buffer.device().copy(buffer.slice(0, count), MemorySegment.ofArray(result));
        return result;
    }
}
