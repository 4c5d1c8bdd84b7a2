package dev.shadowkv.llm.throughput;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.Device;
import dev.shadowkv.llm.TestDevice;
import dev.shadowkv.llm.AdmissionException;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.util.ArrayList;
import java.util.List;
import java.util.OptionalInt;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The measurement on a shape that a CPU can run: batches within limits, the share of residents that was asked for. */
class ThroughputBenchmarkTest {
    private static final ModelConfig SMALL = ModelShapes.withLayers(ModelShapes.of("needle-32k"), 2);
    private static final long MEBI = 1 << 20;
    private static final CacheOptions SHADOW = CacheOptions.shadow(256).toBuilder().rank(40).rerank(0).build();

    private static Device device;

    @BeforeAll
    static void open() {
        device = TestDevice.open();
    }

    @AfterAll
    static void close() {
        device.close();
    }

    private static ThroughputSettings settings(long deviceLimit, long hostLimit, OptionalInt batch, double resident) {
        return new ThroughputSettings(SMALL, 2, 3001, deviceLimit, hostLimit, batch, 8, resident, OptionalInt.of(32), 5);
    }

    private static ThroughputResult run(ThroughputSettings settings, CacheOptions options, List<String> stages) {
        try (ThroughputBenchmark benchmark = new ThroughputBenchmark(device, settings, (what, done, total) -> {
            assertThat(done).isBetween(1L, total);
            if (stages.isEmpty() || !stages.getLast().equals(what)) {
                stages.add(what);
            }
        })) {
            return benchmark.run(options);
        }
    }

    @ParameterizedTest
    @CsvSource({"0.45", "0.7"})
    void reachesTheShareOfResidents(double share) {
        ThroughputSettings settings = settings(400 * MEBI, 400 * MEBI, OptionalInt.of(3), share);
        List<String> stages = new ArrayList<>();
        ThroughputResult result = run(settings, SHADOW, stages);
        assertThat(stages).containsExactly("filling contexts", "finding the drift", "timing steps");
        // Steps select a few thousand chunks; the drift was found from as few.
        assertThat(result.resident().getAsDouble()).isCloseTo(share, within(0.06));
        assertThat(result.drift()).isPositive();
        long chunkBytes = SHADOW.valueTypeOn(device).bytes(8L * SMALL.headDim());
        double selected = 3.0 * 2 * SMALL.keyValueHeads() * 32;
        assertThat(result.linkBytesPerStep())
                .isCloseTo((1 - result.resident().getAsDouble()) * selected * chunkBytes, within(1.0));
        assertThat(result.tokensPerSecond()).isCloseTo(3000 / result.stepMilliseconds(), within(1e-6));
        assertThat(result.medianMilliseconds()).isBetween(0.0, result.slowestMilliseconds());
        assertThat(result.attentionMilliseconds()).isPositive();
        assertThat(result.exactLimit()).isEmpty();
    }

    @Test
    void takesTheLargestBatchThatFits() {
        long weights = Model.weightBytes(SMALL, device.defaultType());
        for (CacheOptions options : List.of(CacheOptions.dense(), SHADOW)) {
            ThroughputSettings settings = settings(weights + 200 * MEBI, 1 << 30, OptionalInt.empty(), 0.6);
            SessionCount planned = ThroughputBenchmark.plan(device, settings, options);
            assertThat(planned.sessions()).isPositive();
            assertThat(planned.device()).isLessThanOrEqualTo(settings.deviceLimit());
            // One byte less than it takes, and it is one session less.
            ThroughputSettings tight = settings(planned.device() - 1, 1 << 30, OptionalInt.empty(), 0.6);
            assertThat(ThroughputBenchmark.plan(device, tight, options).sessions()).isEqualTo(planned.sessions() - 1);
            ThroughputSettings exact = settings(planned.device(), 1 << 30, OptionalInt.empty(), 0.6);
            assertThat(ThroughputBenchmark.plan(device, exact, options).sessions()).isEqualTo(planned.sessions());
        }
    }

    @Test
    void measuresExactAttentionAndItsLimit() {
        ThroughputResult result =
                run(settings(400 * MEBI, 1 << 30, OptionalInt.of(2), 0.6), CacheOptions.dense(), new ArrayList<>());
        assertThat(result.run().sessions()).isEqualTo(2);
        assertThat(result.resident()).isEmpty();
        assertThat(result.linkBytesPerStep()).isZero();
        assertThat(result.hostBytes()).isZero();
        assertThat(result.exactLimit().getAsDouble())
                .isCloseTo(2000 / result.attentionMilliseconds(), within(1e-6));
        // Two sessions of two layers: keys and values of the context and of the steps so far.
        double perToken = 2.0 * 2 * 2 * SMALL.keyValueWidth() * device.defaultType().bytes();
        assertThat(result.cacheBytesPerStep()).isBetween(3001 * perToken, (3001 + ThroughputSettings.OTHER_STEPS + 8) * perToken);
    }

