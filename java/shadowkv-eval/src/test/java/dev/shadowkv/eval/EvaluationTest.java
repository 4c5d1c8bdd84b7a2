package dev.shadowkv.eval;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class EvaluationTest {
    private static final Map<String, String> SETTINGS = Map.of("suite", "toy", "model", "m");

    @TempDir
    private Path folder;

    /** Asks for the index; a case of even index has two accepted answers. */
    private static final class ToySuite implements Suite {
        private final List<Case> cases = new ArrayList<>();
        private int made;

        private ToySuite(int count) {
            for (int i = 0; i < count; i++) {
                cases.add(i % 3 == 0 ? new Case("deep", 128, 0.1 * (i % 10), i, 5) : Case.of("flat", 64, i, 5));
            }
        }

        @Override
        public String name() {
            return "toy";
        }

        @Override
        public List<Case> cases() {
            return cases;
        }

        @Override
        public Prompt prompt(Case origin) {
            made++;
            return new Prompt(origin, "say " + origin.index(), "", List.of("" + origin.index(), "é\n\"x\""), 3, true);
        }

        @Override
        public double score(Prompt prompt, String answer) {
            return answer.equals(prompt.answers().getFirst()) ? 1 : 0;
        }
    }

    private static Answerer sayRight(int wrongFrom) {
        return prompt -> new Answer(
                prompt.origin().index() < wrongFrom ? prompt.text().substring(4) : "no",
                10,
                1,
                0.5,
                0.25,
                Map.of("resident", 0.5));
    }

    private static Map<String, Answerer> variants() {
        Map<String, Answerer> variants = new LinkedHashMap<>();
        variants.put("dense", sayRight(100));
        variants.put("shadow", sayRight(7));
        return variants;
    }

    @Test
    void everyVariantAnswersTheSamePrompts() {
        ToySuite suite = new ToySuite(10);
        List<String> order = new ArrayList<>();
        try (ResultStore store = ResultStore.open(folder.resolve("new/r.jsonl"), SETTINGS)) {
            assertThat(new Evaluation(suite, variants(), 4).run(store, (result, done, total) -> {
                        assertThat(total).isEqualTo(20);
                        order.add(result.variant() + done);
                    }))
                    .isTrue();
        }
        assertThat(suite.made).isEqualTo(10);
        assertThat(order).hasSize(20).startsWith("dense1", "dense2", "dense3", "dense4", "shadow5").endsWith("shadow20");
        List<Result> results = ResultStore.read(folder.resolve("new/r.jsonl"));
        assertThat(results).hasSize(20);
        Result first = results.getFirst();
        assertThat(first.answer()).isEqualTo(new Answer("0", 10, 1, 0.5, 0.25, Map.of("resident", 0.5)));
        assertThat(first.prompt().answers()).containsExactly("0", "é\n\"x\"");
        assertThat(first.prompt().origin()).isEqualTo(suite.cases().getFirst());
    }

    @Test
    void aKilledRunContinues() throws IOException {
        Path path = folder.resolve("r.jsonl");
        Path whole = folder.resolve("whole.jsonl");
        try (ResultStore store = ResultStore.open(whole, SETTINGS)) {
            new Evaluation(new ToySuite(10), variants(), 3).run(store, (result, done, total) -> {});
        }
        byte[] bytes = Files.readAllBytes(whole);
        // Killed anywhere: within the settings, between two lines, in the middle of one.
        for (int length : new int[] {0, 5, 60, bytes.length / 2, bytes.length - 1, bytes.length}) {
            Files.write(path, Arrays.copyOf(bytes, length));
            List<Integer> done = new ArrayList<>();
            try (ResultStore store = ResultStore.open(path, SETTINGS)) {
                int before = store.results().size();
                new Evaluation(new ToySuite(10), variants(), 3).run(store, (result, count, total) -> done.add(count));
                assertThat(done).hasSize(20 - before);
            }
            assertThat(ResultStore.read(path)).containsExactlyInAnyOrderElementsOf(ResultStore.read(whole));
        }
    }

    @Test
    void aFailingVariantLosesNothing() {
        Path path = folder.resolve("r.jsonl");
        Map<String, Answerer> variants = variants();
        variants.put("shadow", prompt -> {
            throw new IllegalStateException("out of memory");
        });
        try (ResultStore store = ResultStore.open(path, SETTINGS)) {
            assertThatThrownBy(() -> new Evaluation(new ToySuite(10), variants, 4).run(store, (result, done, total) -> {}))
                    .hasMessage("out of memory");
        }
        assertThat(ResultStore.read(path)).hasSize(4);
    }

    @Test
    void anInterruptStopsBetweenBatches() {
        try (ResultStore store = ResultStore.open(folder.resolve("r.jsonl"), SETTINGS)) {
            boolean finished = new Evaluation(new ToySuite(10), variants(), 2).run(store, (result, done, total) -> {
                if (done == 5) {
                    Thread.currentThread().interrupt();
                }
            });
            assertThat(finished).isFalse();
            assertThat(store.results()).hasSize(6);
        }
    }

    @Test
    void otherSettingsCannotContinue() {
        Path path = folder.resolve("r.jsonl");
        ResultStore.open(path, SETTINGS).close();
        assertThatThrownBy(() -> ResultStore.open(path, Map.of("suite", "toy", "model", "n")))
                .isInstanceOf(EvaluationException.class)
                .hasMessage(path + ": was begun with model = m, not n; give another file");
        assertThatThrownBy(() -> ResultStore.open(path, Map.of("suite", "toy", "model", "m", "seed", "1")))
                .hasMessageContaining("was begun with seed = null, not 1");
        ResultStore.open(path, SETTINGS).close();
    }

    @Test
    void aFileBelongsToOneStore() {
        Path path = folder.resolve("r.jsonl");
        try (ResultStore store = ResultStore.open(path, SETTINGS)) {
            assertThatThrownBy(() -> ResultStore.open(path, SETTINGS)).hasMessage(path + ": is open in another evaluation");
            Case origin = Case.of("t", 1, 0, 0);
            Result result = new Result(
                    "v", new Prompt(origin, "", "", List.of("a"), 1, true), new Answer("a", 1, 1, 0, 0, Map.of()), 1);
            store.append(result);
            assertThat(store.contains("v", origin)).isTrue();
            assertThat(store.contains("w", origin)).isFalse();
            assertThatThrownBy(() -> store.append(result)).isInstanceOf(IllegalArgumentException.class);
            Result other = new Result("w", result.prompt(), result.answer(), 0);
            assertThatThrownBy(() -> store.append(List.of(other, result))).isInstanceOf(IllegalArgumentException.class);
            assertThatThrownBy(() -> store.append(List.of(other, other))).isInstanceOf(IllegalArgumentException.class);
            assertThat(store.contains("w", origin)).isFalse();
            store.append(List.of(other));
        }
        assertThat(ResultStore.read(path)).extracting(Result::variant).containsExactly("v", "w");
    }

    @Test
    void brokenFilesAreRefused() throws IOException {
        Path path = folder.resolve("r.jsonl");
        Files.writeString(path, "{\"settings\":{}}\n{\"variant\":\n{}\n");
        assertThatThrownBy(() -> ResultStore.read(path))
                .isInstanceOf(EvaluationException.class)
                .hasMessageStartingWith(path + ": line 2: ");
        Files.writeString(path, "{}\n");
        assertThatThrownBy(() -> ResultStore.read(path)).hasMessageContaining("line 1: the first line holds no settings");
        assertThatThrownBy(() -> ResultStore.read(folder.resolve("none"))).isInstanceOf(EvaluationException.class);
    }

    @Test
    void statisticsAreThoseOfTheTextbook() {
        Statistics statistics = Statistics.of(List.of(1.0, 0.0, 0.5, 1.0));
        assertThat(statistics.count()).isEqualTo(4);
        assertThat(statistics.mean()).isEqualTo(0.625);
        // Squares around the mean: 0.140625 twice, 0.390625, 0.015625; sum 0.6875; / 3 / 4; root.
        assertThat(statistics.standardError()).isCloseTo(Math.sqrt(0.6875 / 12), within(1e-15));
        assertThat(Statistics.of(List.of(1.0)).standardError()).isNaN();
        assertThat(Statistics.of(List.of()).mean()).isNaN();
    }

    @Test
    void theSummaryComparesPromptByPrompt() {
        try (ResultStore store = ResultStore.open(folder.resolve("r.jsonl"), SETTINGS)) {
            new Evaluation(new ToySuite(10), variants(), 4).run(store, (result, done, total) -> {});
            Summary summary = new Summary(store.results());
            assertThat(summary.lengths()).containsExactly(64, 128);
            assertThat(summary.tasks()).containsExactly("deep", "flat");
            // Flat cases are 1, 2, 4, 5, 7, 8; shadow is wrong from 7 on.
            Summary.Group flat = new Summary.Group("shadow", "flat", 64);
            assertThat(summary.scores().get(flat).mean()).isCloseTo(4.0 / 6, within(1e-15));
            Statistics difference = summary.differences("dense", "shadow").get(flat);
            assertThat(difference.mean()).isCloseTo(-2.0 / 6, within(1e-15));
            assertThat(difference.standardError()).isCloseTo(Math.sqrt(4.0 / 3 / 5 / 6), within(1e-15));
            assertThat(summary.statistics(result -> result.answer().measurements().get("resident")).get(flat).mean())
                    .isEqualTo(0.5);
            assertThat(summary.json())
                    .contains("{\"variant\":\"dense\",\"task\":\"deep\",\"length\":128,\"prompts\":4,"
                            + "\"mean\":1.0,\"standardError\":0.0}")
                    .contains("\"mean\":0.75,\"standardError\":0.25,\"difference\":-0.25,\"differenceError\":0.25}");
            assertThat(summary.table())
                    .isEqualTo(
                            """
                            task  length  prompts        dense       shadow    difference
                            -------------------------------------------------------------
                            deep     128        4  100.0 ± 0.0  75.0 ± 25.0  -25.0 ± 25.0
                            flat      64        6  100.0 ± 0.0  66.7 ± 21.1  -33.3 ± 21.1
                            """);
        }
    }

    @Test
    void casesHaveNamesAndLimits() {
        assertThat(new Case("t", 5, 0.25, 3, 9).id()).isEqualTo("t/5@0.2500/9/3");
        assertThat(Case.of("t", 5, 3, 9).id()).isEqualTo("t/5/9/3");
        assertThatThrownBy(() -> new Case("t", 5, 1.5, 3, 9)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new Case("t", -1, 0, 3, 9)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new Prompt(Case.of("t", 1, 0, 0), "", "", List.of(), 1, true))
                .isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new Prompt(Case.of("t", 1, 0, 0), "", "", List.of("a"), 0, true))
                .isInstanceOf(IllegalArgumentException.class);
    }
}
