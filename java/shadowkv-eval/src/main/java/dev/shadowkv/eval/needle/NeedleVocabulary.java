package dev.shadowkv.eval.needle;

import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;

/** The words of the needle-32k checkpoint: three-digit numbers, then made-up words for filler, then those for names. */
final class NeedleVocabulary {
    private static final int NUMBERS = 1000;
    private static final int FILLER = 512;
    private static final int NAMES = 1024;

    private final List<String> filler;
    private final List<String> names;

    private NeedleVocabulary(List<String> filler, List<String> names) {
        this.filler = filler;
        this.names = names;
    }

    /** Whether a tokenizer has this vocabulary. */
    static boolean fits(Tokenizer tokenizer) {
        int first = tokenizer.idOf("000").orElse(-1);
        boolean numbered = first >= 0;
        for (int i = 0; i < NUMBERS && numbered; i++) {
            numbered = tokenizer.tokenOf(first + i).orElse("").equals(number(i));
        }
        return numbered && tokenizer.vocabularySize() == first + NUMBERS + FILLER + NAMES;
    }

    static NeedleVocabulary of(Tokenizer tokenizer) {
        int words = tokenizer.idOf("000").orElse(-1) + NUMBERS;
        if (!fits(tokenizer)) {
            throw new EvaluationException("the needle tasks need the tokenizer of the needle-32k checkpoint: "
                    + "the numbers 000 to 999, then " + (FILLER + NAMES) + " words");
        }
        return new NeedleVocabulary(
                words(tokenizer, words, FILLER), words(tokenizer, words + FILLER, NAMES));
    }

    private static List<String> words(Tokenizer tokenizer, int first, int count) {
        List<String> words = new ArrayList<>(count);
        for (int i = 0; i < count; i++) {
            words.add(tokenizer.tokenOf(first + i).orElseThrow());
        }
        return words;
    }

    static String number(int value) {
        return String.format("%03d", value);
    }

    /** Six digits as two words. */
    String value(SplittableRandom random) {
        return number(random.nextInt(NUMBERS)) + " " + number(random.nextInt(NUMBERS));
    }

    String fillerWord(SplittableRandom random) {
        return filler.get(random.nextInt(FILLER));
    }

    String name(SplittableRandom random) {
        return names.get(random.nextInt(NAMES));
    }

    /** Names without repetition, in random order. */
    List<String> distinctNames(int count, SplittableRandom random) {
        List<String> pool = new ArrayList<>(names);
        for (int i = 0; i < count; i++) {
            int other = i + random.nextInt(pool.size() - i);
            String swap = pool.get(i);
            pool.set(i, pool.get(other));
            pool.set(other, swap);
        }
        return List.copyOf(pool.subList(0, count));
    }
}
