package dev.shadowkv;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;

/** Attention and the method's arithmetic in plain double precision; shares nothing with what it tests. */
final class Oracle {

    private Oracle() {
    }

    /** Rotates a head by the definition: one cosine and sine a pair. */
    static double[] rotate(double[] head, double[] frequencies, boolean interleaved, double scale, long position) {
        double[] result = head.clone();
        int n = frequencies.length;
        for (int i = 0; i < n; i++) {
            int a = interleaved ? 2 * i : i;
            int b = interleaved ? 2 * i + 1 : i + n;
            double angle = position * frequencies[i];
            double c = Math.cos(angle) * scale;
            double s = Math.sin(angle) * scale;
            result[a] = head[a] * c - head[b] * s;
            result[b] = head[a] * s + head[b] * c;
        }
        return result;
    }

    static double[] head(float[] rows, int width, long row, int head, int headDim) {
        double[] result = new double[headDim];
        for (int d = 0; d < headDim; d++) {
            result[d] = rows[(int) (row * width + (long) head * headDim + d)];
        }
        return result;
    }

    static double dot(double[] a, double[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; i++) {
            sum += a[i] * b[i];
        }
        return sum;
    }

    static double norm(double[] a) {
        return Math.sqrt(dot(a, a));
    }

    /** Softmax-weighted sum of values. */
    static double[] attend(double[] query, List<double[]> keys, List<double[]> values) {
        return weigh(logits(query, keys), values);
    }

    static double[] logits(double[] query, List<double[]> keys) {
        double[] logits = new double[keys.size()];
        for (int i = 0; i < logits.length; i++) {
            logits[i] = dot(query, keys.get(i)) / Math.sqrt(query.length);
        }
        return logits;
    }

    /** The sum of values by the softmax of their logits. */
    static double[] weigh(double[] logits, List<double[]> values) {
        double largest = Arrays.stream(logits).max().orElseThrow();
        double sum = 0;
        double[] result = new double[values.getFirst().length];
        for (int i = 0; i < logits.length; i++) {
            double weight = Math.exp(logits[i] - largest);
            sum += weight;
            for (int d = 0; d < result.length; d++) {
                result[d] += weight * values.get(i)[d];
            }
        }
        for (int d = 0; d < result.length; d++) {
            result[d] /= sum;
        }
        return result;
    }

    static double logSumExp(double[] values) {
        double largest = Arrays.stream(values).max().orElseThrow();
        double sum = 0;
        for (double value : values) {
            sum += Math.exp(value - largest);
        }
        return largest + Math.log(sum);
    }

    static double[] mean(List<double[]> members) {
        double[] mean = new double[members.getFirst().length];
        for (double[] member : members) {
            for (int d = 0; d < mean.length; d++) {
                mean[d] += member[d] / members.size();
            }
        }
        return mean;
    }

    static double distance(double[] a, double[] b) {
        double sum = 0;
        for (int d = 0; d < a.length; d++) {
            sum += (a[d] - b[d]) * (a[d] - b[d]);
        }
        return Math.sqrt(sum);
    }

    /** Indices of the largest scores, ties by the lower index, ascending. */
    static int[] best(double[] scores, int count) {
        List<Integer> order = new ArrayList<>();
        for (int i = 0; i < scores.length; i++) {
            order.add(i);
        }
        order.sort(Comparator.comparingDouble((Integer i) -> -scores[i]).thenComparing(i -> i));
        return order.stream().limit(count).mapToInt(i -> i).sorted().toArray();
    }
}
