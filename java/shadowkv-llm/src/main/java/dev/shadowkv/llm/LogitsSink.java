package dev.shadowkv.llm;

import java.lang.foreign.MemorySegment;

/** Takes logits as they are computed, in the order of the positions. */
@FunctionalInterface
public interface LogitsSink {
    /** For those who want none. */
    LogitsSink NONE = (first, rows, logits) -> {};

    /**
     * Takes some rows.
     *
     * @param first the first row's place among the tokens that were given
     * @param rows how many
     * @param logits {@code [rows][vocabulary]} of f32; valid only during the call
     */
    void accept(long first, long rows, MemorySegment logits);
}
