package dev.shadowkv.eval.fidelity;

import java.util.BitSet;
import java.util.stream.IntStream;

/**
 * How much of exact attention a selection of tokens keeps, for one query head and step; needs no labels.
 *
 * @param capturedMass the sum of the exact weights of the selected tokens
 * @param bestMass the same for the best selection of as many tokens: what no method can exceed
 * @param overlap the share of the selected tokens that are in that best selection
 */
public record AttentionFidelity(double capturedMass, double bestMass, double overlap) {
    /**
     * Compares a selection with exact attention.
     *
     * @param logits the exact logit of every token, scaled as attention has them; not NaN
     * @param selected the tokens that were attended
     * @throws IllegalArgumentException when a logit is NaN, nothing is selected, or a selected token does not exist
     */
    public static AttentionFidelity of(float[] logits, BitSet selected) {
        if (selected.isEmpty() || selected.length() > logits.length) {
            throw new IllegalArgumentException("a selection of " + selected.cardinality() + " tokens, the last of which is "
                    + (selected.length() - 1) + ", from " + logits.length);
        }
        double[] weights = softmax(logits);
        int count = selected.cardinality();
        // Equal weights by position, so that the best selection is one and the same.
        int[] order = IntStream.range(0, logits.length)
                .boxed()
                .sorted((a, b) -> weights[a] != weights[b] ? Double.compare(weights[b], weights[a]) : Integer.compare(a, b))
                .mapToInt(Integer::intValue)
                .limit(count)
                .toArray();
        double best = 0;
        int common = 0;
        for (int token : order) {
            best += weights[token];
            common += selected.get(token) ? 1 : 0;
        }
        double captured = selected.stream().mapToDouble(token -> weights[token]).sum();
        return new AttentionFidelity(captured, best, (double) common / count);
    }

    /** The {@link #capturedMass} alone, which takes no sorting. */
    static double capturedMass(float[] logits, BitSet selected) {
        double[] weights = softmax(logits);
        return selected.stream().mapToDouble(token -> weights[token]).sum();
    }

    private static double[] softmax(float[] logits) {
        double largest = Double.NEGATIVE_INFINITY;
        for (int i = 0; i < logits.length; i++) {
            if (Float.isNaN(logits[i])) {
                throw new IllegalArgumentException("the logit of token " + i + " is NaN");
            }
            largest = Math.max(largest, logits[i]);
        }
        double[] weights = new double[logits.length];
        double total = 0;
        for (int i = 0; i < logits.length; i++) {
            weights[i] = Math.exp(logits[i] - largest);
            total += weights[i];
        }
        for (int i = 0; i < logits.length; i++) {
            weights[i] /= total;
        }
        return weights;
    }

    /** The captured mass as a share of what the best selection captures. */
    public double recall() {
        return capturedMass / bestMass;
    }

    /**
     * The relative error of an attention output: the length of the difference over the length of the exact one.
     *
     * @throws IllegalArgumentException when the lengths differ or a number is NaN
     */
    public static double outputError(float[] exact, float[] approximate) {
        if (exact.length != approximate.length) {
            throw new IllegalArgumentException(
                    "outputs of " + exact.length + " and " + approximate.length + " elements cannot be compared");
        }
        double difference = 0;
        double length = 0;
        for (int i = 0; i < exact.length; i++) {
            if (Float.isNaN(exact[i]) || Float.isNaN(approximate[i])) {
                throw new IllegalArgumentException("element " + i + " of an output is NaN");
            }
            difference += ((double) exact[i] - approximate[i]) * ((double) exact[i] - approximate[i]);
            length += (double) exact[i] * exact[i];
        }
        return difference == 0 ? 0 : Math.sqrt(difference / length);
    }
}
