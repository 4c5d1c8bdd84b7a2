package dev.shadowkv.eval.haystack;

import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.List;
import java.util.Objects;
import java.util.function.IntFunction;

/** Makes a prompt as long as possible: finds the most units of haystack with which it still fits. */
public final class PromptFitter {
    private static final int MAXIMUM_STEPS = 40;

    /**
     * A prompt of some size.
     *
     * @param text see {@link dev.shadowkv.eval.Prompt#text}
     * @param answerPrefix see {@link dev.shadowkv.eval.Prompt#answerPrefix}
     * @param answers the expected answers
     */
    public record Draft(String text, String answerPrefix, List<String> answers) {
        public Draft {
            Objects.requireNonNull(text, "text");
            Objects.requireNonNull(answerPrefix, "answerPrefix");
            answers = List.copyOf(answers);
        }
    }

    private final Tokenizer tokenizer;
    private final int overhead;

    /**
     * Makes a fitter.
     *
     * @param overhead tokens that a chat template will add
     */
    public PromptFitter(Tokenizer tokenizer, int overhead) {
        this.tokenizer = Objects.requireNonNull(tokenizer, "tokenizer");
        this.overhead = overhead;
    }

    /** Tokens of a draft as a model will read it. */
    public int tokens(Draft draft) {
        return tokenizer.encode(draft.text() + draft.answerPrefix()).length + overhead;
    }

    /**
     * Finds the largest draft that fits. More units must mean more tokens, on the whole.
     *
     * @param limit tokens that the prompt may take
     * @param minimum the fewest units that make sense
     * @param unitTokens about how many tokens a unit takes
     * @param builder makes the draft of a number of units; the same number gives the same draft
     * @throws EvaluationException when not even the minimum fits
     */
    public Draft fit(int limit, int minimum, double unitTokens, IntFunction<Draft> builder) {
        Draft best = builder.apply(minimum);
        int bestTokens = tokens(best);
        if (bestTokens > limit) {
            throw new EvaluationException("the shortest prompt takes " + bestTokens + " tokens, " + limit + " are allowed");
        }
        int fits = minimum;
        int tooMany = Integer.MAX_VALUE;
        double slope = Math.max(unitTokens, 0.01);
        for (int step = 0; step < MAXIMUM_STEPS && tooMany - fits > 1 && bestTokens < limit; step++) {
            // Aims at the limit by the slope so far; every fourth step halves what is left, should the slope mislead.
            long aim = fits + Math.max(1, (long) Math.floor((limit - bestTokens) / slope));
            long middle = tooMany == Integer.MAX_VALUE ? 2L * fits + 1 : fits + (tooMany - fits) / 2L;
            int size = (int) Math.clamp(step % 4 == 3 ? middle : aim, fits + 1L, tooMany - 1L);
            Draft draft = builder.apply(size);
            int tokens = tokens(draft);
            if (tokens > bestTokens) {
                slope = Math.max(0.01, (double) (tokens - bestTokens) / (size - fits));
            }
            if (tokens <= limit) {
                fits = size;
                best = draft;
                bestTokens = tokens;
            } else {
                tooMany = size;
            }
        }
        return best;
    }
}
