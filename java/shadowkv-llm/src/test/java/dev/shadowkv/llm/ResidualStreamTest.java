package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.Device;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.ResidualStream.Block;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A residual stream in host memory gives what one on the device gives, bit by bit. */
class ResidualStreamTest {
    private static final int VOCABULARY = 320;
    private static final int BLOCK = 16;
    private static final int CAPACITY = 700;

    @ParameterizedTest
    @ValueSource(strings = {"dense", "shadow"})
    void isTheSameOnTheHost(String kind) {
        CacheOptions options = kind.equals("dense") ? CacheOptions.dense() : CacheOptions.shadow(128).toBuilder().rank(32).build();
        SplittableRandom random = new SplittableRandom();
        try (Device device = TestDevice.open();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("llama-3.1"));
                Model model = Model.load(checkpoint, device);
                KvCache cache = options.build(
                        device, model.config(), MemoryPlan.of(2, CAPACITY).withStaging(CAPACITY, 1), CAPACITY);
                Transformer onDevice = new Transformer(model, 1, BLOCK, Long.MAX_VALUE);
                Transformer onHost = new Transformer(model, 1, BLOCK, 0)) {
            // Up to a block it stays on the device; then the first longer ones, ragged ones, and shorter after longer.
            for (int length : new int[] {5, 16, 17, 32, 33, 401, 47}) {
                int[] ids = random.ints(length, 0, VOCABULARY).toArray();
                for (int first : new int[] {0, Math.min(3, length - 1), length / 2, length - 1}) {
                    assertThat(logits(cache, onHost, ids, first)).as(length + " tokens, logits from " + first)
                            .isEqualTo(logits(cache, onDevice, ids, first));
                }
            }
            // On either device the stream is of F32.
            long rows = device.pinnedBytes() - cache.memoryPlan().pinnedBytes();
            assertThat(rows).isBetween(401L * 4 * model.config().hiddenSize(), 401L * 4 * model.config().hiddenSize() + 64);
        }
    }

    /** Logits of the prompt's rows and of a step after it. */
    private static float[] logits(KvCache cache, Transformer transformer, int[] ids, int first) {
        float[] all = new float[(ids.length - first + 1) * VOCABULARY];
        try (KvSession session = cache.open(CAPACITY)) {
            transformer.prefill(session, ids, first, (at, rows, logits) -> copy(logits, all, (int) (at - first)), PrefillListener.NONE);
            try (var batch = cache.batch(List.of(session))) {
                transformer.decode(batch, new int[] {7}, 1);
                copy(transformer.logits(1), all, ids.length - first);
            }
        }
        assertThat(all).doesNotContain(Float.NaN);
        return all;
    }

    private static void copy(MemorySegment logits, float[] all, int row) {
        MemorySegment.copy(logits, ValueLayout.JAVA_FLOAT, 0, all, row * VOCABULARY, (int) (logits.byteSize() / 4));
    }

    /** Every layer sees every row once, and no block is fetched before it was given back. */
    @Test
    void blocksCoverThePromptInEveryLayer() {
        for (int tokens : new int[] {17, 32, 100}) {
            for (int first : new int[] {0, 3, 16, tokens - 1}) {
                List<Block> blocks = ResidualStream.blocks(tokens, 3, BLOCK, first);
                int[][] seen = new int[3][tokens];
                for (int i = 0; i < blocks.size(); i++) {
                    Block now = blocks.get(i);
                    assertThat(now.rows()).isBetween(1, BLOCK);
                    for (int row = now.first(); row < now.first() + now.rows(); row++) {
                        seen[now.layer()][row]++;
                        assertThat(now.continued()).isEqualTo(now.layer() < 2 || row >= first);
                    }
                    if (i > 0) {
                        Block before = blocks.get(i - 1);
                        assertThat(now.first() < before.first() + before.rows() && before.first() < now.first() + now.rows())
                                .as(before + " and " + now + " share rows").isFalse();
                    }
                }
                assertThat(Arrays.stream(seen).flatMapToInt(Arrays::stream)).allMatch(times -> times == 1);
            }
        }
    }
}
