package dev.shadowkv.eval.ruler;

import java.util.List;
import java.util.Locale;

/** RULER's two scores. Both ignore case, and look for the expected strings anywhere in the answer. */
public final class RulerScores {
    private RulerScores() {}

    /** The share of the expected strings that occur in the answer: all tasks but question answering. */
    public static double matchAll(List<String> expected, String answer) {
        String text = answer.toLowerCase(Locale.ROOT);
        long found = expected.stream().filter(one -> text.contains(one.toLowerCase(Locale.ROOT))).count();
        return (double) found / expected.size();
    }

    /** 1 when any of the expected strings occurs in the answer, otherwise 0: question answering. */
    public static double matchPart(List<String> expected, String answer) {
        String text = answer.toLowerCase(Locale.ROOT);
        return expected.stream().anyMatch(one -> text.contains(one.toLowerCase(Locale.ROOT))) ? 1 : 0;
    }
}
