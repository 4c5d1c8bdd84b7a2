package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.shadowkv.Device;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(60)
class SideBySideTest {
    private static final int VOCABULARY = 320;
    private static final int CAPACITY = 640;

    private static Device device;
    private static Checkpoint checkpoint;
    private static Model model;

    @BeforeAll
    static void load() {
        device = TestDevice.open();
        checkpoint = Checkpoint.open(Golden.folder("llama-3.1"));
        model = Model.load(checkpoint, device);
    }

    @AfterAll
    static void close() {
        model.close();
        checkpoint.close();
        device.close();
    }

    private static Map<String, CacheOptions> caches() {
        Map<String, CacheOptions> caches = new LinkedHashMap<>();
        caches.put("exact", CacheOptions.dense());
        caches.put("shadow", CacheOptions.shadow(64).toBuilder().rank(32).build());
        return caches;
    }

    private static List<SideBySide.Question> questions() {
        SplittableRandom random = new SplittableRandom(17);
        List<SideBySide.Question> questions = new ArrayList<>();
        for (int i = 0; i < 7; i++) {
            // Long answers are folded into the index; one ends with the prompt's own token, one takes a single token.
            int answer = i == 2 ? 1 : 5 + 30 * (i % 3);
            questions.add(new SideBySide.Question(random.ints(30 + 70 * i, 0, VOCABULARY).toArray(), answer));
        }
        return questions;
    }

    private static List<SideBySide.Answers> answers(int together, boolean timed, Set<Integer> ends) {
        List<SideBySide.Answers> answers = new ArrayList<>();
        List<SideBySide.Question> questions = questions();
        try (SideBySide sides = new SideBySide(model, caches(), CAPACITY, together)) {
            sides.timeAttention(timed);
            for (int from = 0; from < questions.size(); from += together) {
                List<SideBySide.Question> part = questions.subList(from, Math.min(questions.size(), from + together));
                answers.addAll(sides.answer(part, ends, (done, total) -> {}));
            }
        }
        return answers;
    }

    /** Alone, and in company with rows that end at other steps. */
    @Test
    void companyChangesNoAnswer() {
        List<SideBySide.Answers> alone = answers(1, true, Set.of());
        // A token that some answers contain ends them early.
        int end = alone.get(4).outcomes().get("exact").ids()[3];
        alone = answers(1, true, Set.of(end));
        List<SideBySide.Answers> together = answers(3, false, Set.of(end));
        assertThat(together).hasSameSizeAs(alone);
        for (int i = 0; i < alone.size(); i++) {
            for (String name : List.of("exact", "shadow")) {
                SideBySide.Outcome one = alone.get(i).outcomes().get(name);
                SideBySide.Outcome other = together.get(i).outcomes().get(name);
                assertThat(other.ids()).as("prompt %d, %s", i, name).isEqualTo(one.ids()).doesNotContain(end);
                assertThat(other.steps()).isEqualTo(one.steps());
                assertThat(one.attentionMilliseconds()).isGreaterThanOrEqualTo(0);
                assertThat(other.attentionMilliseconds()).isNaN();
            }
        }
        assertThat(alone.get(4).outcomes().get("exact").ids()).hasSizeLessThan(5 + 30);
    }

    @Test
    void statisticsAreOfTheAnswersAlone() {
        List<SideBySide.Answers> answers = answers(2, false, Set.of());
        for (int i = 0; i < answers.size(); i++) {
            SideBySide.Outcome outcome = answers.get(i).outcomes().get("shadow");
            int longest = Math.max(outcome.steps(), answers.get(i % 2 == 0 ? Math.min(i + 1, 6) : i - 1)
                    .outcomes().get("shadow").steps());
            assertThat(outcome.statistics().steps()).isEqualTo(longest);
            assertThat(outcome.statistics().landmarkMass()).isBetween(0.0, 1 + 1e-6);
            assertThat(answers.get(i).outcomes().get("exact").statistics().selectedChunks()).isZero();
        }
    }

    @Test
    void wrongNumbersAreRefused() {
        try (SideBySide sides = new SideBySide(model, caches(), CAPACITY, 2)) {
            List<SideBySide.Question> three = questions().subList(0, 3);
            assertThatThrownBy(() -> sides.answer(three, Set.of(), (done, total) -> {}))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("3 prompts");
            assertThatThrownBy(() -> sides.answer(new int[CAPACITY], 1, Set.of(), (done, total) -> {}))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("641");
            assertThatThrownBy(() -> new SideBySide.Question(new int[0], 1)).isInstanceOf(IllegalArgumentException.class);
            assertThatThrownBy(() -> sides.memoryPlan("other")).hasMessageContaining("other");
            // A refused prompt leaves everything as it was.
            assertThat(sides.answer(three.subList(0, 2), Set.of(), (done, total) -> {})).hasSize(2);
        }
        assertThatThrownBy(() -> new SideBySide(model, Map.of(), CAPACITY)).isInstanceOf(IllegalArgumentException.class);
    }
}
