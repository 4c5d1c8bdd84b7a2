package dev.shadowkv.eval.fidelity;

import java.util.Arrays;

/**
 * How far the tokens of an approximate cache are those of exact attention. For the question "same next token?" at
 * every step, feed both the same tokens (teacher forcing) and compare what each would have chosen; for the question
 * "same text?", let both run freely and look at the first difference, since afterwards they read different texts.
 *
 * @param compared tokens compared: the shorter length
 * @param equal how many of them are equal
 * @param firstDifference the first that is not; {@code compared} when all are
 */
public record Agreement(int compared, int equal, int firstDifference) {
    /** Compares token by token. */
    public static Agreement of(int[] exact, int[] approximate) {
        int compared = Math.min(exact.length, approximate.length);
        int equal = 0;
        for (int i = 0; i < compared; i++) {
            equal += exact[i] == approximate[i] ? 1 : 0;
        }
        int difference = Arrays.mismatch(exact, 0, compared, approximate, 0, compared);
        return new Agreement(compared, equal, difference < 0 ? compared : difference);
    }

    /** The share of equal tokens; NaN when there are none to compare. */
    public double share() {
        return (double) equal / compared;
    }

    /**
     * The share of equal tokens over time: one number for every {@code window} tokens, the last window may be short.
     */
    public static double[] shares(int[] exact, int[] approximate, int window) {
        if (window <= 0) {
            throw new IllegalArgumentException("a window of " + window + " tokens");
        }
        int compared = Math.min(exact.length, approximate.length);
        double[] shares = new double[Math.ceilDiv(compared, window)];
        for (int i = 0; i < shares.length; i++) {
            int from = i * window;
            int to = Math.min(from + window, compared);
            shares[i] = of(Arrays.copyOfRange(exact, from, to), Arrays.copyOfRange(approximate, from, to)).share();
        }
        return shares;
    }
}
