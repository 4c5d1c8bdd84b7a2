package dev.shadowkv.eval.fidelity;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.Rope;
import dev.shadowkv.ShadowKvCache;
import dev.shadowkv.llm.CacheOptions;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class IndexedLayerTest {
    private static final int QUERY_HEADS = 8;
    private static final int HEADS = 2;
    private static final int DIM = 64;
    private static final int STEPS = 5;
    private static final int TOKENS = 619;

    private final long seed = Long.getLong("shadowkv.test.seed", System.nanoTime());

    private static Device device() {
        Device.Builder builder = Device.builder();
        String[] named = System.getProperty("shadowkv.test.device", "cpu").split(":");
        return named[0].equals("cuda")
                ? builder.cuda(named.length > 1 ? Integer.parseInt(named[1]) : 0).build()
                : builder.threads(2).build();
    }

    /** Keys of a falling spectrum around a common direction, as models have them. */
    private LayerCapture capture() {
        Random random = new Random(seed);
        int width = HEADS * DIM;
        float[] keys = new float[TOKENS * width];
        float[] mean = gaussian(random, width, 1);
        float[][] directions = new float[24][];
        for (int i = 0; i < directions.length; i++) {
            directions[i] = gaussian(random, width, 1);
        }
        for (int token = 0; token < TOKENS; token++) {
            for (int d = 0; d < width; d++) {
                keys[token * width + d] = mean[d] + 0.02f * (float) random.nextGaussian();
            }
            for (int i = 0; i < directions.length; i++) {
                float weight = (float) random.nextGaussian() / (1 + i);
                for (int d = 0; d < width; d++) {
                    keys[token * width + d] += weight * directions[i][d];
                }
            }
        }
        return new LayerCapture(
                0, QUERY_HEADS, HEADS, DIM, TOKENS, STEPS, keys, gaussian(random, keys.length, 1),
                gaussian(random, STEPS * QUERY_HEADS * DIM, 1));
    }

    private static float[] gaussian(Random random, int count, double scale) {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) (scale * random.nextGaussian());
        }
        return values;
    }

    private static CacheOptions options(int rank, int budget, double rerank, boolean tail) {
        return options(rank, budget, rerank, tail, null, null);
    }

    private static CacheOptions options(
            int rank, int budget, double rerank, boolean tail, ElementType values, ElementType coefficients) {
        CacheOptions.Builder builder = CacheOptions.shadow(budget).toBuilder().rank(rank).outliers(3).rerank(rerank).tail(tail);
        Optional.ofNullable(values).ifPresent(builder::valueType);
        Optional.ofNullable(coefficients).ifPresent(builder::coefficientType);
        return builder.build();
    }

    private static ShadowKvCache cache(
            Device device, Rope rope, double rerank, boolean tail, ElementType values, ElementType coefficients) {
        return ShadowKvCache.builder(device)
                .valueType(values)
                .coefficientType(coefficients)
                .layers(1)
                .queryHeads(QUERY_HEADS)
                .keyValueHeads(HEADS)
                .headDim(DIM)
                .rope(rope)
                .rank(20)
                .budget(96)
                .outliers(3)
                .radiusWeight(0.5f)
                .rerank(rerank)
                .tail(tail)
                .memory(MemoryPlan.of(1, TOKENS))
                .build();
    }

    /** What the probe puts together of kernels is what the cache does. */
    @ParameterizedTest
    @CsvSource({"0, true,,", "3, true,,", "0, false,,", "3, false,,", "0, true, F8_E4M3,", "0, true, F12_E4M7,", "3, true, F6_E2M3,",
        "0, true,, I8", "3, true, F6_E2M3, I8"})
    void isWhatTheCacheDoes(double rerank, boolean tail, ElementType values, ElementType coefficients) {
        LayerCapture capture = capture();
        Rope rope = Rope.standard(DIM, 10000);
        int width = HEADS * DIM;
        int sealed = TOKENS - STEPS;
        try (Device device = device();
                IndexedLayer layer = new IndexedLayer(device, rope, capture, options(20, 96, rerank, tail, values, coefficients));
                ShadowKvCache cache = cache(device, rope, rerank, tail, values, coefficients);
                KvSession session = cache.open(TOKENS)) {
            session.append(
                    0, sealed, MemorySegment.ofArray(Arrays.copyOf(capture.keys(), sealed * width)),
                    MemorySegment.ofArray(Arrays.copyOf(capture.values(), sealed * width)));
            session.seal();
            // Both round alike; sums of the attended tokens and of a key's elements may be in another order.
            double epsilon = Math.scalb(1, -23);
            double tolerance = epsilon * (DIM + 96 + 24 + 96) * 5;
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int step = 0; step < STEPS; step++) {
                    float[] output = new float[QUERY_HEADS * DIM];
                    int token = sealed + step;
                    cache.attend(
                            0, batch, row(capture.queries(), step, QUERY_HEADS * DIM), row(capture.keys(), token, width),
                            row(capture.values(), token, width), MemorySegment.ofArray(output));
                    float[] probed = layer.attend(step).output();
                    for (int i = 0; i < output.length; i++) {
                        assertThat((double) probed[i])
                                .as("seed %d, step %d, element %d", seed, step, i)
                                .isCloseTo(output[i], within(device.defaultType() == ElementType.F32 ? tolerance : 5 * Math.scalb(1, -8)));
                    }
                }
            }
        }
    }

    /** With folding too: the cache folds, step by step. */
    @ParameterizedTest
    @CsvSource({"0, true,", "3, true,", "0, false,", "3, false,", "3, true, I8"})
    void foldsWhenTheCacheFolds(double rerank, boolean tail, ElementType coefficients) {
        LayerCapture whole = capture();
        int steps = 219;
        Random random = new Random(seed + 1);
        float[] keys = whole.keys().clone();
        int width = HEADS * DIM;
        // Some generated keys have little of the basis: those chunks stay dense.
        for (int token = 480; token < 504; token++) {
            System.arraycopy(gaussian(random, width, 2), 0, keys, token * width, width);
        }
        LayerCapture capture = new LayerCapture(
                0, QUERY_HEADS, HEADS, DIM, TOKENS, steps, keys, whole.values(), gaussian(random, steps * QUERY_HEADS * DIM, 1));
        Rope rope = Rope.standard(DIM, 10000);
        int sealed = TOKENS - steps;
        int different = 0;
        // When tokens fold does not depend on the device; F32 leaves few near ties.
        try (Device device = Device.cpu(2);
                IndexedLayer layer = new IndexedLayer(device, rope, capture, options(20, 96, rerank, tail, null, coefficients), true);
                ShadowKvCache cache = cache(device, rope, rerank, tail, null, coefficients);
                KvSession session = cache.open(TOKENS)) {
            session.append(
                    0, sealed, MemorySegment.ofArray(Arrays.copyOf(keys, sealed * width)),
                    MemorySegment.ofArray(Arrays.copyOf(capture.values(), sealed * width)));
            session.seal();
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int step = 0; step < steps; step++) {
                    float[] output = new float[QUERY_HEADS * DIM];
                    int token = sealed + step;
                    cache.attend(
                            0, batch, row(capture.queries(), step, QUERY_HEADS * DIM), row(keys, token, width),
                            row(capture.values(), token, width), MemorySegment.ofArray(output));
                    different += AttentionFidelity.outputError(output, layer.attend(step).output()) > 1e-3 ? 1 : 0;
                }
            }
            // The cache projects keys that were rotated and turned back; where two chunks are all but equal, that decides.
            assertThat(different).as("seed %d", seed).isLessThanOrEqualTo(steps / 50);
            for (int step = 0; step < steps; step++) {
                boolean foreign = sealed + step >= 480 && sealed + step < 504;
                assertThat(layer.residual(step) > 0.5).as("step %d, seed %d", step, seed).isEqualTo(foreign);
            }
        }
    }

    private static MemorySegment row(float[] rows, int row, int width) {
        return MemorySegment.ofArray(Arrays.copyOfRange(rows, row * width, (row + 1) * width));
    }

    @Test
    void everythingSelectedIsExact() {
        LayerCapture capture = capture();
        int indexed = ((TOKENS - STEPS) / 8 - 4) * 8;
        List<HeadFidelity> heads;
        try (Device device = Device.cpu(2)) {
            heads = FidelityProbe.measure(device, Rope.standard(DIM, 10000), capture, options(HEADS * DIM, indexed, 0, true));
        }
        assertThat(heads).hasSize(QUERY_HEADS);
        for (HeadFidelity head : heads) {
            assertThat(head.capturedMass()).isCloseTo(1, within(1e-9));
            assertThat(head.overlap()).isEqualTo(1);
            // Keys are rebuilt from all of their directions: logits of some |q||k|/8 <= 40, off by a few roundings each.
            assertThat(head.outputError()).as("seed %d", seed).isLessThan(Math.scalb(1, -23) * 40 * DIM);
        }
    }

    @Test
    void lessIsLess() {
        LayerCapture capture = capture();
        try (Device device = Device.cpu(2)) {
            List<HeadFidelity> little =
                    FidelityProbe.measure(device, Rope.standard(DIM, 10000), capture, options(20, 48, 4, true));
            List<HeadFidelity> more =
                    FidelityProbe.measure(device, Rope.standard(DIM, 10000), capture, options(20, 192, 2, true));
            for (int head = 0; head < QUERY_HEADS; head++) {
                HeadFidelity a = little.get(head);
                HeadFidelity b = more.get(head);
                assertThat(a.capturedMass()).as("seed %d", seed).isLessThan(b.capturedMass());
                assertThat(a.capturedMass()).isLessThanOrEqualTo(a.bestMass() + 1e-12);
            }
            assertThatThrownBy(() -> new IndexedLayer(device, Rope.standard(DIM, 10000), capture, options(20, 608, 0, true)))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("608");
        }
    }
}
