package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Rows of a batch that sessions take and leave between steps, for both caches. */
class BatchRowsTest {

    private static final int LAYERS = 2;
    private static final int ROWS = 3;
    private static final int WIDTH = CacheRunner.QUERY_HEADS * CacheRunner.HEAD_DIM;
    private static final Random random = TestDevice.random(BatchRowsTest.class);
    private static final Tokens TOKENS = CacheRunner.tokens(random, 600, 24);

    private Device device;

    @BeforeEach
    void open() {
        device = TestDevice.open();
    }

    @AfterEach
    void close() {
        device.close();
    }

    private KvCache cache(boolean shadow) {
        return shadow
                ? CacheRunner.shape(ShadowKvCache.builder(device), LAYERS, 8, 600).rank(32).budget(64).outliers(2).build()
                : CacheRunner.shape(DenseKvCache.builder(device), LAYERS, 8, 600).build();
    }

    private static KvSession filled(KvCache cache, int tokens, long capacity) {
        KvSession session = cache.open(capacity);
        CacheRunner.append(session, TOKENS, 0, tokens, random);
        session.seal();
        return session;
    }

    private static float[] row(float[] output, int row) {
        return Arrays.copyOfRange(output, row * WIDTH, (row + 1) * WIDTH);
    }

    /** Whoever comes and goes, a session gets what it gets alone, and idle rows get zeros. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void sessionsComeAndGo(boolean shadow) {
        try (KvCache cache = cache(shadow); KvBatch batch = cache.batch(ROWS)) {
            KvSession[] sessions = new KvSession[4];
            KvSession[] alone = new KvSession[4];
            int[] at = new int[4];
            for (int i = 0; i < sessions.length; i++) {
                at[i] = 40 + random.nextInt(300);
                sessions[i] = filled(cache, at[i], 600 - 50 * i);
                alone[i] = sessions[i].fork();
            }
            // Which session each row has, by the step in which that begins; more steps than fit into a recent window.
            int[][] rows = {{0, -1, -1}, {0, 1, -1}, {0, 1, 2}, {0, -1, 2}, {3, -1, 2}, {-1, -1, 2}, {-1, 1, 2}, {0, 1, 3}};
            for (int[] row : rows) {
                for (int i = 0; i < ROWS; i++) {
                    // Those that move are taken out first: a session has one row.
                    batch.set(i, null);
                }
                for (int i = 0; i < ROWS; i++) {
                    batch.set(i, row[i] < 0 ? null : sessions[row[i]]);
                    assertThat(batch.sessions().get(i)).isSameAs(row[i] < 0 ? null : sessions[row[i]]);
                }
                for (int step = 0; step < 17; step++) {
                    Tokens[] tokens = {TOKENS, TOKENS, TOKENS};
                    int[] next = new int[ROWS];
                    for (int i = 0; i < ROWS; i++) {
                        next[i] = row[i] < 0 ? random.nextInt(600) : at[row[i]]++;
                    }
                    float[] output = CacheRunner.step(batch, tokens, next);
                    for (int i = 0; i < ROWS; i++) {
                        float[] expected = row[i] < 0 ? new float[WIDTH] : CacheRunner.decode(alone[row[i]], TOKENS, next[i], next[i] + 1)[0];
                        assertThat(row(output, i)).as("session " + row[i] + " in row " + i).containsExactly(expected);
                    }
                }
            }
            for (int i = 0; i < sessions.length; i++) {
                assertThat(sessions[i].length()).isEqualTo(at[i]);
            }
            if (shadow) {
                assertThat(batch.statistics().selectedChunks()).isPositive();
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void whatIsWrongIsRefused(boolean shadow) {
        try (KvCache cache = cache(shadow); KvCache other = cache(shadow)) {
            KvSession session = filled(cache, 100, 200);
            KvSession small = filled(cache, 100, 150);
            KvSession foreign = filled(other, 100, 200);
            assertThatThrownBy(() -> cache.batch(0)).isInstanceOf(IllegalArgumentException.class).hasMessageContaining("1024");
            assertThatThrownBy(() -> cache.batch(1025)).isInstanceOf(IllegalArgumentException.class).hasMessageContaining("1025");
            KvBatch batch = cache.batch(ROWS);
            assertThat(batch.capacity()).isEqualTo(600);
            assertThatThrownBy(() -> CacheRunner.step(batch, TOKENS, 100)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("no row");
            assertThatThrownBy(() -> batch.set(ROWS, session)).isInstanceOf(IndexOutOfBoundsException.class);
            assertThatThrownBy(() -> batch.set(0, foreign)).hasMessageContaining("another cache");
            batch.set(0, session);
            batch.set(0, session);
            assertThatThrownBy(() -> batch.set(1, session)).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("also session 0");
            float[] query = new float[ROWS * WIDTH];
            java.lang.foreign.MemorySegment operand = java.lang.foreign.MemorySegment.ofArray(query);
            cache.attend(0, batch, operand, operand, operand, operand);
            assertThatThrownBy(() -> batch.set(1, small)).isInstanceOf(IllegalStateException.class).hasMessageContaining("layer 1");
            cache.attend(1, batch, operand, operand, operand, operand);
            batch.set(1, small);
            KvBatch fixed = cache.batch(List.of(small));
            assertThat(fixed.capacity()).isEqualTo(150);
            assertThatThrownBy(() -> fixed.set(0, session)).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("200").hasMessageContaining("150");
            session.close();
            assertThatThrownBy(() -> CacheRunner.step(batch, TOKENS, 101)).hasMessageContaining("closed");
            assertThatThrownBy(() -> batch.set(2, session)).hasMessageContaining("closed");
            batch.set(0, null);
            CacheRunner.step(batch, TOKENS, 101);
            batch.close();
            assertThatThrownBy(() -> batch.set(0, null)).isInstanceOf(IllegalStateException.class).hasMessageContaining("closed");
        }
    }
}
