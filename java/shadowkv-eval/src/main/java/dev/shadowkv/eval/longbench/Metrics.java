package dev.shadowkv.eval.longbench;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * LongBench's metrics, each from 0 to 1, as its published evaluation computes them.
 *
 * <p>One difference: the published F1 and ROUGE of Chinese answers are over words that a dictionary finds; here they
 * are over characters. Chinese scores are therefore comparable with each other, not with published ones.
 */
public final class Metrics {
    private static final Pattern NUMBER = Pattern.compile("\\d+");
    private static final Pattern ARTICLE = Pattern.compile("\\b(a|an|the)\\b");
    private static final Pattern ASCII_PUNCTUATION = Pattern.compile("[!-/:-@\\[-`{-~]");
    private static final Pattern ANY_PUNCTUATION = Pattern.compile("[!-/:-@\\[-`{-~]|\\p{IsPunctuation}");
    private static final double TINY = 1e-8;

    private Metrics() {}

    /** F1 over the words, without case, punctuation and articles. */
    public static double f1(String prediction, String truth) {
        return f1(normalizedWords(prediction), normalizedWords(truth));
    }

    /** F1 over the characters, without case and punctuation. */
    public static double f1Chinese(String prediction, String truth) {
        return f1(characters(ANY_PUNCTUATION.matcher(prediction.toLowerCase(Locale.ROOT)).replaceAll("")),
                characters(ANY_PUNCTUATION.matcher(truth.toLowerCase(Locale.ROOT)).replaceAll("")));
    }

    private static List<String> normalizedWords(String text) {
        String bare = ASCII_PUNCTUATION.matcher(text.toLowerCase(Locale.ROOT)).replaceAll("");
        return words(ARTICLE.matcher(bare).replaceAll(" "));
    }

    private static List<String> words(String text) {
        return Arrays.stream(text.split("\\s+")).filter(word -> !word.isEmpty()).toList();
    }

    private static List<String> characters(String text) {
        return text.codePoints()
                .filter(c -> !Character.isWhitespace(c))
                .mapToObj(Character::toString)
                .toList();
    }

    private static double f1(List<String> prediction, List<String> truth) {
        Map<String, Long> counts = new HashMap<>(
                truth.stream().collect(Collectors.groupingBy(Function.identity(), Collectors.counting())));
        int common = 0;
        for (String word : prediction) {
            if (counts.merge(word, -1L, Long::sum) >= 0) {
                common++;
            }
        }
        if (common == 0) {
            return 0;
        }
        double precision = (double) common / prediction.size();
        double recall = (double) common / truth.size();
        return 2 * precision * recall / (precision + recall);
    }

    /**
     * ROUGE-L on the level of summaries: sentences end at points; a word counts once, when it is in a longest common
     * subsequence of some sentence of the prediction and some sentence of the truth.
     */
    public static double rougeL(String prediction, String truth) {
        return rougeL(sentences(prediction), sentences(truth));
    }

    /** As {@link #rougeL(String, String)}, every character a word. */
    public static double rougeLChinese(String prediction, String truth) {
        return rougeL(String.join(" ", characters(prediction)), String.join(" ", characters(truth)));
    }

    private static List<List<String>> sentences(String text) {
        List<List<String>> sentences = new ArrayList<>();
        for (String part : text.split("\\.", -1)) {
            if (!part.isEmpty()) {
                // A part of blanks alone is a sentence of one empty word there, so it is here.
                List<String> words = words(part);
                sentences.add(words.isEmpty() ? List.of("") : words);
            }
        }
        return sentences;
    }

    private static double rougeL(List<List<String>> prediction, List<List<String>> truth) {
        if (prediction.isEmpty() || truth.isEmpty()) {
            return 0;
        }
        Set<String> common = new HashSet<>();
        for (List<String> reference : truth) {
            for (List<String> candidate : prediction) {
                common.addAll(longestCommonSubsequence(reference, candidate));
            }
        }
        double recall = (double) common.size() / distinct(truth);
        double precision = (double) common.size() / distinct(prediction);
        return 2 * precision * recall / (precision + recall + TINY);
    }

