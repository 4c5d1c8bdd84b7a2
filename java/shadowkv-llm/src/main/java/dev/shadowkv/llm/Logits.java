package dev.shadowkv.llm;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** What is read from logits on the host. */
final class Logits {
    private Logits() {}

    /**
     * The place of the largest logit of a row, the first of equal ones.
     *
     * @throws ArithmeticException when one is not a number
     */
    static int largest(MemorySegment logits, int vocabulary) {
        int best = 0;
        float largest = Float.NEGATIVE_INFINITY;
        for (int i = 0; i < vocabulary; i++) {
            float logit = logits.getAtIndex(ValueLayout.JAVA_FLOAT, i);
            if (Float.isNaN(logit)) {
                throw new ArithmeticException("the logit of token " + i + " is not a number");
            }
            if (logit > largest) {
                best = i;
                largest = logit;
            }
        }
        return best;
    }
}
