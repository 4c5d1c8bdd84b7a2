package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.shadowkv.Device;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.sampling.SamplingOptions;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Timeout(60)
class EngineTest {
    private static final int VOCABULARY = 320;

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

    private static Engine engine(CacheOptions cache, int sessions, int capacity) {
        return Engine.builder(model).cache(cache).sessions(sessions).capacity(capacity).build();
    }

    private static int[] prompt(int length, long seed) {
        return new SplittableRandom(seed).ints(length, 0, VOCABULARY).toArray();
    }

    private static GenerationRequest sampled(int length, int newTokens, long seed) {
        return new GenerationRequest(prompt(length, seed), newTokens, Set.of(), new SamplingOptions(0.8, 40, 0.95, seed));
    }

    /** Selects from its prompts, folds what it generates. */
    private static CacheOptions cache(String kind) {
        return kind.equals("dense") ? CacheOptions.dense() : CacheOptions.shadow(64).toBuilder().rank(32).build();
    }

    @ParameterizedTest
    @ValueSource(strings = {"dense", "shadow"})
    void answersDoNotDependOnCompany(String kind) {
        List<GenerationRequest> requests = new ArrayList<>();
        for (int i = 0; i < 9; i++) {
            requests.add(sampled(3 + 41 * i, 5 + 13 * (i % 4), 100 + i));
        }
        List<int[]> together = new ArrayList<>();
        try (Engine engine = engine(cache(kind), 3, 512)) {
            List<Generation> running = requests.stream().map(r -> engine.submit(r, TokenListener.NONE)).toList();
            running.forEach(generation -> together.add(generation.join().ids()));
        }
        try (Engine engine = engine(cache(kind), 3, 512)) {
            for (int i = requests.size() - 1; i >= 0; i--) {
                Completion alone = engine.submit(requests.get(i), TokenListener.NONE).join();
                assertThat(alone.reason()).isEqualTo(Completion.Reason.LENGTH);
                assertThat(alone.ids()).as("request " + i).containsExactly(together.get(i));
            }
        }
    }

    @Test
    void endsAtATokenThatEnds() {
        GenerationRequest free = GenerationRequest.of(prompt(50, 1), 20);
        try (Engine engine = engine(CacheOptions.dense(), 2, 128)) {
            int[] all = engine.submit(free, TokenListener.NONE).join().ids();
            int end = all[7];
            int first = IntStream.range(0, all.length).filter(i -> all[i] == end).findFirst().orElseThrow();
            GenerationRequest ending =
                    new GenerationRequest(free.ids(), 20, Set.of(end), SamplingOptions.greedy());
            Completion completion = engine.submit(ending, TokenListener.NONE).join();
            assertThat(completion.reason()).isEqualTo(Completion.Reason.END);
            assertThat(completion.ids()).containsExactly(java.util.Arrays.copyOf(all, first));
        }
    }

    @Test
    void refusesWhatNeverFits() {
        try (Engine engine = engine(CacheOptions.dense(), 1, 64)) {
            assertThatThrownBy(() -> engine.submit(GenerationRequest.of(prompt(60, 1), 5), TokenListener.NONE))
                    .isInstanceOf(AdmissionException.class)
                    .hasMessageContaining("60")
                    .hasMessageContaining("64");
            int[] wrong = {1, VOCABULARY};
            assertThatThrownBy(() -> engine.submit(GenerationRequest.of(wrong, 5), TokenListener.NONE))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("320");
        }
    }

    @Test
    void refusesSessionsThatMemoryCannotHold() {
        for (CacheOptions options : List.of(CacheOptions.dense(), CacheOptions.shadow(2048).toBuilder().rank(32).build())) {
            assertThatThrownBy(() -> engine(options, 1000, 100_000_000))
                    .isInstanceOf(AdmissionException.class)
                    .hasMessageContaining("1000 sessions of 100000000 tokens")
                    .hasMessageContaining("free");
        }
        // Nothing is left behind: what fits is still served.
        try (Engine engine = engine(CacheOptions.dense(), 1, 64)) {
            assertThat(engine.submit(GenerationRequest.of(prompt(10, 1), 5), TokenListener.NONE).join().ids()).hasSize(5);
        }
    }

    @Test
    void decidesForTheCacheThatSuitsTheCapacity() {
        CacheOptions auto = CacheOptions.auto(64).toBuilder().rank(32).rerank(0).tail(true).build();
        try (Engine shorter = engine(auto, 1, 4 * 64); Engine longer = engine(auto, 1, 4 * 64 + 1)) {
            assertThat(shorter.memoryPlan().sessionPinnedBytes()).isZero();
            assertThat(longer.memoryPlan().sessionPinnedBytes()).isPositive();
            for (Engine engine : List.of(shorter, longer)) {
                assertThat(engine.submit(GenerationRequest.of(prompt(200, 1), 9), TokenListener.NONE).join().ids()).hasSize(9);
            }
            // The counters are complete when the thread has ended.
            shorter.close();
            longer.close();
            assertThat(shorter.statistics().selectedChunks()).isZero();
            assertThat(longer.statistics().selectedChunks()).isPositive();
        }
    }