    private static long distinct(List<List<String>> sentences) {
        return sentences.stream().flatMap(List::stream).distinct().count();
    }

    /** Of several longest ones that which the published code takes: it goes left in the second list when in doubt. */
    private static List<String> longestCommonSubsequence(List<String> first, List<String> second) {
        int[][] lengths = new int[first.size() + 1][second.size() + 1];
        for (int i = 1; i <= first.size(); i++) {
            for (int j = 1; j <= second.size(); j++) {
                lengths[i][j] = first.get(i - 1).equals(second.get(j - 1))
                        ? lengths[i - 1][j - 1] + 1
                        : Math.max(lengths[i - 1][j], lengths[i][j - 1]);
            }
        }
        List<String> common = new ArrayList<>();
        int i = first.size();
        int j = second.size();
        while (i > 0 && j > 0) {
            if (first.get(i - 1).equals(second.get(j - 1))) {
                common.add(first.get(i - 1));
                i--;
                j--;
            } else if (lengths[i - 1][j] > lengths[i][j - 1]) {
                i--;
            } else {
                j--;
            }
        }
        return common;
    }

    /** 1 over the number of classes that the prediction names, when the right one is among them. */
    public static double classification(String prediction, String truth, List<String> classes) {
        List<String> named = new ArrayList<>(classes.stream().filter(prediction::contains).toList());
        // A class whose name is part of the right one is named with it. The published loop removes from the list that
        // it walks, so the element after a removed one is not looked at; scores depend on that.
        for (int i = 0; i < named.size(); i++) {
            String name = named.get(i);
            if (truth.contains(name) && !name.equals(truth)) {
                named.remove(name);
            }
        }
        return named.contains(truth) ? 1.0 / named.size() : 0;
    }

    /** The share of the numbers in the prediction that are the number of the right paragraph. */
    public static double retrieval(String prediction, String truth) {
        Matcher number = NUMBER.matcher(truth);
        return number.find() ? count(prediction, number.group()) : 0;
    }

    /** The share of the numbers in the prediction that are the right one. */
    public static double count(String prediction, String truth) {
        List<String> numbers = NUMBER.matcher(prediction).results().map(result -> result.group()).toList();
        long right = numbers.stream().filter(truth::equals).count();
        return numbers.isEmpty() ? 0 : (double) right / numbers.size();
    }

    /**
     * How much the first line of code resembles the right one: twice the length of the longest common subsequence over
     * the length of both, rounded to a hundredth. Lines with a back-tick, {@code #} or {@code //} are no code.
     */
    public static double codeSimilarity(String prediction, String truth) {
        String line = Arrays.stream(withoutNewlines(prediction).split("\n", -1))
                .filter(text -> !text.contains("`") && !text.contains("#") && !text.contains("//"))
                .findFirst()
                .orElse("");
        if (line.isEmpty() || truth.isEmpty()) {
            return 0;
        }
        int common = commonLength(line.codePoints().toArray(), truth.codePoints().toArray());
        int total = line.codePointCount(0, line.length()) + truth.codePointCount(0, truth.length());
        return Math.rint(100.0 * 2 * common / total) / 100;
    }

    static String withoutNewlines(String text) {
        int start = 0;
        while (start < text.length() && text.charAt(start) == '\n') {
            start++;
        }
        return text.substring(start);
    }

    private static int commonLength(int[] first, int[] second) {
        int[] previous = new int[second.length + 1];
        for (int element : first) {
            int[] current = new int[second.length + 1];
            for (int j = 1; j <= second.length; j++) {
                current[j] = element == second[j - 1]
                        ? previous[j - 1] + 1
                        : Math.max(previous[j], current[j - 1]);
            }
            previous = current;
        }
        return previous[second.length];
    }
}
