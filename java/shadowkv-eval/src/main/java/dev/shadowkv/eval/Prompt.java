package dev.shadowkv.eval;

import java.util.List;
import java.util.Objects;

/**
 * What a model is asked.
 *
 * @param origin the case that the prompt was made for
 * @param text the prompt; the user's turn where a chat template is used
 * @param answerPrefix how the answer begins: follows the text, or begins the assistant's turn; may be empty
 * @param answers the expected answers; the suite knows whether all or any of them count
 * @param maxNewTokens tokens that an answer may take
 * @param conversation whether the prompt is a user's turn, for models that have a chat template; false where the answer
 *     continues examples, or the model was trained on such prompts bare
 */
public record Prompt(
        Case origin,
        String text,
        String answerPrefix,
        List<String> answers,
        int maxNewTokens,
        boolean conversation) {
    public Prompt {
        Objects.requireNonNull(origin, "origin");
        Objects.requireNonNull(text, "text");
        Objects.requireNonNull(answerPrefix, "answerPrefix");
        answers = List.copyOf(answers);
        if (answers.isEmpty()) {
            throw new IllegalArgumentException("case " + origin.id() + " has no expected answer");
        }
        if (maxNewTokens <= 0) {
            throw new IllegalArgumentException("maxNewTokens is " + maxNewTokens + ", it must be positive");
        }
    }

    /** Text and prefix as one, for models without a chat template. */
    public String whole() {
        return text + answerPrefix;
    }
}
