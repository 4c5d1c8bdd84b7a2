package dev.shadowkv;

import java.util.Arrays;
import java.util.Objects;

/**
 * Rotary position embedding as data: how fast each pair of elements rotates, which elements pair, and a scale. All of
 * it is computed in double precision. The scaling variants are those of the published models; the sources of the
 * formulas are named at each.
 *
 * <p>A rotary dimension smaller than the head's leaves the elements behind it as they are.
 */
public final class Rope {

    /** Which elements of a head rotate together. */
    public enum Pairing {
        /** Element i with i + rotaryDim/2 (Llama in the Hugging Face layout, Qwen, Phi). */
        HALF_SPLIT,
        /** Element 2i with 2i + 1 (GPT-J, GLM, Llama in Meta's layout). */
        INTERLEAVED
    }

    private final double[] inverseFrequencies;
    private final Pairing pairing;
    private final double scale;

    private Rope(double[] inverseFrequencies, Pairing pairing, double scale) {
        this.inverseFrequencies = inverseFrequencies;
        this.pairing = pairing;
        this.scale = scale;
    }

    /** Pairs (i, i + n) with n frequencies, in radians a token. */
    public static Rope halfSplit(double[] inverseFrequencies) {
        return new Rope(checked(inverseFrequencies), Pairing.HALF_SPLIT, 1);
    }

    /** Frequencies theta^(-2i/rotaryDim): Su et al., RoFormer (2021), section 3.2.2. */
    public static Rope standard(int rotaryDim, double theta) {
        return new Rope(base(rotaryDim, theta), Pairing.HALF_SPLIT, 1);
    }

    /** Position interpolation: every frequency divided by the factor. Chen et al. (2023), arXiv 2306.15595. */
    public static Rope linear(int rotaryDim, double theta, double factor) {
        positive("factor", factor);
        double[] frequencies = base(rotaryDim, theta);
        for (int i = 0; i < frequencies.length; i++) {
            frequencies[i] /= factor;
        }
        return new Rope(frequencies, Pairing.HALF_SPLIT, 1);
    }

