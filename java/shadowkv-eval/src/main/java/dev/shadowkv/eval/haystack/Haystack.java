package dev.shadowkv.eval.haystack;

import dev.shadowkv.eval.EvaluationException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;

/**
 * Text to hide something in: that of a file, repeated when it is too short, or sentences made from the built-in words,
 * which never end and mean little. Usable from any thread.
 */
public abstract class Haystack {
    private static final long GENERATED_SEED = 2025;

    private Haystack() {}

    /**
     * The text of a UTF-8 file, or of all {@code .txt} files of a folder in the order of their names.
     *
     * @throws EvaluationException when it cannot be read or is empty
     */
    public static Haystack read(Path path) {
        try {
            if (!Files.isDirectory(path)) {
                return ofText(path.toString(), Files.readString(path));
            }
            StringBuilder text = new StringBuilder();
            try (var files = Files.list(path)) {
                for (Path file : files.filter(name -> name.toString().endsWith(".txt")).sorted().toList()) {
                    text.append(Files.readString(file)).append('\n');
                }
            }
            return ofText(path.toString(), text.toString());
        } catch (IOException e) {
            throw new EvaluationException(path + ": cannot be read as text: " + e.getMessage(), e);
        }
    }

    /** A given text. */
    public static Haystack ofText(String text) {
        return ofText("the text", text);
    }

    private static Haystack ofText(String origin, String text) {
        if (text.isBlank()) {
            throw new EvaluationException(origin + ": is empty");
        }
        List<String> words = List.of(text.strip().split("\\s+"));
        return new Haystack() {
            @Override
            String word(int index) {
                return words.get(index % words.size());
            }
        };
    }

    /** Sentences made from the built-in words. */
    public static Haystack generated() {
        return new Generated();
    }

    abstract String word(int index);

    /** The first words, as sentences; the last one may be cut short. */
    public List<String> sentences(int words) {
        List<String> sentences = new ArrayList<>();
        StringBuilder sentence = new StringBuilder();
        for (int i = 0; i < words; i++) {
            String word = word(i);
            sentence.append(sentence.isEmpty() ? "" : " ").append(word);
            if (endsSentence(word)) {
                sentences.add(sentence.toString());
                sentence.setLength(0);
            }
        }
        if (!sentence.isEmpty()) {
            sentences.add(sentence.toString());
        }
        return sentences;
    }

    private static boolean endsSentence(String word) {
        int end = word.length();
        while (end > 0 && "\"')]”’".indexOf(word.charAt(end - 1)) >= 0) {
            end--;
        }
        // Two letters and a point are more often a title than a sentence.
        return end > 0 && ".!?".indexOf(word.charAt(end - 1)) >= 0 && !word.matches("(Mr|Ms|Dr|St|[A-Z])\\.|.*\\.[a-z]\\.");
    }

    private static final class Generated extends Haystack {
        private final List<String> words = new ArrayList<>();
        private final SplittableRandom random = new SplittableRandom(GENERATED_SEED);
        private final Words source = Words.english();

        @Override
        synchronized String word(int index) {
            while (words.size() <= index) {
                String sentence = sentence();
                words.addAll(List.of((Character.toUpperCase(sentence.charAt(0)) + sentence.substring(1)).split(" ")));
            }
            return words.get(index);
        }

        private String sentence() {
            return switch (random.nextInt(5)) {
                case 0 -> "the " + thing() + " and the " + thing() + " " + source.verb(random) + " near the "
                        + source.noun(random) + ".";
                case 1 -> "when the " + source.noun(random) + " is " + source.adjective(random) + ", people "
                        + source.verb(random) + " the " + thing() + " before they " + source.verb(random) + ".";
                case 2 -> "nobody can " + source.verb(random) + " a " + source.noun(random) + " without a " + thing() + ".";
                case 3 -> "it takes a " + thing() + " to " + source.verb(random) + " what every " + source.noun(random)
                        + " and " + source.noun(random) + " would " + source.verb(random) + ".";
                default -> "some " + source.verb(random) + " in the " + thing() + ", others " + source.verb(random)
                        + " under the " + source.noun(random) + ", but all of them stay " + source.adjective(random) + ".";
            };
        }

        private String thing() {
            return source.adjective(random) + " " + source.noun(random);
        }
    }
}