    @Test
    void aSeedIsTheRequestsOwn() {
        GenerationRequest first = sampled(30, 24, 7);
        GenerationRequest otherSeed = new GenerationRequest(first.ids(), 24, Set.of(), new SamplingOptions(0.8, 40, 0.95, 8));
        try (Engine engine = engine(CacheOptions.dense(), 3, 128)) {
            List<Generation> running = List.of(
                    engine.submit(first, TokenListener.NONE),
                    engine.submit(otherSeed, TokenListener.NONE),
                    engine.submit(first, TokenListener.NONE));
            int[] once = running.get(0).join().ids();
            assertThat(running.get(2).join().ids()).containsExactly(once);
            assertThat(running.get(1).join().ids()).isNotEqualTo(once);
        }
    }

    @Test
    void cancelsWhatWaitsAndWhatIsBeingRead() throws InterruptedException {
        try (Engine engine = engine(CacheOptions.dense(), 1, 40_000)) {
            CountDownLatch reading = new CountDownLatch(1);
            Generation prompt = engine.submit(GenerationRequest.of(prompt(30_000, 1), 5), new TokenListener() {
                @Override
                public void onToken(int index, int id) {}

                @Override
                public void onPrefill(long done, long total) {
                    reading.countDown();
                }
            });
            Generation waiting = engine.submit(GenerationRequest.of(prompt(10, 1), 5), TokenListener.NONE);
            waiting.cancel();
            assertThat(reading.await(30, TimeUnit.SECONDS)).isTrue();
            prompt.cancel();
            assertThat(prompt.join().reason()).isEqualTo(Completion.Reason.CANCELLED);
            assertThat(prompt.join().ids()).isEmpty();
            assertThat(waiting.join().reason()).isEqualTo(Completion.Reason.CANCELLED);
            assertThat(engine.submit(GenerationRequest.of(prompt(10, 1), 5), TokenListener.NONE).join().ids()).hasSize(5);
        }
    }

    @Test
    void cancelsAndGoesOn() throws InterruptedException {
        try (Engine engine = engine(CacheOptions.dense(), 2, 40_000)) {
            CountDownLatch begun = new CountDownLatch(1);
            Generation endless = engine.submit(GenerationRequest.of(prompt(10, 1), 30_000), (index, id) -> begun.countDown());
            assertThat(begun.await(30, TimeUnit.SECONDS)).isTrue();
            Generation other = engine.submit(GenerationRequest.of(prompt(30, 2), 5), TokenListener.NONE);
            assertThat(other.join().ids()).hasSize(5);
            endless.cancel();
            assertThat(endless.join().reason()).isEqualTo(Completion.Reason.CANCELLED);
            assertThat(engine.submit(GenerationRequest.of(prompt(30, 2), 5), TokenListener.NONE).join().ids())
                    .containsExactly(other.join().ids());
        }
    }

    @Test
    void aListenerThatFailsEndsItsRequestAlone() {
        try (Engine engine = engine(CacheOptions.dense(), 2, 256)) {
            Generation bad = engine.submit(GenerationRequest.of(prompt(10, 1), 50), (index, id) -> {
                if (index == 3) {
                    throw new IllegalStateException("full");
                }
            });
            Generation good = engine.submit(GenerationRequest.of(prompt(12, 2), 50), TokenListener.NONE);
            assertThat(good.join().ids()).hasSize(50);
            assertThatThrownBy(bad::join).hasCauseInstanceOf(IllegalStateException.class).hasMessageContaining("full");
        }
    }

    @Test
    void closesWithWorkUnderWay() {
        Engine engine = engine(CacheOptions.dense(), 1, 40_000);
        Generation running = engine.submit(GenerationRequest.of(prompt(10, 1), 30_000), TokenListener.NONE);
        Generation waiting = engine.submit(GenerationRequest.of(prompt(10, 1), 5), TokenListener.NONE);
        engine.close();
        engine.close();
        assertThat(running.join().reason()).isEqualTo(Completion.Reason.CANCELLED);
        assertThat(waiting.join().reason()).isEqualTo(Completion.Reason.CANCELLED);
        assertThat(Thread.getAllStackTraces().keySet()).noneMatch(t -> t.getName().startsWith("shadowkv-engine"));
        assertThatThrownBy(() -> engine.submit(GenerationRequest.of(prompt(10, 1), 5), TokenListener.NONE))
                .isInstanceOf(IllegalStateException.class);
    }

    @Test
    void publishesTokensAsTheyAreAskedFor() throws InterruptedException {
        GenerationRequest request = sampled(40, 30, 5);
        try (Engine engine = engine(CacheOptions.dense(), 1, 128)) {
            List<Integer> received = new ArrayList<>();
            CountDownLatch done = new CountDownLatch(1);
            engine.publisher(request).subscribe(new Flow.Subscriber<>() {
                private Flow.Subscription subscription;

                @Override
                public void onSubscribe(Flow.Subscription given) {
                    subscription = given;
                    given.request(2);
                }

                @Override
                public void onNext(Integer id) {
                    received.add(id);
                    if (received.size() % 2 == 0) {
                        subscription.request(2);
                    }
                }

                @Override
                public void onError(Throwable thrown) {
                    done.countDown();
                }

                @Override
                public void onComplete() {
                    received.add(-1);
                    done.countDown();
                }
            });
            assertThat(done.await(30, TimeUnit.SECONDS)).isTrue();
            int[] expected = engine.submit(request, TokenListener.NONE).join().ids();
            assertThat(received).hasSize(31).endsWith(-1);
            assertThat(received.subList(0, 30)).containsExactlyElementsOf(IntStream.of(expected).boxed().toList());
        }
    }
}
