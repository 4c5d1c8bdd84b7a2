package dev.shadowkv.eval.longbench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.PieceTokenizer;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** On sample files in the published layout, written for this test. */
class LongBenchSuiteTest {
    private static final Tokenizer TOKENIZER = new PieceTokenizer();

    @TempDir
    private Path temporary;

    private static Path samples() {
        try {
            return Path.of(LongBenchSuiteTest.class.getResource("/longbench/trec.jsonl").toURI()).getParent();
        } catch (URISyntaxException e) {
            throw new IllegalStateException(e);
        }
    }

    private static LongBenchSuite open(List<LongBenchTask> tasks, int samples) {
        return LongBenchSuite.open(samples(), tasks, samples, LongBenchPrompts.builtIn(), TOKENIZER, 8192);
    }

    @Test
    void readsThePublishedLayout() {
        LongBenchSuite suite = open(List.of(), 100);
        assertThat(suite.cases()).extracting(Case::id).containsExactly("hotpotqa/0/0/0", "hotpotqa/0/0/1", "trec/0/0/0", "lcc/0/0/0");
        Prompt prompt = suite.prompt(suite.cases().getFirst());
        assertThat(prompt.answers()).containsExactly("Tana", "the river Tana");
        assertThat(prompt.maxNewTokens()).isEqualTo(32);
        assertThat(prompt.text())
                .contains("Orsa lies on the river Tana {not a placeholder}.", "Question: Which river flows")
                .endsWith("Answer:");
        assertThat(prompt.conversation()).isTrue();
        assertThat(suite.prompt(suite.cases().get(2)).conversation()).isFalse();
        // The best of the accepted answers counts: "Tana" alone gives 2/3, "the river Tana" gives 1.
        assertThat(suite.score(prompt, "River Tana!")).isEqualTo(1);
        assertThat(suite.score(prompt, "the Tana in Orsa")).isCloseTo(0.5, within(1e-15));
    }

    @Test
    void scoresByTheTask() {
        LongBenchSuite suite = open(List.of(LongBenchTask.LCC, LongBenchTask.TREC), 1);
        Prompt code = suite.prompt(suite.cases().get(0));
        Prompt type = suite.prompt(suite.cases().get(1));
        assertThat(suite.score(code, "int z = 3;\nint w")).isEqualTo(1);
        // Only the first line counts, and of several classes each a part.
        assertThat(suite.score(type, "\n City\nIndividual")).isEqualTo(1);
        assertThat(suite.score(type, " City, Individual")).isEqualTo(0.5);
        assertThat(type.text()).endsWith("Type:");
    }

    @Test
    void longPromptsLoseTheirMiddle() throws IOException {
        Path needle = Path.of(System.getProperty("shadowkv.root"), "models", "needle-32k");
        try (Tokenizer tokenizer = Tokenizer.open(needle)) {
            List<String> words = new ArrayList<>();
            for (int i = 0; i < 300; i++) {
                words.add(String.format("%03d", i));
            }
            Files.writeString(
                    temporary.resolve("lcc.jsonl"),
                    "{\"input\":\"\",\"context\":\"" + String.join(" ", words) + "\",\"answers\":[\"x\"]}");
            LongBenchPrompts bare = LongBenchPrompts.read(
                    Files.writeString(temporary.resolve("p.json"), "{\"lcc\":\"{context}\"}"));
            LongBenchSuite suite =
                    LongBenchSuite.open(temporary, List.of(LongBenchTask.LCC), 1, bare, tokenizer, 64 + 101);
            String text = suite.prompt(suite.cases().getFirst()).text();
            // The halves touch without a space between, as published: here that makes one unknown word of two.
            assertThat(text).isEqualTo(
                    String.join(" ", words.subList(0, 49)) + String.join(" ", words.subList(250, 300)));
            assertThat(tokenizer.encode(text).length).isLessThanOrEqualTo(101);
        }
    }

    @Test
    void wordingCanBeGiven() throws IOException {
        Path path = Files.writeString(temporary.resolve("dataset2prompt.json"), "{\"lcc\": \"Continue.\\n{context}\", \"nq\": \"x\"}");
        LongBenchPrompts prompts = LongBenchPrompts.read(path);
        LongBenchSuite suite = LongBenchSuite.open(samples(), List.of(LongBenchTask.LCC), 1, prompts, TOKENIZER, 8192);
        assertThat(suite.prompt(suite.cases().getFirst()).text()).isEqualTo("Continue.\nint x = 1;\nint y = 2;\n");
        assertThat(prompts.name()).isEqualTo("dataset2prompt.json");
        Files.writeString(path, "{\"lcc\": \"Continue.\"}");
        assertThatThrownBy(() -> LongBenchPrompts.read(path)).hasMessage(path + ": the prompt of lcc has no {context}");
    }

    @Test
    void everyTaskHasAPrompt() {
        for (LongBenchTask task : LongBenchTask.values()) {
            String text = LongBenchPrompts.builtIn().fill(task, "CONTEXT", "INPUT");
            assertThat(text).containsOnlyOnce("CONTEXT").doesNotContain("{", "}");
            boolean summary = List.of("gov_report", "multi_news", "vcsum", "passage_count", "lcc").contains(task.code());
            assertThat(text.contains("INPUT")).as(task.code()).isEqualTo(!summary);
            assertThat(LongBenchTask.ofCode(task.code())).isEqualTo(task);
        }
    }

    @Test
    void complainsClearly() throws IOException {
        assertThatThrownBy(() -> open(List.of(LongBenchTask.QMSUM), 1))
                .isInstanceOf(EvaluationException.class)
                .hasMessageEndingWith("qmsum.jsonl: no such file");
        assertThatThrownBy(() -> LongBenchSuite.open(temporary, List.of(), 1, LongBenchPrompts.builtIn(), TOKENIZER, 99))
                .hasMessageContaining("has no LongBench file");
        Files.writeString(temporary.resolve("lcc.jsonl"), "{\"input\":\"\",\"context\":\"\",\"answers\":[]}");
        assertThatThrownBy(() -> LongBenchSuite.open(temporary, List.of(), 1, LongBenchPrompts.builtIn(), TOKENIZER, 99))
                .hasMessageEndingWith("lcc.jsonl: entry 1: the field answers is missing or empty");
        Files.writeString(temporary.resolve("lcc.jsonl"), "{\"input\"");
        assertThatThrownBy(() -> LongBenchSuite.open(temporary, List.of(), 1, LongBenchPrompts.builtIn(), TOKENIZER, 99))
                .hasMessageContaining("lcc.jsonl: entry 1: ");
        assertThatThrownBy(() -> LongBenchTask.ofCode("nq")).hasMessageStartingWith("unknown LongBench task nq; there are ");
    }
}
