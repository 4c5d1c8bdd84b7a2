package dev.shadowkv.eval;

import java.util.List;

/** A set of questions: RULER, a needle in a haystack, LongBench. Usable from any thread. */
public interface Suite {
    /** A short name for tables and files. */
    String name();

    /** All cases, in the order in which they are run. */
    List<Case> cases();

    /** Makes the prompt of a case; the same case always gives the same prompt. */
    Prompt prompt(Case origin);

    /**
     * Scores an answer.
     *
     * @return from 0 (wrong) to 1 (right)
     */
    double score(Prompt prompt, String answer);
}
