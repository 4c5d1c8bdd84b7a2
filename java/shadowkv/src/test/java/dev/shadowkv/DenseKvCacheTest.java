package dev.shadowkv;

import static dev.shadowkv.CacheRunner.HEAD_DIM;
import static dev.shadowkv.CacheRunner.KEY_VALUE_HEADS;
import static dev.shadowkv.CacheRunner.QUERY_HEADS;
import static dev.shadowkv.CacheRunner.ROPE;
import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The dense cache against exact attention in double precision. */
class DenseKvCacheTest {

    private static final Random random = TestDevice.random(DenseKvCacheTest.class);

    private Device device;
    private DenseKvCache cache;

    @BeforeEach
    void open() {
        device = TestDevice.open();
        cache = CacheRunner.shape(DenseKvCache.builder(device), 2, 4, 700).build();
    }

    @AfterEach
    void close() {
        device.close();
    }

    private double tolerance(Tokens tokens) {
        double keys = 0;
        double queries = 0;
        double values = 0;
        for (int t = 0; t < tokens.count; t++) {
            for (int h = 0; h < QUERY_HEADS; h++) {
                queries = Math.max(queries, Oracle.norm(Oracle.head(tokens.queries, tokens.queryWidth, t, h,
                        HEAD_DIM)));
            }
            for (int h = 0; h < KEY_VALUE_HEADS; h++) {
                keys = Math.max(keys, Oracle.norm(Oracle.head(tokens.keys, tokens.keyWidth, t, h, HEAD_DIM)));
            }
        }
        for (float v : tokens.values) {
            values = Math.max(values, Math.abs(v));
        }
        return Compare.attentionTolerance(device.defaultType(), HEAD_DIM, queries, keys, values);
    }

    private static DenseOracle oracle(Tokens tokens, int count) {
        DenseOracle oracle = new DenseOracle(ROPE, QUERY_HEADS, KEY_VALUE_HEADS, HEAD_DIM);
        for (int t = 0; t < count; t++) {
            oracle.add(tokens, t);
        }
        return oracle;
    }

    @Test
    void prefillAndDecodeAreExact() {
        int prompt = 201 + random.nextInt(100);
        Tokens tokens = CacheRunner.tokens(random, prompt + 20, 24);
        DenseOracle oracle = oracle(tokens, tokens.count);
        try (KvSession session = cache.open(prompt + 20)) {
            float[] output = new float[prompt * tokens.queryWidth];
            for (int layer = 0; layer < 2; layer++) {
                int cut = 1 + random.nextInt(prompt - 1);
                float[] first = new float[cut * tokens.queryWidth];
                float[] second = new float[(prompt - cut) * tokens.queryWidth];
                session.prefill(layer, cut, tokens.queries(0, cut), tokens.keys(0, cut), tokens.values(0, cut),
                        MemorySegment.ofArray(first));
                session.prefill(layer, prompt - cut, tokens.queries(cut, prompt), tokens.keys(cut, prompt),
                        tokens.values(cut, prompt), MemorySegment.ofArray(second));
                System.arraycopy(first, 0, output, 0, first.length);
                System.arraycopy(second, 0, output, first.length, second.length);
            }
            session.seal();
            for (int t = 0; t < prompt; t += 7) {
                Compare.close(oracle.attend(tokens, t, t + 1), output, t * tokens.queryWidth, tolerance(tokens),
                        "prefill of token " + t);
            }
            float[][] decoded = CacheRunner.decode(session, tokens, prompt, prompt + 20);
            for (int i = 0; i < 20; i++) {
                Compare.close(oracle.attend(tokens, prompt + i, prompt + i + 1), decoded[i], 0, tolerance(tokens),
                        "decode of token " + (prompt + i));
            }
            assertThat(session.length()).isEqualTo(prompt + 20);
        }
    }

    @Test
    void raggedBatchIsWhatEachSessionIsAlone() {
        Tokens tokens = CacheRunner.tokens(random, 400, 24);
        int[] lengths = {1, 37, 300};
        KvSession[] sessions = new KvSession[3];
        float[][][] alone = new float[3][][];
        for (int i = 0; i < 3; i++) {
            sessions[i] = cache.open(400);
            CacheRunner.append(sessions[i], tokens, 0, lengths[i], random);
            sessions[i].seal();
            try (KvSession fork = sessions[i].fork()) {
                alone[i] = CacheRunner.decode(fork, tokens, lengths[i], lengths[i] + 5);
            }
        }
        try (KvBatch batch = cache.batch(List.of(sessions))) {
            for (int s = 0; s < 5; s++) {
                float[] output = CacheRunner.step(batch, new Tokens[] {tokens, tokens, tokens},
                        new int[] {lengths[0] + s, lengths[1] + s, lengths[2] + s});
                for (int i = 0; i < 3; i++) {
                    float[] row = java.util.Arrays.copyOfRange(output, i * tokens.queryWidth,
                            (i + 1) * tokens.queryWidth);
                    Compare.same(alone[i][s], row, "session " + i + " step " + s);
                }
            }
        }
    }

    @Test
    void truncateRepeatsAndSavedSessionsContinue(@TempDir Path folder) throws Exception {
        Tokens tokens = CacheRunner.tokens(random, 160, 24);
        try (KvSession session = cache.open(200)) {
            CacheRunner.append(session, tokens, 0, 100, random);
            session.seal();
            Path file = folder.resolve("session");
            session.save(file);
            float[][] first = CacheRunner.decode(session, tokens, 100, 130);
            session.truncate(100);
            float[][] second = CacheRunner.decode(session, tokens, 100, 130);
            try (KvSession loaded = cache.load(file)) {
                assertThat(loaded.length()).isEqualTo(100);
                float[][] third = CacheRunner.decode(loaded, tokens, 100, 130);
                for (int i = 0; i < 30; i++) {
                    Compare.same(first[i], second[i], "after truncate, token " + i);
                    Compare.same(first[i], third[i], "after load, token " + i);
                }
            }
        }
    }
}
