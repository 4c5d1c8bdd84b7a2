package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.NullSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Values that are predicted from coefficients: fitted when a layer is sealed, and then the session's for its life. */
class PredictionTest extends ShadowTest {

    private static final Random random = TestDevice.random(PredictionTest.class);
    private static final int HEADS = CacheRunner.KEY_VALUE_HEADS;
    private static final int DIM = CacheRunner.HEAD_DIM;
    /** Enough that reranking drops some of the shortlist's 128 chunks. */
    private static final int PROMPT = 1200;

    private ShadowKvCache.Builder predicting(int layers, int sessions, long capacity) {
        return builder(layers, sessions, capacity).rerank(2);
    }

    /** Its words: floats where the storage type is F32. */
    private static float[] valueBasis(KvSession session, int layer) {
        ShadowSession shadow = (ShadowSession) session;
        DeviceBuffer buffer = shadow.table(layer).valueBasis();
        return Scratch.floats(buffer, (int) (buffer.byteSize() / 4));
    }

    /** F32 where the device has it, so that a fit can be checked by the rounding of its sums alone. */
    private void storeAsExactlyAsPossible() {
        storageType = device.isCpu() ? ElementType.F32 : device.defaultType();
    }

    /**
     * The fit of the tokens that a layer was sealed with, by the basis of the cache. In BF16 coefficients and values are
     * rounded before the fit, whose own test on the device allows for that: here it only has to be there.
     */
    private void check(KvSession session, int layer, Tokens tokens, int sealed) {
        if (storageType != ElementType.F32) {
            assertThat(valueBasis(session, layer)).doesNotContain(Float.NaN).isNotEqualTo(new float[valueBasis(session, layer).length]);
            return;
        }
        double[][] basis = basis(session, layer);
        float[] scales = headScales(session, layer);
        float[] actual = valueBasis(session, layer);
        for (int head = 0; head < HEADS; head++) {
            List<double[]> coefficients = new ArrayList<>();
            List<double[]> values = new ArrayList<>();
            for (int t = 0; t < sealed; t++) {
                double[] key = Oracle.head(tokens.keys, tokens.keyWidth, t, 0, tokens.keyWidth);
                double[] own = new double[basis.length];
                for (int j = 0; j < own.length; j++) {
                    own[j] = ShadowOracle.coefficient(basis[j], key, scales);
                }
                coefficients.add(own);
                values.add(Oracle.head(tokens.values, tokens.keyWidth, t, head, DIM));
            }
            ValueOracle fit = ValueOracle.fit(coefficients, values, storageType, false);
            for (int j = 0; j < basis.length; j++) {
                for (int d = 0; d < DIM; d++) {
                    // Coefficients are sums over the joint width; each sum over the tokens is rounded in three levels.
                    double allowed = 0x1p-24 * ((300 + Math.sqrt(HEADS * DIM) * 8) * fit.magnitudes()[j][d]
                            + Math.abs(fit.rows()[j][d]));
                    assertThat(Math.abs(fit.rows()[j][d] - actual[(head * basis.length + j) * DIM + d]))
                            .as("head %s, row %s, element %s", head, j, d).isLessThanOrEqualTo(allowed);
                }
            }
        }
    }

    @Test
    void isFittedToWhatIsSealedAndStays(@TempDir Path folder) throws Exception {
        storeAsExactlyAsPossible();
        Tokens tokens = CacheRunner.tokens(random, 1800, 60);
        try (ShadowKvCache cache = predicting(2, 3, 2000).build(); KvSession session = cache.open(2000)) {
            assertThat(cache.options.predictDropped()).isTrue();
            int prompt = PROMPT + random.nextInt(30);
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            check(session, 0, tokens, prompt);
            check(session, 1, tokens, prompt);
            float[] sealed = valueBasis(session, 1);
            CacheRunner.decode(session, tokens, prompt, 1500);
            CacheRunner.append(session, tokens, 1500, 1800, random);
            assertThat(valueBasis(session, 1)).isEqualTo(sealed);
            KvSession fork = session.fork();
            fork.truncate(900);
            CacheRunner.append(fork, tokens, 900, 1300, random);
            assertThat(valueBasis(fork, 1)).isEqualTo(sealed);
            assertThat(valueBasis(session, 1)).isEqualTo(sealed);
            Path file = folder.resolve("session");
            fork.save(file);
            try (KvSession loaded = cache.load(file)) {
                assertThat(valueBasis(loaded, 1)).isEqualTo(sealed);
            }
        }
    }

    /** A session that outgrows being exact is sealed of what it has then. */
    @Test
    void isFittedWhenASessionOutgrowsBeingExact() {
        storeAsExactlyAsPossible();
        Tokens tokens = CacheRunner.tokens(random, 600, 60);
        try (ShadowKvCache cache = predicting(1, 1, 700).build(); KvSession session = cache.open(700);
             KvBatch batch = cache.batch(List.of(session))) {
            CacheRunner.append(session, tokens, 0, 60, random);
            session.seal();
            LayerState state = ((ShadowSession) session).state(0);
            int t = 60;
            while (state.exact) {
                assertThat(((ShadowSession) session).table(0).valueBasis()).isNull();
                CacheRunner.step(batch, tokens, t++);
            }
            check(session, 0, tokens, t - 1);
        }
    }

