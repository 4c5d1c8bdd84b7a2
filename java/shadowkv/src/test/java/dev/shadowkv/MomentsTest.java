package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.Random;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

import dev.shadowkv.kernels.Geometry;

/** Whatever happens to a session, its moments are the sums over the tokens that are in its index. */
class MomentsTest extends ShadowTest {

    private static final Random random = TestDevice.random(MomentsTest.class);
    private static final int HEADS = CacheRunner.KEY_VALUE_HEADS;
    private static final int DIM = CacheRunner.HEAD_DIM;

    /** What the last check found of chunks that a head does not have in its index. */
    private int outliers;

    /**
     * Compares a layer's moments with the sums over what the radii say is indexed.
     *
     * @param before tokens that were ever summed, whose rounding stays
     * @param rounding relative error of a product that is kept, from what was added or taken away
     * @param small what the error of a value may be beyond that
     */
    private void check(KvSession session, Tokens tokens, int before, double rounding, double small, String what) {
        ShadowSession shadow = (ShadowSession) session;
        Geometry g = ((ShadowKvCache) session.cache()).options.geometry();
        for (int layer = 0; layer < session.cache().layers(); layer++) {
            LayerState state = shadow.state(layer);
            assertThat(state.exact).as(what).isFalse();
            long chunks = shadow.layout.chunks;
            float[] radius = Scratch.floats(shadow.shared.layers[layer].radius, (int) (HEADS * chunks));
            float[] moments = Scratch.floats(shadow.shared.layers[layer].moments, (int) g.momentFloats());
            DenseOracle dense = dense();
            for (int t = 0; t < Math.max(before, state.length); t++) {
                dense.add(tokens, t);
            }
            outliers = 0;
            for (int head = 0; head < HEADS; head++) {
                MomentOracle sums = new MomentOracle(DIM);
                MomentOracle ever = new MomentOracle(DIM);
                for (int p = 0; p < dense.length(); p++) {
                    boolean member = p < state.recentBegin && radius[(int) (head * chunks + p / g.chunk())] >= 0;
                    outliers += p < state.recentBegin && !member ? 1 : 0;
                    ever.add(dense.keys.get(head).get(p), dense.values.get(head).get(p));
                    if (member) {
                        sums.add(dense.keys.get(head).get(p), dense.values.get(head).get(p));
                    }
                }
                compare(sums, ever, moments, (int) g.momentFloats() / HEADS * head, rounding, small, what + ", head " + head);
            }
        }
    }

    private void check(KvSession session, Tokens tokens, int before, double rounding, String what) {
        check(session, tokens, before, rounding, 0, what);
    }

    private static void compare(MomentOracle sums, MomentOracle ever, float[] moments, int at, double rounding, double small,
            String what) {
        double relative = rounding + 0x1p-24 * (64 + ever.tokens / 64.0);
        for (int i = 0; i < DIM; i++) {
            for (int j = 0; j < DIM; j++) {
                close(sums.products[i][j], moments[at + i * DIM + j], relative * ever.magnitudes[i][j] + small * ever.keyMagnitude(j),
                        what + ", products " + i + ", " + j);
            }
        }
        int keys = at + DIM * DIM;
        for (int i = 0; i < DIM; i++) {
            close(sums.keys[i], moments[keys + i], relative * ever.keyMagnitude(i), what + ", keys " + i);
            close(sums.values[i], moments[keys + DIM + i], relative * ever.valueMagnitude(i) + small * ever.tokens, what + ", values " + i);
        }
        assertThat(moments[keys + 2 * DIM]).as(what + ", tokens").isEqualTo(sums.tokens);
    }

    private static void close(double expected, float actual, double tolerance, String what) {
        assertThat(Math.abs(expected - actual)).as("%s: %s, %s", what, expected, actual).isLessThanOrEqualTo(tolerance);
    }

    /** Keys and values are rounded when they are stored. */
    private double stored() {
        return 2 * TestDevice.epsilon(storageType);
    }

