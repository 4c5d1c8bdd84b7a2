package dev.shadowkv.kernels;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.util.Random;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.TestDevice;

/** Factorization and projection against their definitions, in double precision; 32-bit floats. */
class CacheKernelsTest {

    private static final Random random = TestDevice.random(CacheKernelsTest.class);
    private static final int HEADS = 3;
    private static final int DIM = 40;
    private static final int WIDTH = HEADS * DIM;
    private static final int RANK = 24;

    private static float[] read(DeviceBuffer buffer, int count) {
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
            kernels.lowRankFactor(rows, tokens, HEADS, DIM, RANK, RANK, 0, 0, coefficients, basis, singular, energy);
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
            kernels.lowRankProject(rows, tokens, HEADS, DIM, RANK, basis, projected, residual);
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