    /**
     * Llama 3.1: long wavelengths are interpolated by the factor, short ones kept, those between blended linearly.
     *
     * @param originalContext tokens that the model was trained on before scaling
     */
    public static Rope llama3(int rotaryDim, double theta, double factor, double lowFrequencyFactor,
                              double highFrequencyFactor, double originalContext) {
        positive("factor", factor);
        positive("lowFrequencyFactor", lowFrequencyFactor);
        positive("originalContext", originalContext);
        if (!(highFrequencyFactor > lowFrequencyFactor)) {
            throw new IllegalArgumentException("highFrequencyFactor " + highFrequencyFactor
                    + " must be greater than lowFrequencyFactor " + lowFrequencyFactor);
        }
        double[] frequencies = base(rotaryDim, theta);
        for (int i = 0; i < frequencies.length; i++) {
            // Full turns within the original context.
            double turns = originalContext * frequencies[i] / (2 * Math.PI);
            double kept = (turns - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
            kept = Math.clamp(kept, 0.0, 1.0);
            frequencies[i] *= kept + (1 - kept) / factor;
        }
        return new Rope(frequencies, Pairing.HALF_SPLIT, 1);
    }

    /**
     * YaRN: as {@link #yarn(int, double, double, double, double, double, double)} with the paper's bounds 32 and 1 and
     * its scale 0.1 ln(factor) + 1.
     */
    public static Rope yarn(int rotaryDim, double theta, double factor, double originalContext) {
        return yarn(rotaryDim, theta, factor, originalContext, 32, 1, yarnScale(factor));
    }

    /**
     * YaRN: Peng et al. (2023), arXiv 2309.00071, section 3.2, with the bounds rounded to whole pairs as the published
     * models have it.
     *
     * @param betaFast pairs that turn more often than this within the original context are kept
     * @param betaSlow pairs that turn less often than this are interpolated
     * @param scale what queries and keys are multiplied by
     */
    public static Rope yarn(int rotaryDim, double theta, double factor, double originalContext, double betaFast,
                            double betaSlow, double scale) {
        positive("factor", factor);
        positive("originalContext", originalContext);
        positive("betaSlow", betaSlow);
        positive("scale", scale);
        if (!(betaFast > betaSlow)) {
            throw new IllegalArgumentException("betaFast " + betaFast + " must be greater than betaSlow " + betaSlow);
        }
        double[] frequencies = base(rotaryDim, theta);
        double low = Math.max(0, Math.floor(pairOfTurns(rotaryDim, theta, originalContext, betaFast)));
        double high = Math.min(rotaryDim - 1, Math.ceil(pairOfTurns(rotaryDim, theta, originalContext, betaSlow)));
        double width = high == low ? 0.001 : high - low;
        for (int i = 0; i < frequencies.length; i++) {
            double interpolated = Math.clamp((i - low) / width, 0.0, 1.0);
            frequencies[i] *= interpolated / factor + (1 - interpolated);
        }
        return new Rope(frequencies, Pairing.HALF_SPLIT, scale);
    }

    /** The scale of YaRN for a factor: 0.1 ln(factor) + 1, and 1 for factors up to 1. */
    public static double yarnScale(double factor) {
        return factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1;
    }

    /**
     * LongRoPE: each frequency divided by a factor of its own. Ding et al. (2024), arXiv 2402.13753. Models bring two
     * lists of factors: one for sequences within the original context and one for longer ones; a cache has to be made
     * with the one that fits its longest sequence.
     *
     * @param factors one for each pair
     * @param scale what queries and keys are multiplied by, see {@link #longRopeScale}
     */
    public static Rope longrope(int rotaryDim, double theta, double[] factors, double scale) {
        double[] frequencies = base(rotaryDim, theta);
        if (factors.length != frequencies.length) {
            throw new IllegalArgumentException("factors must be rotaryDim/2 = " + frequencies.length + ": "
                    + factors.length);
        }
        positive("scale", scale);
        for (int i = 0; i < frequencies.length; i++) {
            positive("factors[" + i + "]", factors[i]);
            frequencies[i] /= factors[i];
        }
        return new Rope(frequencies, Pairing.HALF_SPLIT, scale);
    }

    /**
     * The scale of LongRoPE: sqrt(1 + ln(context/originalContext) / ln(originalContext)), and 1 within the original.
     */
    public static double longRopeScale(double context, double originalContext) {
        double factor = context / originalContext;
        return factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalContext));
    }

    /** The same rotation with pairs (2i, 2i + 1). */
    public Rope interleaved() {
        return new Rope(inverseFrequencies, Pairing.INTERLEAVED, scale);
    }

    /** The same rotation with another scale. */
    public Rope withScale(double value) {
        positive("scale", value);
        return new Rope(inverseFrequencies, pairing, value);
    }

    /** How many elements of a head rotate. */
    public int rotaryDim() {
        return 2 * inverseFrequencies.length;
    }

    /** Radians a token, one for each pair; a copy. */
    public double[] inverseFrequencies() {
        return inverseFrequencies.clone();
    }

    /** Which elements pair. */
    public Pairing pairing() {
        return pairing;
    }

    /** What rotated elements are multiplied by. */
    public double scale() {
        return scale;
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof Rope rope && pairing == rope.pairing && Double.compare(scale, rope.scale) == 0
                && Arrays.equals(inverseFrequencies, rope.inverseFrequencies);
    }

    @Override
    public int hashCode() {
        return Objects.hash(pairing, scale, Arrays.hashCode(inverseFrequencies));
    }

    @Override
    public String toString() {
        return "Rope[" + rotaryDim() + " elements, " + pairing + ", scale " + scale + "]";
    }

    private static double pairOfTurns(int rotaryDim, double theta, double context, double turns) {
        return rotaryDim * Math.log(context / (turns * 2 * Math.PI)) / (2 * Math.log(theta));
    }

    private static double[] base(int rotaryDim, double theta) {
        if (rotaryDim < 2 || rotaryDim > 256 || rotaryDim % 2 != 0) {
            throw new IllegalArgumentException("rotaryDim must be even and from 2 to 256: " + rotaryDim);
        }
        if (!(theta > 1) || Double.isInfinite(theta)) {
            throw new IllegalArgumentException("theta must be finite and greater than 1: " + theta);
        }
        double[] frequencies = new double[rotaryDim / 2];
        for (int i = 0; i < frequencies.length; i++) {
            frequencies[i] = Math.pow(theta, -2.0 * i / rotaryDim);
        }
        return frequencies;
    }

    private static double[] checked(double[] frequencies) {
        if (frequencies.length < 1 || frequencies.length > 128) {
            throw new IllegalArgumentException("inverseFrequencies must be from 1 to 128: " + frequencies.length);
        }
        for (double frequency : frequencies) {
            if (!Double.isFinite(frequency)) {
                throw new IllegalArgumentException("inverseFrequencies must be finite: " + frequency);
            }
        }
        return frequencies.clone();
    }

    private static void positive(String name, double value) {
        if (!(value > 0) || Double.isInfinite(value)) {
            throw new IllegalArgumentException(name + " must be finite and positive: " + value);
        }
    }
}
