package dev.shadowkv.eval;

import java.util.Locale;
import java.util.Objects;
import java.util.SplittableRandom;

/**
 * One question of an evaluation, before its prompt is made. It names everything that the prompt depends on, so a
 * result can be told to be there already without making the prompt again.
 *
 * @param task what is asked
 * @param length tokens that prompt and answer may take together; 0 where the data decide
 * @param depth where the needle is, from 0 at the beginning to 1 at the end; {@link #NO_DEPTH} where that means nothing
 * @param index which of the cases that differ in nothing else
 * @param seed the seed of the whole evaluation
 */
public record Case(String task, int length, double depth, int index, long seed) {
    public static final double NO_DEPTH = -1;

    public Case {
        Objects.requireNonNull(task, "task");
        if (length < 0 || index < 0) {
            throw new IllegalArgumentException("length " + length + " or index " + index + " is negative");
        }
        if (!(depth >= 0 && depth <= 1) && depth != NO_DEPTH) {
            throw new IllegalArgumentException("depth " + depth + " is outside 0..1");
        }
    }

    /** A case without a depth. */
    public static Case of(String task, int length, int index, long seed) {
        return new Case(task, length, NO_DEPTH, index, seed);
    }

    /** Identifies the case within its suite. */
    public String id() {
        String place = depth == NO_DEPTH ? "" : String.format(Locale.ROOT, "@%.4f", depth);
        return task + "/" + length + place + "/" + seed + "/" + index;
    }

    /** Random numbers of this case alone: more cases, or other ones, change nothing about its prompt. */
    public SplittableRandom random() {
        long hash = seed;
        for (char c : id().toCharArray()) {
            hash = (hash ^ c) * 0x100000001b3L;
        }
        return new SplittableRandom(hash);
    }
}
