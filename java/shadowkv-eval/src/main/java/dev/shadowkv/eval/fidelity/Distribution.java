package dev.shadowkv.eval.fidelity;

import java.util.Arrays;

/**
 * What there is to say about many measurements of one thing.
 *
 * @param count how many there are
 * @param mean their mean
 * @param least the smallest
 * @param low the 5 % quantile
 * @param median the middle one
 * @param high the 95 % quantile
 * @param greatest the largest
 */
public record Distribution(int count, double mean, double least, double low, double median, double high, double greatest) {
    /**
     * Of the given numbers.
     *
     * @throws IllegalArgumentException when there are none or one is NaN
     */
    public static Distribution of(double... values) {
        if (values.length == 0) {
            throw new IllegalArgumentException("no values to describe");
        }
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        if (Double.isNaN(sorted[sorted.length - 1])) {
            throw new IllegalArgumentException("a value is NaN");
        }
        return new Distribution(
                sorted.length,
                Arrays.stream(sorted).sum() / sorted.length,
                sorted[0],
                quantile(sorted, 0.05),
                quantile(sorted, 0.5),
                quantile(sorted, 0.95),
                sorted[sorted.length - 1]);
    }

    /** Linear between the two nearest measurements. */
    private static double quantile(double[] sorted, double share) {
        double place = share * (sorted.length - 1);
        int below = (int) place;
        int above = Math.min(below + 1, sorted.length - 1);
        return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
    }
}
