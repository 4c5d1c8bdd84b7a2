package dev.shadowkv.eval;

import java.util.Map;
import java.util.Objects;

/**
 * What a model answered, and what it took.
 *
 * @param text the answer without the prompt and its prefix
 * @param promptTokens tokens of the prompt as the model read it
 * @param newTokens tokens of the answer
 * @param prefillSeconds time until the first token
 * @param decodeSeconds time for the others
 * @param measurements whatever else was measured, such as the share of chunks resident; stored with the result
 */
public record Answer(
        String text,
        int promptTokens,
        int newTokens,
        double prefillSeconds,
        double decodeSeconds,
        Map<String, Double> measurements) {
    public Answer {
        Objects.requireNonNull(text, "text");
        measurements = Map.copyOf(measurements);
    }
}
