package dev.shadowkv.eval;

import java.util.Objects;

/**
 * One answer with its score.
 *
 * @param variant the cache, or its settings, that answered
 * @param prompt what was asked; its text is empty for a result read from a file
 * @param answer what was answered
 * @param score from 0 to 1
 */
public record Result(String variant, Prompt prompt, Answer answer, double score) {
    public Result {
        Objects.requireNonNull(variant, "variant");
        Objects.requireNonNull(prompt, "prompt");
        Objects.requireNonNull(answer, "answer");
        if (!(score >= 0 && score <= 1)) {
            throw new IllegalArgumentException("score " + score + " is outside 0..1");
        }
    }
}
