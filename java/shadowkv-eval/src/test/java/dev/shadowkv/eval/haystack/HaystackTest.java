package dev.shadowkv.eval.haystack;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.PieceTokenizer;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class HaystackTest {
    @TempDir
    private Path folder;

    @Test
    void textIsCutIntoSentencesAndRepeated() throws IOException {
        Haystack text = Haystack.ofText("Dr. Who said \"no.\" Then J. left,\n at 3.5 km! Why?");
        assertThat(text.sentences(11)).containsExactly("Dr. Who said \"no.\"", "Then J. left, at 3.5 km!", "Why?");
        assertThat(text.sentences(2)).containsExactly("Dr. Who");
        assertThat(text.sentences(12)).endsWith("Dr.");
        Files.writeString(folder.resolve("b.txt"), "Second.");
        Files.writeString(folder.resolve("a.txt"), "First.");
        Files.writeString(folder.resolve("c.md"), "Not this.");
        assertThat(Haystack.read(folder).sentences(3)).containsExactly("First.", "Second.", "First.");
        assertThat(Haystack.read(folder.resolve("a.txt")).sentences(1)).containsExactly("First.");
        assertThatThrownBy(() -> Haystack.read(folder.resolve("no"))).isInstanceOf(EvaluationException.class);
        assertThatThrownBy(() -> Haystack.ofText(" ")).hasMessage("the text: is empty");
    }

    @Test
    void generatedTextNeverEndsAndIsAlwaysTheSame() {
        List<String> sentences = Haystack.generated().sentences(20_000);
        assertThat(String.join(" ", sentences).split(" ")).hasSize(20_000);
        assertThat(Haystack.generated().sentences(300)).isEqualTo(Haystack.generated().sentences(300));
        assertThat(new HashSet<>(sentences).size()).isGreaterThan(sentences.size() * 99 / 100);
        assertThat(sentences.subList(0, 50)).allMatch(sentence -> sentence.matches("[A-Z][a-z ,]+\\."));
    }

    @Test
    void drawsAreDistinctAndFair() {
        SplittableRandom random = new SplittableRandom(4);
        int[] counts = new int[10];
        int rounds = 20_000;
        for (int round = 0; round < rounds; round++) {
            int[] drawn = Draw.indexes(10, 3, random);
            assertThat(new HashSet<>(List.of(drawn[0], drawn[1], drawn[2]))).hasSize(3);
            counts[drawn[2]]++;
        }
        for (int count : counts) {
            assertThat(count / (double) rounds).isCloseTo(0.1, within(5 * Math.sqrt(0.09 / rounds)));
        }
        List<Integer> list = new ArrayList<>(List.of(1, 2, 3, 4, 5));
        Draw.shuffle(list, random);
        assertThat(list).containsExactlyInAnyOrder(1, 2, 3, 4, 5);
        assertThat(Draw.distinct(List.of("a", "b"), 2, random)).containsExactlyInAnyOrder("a", "b");
        assertThatThrownBy(() -> Draw.indexes(2, 3, random)).isInstanceOf(IllegalArgumentException.class);
        assertThat(Draw.number(7, random)).matches("[1-9]\\d{6}");
    }

    @Test
    void wordsAreDistinct() throws IOException {
        SplittableRandom random = new SplittableRandom(9);
        Words words = Words.english();
        assertThat(new HashSet<>(words.distinct(500, random))).hasSize(500);
        assertThat(new HashSet<>(words.distinct(20_000, random))).hasSize(20_000);
        assertThat(words.key(random)).matches("[a-z]+-[a-z]+");
        assertThatThrownBy(() -> words.distinct(10_000_000, random)).isInstanceOf(EvaluationException.class);
        Path path = folder.resolve("words");
        Files.write(path, java.util.stream.IntStream.range(0, 120).mapToObj(i -> " w" + i % 110 + " ").toList());
        assertThat(Words.read(path).distinct(110, random)).hasSize(110);
        assertThatThrownBy(() -> Words.read(path).distinct(111, random)).isInstanceOf(EvaluationException.class);
        Files.writeString(path, "a\nb\n");
        assertThatThrownBy(() -> Words.read(path)).hasMessage(path + ": has 2 words, at least 100 are needed");
    }

    @Test
    void theFitterFindsTheLargestThatFits() {
        PromptFitter fitter = new PromptFitter(new PieceTokenizer(), 0);
        SplittableRandom random = new SplittableRandom(3);
        for (int round = 0; round < 200; round++) {
            int limit = random.nextInt(20, 5000);
            double hint = random.nextDouble(0.1, 10);
            int letters = random.nextInt(1, 9);
            // Units of constant size: a word of one or two pieces.
            Draft draft = fitter.fit(
                    limit, 1, hint, units -> new Draft(("x".repeat(letters) + " ").repeat(units), "", List.of("a")));
            int unit = letters <= 4 ? 1 : letters <= 8 ? 2 : 3;
            assertThat(fitter.tokens(draft)).isEqualTo(1 + (limit - 1) / unit * unit);
        }
        assertThatThrownBy(() -> fitter.fit(3, 1, 1, units -> new Draft("a b c d", "", List.of("x"))))
                .isInstanceOf(EvaluationException.class)
                .hasMessage("the shortest prompt takes 5 tokens, 3 are allowed");
    }
}