    /** What a session answers does not depend on how it came to be. */
    @ParameterizedTest
    @NullSource
    @EnumSource(names = "I8")
    void answersDoNotDependOnTheHistory(ElementType coefficients, @TempDir Path folder) throws Exception {
        coefficientType = coefficients;
        Tokens tokens = CacheRunner.tokens(random, 1600, 60);
        try (ShadowKvCache cache = predicting(2, 4, 1700).build(); KvSession session = cache.open(1700);
             KvSession other = cache.open(1700)) {
            CacheRunner.append(session, tokens, 0, PROMPT, random);
            session.seal();
            CacheRunner.append(other, tokens, 0, PROMPT, null);
            other.seal();
            CacheRunner.append(session, tokens, PROMPT, 1400, random);
            CacheRunner.append(other, tokens, PROMPT, 1400, random);
            Path file = folder.resolve("session");
            session.save(file);
            KvSession fork = session.fork();
            KvSession loaded = cache.load(file);
            float[][] expected = CacheRunner.decode(session, tokens, 1400, 1600);
            for (KvSession same : List.of(other, fork, loaded)) {
                float[][] actual = CacheRunner.decode(same, tokens, 1400, 1600);
                for (int t = 0; t < expected.length; t++) {
                    Compare.same(expected[t], actual[t], "token " + (1400 + t));
                }
            }
        }
    }

    /** Where values follow the keys, predicted ones bring an answer nearer to the exact one than the tail alone. */
    @ParameterizedTest
    @NullSource
    @EnumSource(names = "I8")
    void bringsAnswersNearer(ElementType coefficients) {
        coefficientType = coefficients;
        Tokens tokens = CacheRunner.tokens(random, PROMPT + 100, 20);
        DenseOracle exact = dense();
        for (int t = 0; t < tokens.count; t++) {
            exact.add(tokens, t);
        }
        double[] error = new double[2];
        for (boolean predict : new boolean[] {false, true}) {
            try (ShadowKvCache cache = predicting(1, 1, 1400).predictDropped(predict).build(); KvSession session = cache.open(1400)) {
                CacheRunner.append(session, tokens, 0, PROMPT, random);
                session.seal();
                float[][] outputs = CacheRunner.decode(session, tokens, PROMPT, tokens.count);
                for (int t = PROMPT; t < tokens.count; t++) {
                    double[] expected = exact.attend(tokens, t, t + 1);
                    for (int i = 0; i < expected.length; i++) {
                        error[predict ? 1 : 0] += Math.pow(expected[i] - outputs[t - PROMPT][i], 2);
                    }
                }
            }
        }
        assertThat(error[1]).isLessThan(0.8 * error[0]);
    }

    /** By what a plan says, and no more where it is not wished. */
    @ParameterizedTest
    @ValueSource(ints = {0, 7})
    void takesTheMemoryThatThePlanSays(int reserve) {
        MemoryPlan with = predicting(3, 2, 4000).basisReserve(reserve).plan();
        MemoryPlan without = predicting(3, 2, 4000).basisReserve(reserve).predictDropped(false).plan();
        long bytes = (long) HEADS * (RANK + reserve) * DIM * storageType.bytes();
        assertThat(with.sessionDeviceBytes() - without.sessionDeviceBytes()).isEqualTo(3 * SlabPool.align(bytes));
        assertThat(with.sessionPinnedBytes()).isEqualTo(without.sessionPinnedBytes());
        try (ShadowKvCache cache = predicting(1, 1, 1400).predictDropped(false).build(); KvSession session = cache.open(1400)) {
            CacheRunner.append(session, CacheRunner.tokens(random, PROMPT, 24), 0, PROMPT, random);
            session.seal();
            assertThat(((ShadowSession) session).table(0).valueBasis()).isNull();
        }
    }

    /** By default where there are a rerank and a tail. */
    @Test
    void isDoneWithARerankAndATail() {
        for (double rerank : new double[] {0, 1, 1.01, 4}) {
            for (boolean tail : new boolean[] {false, true}) {
                ShadowKvCache.Builder builder = CacheRunner.shape(ShadowKvCache.builder(device), 1, 1, 300).rank(RANK)
                        .budget(400).rerank(rerank).tail(tail);
                try (ShadowKvCache cache = builder.build()) {
                    assertThat(cache.options.predictDropped()).isEqualTo(rerank > 1 && tail);
                }
                try (ShadowKvCache cache = builder.predictDropped(false).build()) {
                    assertThat(cache.options.predictDropped()).isFalse();
                }
            }
        }
    }

    @Test
    void aFileSaysWhetherItsSessionPredicts(@TempDir Path folder) throws Exception {
        Path file = folder.resolve("session");
        try (ShadowKvCache cache = predicting(1, 1, 1400).build(); KvSession session = cache.open(1400)) {
            CacheRunner.append(session, CacheRunner.tokens(random, PROMPT, 24), 0, PROMPT, random);
            session.seal();
            session.save(file);
        }
        try (ShadowKvCache cache = predicting(1, 1, 1400).predictDropped(false).build()) {
            assertThatThrownBy(() -> cache.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("predictDropped true, this cache has false");
        }
    }
}