    @Test
    void runsFewerSessionsWhereTheHostIsSmall() {
        ThroughputSettings settings = settings(300 * MEBI, 30 * MEBI, OptionalInt.empty(), 0.6);
        ThroughputResult result = run(settings, SHADOW, new ArrayList<>());
        assertThat(result.run().sessions()).isPositive().isLessThan(result.planned().sessions());
        assertThat(result.hostBytes()).isBetween(1L, 30 * MEBI);
    }

    @Test
    void weightsServeSeveralMeasurements() {
        ThroughputSettings settings = settings(400 * MEBI, 400 * MEBI, OptionalInt.of(2), 0.6);
        ThroughputSettings longer =
                new ThroughputSettings(SMALL, 2, 4500, 400 * MEBI, 400 * MEBI, OptionalInt.of(1), 2, 0.6, OptionalInt.of(32), 5);
        ThroughputSettings fewer =
                new ThroughputSettings(SMALL, 1, 3001, 400 * MEBI, 400 * MEBI, OptionalInt.of(1), 2, 0.6, OptionalInt.of(32), 5);
        try (ThroughputBenchmark first = new ThroughputBenchmark(device, settings, (what, done, total) -> {})) {
            long weights = device.allocatedBytes();
            ThroughputBenchmark second = first.with(longer);
            assertThat(second.run(SHADOW).context()).isEqualTo(4500);
            second.close();
            assertThat(device.allocatedBytes()).as("bytes while the weights are there").isEqualTo(weights);
            assertThat(first.run(SHADOW).run().sessions()).isEqualTo(2);
            assertThatThrownBy(() -> first.with(fewer)).isInstanceOf(IllegalArgumentException.class);
        }
    }

    /** Of a batch's foldings each step takes its share, whatever steps are timed. */
    @Test
    void sessionsDoNotFoldTogether() {
        for (int count : new int[] {1, 4, 28, 64}) {
            int[] decoded = java.util.stream.IntStream.range(0, count)
                    .map(i -> ThroughputBenchmark.decodedBefore(i, count, 124928)).toArray();
            assertThat(decoded[0]).isZero();
            for (int i = 1; i < count; i++) {
                assertThat(decoded[i] - decoded[i - 1]).isBetween(64 / count, (64 + count - 1) / count);
            }
            assertThat(decoded[count - 1]).isLessThan(64);
        }
        assertThat(ThroughputBenchmark.decodedBefore(3, 4, 20)).isEqualTo(10);
    }

    @Test
    void refusesWhatDoesNotFit() {
        ThroughputSettings settings = settings(300 * MEBI, 30 * MEBI, OptionalInt.of(500), 0.6);
        try (ThroughputBenchmark benchmark = new ThroughputBenchmark(device, settings, (what, done, total) -> {})) {
            assertThatThrownBy(() -> benchmark.run(SHADOW))
                    .isInstanceOf(AdmissionException.class)
                    .hasMessageContaining("500 sessions")
                    .hasMessageContaining(Long.toString(settings.deviceLimit()));
        }
    }

    @Test
    void shapesAreThePublishedOnes() {
        // Parameters of the published checkpoints, in billions, as their cards round them.
        assertThat(Model.weightBytes(ModelShapes.of("llama-3.1-8b"), dev.shadowkv.ElementType.BF16) / 2e9).isCloseTo(8.03, within(0.005));
        assertThat(Model.weightBytes(ModelShapes.of("yi-9b-200k"), dev.shadowkv.ElementType.BF16) / 2e9).isCloseTo(8.83, within(0.005));
        assertThat(Model.weightBytes(ModelShapes.of("qwen2-7b-128k"), dev.shadowkv.ElementType.BF16) / 2e9).isCloseTo(7.62, within(0.005));
        assertThat(Model.weightBytes(ModelShapes.of("phi-3-mini-128k"), dev.shadowkv.ElementType.BF16) / 2e9).isCloseTo(3.82, within(0.005));
        assertThat(Model.weightBytes(ModelShapes.of("glm-4-9b-1m"), dev.shadowkv.ElementType.BF16) / 2e9).isCloseTo(9.48, within(0.005));
        assertThatThrownBy(() -> ModelShapes.of("gpt-2")).hasMessageContaining("gpt-2").hasMessageContaining("llama-3.1-8b");
        for (String name : ModelShapes.names()) {
            assertThat(ModelShapes.withLayers(ModelShapes.of(name), 1).layers()).isEqualTo(1);
        }
    }
}
