package dev.shadowkv.eval.needle;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.ArrayList;
import java.util.List;

/**
 * Retrieval tasks within the vocabulary of the needle-32k checkpoint, drawn from the distribution of its samples. The
 * score is the share of the expected tokens that stand at their place in the answer. Prompts have exactly the length
 * of their case in tokens; the answer comes after that.
 */
public final class NeedleSuite implements Suite {
    private final NeedlePrompts prompts;
    private final List<Case> cases;
    private final String name;

    private NeedleSuite(String name, Tokenizer tokenizer, List<Case> cases) {
        this.name = name;
        this.prompts = new NeedlePrompts(NeedleVocabulary.of(tokenizer));
        this.cases = List.copyOf(cases);
    }

    /** Whether a tokenizer is that of the needle-32k checkpoint, which knows no other words. */
    public static boolean fits(Tokenizer tokenizer) {
        return NeedleVocabulary.fits(tokenizer);
    }

    /**
     * Tasks at lengths.
     *
     * @param samples prompts a task and length
     * @throws EvaluationException when the tokenizer is another checkpoint's
     */
    public static NeedleSuite tasks(
            Tokenizer tokenizer, List<NeedleTask> tasks, List<Integer> lengths, int samples, long seed) {
        List<Case> cases = new ArrayList<>();
        for (int length : lengths) {
            for (NeedleTask task : tasks) {
                for (int index = 0; index < samples; index++) {
                    cases.add(Case.of(task.code(), length, index, seed));
                }
            }
        }
        return new NeedleSuite("needle", tokenizer, cases);
    }

    /**
     * A needle at every length and depth: the data of a heat map.
     *
     * @param task where the statement asked for is put at the depth: {@link NeedleTask#NIAH_SINGLE}
     * @param depths from 0 to 1
     */
    public static NeedleSuite grid(
            Tokenizer tokenizer, NeedleTask task, List<Integer> lengths, List<Double> depths, int samples, long seed) {
        if (task != NeedleTask.NIAH_SINGLE) {
            throw new IllegalArgumentException("depths mean something for niah_single alone, not for " + task.code());
        }
        List<Case> cases = new ArrayList<>();
        for (int length : lengths) {
            for (double depth : depths) {
                for (int index = 0; index < samples; index++) {
                    cases.add(new Case(task.code(), length, depth, index, seed));
                }
            }
        }
        return new NeedleSuite("niah", tokenizer, cases);
    }

    @Override
    public String name() {
        return name;
    }

    @Override
    public List<Case> cases() {
        return cases;
    }

    @Override
    public Prompt prompt(Case origin) {
        return prompts.prompt(origin, NeedleTask.ofCode(origin.task()));
    }

    @Override
    public double score(Prompt prompt, String answer) {
        return tokenScore(prompt.answers().getFirst(), answer);
    }

    /** The share of the expected words that stand at their place in the answer. */
    public static double tokenScore(String expected, String answer) {
        String[] wanted = expected.strip().split("\\s+");
        String[] given = answer.strip().split("\\s+");
        int right = 0;
        for (int i = 0; i < wanted.length && i < given.length; i++) {
            right += wanted[i].equals(given[i]) ? 1 : 0;
        }
        return (double) right / wanted.length;
    }
}
