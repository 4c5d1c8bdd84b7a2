package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.Device;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.kernels.TransformerKernels;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Steps of one batch whose sessions come and go, against steps of batches made anew and computed call by call: bit by
 * bit. On a GPU the one batch replays a single recording.
 */
class StepRecordingTest {
    private static final int VOCABULARY = 320;
    private static final int ROWS = 3;
    private static final int CAPACITY = 700;

    /** Rows' sessions, and for how many steps; longer than a recent window, so that it is folded between replays. */
    private static final int[][] SEATS = {{0, -1, -1}, {0, 1, -1}, {0, 1, 2}, {-1, 1, 2}, {2, 1, -1}, {2, 0, 1}};

    private static final int STEPS = 21;

    @ParameterizedTest
    @ValueSource(strings = {"dense", "shadow"})
    void replaysAsItWouldCall(String kind) {
        CacheOptions options = kind.equals("dense") ? CacheOptions.dense() : CacheOptions.shadow(128).toBuilder().rank(32).build();
        SplittableRandom random = new SplittableRandom(11);
        try (Device device = TestDevice.open();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("llama-3.1"));
                Model model = Model.load(checkpoint, device);
                KvCache cache = options.build(
                        device, model.config(), MemoryPlan.of(6, CAPACITY).withStaging(CAPACITY, 1), CAPACITY);
                Transformer transformer = new Transformer(model, ROWS);
                Transformer direct = new Transformer(model, ROWS);
                KvBatch batch = cache.batch(ROWS)) {
            // Waiting for the device around attention is only possible call by call.
            direct.timeAttention(true);
            KvSession[] sessions = new KvSession[3];
            KvSession[] twins = new KvSession[3];
            for (int i = 0; i < sessions.length; i++) {
                sessions[i] = cache.open(CAPACITY);
                int[] prompt = random.ints(50 + 170 * i, 0, VOCABULARY).toArray();
                transformer.prefill(sessions[i], prompt, prompt.length - 1, LogitsSink.NONE, PrefillListener.NONE);
                twins[i] = sessions[i].fork();
            }
            for (int[] seats : SEATS) {
                sit(batch, seats, sessions);
                for (int step = 0; step < STEPS; step++) {
                    int[] ids = random.ints(ROWS, 0, VOCABULARY).toArray();
                    transformer.decode(batch, ids, ROWS);
                    try (KvBatch fresh = cache.batch(ROWS)) {
                        sit(fresh, seats, twins);
                        direct.decode(fresh, ids, ROWS);
                    }
                    assertSameRows(seats, transformer.logits(ROWS), direct.logits(ROWS));
                }
            }
            assertThat(transformer.recordedSteps()).isEqualTo(TestDevice.CUDA ? 1 : 0);
            assertThat(direct.recordedSteps()).isZero();
        }
    }

    private static void sit(KvBatch batch, int[] seats, KvSession[] sessions) {
        for (int row = 0; row < ROWS; row++) {
            batch.set(row, null);
        }
        for (int row = 0; row < ROWS; row++) {
            batch.set(row, seats[row] < 0 ? null : sessions[seats[row]]);
        }
    }

    private static void assertSameRows(int[] seats, MemorySegment replayed, MemorySegment called) {
        for (int row = 0; row < ROWS; row++) {
            if (seats[row] >= 0) {
                long bytes = 4L * VOCABULARY;
                MemorySegment mine = replayed.asSlice(row * bytes, bytes);
                assertThat(mine.mismatch(called.asSlice(row * bytes, bytes)))
                        .as("session " + seats[row] + " in row " + row).isEqualTo(-1);
                assertThat(mine.getAtIndex(ValueLayout.JAVA_FLOAT, 0)).isNotNaN();
            }
        }
    }

    /** Queries given from outside take the place of the model's own, recorded or not, and are given back. */
    @Test
    void queriesCanBeReplaced() {
        try (Device device = TestDevice.open();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("llama-3.1"));
                Model model = Model.load(checkpoint, device);
                KvCache cache = CacheOptions.dense()
                        .build(device, model.config(), MemoryPlan.of(3, 64).withStaging(64, 1), 64);
                Transformer given = new Transformer(model, 1);
                Transformer direct = new Transformer(model, 1);
                Transformer own = new Transformer(model, 1)) {
            int[] prompt = new SplittableRandom(3).ints(20, 0, VOCABULARY).toArray();
            KvSession session = cache.open(64);
            own.prefill(session, prompt, 19, LogitsSink.NONE, PrefillListener.NONE);
            long count = (long) model.config().layers() * model.config().queryWidth();
            var queries = device.allocate(count * model.type().bytes());
            new TransformerKernels(device).randomFill(queries, model.type(), count, 9, 0, 1);
            given.replaceQueries(queries);
            direct.replaceQueries(queries);
            direct.timeAttention(true);
            int[] seats = {0, -1, -1};
            try (KvBatch first = cache.batch(List.of(session));
                    KvBatch second = cache.batch(List.of(session.fork()));
                    KvBatch third = cache.batch(List.of(session.fork()))) {
                for (int step = 0; step < 8; step++) {
                    if (step == 5) {
                        given.replaceQueries(null);
                        direct.replaceQueries(null);
                    }
                    int[] ids = {step};
                    given.decode(first, ids, 1);
                    direct.decode(second, ids, 1);
                    own.decode(third, ids, 1);
                    assertSameRows(seats, given.logits(1), direct.logits(1));
                    assertThat(given.logits(1).mismatch(own.logits(1))).as("step " + step).isNotEqualTo(-1);
                }
                // Without their own queries so far, sessions hold other keys; alone together again, the same.
                session.truncate(20);
                second.sessions().getFirst().truncate(20);
                third.sessions().getFirst().truncate(20);
                for (int step = 0; step < 3; step++) {
                    given.decode(first, new int[] {step}, 1);
                    own.decode(third, new int[] {step}, 1);
                    assertSameRows(seats, given.logits(1), own.logits(1));
                }
            }
        }
    }
}
