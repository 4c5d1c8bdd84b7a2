package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

/** Comparisons in which NaN fails. */
final class Compare {

    private Compare() {
    }

    /**
     * The largest error of an attention output that a storage type explains: logits are sums of headDim rounded
     * products of size |q||k|/sqrt(headDim), their errors move weights by as much, and the output is a weighted mean of
     * values that are rounded themselves.
     */
    static double attentionTolerance(ElementType type, int headDim, double queryNorm, double keyNorm,
            double largestValue) {
        double logit = queryNorm * keyNorm / Math.sqrt(headDim);
        // fp32 sums besides what storage rounds: queries and keys are rounded once each.
        double relative = 4 * TestDevice.epsilon(type) + 0x1p-24 * headDim;
        return largestValue * (2 * relative * logit + relative) + 1e-7;
    }

    static void close(double[] expected, float[] actual, int offset, double tolerance, String what) {
        double worst = 0;
        for (int i = 0; i < expected.length; i++) {
            double error = Math.abs(expected[i] - actual[offset + i]);
            // A NaN is not <= anything.
            worst = error <= worst ? worst : error;
        }
        assertThat(worst).as("%s: largest error", what).isLessThanOrEqualTo(tolerance);
    }

    static void same(float[] expected, float[] actual, String what) {
        for (int i = 0; i < expected.length; i++) {
            if (Float.floatToRawIntBits(expected[i]) != Float.floatToRawIntBits(actual[i]) || Float.isNaN(actual[i])) {
                throw new AssertionError(what + " differs at " + i + ": " + expected[i] + " and " + actual[i]);
            }
        }
    }
}
