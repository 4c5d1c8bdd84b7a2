package dev.shadowkv.llm;

import dev.shadowkv.Rope;
import dev.shadowkv.llm.checkpoint.RopeDescription;
import dev.shadowkv.llm.checkpoint.RopeDescription.Default;
import dev.shadowkv.llm.checkpoint.RopeDescription.Linear;
import dev.shadowkv.llm.checkpoint.RopeDescription.Llama3;
import dev.shadowkv.llm.checkpoint.RopeDescription.LongRope;
import dev.shadowkv.llm.checkpoint.RopeDescription.Yarn;
import java.util.List;

/**
 * The rotation that a checkpoint describes. It is one for all lengths, but for longrope, which has one for sequences
 * within the original context and another for longer ones: a sequence that grows beyond has to be computed again from
 * its beginning, since all of its keys change.
 */
public final class Rotation {
    private Rotation() {}

    /** The longest sequence that is rotated as short ones are; {@link Long#MAX_VALUE} where length does not matter. */
    public static long shortLimit(RopeDescription description) {
        return description.scaling() instanceof LongRope longRope ? longRope.originalMaxPositions() : Long.MAX_VALUE;
    }

    /**
     * The rotation of a sequence.
     *
     * @param length tokens of the whole sequence
     */
    public static Rope of(RopeDescription description, long length) {
        int dim = description.rotaryDim();
        double theta = description.theta();
        Rope rope =
                switch (description.scaling()) {
                    case Default none -> Rope.standard(dim, theta);
                    case Linear linear -> Rope.linear(dim, theta, linear.factor());
                    case Llama3 llama -> Rope.llama3(
                            dim,
                            theta,
                            llama.factor(),
                            llama.lowFrequencyFactor(),
                            llama.highFrequencyFactor(),
                            llama.originalMaxPositions());
                    case Yarn yarn -> yarn(dim, theta, yarn, description.attentionFactor());
                    case LongRope longRope -> Rope.longrope(
                            dim,
                            theta,
                            array(length > longRope.originalMaxPositions() ? longRope.longFactors() : longRope.shortFactors()),
                            description.attentionFactor());
                };
        return description.interleaved() ? rope.interleaved() : rope;
    }

    private static Rope yarn(int dim, double theta, Yarn yarn, double scale) {
        if (yarn.truncate()) {
            return Rope.yarn(
                    dim, theta, yarn.factor(), yarn.originalMaxPositions(), yarn.betaFast(), yarn.betaSlow(), scale);
        }
        double low = Math.max(0, pairOfTurns(dim, theta, yarn, yarn.betaFast()));
        double high = Math.min(dim - 1.0, pairOfTurns(dim, theta, yarn, yarn.betaSlow()));
        double[] frequencies = new double[dim / 2];
        for (int i = 0; i < frequencies.length; i++) {
            double interpolated = Math.clamp((i - low) / Math.max(high - low, 0.001), 0.0, 1.0);
            frequencies[i] = Math.pow(theta, -2.0 * i / dim) * (interpolated / yarn.factor() + 1 - interpolated);
        }
        return Rope.halfSplit(frequencies).withScale(scale);
    }

    /** The pair, not rounded, that turns so often within the original context. */
    private static double pairOfTurns(int dim, double theta, Yarn yarn, double turns) {
        return dim * Math.log(yarn.originalMaxPositions() / (turns * 2 * Math.PI)) / (2 * Math.log(theta));
    }

    private static double[] array(List<Double> factors) {
        return factors.stream().mapToDouble(Double::doubleValue).toArray();
    }
}
