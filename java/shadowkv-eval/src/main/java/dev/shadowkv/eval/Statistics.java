package dev.shadowkv.eval;

import java.util.Collection;

/**
 * Mean of some numbers and how far to trust it.
 *
 * @param count how many there are
 * @param mean their mean; NaN when there are none
 * @param standardError the standard deviation of the mean, from the unbiased variance; NaN below two numbers
 */
public record Statistics(int count, double mean, double standardError) {
    /** Of the given numbers. */
    public static Statistics of(Collection<Double> values) {
        int count = values.size();
        double mean = values.stream().mapToDouble(Double::doubleValue).sum() / count;
        double squares = values.stream().mapToDouble(value -> (value - mean) * (value - mean)).sum();
        double error = count < 2 ? Double.NaN : Math.sqrt(squares / (count - 1) / count);
        return new Statistics(count, count == 0 ? Double.NaN : mean, error);
    }
}
