package dev.shadowkv.eval.haystack;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;

/** Random draws that stay the same for a seed, whatever the version of Java. */
public final class Draw {
    private Draw() {}

    /** Puts a list into random order. */
    public static <T> void shuffle(List<T> list, SplittableRandom random) {
        for (int i = list.size() - 1; i > 0; i--) {
            int other = random.nextInt(i + 1);
            T swap = list.get(i);
            list.set(i, list.get(other));
            list.set(other, swap);
        }
    }

    /** Elements at different places of a list, in random order; the list may be much longer than the draw. */
    public static <T> List<T> distinct(List<T> list, int count, SplittableRandom random) {
        List<T> drawn = new ArrayList<>(count);
        for (int index : indexes(list.size(), count, random)) {
            drawn.add(list.get(index));
        }
        return drawn;
    }

    /** Different numbers below a limit, in random order. */
    public static int[] indexes(int limit, int count, SplittableRandom random) {
        if (count > limit) {
            throw new IllegalArgumentException("cannot draw " + count + " different numbers below " + limit);
        }
        // The first steps of a shuffle of 0 .. limit - 1, of which only what moved is kept.
        Map<Integer, Integer> moved = new HashMap<>();
        int[] drawn = new int[count];
        for (int i = 0; i < count; i++) {
            int other = i + random.nextInt(limit - i);
            drawn[i] = moved.getOrDefault(other, other);
            moved.put(other, moved.getOrDefault(i, i));
        }
        return drawn;
    }

    /** A number of that many digits, the first of which is not zero. */
    public static String number(int digits, SplittableRandom random) {
        long low = 1;
        for (int i = 1; i < digits; i++) {
            low = Math.multiplyExact(low, 10);
        }
        return Long.toString(random.nextLong(low, 10 * low));
    }

    /** A random (version 4) UUID. */
    public static String uuid(SplittableRandom random) {
        long high = random.nextLong() & ~0xf000L | 0x4000L;
        long low = random.nextLong() & 0x3fffffffffffffffL | 0x8000000000000000L;
        return new java.util.UUID(high, low).toString();
    }
}
