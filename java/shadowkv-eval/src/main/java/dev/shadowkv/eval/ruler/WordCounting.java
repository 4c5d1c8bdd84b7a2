package dev.shadowkv.eval.ruler;

import dev.shadowkv.eval.haystack.Draw;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import dev.shadowkv.eval.haystack.Words;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;

/** Which words are most common: by fixed counts (cwe), and in a Zipf-like text of code words (fwe). */
final class WordCounting {
    static final int COMMON = 10;
    static final double COMMON_UNIT_TOKENS = 12;
    static final double FREQUENT_UNIT_TOKENS = 3;
    /** Below this length lists are shorter and counts smaller. */
    private static final int SHORT = 4096;

    private static final int CODE_LETTERS = 6;
    /** zeta(2), which makes the shares 1/k^2 sum to one. */
    private static final double ZETA = Math.PI * Math.PI / 6;

    private WordCounting() {}

    /** A unit is a different word; it stands in the list several times. */
    static Draft common(RulerTemplates templates, Words words, int length, int units, SplittableRandom random) {
        boolean small = length < SHORT;
        Draft example = small
                ? commonList(templates, words, 20, 3, 1, random)
                : commonList(templates, words, 40, 10, 3, random);
        Draft asked = small
                ? commonList(templates, words, units, 6, 1, random)
                : commonList(templates, words, units, 30, 3, random);
        String solved = example.text() + example.answerPrefix() + " " + numbered(example.answers());
        return new Draft(solved + "\n" + asked.text(), asked.answerPrefix(), asked.answers());
    }

    private static Draft commonList(
            RulerTemplates templates, Words words, int count, int often, int seldom, SplittableRandom random) {
        List<String> drawn = words.distinct(count, random);
        List<String> list = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            for (int repeat = 0; repeat < (i < COMMON ? often : seldom); repeat++) {
                list.add(drawn.get(i));
            }
        }
        Draw.shuffle(list, random);
        RulerTemplates.Template filled = templates.get(RulerTemplates.Kind.COMMON_WORDS)
                .fill(Map.of("context", numbered(list), "query", "", "num_cw", Integer.toString(COMMON)));
        return new Draft(filled.text(), filled.answerPrefix(), drawn.subList(0, COMMON));
    }

    private static String numbered(List<String> words) {
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < words.size(); i++) {
            text.append(i == 0 ? "" : " ").append(i + 1).append(". ").append(words.get(i));
        }
        return text.toString();
    }

    /** A unit is a word of the text. The most frequent one is replaced by dots, the next three are the answer. */
    static Draft frequent(RulerTemplates templates, int limit, int units, SplittableRandom random) {
        List<String> vocabulary = codeWords(Math.max(4, limit / 50), random);
        List<String> text = new ArrayList<>();
        for (int rank = 1; rank <= vocabulary.size(); rank++) {
            int count = (int) (units / ((double) rank * rank) / ZETA);
            for (int i = 0; i < count; i++) {
                text.add(rank == 1 ? "..." : vocabulary.get(rank - 1));
            }
        }
        Draw.shuffle(text, random);
        RulerTemplates.Template filled = templates.get(RulerTemplates.Kind.FREQUENT_WORDS)
                .fill(Map.of("context", String.join(" ", text), "query", ""));
        return new Draft(filled.text(), filled.answerPrefix(), vocabulary.subList(1, 4));
    }

    private static List<String> codeWords(int count, SplittableRandom random) {
        Set<String> words = new LinkedHashSet<>();
        while (words.size() < count) {
            StringBuilder word = new StringBuilder();
            for (int i = 0; i < CODE_LETTERS; i++) {
                word.append((char) ('a' + random.nextInt(26)));
            }
            words.add(word.toString());
        }
        return List.copyOf(words);
    }
}
