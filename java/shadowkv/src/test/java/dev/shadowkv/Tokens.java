package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Random;

/**
 * Made-up tokens of one layer as a model has them: keys with a spectrum that falls off, a shared mean and slowly
 * wandering content, so that chunks hang together; values that follow it in part; queries that look for some of the keys.
 * 32-bit floats, token-major.
 */
final class Tokens {

    final int count;
    final float[] queries;
    final float[] keys;
    final float[] values;
    final int queryWidth;
    final int keyWidth;

    private Tokens(int count, float[] queries, float[] keys, float[] values) {
        this.count = count;
        this.queries = queries;
        this.keys = keys;
        this.values = values;
        queryWidth = count == 0 ? 0 : queries.length / count;
        keyWidth = count == 0 ? 0 : keys.length / count;
    }

    static Tokens random(Random random, int count, int queryHeads, int keyValueHeads, int headDim, int rank) {
        int width = keyValueHeads * headDim;
        double[][] directions = gaussian(random, rank, width);
        double[][] followed = gaussian(random, rank, width);
        float[] keys = new float[count * width];
        float[] values = new float[count * width];
        double[] content = new double[rank];
        for (int t = 0; t < count; t++) {
            for (int r = 0; r < rank; r++) {
                content[r] = 0.9 * content[r] + 0.45 * random.nextGaussian();
            }
            for (int i = 0; i < width; i++) {
                double sum = 0.3 * directions[0][i];
                for (int r = 0; r < rank; r++) {
                    sum += content[r] * directions[r][i] / Math.sqrt(1 + r);
                }
                keys[t * width + i] = (float) (sum * 0.7);
                double value = 0.7 * random.nextGaussian();
                for (int r = 0; r < rank; r++) {
                    value += 0.5 * content[r] * followed[r][i] / Math.sqrt(1 + r);
                }
                values[t * width + i] = (float) value;
            }
        }
        int queryWidth = queryHeads * headDim;
        float[] queries = new float[count * queryWidth];
        int group = queryHeads / keyValueHeads;
        for (int t = 0; t < count; t++) {
            int like = random.nextInt(t + 1);
            for (int h = 0; h < queryHeads; h++) {
                for (int d = 0; d < headDim; d++) {
                    queries[t * queryWidth + h * headDim + d] = (float) (random.nextGaussian()
                            + 0.5 * keys[like * width + h / group * headDim + d]);
                }
            }
        }
        return new Tokens(count, queries, keys, values);
    }

    private static double[][] gaussian(Random random, int rows, int width) {
        double[][] result = new double[rows][width];
        for (double[] row : result) {
            for (int i = 0; i < width; i++) {
                row[i] = random.nextGaussian();
            }
        }
        return result;
    }

    MemorySegment queries(int from, int to) {
        return MemorySegment.ofArray(Arrays.copyOfRange(queries, from * queryWidth, to * queryWidth));
    }

    MemorySegment keys(int from, int to) {
        return MemorySegment.ofArray(Arrays.copyOfRange(keys, from * keyWidth, to * keyWidth));
    }

    MemorySegment values(int from, int to) {
        return MemorySegment.ofArray(Arrays.copyOfRange(values, from * keyWidth, to * keyWidth));
    }
}
