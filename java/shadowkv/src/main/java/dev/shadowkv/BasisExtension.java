package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/**
 * Adds directions to a basis that keys of later tokens need: modified Gram-Schmidt over what the basis misses of them,
 * largest residual first, in double precision on the host, of keys scaled by head where the basis is one of such. Rare,
 * and small: some tens of tokens. Coefficients of earlier tokens are zero in the new columns, so that their keys stay
 * what they were.
 *
 * <p>For coefficients of 8 bits the rows of a basis are multiplied by their directions' scales, and a new direction gets
 * one from the tokens at hand.
 */
final class BasisExtension {

    /** Directions added at once, so that the reserve serves several changes of subject. */
    private static final int MOST = 8;
    /** Later tokens use a new direction too: their coefficients of 8 bits may be so many times the largest at hand. */
    private static final double HEADROOM = 2;
    private static final double LARGEST_I8 = 127;

    private BasisExtension() {
    }

    /** Returns how many directions were added. */
    static int extend(ShadowKvCache cache, SharedLayer shared, LayerState state, int tokens) {
        int heads = cache.shape.keyValueHeads;
        int headDim = cache.shape.headDim;
        int width = heads * headDim;
        int rank = cache.options.geometry().rank();
        int room = Math.min(MOST, rank - state.basisRows);
        if (room <= 0) {
            return 0;
        }
        ElementType type = cache.shape.storageType;
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment host = arena.allocate(shared.basis.byteSize(), 64);
            cache.device.copy(shared.basis, host);
            MemorySegment raw = arena.allocate((long) tokens * width * type.bytes(), 64);
            cache.device.copy(cache.scratch.dense.rawKeys.slice(0, raw.byteSize()), raw);

            float[] scales = read(shared.headScales, heads);
            float[] directionScales = read(shared.coefficientScales, rank);
            double[][] residual = new double[tokens][width];
            for (int t = 0; t < tokens; t++) {
                for (int i = 0; i < width; i++) {
                    residual[t][i] = Elements.toFloat(raw, type, (long) t * width + i) * scales[i / headDim];
                }
            }
            double total = squares(residual);
            double[] direction = new double[width];
            for (int row = 0; row < state.basisRows; row++) {
                if (directionScales[row] == 0) {
                    continue;
                }
                for (int i = 0; i < width; i++) {
                    direction[i] = (double) Elements.toFloat(host, type, index(i, row, headDim, rank)) * scales[i / headDim]
                            / directionScales[row];
                }
                deflate(residual, direction);
            }
            int added = 0;
            while (added < room) {
                double[] largest = largest(residual);
                double norm = Math.sqrt(dot(largest, largest));
                if (norm * norm * tokens < 1e-3 * total) {
                    break;
                }
                int row = state.basisRows + added;
                for (int i = 0; i < width; i++) {
                    direction[i] = largest[i] / norm;
                }
                double coefficient = deflate(residual, direction);
                if (shared.coefficientScales != null) {
                    directionScales[row] = (float) (HEADROOM * coefficient / LARGEST_I8);
                }
                for (int i = 0; i < width; i++) {
                    Elements.set(host, type, index(i, row, headDim, rank),
                            (float) (direction[i] * directionScales[row] / scales[i / headDim]));
                }
                added++;
            }
            if (added > 0) {
                cache.device.copy(host, shared.basis);
                if (shared.coefficientScales != null) {
                    cache.device.copy(MemorySegment.ofArray(directionScales), shared.coefficientScales);
                }
                cache.device.synchronize();
                state.basisRows += added;
            }
            return added;
        }
    }

    /** What the keys of each head are multiplied by, and its basis divided; or the scales of directions. None are ones. */
    private static float[] read(DeviceBuffer scales, int count) {
        if (scales != null) {
            return Scratch.floats(scales, count);
        }
        float[] ones = new float[count];
        Arrays.fill(ones, 1);
        return ones;
    }

    /** Where element i of a row of the joint width lies in {@code [K][r][D]}. */
    private static long index(int i, int row, int headDim, int rank) {
        return ((long) (i / headDim) * rank + row) * headDim + i % headDim;
    }

    /** Takes a direction out of vectors; returns the largest magnitude of what they had of it. */
    private static double deflate(double[][] vectors, double[] direction) {
        double most = 0;
        for (double[] vector : vectors) {
            double product = dot(vector, direction);
            most = Math.max(most, Math.abs(product));
            for (int i = 0; i < direction.length; i++) {
                vector[i] -= product * direction[i];
            }
        }
        return most;
    }

    private static double[] largest(double[][] vectors) {
        double[] best = vectors[0];
        for (double[] vector : vectors) {
            best = dot(vector, vector) > dot(best, best) ? vector : best;
        }
        return best;
    }

    private static double squares(double[][] vectors) {
        double sum = 0;
        for (double[] vector : vectors) {
            sum += dot(vector, vector);
        }
        return sum;
    }

    private static double dot(double[] a, double[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; i++) {
            sum += a[i] * b[i];
        }
        return sum;
    }
}
