package dev.shadowkv.llm.sampling;

/**
 * How the next token is chosen.
 *
 * @param temperature what logits are divided by; 0 takes the largest logit whatever the rest says
 * @param topK only the {@code topK} largest logits count; 0 for all
 * @param topP of these, only the fewest whose probabilities reach {@code topP}; 1 for all
 * @param seed decides the draws
 */
public record SamplingOptions(double temperature, int topK, double topP, long seed) {
    public SamplingOptions {
        if (!(temperature >= 0) || Double.isInfinite(temperature)) {
            throw new IllegalArgumentException("temperature " + temperature + " is not a number >= 0");
        }
        if (topK < 0) {
            throw new IllegalArgumentException("top-k " + topK + " is negative");
        }
        if (!(topP > 0) || topP > 1) {
            throw new IllegalArgumentException("top-p " + topP + " is outside (0, 1]");
        }
    }

    /** The largest logit, always. */
    public static SamplingOptions greedy() {
        return new SamplingOptions(0, 0, 1, 0);
    }
}
