package dev.shadowkv.llm.checkpoint;

import java.util.List;
import java.util.Objects;

/**
 * How a model rotates its queries and keys.
 *
 * @param theta the base of the frequencies: pair {@code i} turns by {@code theta^(-2 i / rotaryDim)} a position
 * @param rotaryDim leading elements of a head that are rotated; even, at most the head dimension
 * @param interleaved true when neighbours form a pair (2i, 2i + 1), false when the halves do (i, i + rotaryDim / 2)
 * @param attentionFactor what cosine and sine are multiplied by; 1 but for YaRN and longrope
 * @param scaling how the frequencies are changed for contexts longer than those of the first training
 */
public record RopeDescription(
        double theta, int rotaryDim, boolean interleaved, double attentionFactor, Scaling scaling) {

    public RopeDescription {
        Objects.requireNonNull(scaling, "scaling");
        if (!(theta > 0) || Double.isInfinite(theta)) {
            throw new IllegalArgumentException("rope theta " + theta + " is not a positive number");
        }
        if (rotaryDim <= 0 || rotaryDim % 2 != 0) {
            throw new IllegalArgumentException("rotary dimension " + rotaryDim + " is not a positive even number");
        }
        if (!(attentionFactor > 0) || Double.isInfinite(attentionFactor)) {
            throw new IllegalArgumentException("rope attention factor " + attentionFactor + " is not a positive number");
        }
    }

    /** A change of the frequencies. */
    public sealed interface Scaling {}

    /** The frequencies as they are. */
    public record Default() implements Scaling {}

    /** Every frequency divided by {@code factor}: positions are interpolated. */
    public record Linear(double factor) implements Scaling {}

    /**
     * Llama 3.1: wavelengths beyond {@code originalMaxPositions / lowFrequencyFactor} are stretched by {@code factor},
     * those below {@code originalMaxPositions / highFrequencyFactor} kept, those between blended.
     */
    public record Llama3(
            double factor, double lowFrequencyFactor, double highFrequencyFactor, int originalMaxPositions)
            implements Scaling {}

    /**
     * YaRN: a ramp between interpolated and kept frequencies over the pairs that turn {@code betaFast} to {@code
     * betaSlow} times within {@code originalMaxPositions}.
     *
     * @param truncate whether the ends of the ramp are rounded to whole pairs
     */
    public record Yarn(
            double factor, double betaFast, double betaSlow, boolean truncate, int originalMaxPositions)
            implements Scaling {}

    /**
     * Longrope: the frequency of pair {@code i} is divided by {@code shortFactors[i]} while the whole sequence has at
     * most {@code originalMaxPositions} positions, and by {@code longFactors[i]} when it has more.
     */
    public record LongRope(List<Double> shortFactors, List<Double> longFactors, int originalMaxPositions)
            implements Scaling {
        public LongRope {
            shortFactors = List.copyOf(shortFactors);
            longFactors = List.copyOf(longFactors);
        }
    }
}
