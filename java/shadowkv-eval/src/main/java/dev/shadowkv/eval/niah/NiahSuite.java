package dev.shadowkv.eval.niah;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.eval.haystack.Draw;
import dev.shadowkv.eval.haystack.Haystack;
import dev.shadowkv.eval.haystack.PromptFitter;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import dev.shadowkv.eval.haystack.Words;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;

/**
 * A needle in a haystack at every length and depth: one sentence with a number goes between two sentences of a text,
 * and the number is asked for. The score is 1 when the answer has the number and 0 when it has not. With {@link
 * dev.shadowkv.eval.Charts#heatMap} the results make the usual picture.
 */
public final class NiahSuite implements Suite {
    private static final String TASK = "niah";
    private static final int NEW_TOKENS = 32;
    private static final int DIGITS = 7;
    private static final double TOKENS_A_WORD = 1.4;

    private final PromptFitter fitter;
    private final Haystack haystack;
    private final Words words = Words.english();
    private final List<Case> cases = new ArrayList<>();

    /**
     * Makes a suite.
     *
     * @param lengths tokens of prompt and answer together
     * @param depths where the needle goes, from 0 at the beginning to 1 at the end
     * @param samples prompts a length and depth
     * @param overheadTokens tokens that the chat template around a prompt takes
     */
    public NiahSuite(
            Tokenizer tokenizer,
            Haystack haystack,
            List<Integer> lengths,
            List<Double> depths,
            int samples,
            long seed,
            int overheadTokens) {
        this.fitter = new PromptFitter(tokenizer, overheadTokens);
        this.haystack = haystack;
        for (int length : lengths) {
            for (double depth : depths) {
                for (int index = 0; index < samples; index++) {
                    cases.add(new Case(TASK, length, depth, index, seed));
                }
            }
        }
    }

    /** Depths that are evenly spaced from 0 to 1. */
    public static List<Double> depths(int count) {
        List<Double> depths = new ArrayList<>(count);
        for (int i = 0; i < count; i++) {
            depths.add(count == 1 ? 0.5 : (double) i / (count - 1));
        }
        return depths;
    }

    @Override
    public String name() {
        return TASK;
    }

    @Override
    public List<Case> cases() {
        return List.copyOf(cases);
    }

    @Override
    public Prompt prompt(Case origin) {
        SplittableRandom random = origin.random();
        String key = words.key(random);
        String value = Draw.number(DIGITS, random);
        Draft draft = fitter.fit(
                origin.length() - NEW_TOKENS, 1, TOKENS_A_WORD, units -> draft(origin.depth(), key, value, units));
        return new Prompt(origin, draft.text(), draft.answerPrefix(), draft.answers(), NEW_TOKENS, true);
    }

    private Draft draft(double depth, String key, String value, int units) {
        List<String> sentences = haystack.sentences(units);
        List<String> text = new ArrayList<>(sentences);
        text.add(place(sentences, depth), "The special magic number for " + key + " is: " + value + ".");
        return new Draft(
                "A special magic number is hidden in the text below. Remember it, a question follows.\n\n"
                        + String.join(" ", text) + "\n\nQuestion: what is the special magic number for " + key + "?",
                " Answer: the special magic number for " + key + " is:",
                List.of(value));
    }

    /** The gap between sentences that is nearest to the depth, by characters. */
    private static int place(List<String> sentences, double depth) {
        long total = sentences.stream().mapToLong(sentence -> sentence.length() + 1).sum();
        double wanted = depth * total;
        long before = 0;
        for (int i = 0; i < sentences.size(); i++) {
            long after = before + sentences.get(i).length() + 1;
            if (wanted < (before + after) / 2.0) {
                return i;
            }
            before = after;
        }
        return sentences.size();
    }

    @Override
    public double score(Prompt prompt, String answer) {
        return answer.contains(prompt.answers().getFirst()) ? 1 : 0;
    }
}
