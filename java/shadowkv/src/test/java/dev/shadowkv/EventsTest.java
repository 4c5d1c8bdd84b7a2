package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.Comparator;
import java.util.List;
import java.util.Random;

import jdk.jfr.Recording;
import jdk.jfr.consumer.RecordedEvent;
import jdk.jfr.consumer.RecordingFile;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What a flight recording says of a session's life. */
class EventsTest {

    private static final Random random = TestDevice.random(EventsTest.class);

    @Test
    void aRecordingTellsOfAppendSealStepAndFetch(@TempDir Path folder) throws Exception {
        Tokens tokens = CacheRunner.tokens(random, 420, 24);
        Path file = folder.resolve("recording.jfr");
        try (Recording recording = new Recording(); Device device = TestDevice.open()) {
            for (String name : List.of("Append", "Seal", "DecodeStep", "Fetch")) {
                recording.enable("dev.shadowkv." + name);
            }
            recording.start();
            try (ShadowKvCache cache = CacheRunner.shape(ShadowKvCache.builder(device), 2, 1, 500).rank(32).budget(64)
                    .slots(10).build(); KvSession session = cache.open(500)) {
                CacheRunner.append(session, tokens, 0, 400, null);
                session.seal();
                CacheRunner.decode(session, tokens, 400, 420);
                // As around replays of a recorded step: its end is noticed when the next one begins.
                try (KvBatch batch = cache.batch(List.of(session))) {
                    batch.advance();
                    batch.advance();
                }
            }
            recording.stop();
            recording.dump(file);
        }
        List<RecordedEvent> events = RecordingFile.readAllEvents(file);
        List<RecordedEvent> seals = named(events, "Seal");
        assertThat(seals).hasSize(2);
        assertThat(seals.getFirst().getLong("tokens")).isEqualTo(400);
        assertThat(seals.getFirst().getBoolean("exact")).isFalse();
        assertThat(seals.getFirst().getFloat("energy")).isBetween(0.9f, 1.001f);
        assertThat(named(events, "Append").stream().mapToLong(e -> e.getLong("tokens")).sum()).isEqualTo(800);
        List<RecordedEvent> steps = named(events, "DecodeStep");
        assertThat(steps).hasSize(21);
        assertThat(steps.getLast().getLong("tokens")).isEqualTo(421);
        assertThat(steps.getLast().getDuration()).isPositive();
        List<RecordedEvent> fetches = named(events, "Fetch");
        assertThat(fetches).hasSize(21);
        // Two layers, two heads, eight chunks each; the first step finds nothing resident.
        assertThat(fetches.getFirst().getLong("selectedChunks")).isEqualTo(32);
        assertThat(fetches.getFirst().getLong("fetchedChunks")).isEqualTo(32);
        assertThat(fetches.getFirst().getDouble("hitRate")).isZero();
        assertThat(fetches.getFirst().getLong("bytes")).isEqualTo(32L * 8 * 64 * (TestDevice.cuda() ? 2 : 4));
        assertThat(fetches.get(19).getLong("fetchedChunks")).isLessThan(32);
        assertThat(fetches.getLast().getLong("selectedChunks")).isZero();
    }

    @Test
    void aRecordingTellsWhatFoldingMisses(@TempDir Path folder) throws Exception {
        // Keys of rank below the cache's, and from token 448 on of every direction: foreign to the basis.
        Tokens tokens = CacheRunner.tokens(random, 600, 24);
        Tokens foreign = CacheRunner.tokens(random, 600, 128);
        System.arraycopy(foreign.keys, 448 * foreign.keys.length / 600, tokens.keys, 448 * tokens.keys.length / 600,
                152 * tokens.keys.length / 600);
        Path file = folder.resolve("recording.jfr");
        try (Recording recording = new Recording(); Device device = TestDevice.open()) {
            recording.enable("dev.shadowkv.Fold");
            recording.start();
            try (ShadowKvCache cache = CacheRunner.shape(ShadowKvCache.builder(device), 2, 1, 700).rank(32).budget(64)
                    .build(); KvSession session = cache.open(700)) {
                CacheRunner.append(session, tokens, 0, 400, null);
                session.seal();
                CacheRunner.decode(session, tokens, 400, 600);
            }
            recording.stop();
            recording.dump(file);
        }
        List<RecordedEvent> folds = named(RecordingFile.readAllEvents(file), "Fold");
        // The window of 96 tokens begins at 368 and gives 64 away before token 464, 528 and 592.
        assertThat(folds).hasSize(2 * 3);
        for (int i = 0; i < folds.size(); i++) {
            RecordedEvent fold = folds.get(i);
            long first = 368 + 64 * (i / 2);
            assertThat(fold.getInt("layer")).isEqualTo(i % 2);
            assertThat(fold.getLong("first")).isEqualTo(first);
            assertThat(fold.getLong("tokens")).isEqualTo(64);
            if (first + 64 <= 448) {
                assertThat(fold.getFloat("residual")).isBetween(0f, 0.1f);
                assertThat(fold.getInt("dense")).isZero();
            } else if (first >= 448) {
                assertThat(fold.getFloat("residual")).isGreaterThan(0.5f);
                assertThat(fold.getInt("dense")).isPositive();
            }
        }
    }

    private static List<RecordedEvent> named(List<RecordedEvent> events, String name) {
        // A recording is in the order in which buffers were written.
        return events.stream().filter(e -> e.getEventType().getName().equals("dev.shadowkv." + name))
                .sorted(Comparator.comparing(RecordedEvent::getEndTime)).toList();
    }
}