    /** Rebuilt keys are sums of as many products as the basis has rows, of factors that are rounded. */
    private double rebuilt(ElementType valueType) {
        return stored() + 4 * Math.sqrt(RANK) * (TestDevice.epsilon(storageType) + 0x1p-24 * Math.sqrt(2 * DIM))
                + TestDevice.epsilon(valueType);
    }

    @ParameterizedTest
    @CsvSource({"8, 1, 0", "8, 0, 0", "16, 0.001, 0", "8, 0.3, 16"})
    void ofThePromptAndWhatIsFolded(int chunk, float residualLimit, int reserve) {
        Tokens tokens = CacheRunner.tokens(random, 1000, 60);
        try (ShadowKvCache cache = builder(2, 1, 1100).chunk(chunk).residualLimit(residualLimit).residualOutliers(5)
                .basisReserve(reserve).build(); KvSession session = cache.open(1100)) {
            int prompt = 500 + random.nextInt(20);
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            check(session, tokens, 0, stored(), "sealed");
            int chosen = outliers;
            assertThat(chosen).isEqualTo(3 * chunk * HEADS);
            CacheRunner.decode(session, tokens, prompt, 700);
            check(session, tokens, 0, stored(), "decoded");
            CacheRunner.append(session, tokens, 700, 1000, random);
            check(session, tokens, 0, stored(), "appended");
            if (residualLimit < 0.01) {
                assertThat(outliers).isEqualTo(chosen + 5 * chunk * HEADS);
            }
        }
    }

    @Test
    void ofASessionThatOutgrowsBeingExact() {
        Tokens tokens = CacheRunner.tokens(random, 600, 24);
        try (ShadowKvCache cache = builder(2, 1, 700).build(); KvSession session = cache.open(700)) {
            CacheRunner.append(session, tokens, 0, 70, random);
            session.seal();
            assertThat(((ShadowSession) session).table(0).moments()).isNull();
            for (int at = 70; at < 600; at += 53) {
                CacheRunner.append(session, tokens, at, Math.min(600, at + 53), random);
                if (!((ShadowSession) session).state(0).exact) {
                    check(session, tokens, 0, stored(), "length " + session.length());
                    assertThat(((ShadowSession) session).table(0).moments()).isNotNull();
                }
            }
            check(session, tokens, 0, stored(), "grown");
        }
    }

    /** Within the window, behind it, behind the prompt's end; more that stays than leaves, and less. */
    @ParameterizedTest
    @CsvSource({"F32, 700, 690", "F32, 700, 640", "F32, 700, 600", "F32, 700, 505", "F32, 700, 420", "F32, 700, 300",
        "F8_E4M3, 700, 610", "F8_E4M3, 700, 310", "F12_E4M7, 700, 310", "F6_E2M3, 700, 610", "F6_E2M3, 700, 310",
        "F32, 700, 40", "F32, 700, 0"})
    void ofARewoundSession(ElementType values, int generated, int position) {
        ElementType valueType = values == ElementType.F32 ? storageType : values;
        // The keys have fewer directions than the basis, so that what is rebuilt is what it was.
        Tokens tokens = CacheRunner.tokens(random, 900, 24);
        double largest = 0;
        for (float value : tokens.values) {
            largest = Math.max(largest, Math.abs(value));
        }
        double small = TestDevice.smallest(valueType) * largest;
        for (float residualLimit : new float[] {1, 0}) {
            try (ShadowKvCache cache = builder(2, 2, 1000).outliers(6).residualLimit(residualLimit).residualOutliers(4)
                    .valueType(valueType).build(); KvSession session = cache.open(1000)) {
                CacheRunner.append(session, tokens, 0, 500, random);
                session.seal();
                CacheRunner.decode(session, tokens, 500, generated);
                session.truncate(position);
                check(session, tokens, generated, rebuilt(valueType), small, "rewound to " + position);
                int end = Math.min(900, position + 130);
                CacheRunner.append(session, tokens, position, end, random);
                check(session, tokens, generated, rebuilt(valueType), small, "and on");
                int again = Math.max(0, position - 30);
                session.truncate(again);
                check(session, tokens, generated, 2 * rebuilt(valueType), 2 * small, "rewound again to " + again);
            }
        }
    }

    /**
     * What the window still has is taken away as it was added: the basis does not have these keys, so that rebuilt ones
     * would leave something of them. The first token after a fold takes the row of the first that was folded.
     */
    @Test
    void aShortRewindLeavesNothing() {
        Tokens tokens = CacheRunner.tokens(random, 700, 24);
        Tokens strange = CacheRunner.tokens(random, 700, 100);
        try (ShadowKvCache cache = builder(1, 1, 800).residualLimit(1).build(); KvSession session = cache.open(800)) {
            int prompt = 500 + random.nextInt(20);
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            LayerState state = ((ShadowSession) session).state(0);
            int begin = (int) state.recentBegin;
            int unlike = (begin + cache.geometry().chunk()) * tokens.keyWidth;
            System.arraycopy(strange.keys, unlike, tokens.keys, unlike, tokens.keys.length - unlike);
            // One token too many for the window; the fold is taken back with it and the one before.
            int length = begin + cache.geometry().window() + 1;
            session.truncate(begin + cache.options.local() * cache.geometry().chunk());
            CacheRunner.append(session, tokens, (int) session.length(), length, random);
            assertThat(state.recentBegin).isGreaterThan(begin);
            session.truncate(length - 2);
            assertThat(state.recentBegin).isEqualTo(begin);
            check(session, tokens, length, rebuilt(storageType), "rewound by two tokens");
        }
    }

    @Test
    void ofForksAndLoadedSessions(@TempDir Path folder) throws Exception {
        Tokens tokens = CacheRunner.tokens(random, 800, 60);
        try (ShadowKvCache cache = builder(2, 3, 900).build(); KvSession trunk = cache.open(900)) {
            CacheRunner.append(trunk, tokens, 0, 500, random);
            trunk.seal();
            KvSession fork = trunk.fork();
            CacheRunner.append(fork, tokens, 500, 800, random);
            check(fork, tokens, 0, stored(), "fork");
            check(trunk, tokens, 0, stored(), "trunk");
            Path file = folder.resolve("session");
            fork.save(file);
            fork.close();
            try (KvSession loaded = cache.load(file)) {
                check(loaded, tokens, 0, stored(), "loaded");
            }
        }
    }

    /** By what a plan says, and no more when they are not kept. */
    @ParameterizedTest
    @ValueSource(ints = {8, 16})
    void takeTheMemoryThatThePlanSays(int chunk) {
        MemoryPlan with = builder(3, 2, 4000).chunk(chunk).plan();
        MemoryPlan without = builder(3, 2, 4000).chunk(chunk).tail(false).plan();
        long floats = HEADS * (DIM * DIM + 2L * DIM + 4);
        assertThat(with.sessionDeviceBytes() - without.sessionDeviceBytes()).isEqualTo(3 * SlabPool.align(4 * floats));
        assertThat(with.sessionPinnedBytes()).isEqualTo(without.sessionPinnedBytes());
        try (ShadowKvCache cache = builder(1, 1, 800).tail(false).build(); KvSession session = cache.open(800)) {
            CacheRunner.append(session, CacheRunner.tokens(random, 500, 24), 0, 500, random);
            session.seal();
            assertThat(((ShadowSession) session).table(0).moments()).isNull();
        }
    }

    /** By default where there is a rerank, of at least 128 chunks. */
    @Test
    void areTakenWithARerank() {
        for (double rerank : new double[] {0, 1, 1.01, 4, 100}) {
            ShadowKvCache.Builder builder = CacheRunner.shape(ShadowKvCache.builder(device), 1, 1, 300).rank(RANK).budget(400)
                    .rerank(rerank);
            try (ShadowKvCache cache = builder.build()) {
                assertThat(cache.options.tail()).isEqualTo(rerank > 1);
                assertThat(cache.options.shortlist()).isEqualTo(rerank > 1 ? Math.clamp((int) (50 * rerank), 128, 1024) : 0);
            }
            try (ShadowKvCache cache = builder.tail(rerank <= 1).build()) {
                assertThat(cache.options.tail()).isEqualTo(rerank <= 1);
            }
        }
    }
}
