package dev.shadowkv;

import static dev.shadowkv.CacheRunner.HEAD_DIM;
import static dev.shadowkv.CacheRunner.KEY_VALUE_HEADS;
import static dev.shadowkv.CacheRunner.QUERY_HEADS;
import static dev.shadowkv.CacheRunner.ROPE;
import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The shadow cache against the method in double precision, against the dense cache, and against itself. */
class ShadowKvCacheTest {

    private static final Random random = TestDevice.random(ShadowKvCacheTest.class);
    private static final int RANK = 32;

    private Device device;
    private ElementType storageType;

    @BeforeEach
    void open() {
        device = TestDevice.open();
        storageType = TestDevice.storageType(device);
    }

    @AfterEach
    void close() {
        device.close();
    }

    private ShadowKvCache.Builder builder(int layers, int sessions, long capacity) {
        return CacheRunner.shape(ShadowKvCache.builder(device), layers, sessions, capacity).rank(RANK).budget(128)
                .outliers(3).storageType(storageType);
    }

    private static DenseOracle dense() {
        return new DenseOracle(ROPE, QUERY_HEADS, KEY_VALUE_HEADS, HEAD_DIM);
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
        return Compare.attentionTolerance(storageType, HEAD_DIM, queries, keys, values);
    }

    /** Rebuilt keys are sums of rank products, of factors that are rounded. */
    private double rebuiltTolerance(Tokens tokens) {
        return tolerance(tokens) * 2 * Math.sqrt(RANK);
    }

    /**
     * What rounding may change in the difference of two chunks' scores: each is a product of a query that is rounded
     * twice with a mean of rounded keys that is rounded again. Six standard deviations of errors in any direction.
     */
    private double scoreError(Tokens tokens) {
        double queries = 0;
        for (float q : tokens.queries) {
            queries += (double) q * q / tokens.count / QUERY_HEADS;
        }
        double keys = 0;
        for (float k : tokens.keys) {
            keys += (double) k * k / tokens.count / KEY_VALUE_HEADS;
        }
        double relative = Math.hypot(Math.sqrt(4.0 / 3) * TestDevice.epsilon(storageType), 0x1p-24 * Math.sqrt(HEAD_DIM));
        return 6 * Math.sqrt(2) * relative * Math.sqrt(queries * keys) / HEAD_DIM;
    }

    /** The same for the cosine of a rounded key with a mean of rounded keys. */
    private double cosineError() {
        double relative = Math.hypot(TestDevice.epsilon(storageType), 0x1p-24 * Math.sqrt(HEAD_DIM));
        return 6 * Math.sqrt(2) * relative / Math.sqrt(HEAD_DIM);
    }

    /** Collects errors and what is expected of them. */
    private static final class Errors {
        private double squares;
        private double expected;
        private int steps;

        /** A step's error is within five standard deviations of what is expected; NaN is not. */
        void add(double[] exact, float[] output, double expectedSquares, String what) {
            double sum = 0;
            for (int i = 0; i < exact.length; i++) {
                sum += (exact[i] - output[i]) * (exact[i] - output[i]);
            }
            assertThat(Math.sqrt(sum / expectedSquares)).as("%s: error against what rounding makes of it", what)
                    .isLessThan(5);
            squares += sum;
            expected += expectedSquares;
            steps++;
        }

        /** On average it is no more than what is expected, which takes every rounding for as bad as it may be. */
        void assertExpected() {
            assertThat(Math.sqrt(squares / expected)).as("mean error against what rounding makes of it, %s steps", steps)
                    .isLessThan(steps > 30 ? 1 : 1.5);
        }
    }

    static double[][] basis(KvSession session, int layer) {
        ShadowSession shadow = (ShadowSession) session;
        ShadowKvCache cache = (ShadowKvCache) session.cache();
        int rank = cache.options.geometry().rank();
        DeviceBuffer buffer = shadow.shared.layers[layer].basis;
        ElementType type = cache.options.geometry().storageType();
        MemorySegment host = MemorySegment.ofArray(new long[(int) (buffer.byteSize() / 8)]);
        cache.device().copy(buffer, host);
        double[][] rows = new double[rank][KEY_VALUE_HEADS * HEAD_DIM];
        for (int head = 0; head < KEY_VALUE_HEADS; head++) {
            for (int r = 0; r < rank; r++) {
                for (int d = 0; d < HEAD_DIM; d++) {
                    rows[r][head * HEAD_DIM + d] = read(host, type, ((long) head * rank + r) * HEAD_DIM + d);
                }
            }
        }
        return rows;
    }

    private static double read(MemorySegment host, ElementType type, long index) {
        return type == ElementType.F32 ? host.getAtIndex(java.lang.foreign.ValueLayout.JAVA_FLOAT, index)
                : Float.intBitsToFloat(host.getAtIndex(java.lang.foreign.ValueLayout.JAVA_SHORT, index) << 16);
    }

    @ParameterizedTest
    @CsvSource({"600, 8, 0.5, 0", "603, 8, 0, 0", "777, 16, 0.5, 0", "601, 8, 0.25, 40"})
    void isTheMethod(int prompt, int chunk, float radiusWeight, int slots) {
        Tokens tokens = CacheRunner.tokens(random, prompt + 150, RANK);
        try (ShadowKvCache cache = builder(1, 1, 1024).chunk(chunk).radiusWeight(radiusWeight).residualLimit(1)
                .slots(slots).build(); KvSession session = cache.open(1000)) {
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            ShadowOracle oracle = new ShadowOracle(dense(), cache.options);
            for (int t = 0; t < prompt; t++) {
                oracle.add(tokens, t);
            }
            oracle.seal(basis(session, 0));
            assertThat(oracle.exact).isFalse();
            oracle.rounding = ExpectedError.of(storageType, storageType);
            Errors errors = new Errors();
            double scores = scoreError(tokens);
            double cosines = cosineError();
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int t = prompt; t < prompt + 150; t++) {
                    float[] output = CacheRunner.step(batch, tokens, t);
                    double[] expected = oracle.step(tokens, t);
                    // Where two scores or cosines nearly tie, rounding decides; that is not what is tested here.
                    if (oracle.margin > scores && oracle.outlierMargin > cosines) {
                        errors.add(expected, output, oracle.expectedSquares, "token " + t);
                    }
                }
            }
            LayerState state = ((ShadowSession) session).state(0);
            assertThat(state.recentBegin).isEqualTo(oracle.recentBegin);
            if (oracle.outlierMargin > cosines) {
                assertThat(errors.steps).isGreaterThan(storageType == ElementType.F32 ? 120 : 5);
                errors.assertExpected();
            }
        }
    }

    @Test
    void fullRankAndCoveringBudgetIsDense() {
        int prompt = 300;
        Tokens tokens = CacheRunner.tokens(random, prompt + 40, 100);
        // 33 chunks are indexed and not fewer than the budget, so the index is used; outliers leave it, and it is
        // covered.
        try (ShadowKvCache cache = builder(2, 1, 512).rank(128).budget(8 * 33).residualLimit(1).build();
             KvSession session = cache.open(400)) {
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            assertThat(((ShadowSession) session).state(0).exact).isFalse();
            DenseOracle oracle = dense();
            for (int t = 0; t < tokens.count; t++) {
                oracle.add(tokens, t);
            }
            float[][] outputs = CacheRunner.decode(session, tokens, prompt, prompt + 20);
            for (int i = 0; i < outputs.length; i++) {
                Compare.close(oracle.attend(tokens, prompt + i, prompt + i + 1), outputs[i], 0,
                        tolerance(tokens) * 2 * Math.sqrt(128), "token " + (prompt + i));
            }
        }
    }

    @Test
    void shortContextsAreExactAndThenIndexed() {
        int total = 700;
        Tokens tokens = CacheRunner.tokens(random, total, 24);
        try (ShadowKvCache cache = builder(2, 1, 1024).build(); KvSession session = cache.open(800)) {
            CacheRunner.append(session, tokens, 0, 70, random);
            session.seal();
            DenseOracle oracle = dense();
            for (int t = 0; t < total; t++) {
                oracle.add(tokens, t);
            }
            try (KvBatch batch = cache.batch(List.of(session))) {
                int exact = 0;
                for (int t = 70; t < total; t++) {
                    float[] output = CacheRunner.step(batch, tokens, t);
                    if (((ShadowSession) session).state(0).exact) {
                        exact++;
                        if (t % 5 == 0) {
                            Compare.close(oracle.attend(tokens, t, t + 1), output, 0, tolerance(tokens), "token " + t);
                        }
                    }
                }
                assertThat(exact).isGreaterThan(100).isLessThan(300);
                assertThat(((ShadowSession) session).state(1).exact).isFalse();
                // With 24 directions of 32 the index loses nothing but what it does not select.
                assertThat(batch.statistics().landmarkMass()).isBetween(0.3, 1.0);
            }
        }
    }

    @Test
    void historyDoesNotMatter() {
        int prompt = 500;
        int total = 760;
        Tokens tokens = CacheRunner.tokens(random, total, RANK);
        Tokens other = CacheRunner.tokens(random, total, RANK);
        try (ShadowKvCache cache = builder(2, 4, 800).build()) {
            KvSession whole = cache.open(800);
            CacheRunner.append(whole, tokens, 0, prompt, null);
            whole.seal();
            KvSession fork = whole.fork();
            KvSession mate = cache.open(700);
            CacheRunner.append(mate, other, 0, 90, random);
            mate.seal();
            float[][] alone = CacheRunner.decode(whole, tokens, prompt, total);
            whole.close();

            KvSession pieces = cache.open(800);
            CacheRunner.append(pieces, tokens, 0, prompt, random);
            pieces.seal();
            try (KvBatch batch = cache.batch(List.of(mate, pieces, fork))) {
                for (int t = prompt; t < total; t++) {
                    float[] output = CacheRunner.step(batch, new Tokens[] {other, tokens, tokens},
                            new int[] {90 + t - prompt, t, t});
                    int width = tokens.queryWidth;
                    Compare.same(alone[t - prompt], Arrays.copyOfRange(output, width, 2 * width), "pieces, token " + t);
                    Compare.same(alone[t - prompt], Arrays.copyOfRange(output, 2 * width, 3 * width),
                            "fork, token " + t);
                }
            }
        }
    }

    @Test
    void appendingAfterSealingIsDecodingWithoutAttention() {
        Tokens tokens = CacheRunner.tokens(random, 900, RANK);
        try (ShadowKvCache cache = builder(2, 4, 1000).build(); KvSession a = cache.open(1000)) {
            CacheRunner.append(a, tokens, 0, 400, random);
            a.seal();
            KvSession b = a.fork();
            KvSession c = a.fork();
            KvSession d = a.fork();
            CacheRunner.decode(a, tokens, 400, 640);
            CacheRunner.append(b, tokens, 400, 640, random);
            CacheRunner.append(d, tokens, 400, 640, null);
            float[] output = new float[240 * tokens.queryWidth];
            for (int layer = 0; layer < 2; layer++) {
                c.prefill(layer, 240, tokens.queries(400, 640), tokens.keys(400, 640), tokens.values(400, 640),
                        MemorySegment.ofArray(output));
            }
            float[][] first = CacheRunner.decode(a, tokens, 640, 700);
            float[][] second = CacheRunner.decode(b, tokens, 640, 700);
            float[][] third = CacheRunner.decode(c, tokens, 640, 700);
            float[][] fourth = CacheRunner.decode(d, tokens, 640, 700);
            int close = 0;
            for (int i = 0; i < 60; i++) {
                Compare.same(first[i], third[i], "prefilled, token " + (640 + i));
                Compare.same(second[i], fourth[i], "appended at once, token " + (640 + i));
                // Storing and decoding round a rotation each in its own way; a near tie may then fall otherwise.
                double worst = 0;
                for (int j = 0; j < first[i].length; j++) {
                    worst = Math.max(worst, Math.abs(first[i][j] - second[i][j]));
                }
                close += worst < rebuiltTolerance(tokens) ? 1 : 0;
            }
            assertThat(close).isGreaterThan(TestDevice.cuda() ? 40 : 57);
        }
    }

    /** Whether values are read in place or through slots, from short and exact to folded several times. */
    @ParameterizedTest
    @ValueSource(ints = {0, 8, 11})
    void appendedTokensGetWhatStepsGet(int slots) {
        int total = 700;
        Tokens tokens = CacheRunner.tokens(random, total, RANK);
        for (ElementType values : new ElementType[] {null, ElementType.F8_E4M3}) {
            ShadowKvCache.Builder options = builder(2, 2, total).budget(64).slots(slots);
            if (values != null) {
                options.valueType(values);
            }
            try (ShadowKvCache cache = options.build(); KvSession stepped = cache.open(total)) {
                int at = 20 + random.nextInt(60);
                CacheRunner.append(stepped, tokens, 0, at, random);
                stepped.seal();
                KvSession read = stepped.fork();
                while (at < total) {
                    int n = Math.min(total - at, 1 + random.nextInt(150));
                    float[] output = new float[n * tokens.queryWidth];
                    for (int layer = 0; layer < 2; layer++) {
                        read.prefill(layer, n, tokens.queries(at, at + n), tokens.keys(at, at + n), tokens.values(at, at + n),
                                MemorySegment.ofArray(output));
                    }
                    float[][] expected = CacheRunner.decode(stepped, tokens, at, at + n);
                    for (int i = 0; i < n; i++) {
                        Compare.same(expected[i], Arrays.copyOfRange(output, i * tokens.queryWidth, (i + 1) * tokens.queryWidth),
                                "token " + (at + i) + ", slots " + slots);
                    }
                    at += n;
                    if (at < total) {
                        // A step between: what is in the slots is still right.
                        Compare.same(CacheRunner.decode(stepped, tokens, at, at + 1)[0], CacheRunner.decode(read, tokens, at, at + 1)[0],
                                "step at " + at);
                        at++;
                    }
                }
            }
        }
    }

    @Test
    void thousandsOfGeneratedTokens() {
        int total = 3000;
        Tokens tokens = CacheRunner.tokens(random, total, 24);
        try (ShadowKvCache cache = builder(1, 1,
                total).residualLimit(1).build(); KvSession session = cache.open(total)) {
            CacheRunner.append(session, tokens, 0, 300, random);
            session.seal();
            ShadowOracle oracle = new ShadowOracle(dense(), cache.options);
            for (int t = 0; t < 300; t++) {
                oracle.add(tokens, t);
            }
            oracle.seal(basis(session, 0));
            oracle.rounding = ExpectedError.of(storageType, storageType);
            Errors errors = new Errors();
            double scores = scoreError(tokens);
            double cosines = cosineError();
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int t = 300; t < total; t++) {
                    float[] output = CacheRunner.step(batch, tokens, t);
                    if (t % 30 != 0) {
                        oracle.pass(tokens, t);
                        continue;
                    }
                    double[] expected = oracle.step(tokens, t);
                    if (oracle.margin > scores && oracle.outlierMargin > cosines) {
                        errors.add(expected, output, oracle.expectedSquares, "token " + t);
                    }
                }
            }
            LayerState state = ((ShadowSession) session).state(0);
            assertThat(state.recentBegin).isEqualTo(oracle.recentBegin);
            assertThat(state.length - state.recentBegin).isLessThanOrEqualTo(cache.options.geometry().window());
            if (oracle.outlierMargin > cosines) {
                assertThat(errors.steps).isGreaterThan(storageType == ElementType.F32 ? 70 : 3);
                errors.assertExpected();
            }
        }
    }

    /** Relative error of decoding against exact attention. */
    private static double error(KvSession session, Tokens tokens, int from, int to) {
        DenseOracle oracle = dense();
        for (int t = 0; t < to; t++) {
            oracle.add(tokens, t);
        }
        double error = 0;
        double scale = 0;
        float[][] outputs = CacheRunner.decode(session, tokens, from, to);
        for (int t = from; t < to; t++) {
            double[] exact = oracle.attend(tokens, t, t + 1);
            for (int i = 0; i < exact.length; i++) {
                double difference = exact[i] - outputs[t - from][i];
                error += difference * difference;
                scale += exact[i] * exact[i];
            }
        }
        return Math.sqrt(error / scale);
    }

    @ParameterizedTest
    @CsvSource({"F8_E4M3,", ",I8", "F8_E4M3,I8"})
    void smallerTypesStayClose(ElementType values, ElementType landmarks) {
        Tokens tokens = CacheRunner.tokens(random, 640, 24);
        double[] error = new double[2];
        for (int i = 0; i < 2; i++) {
            ShadowKvCache.Builder builder = builder(1, 1, 700);
            if (i == 1) {
                builder.valueType(values == null ? storageType : values);
                builder.landmarkType(landmarks == null ? storageType : landmarks);
            }
            try (ShadowKvCache cache = builder.build(); KvSession session = cache.open(700)) {
                CacheRunner.append(session, tokens, 0, 500, random);
                session.seal();
                error[i] = error(session, tokens, 500, 640);
            }
        }
        // e4m3 rounds each value by up to 1/16 of itself; int8 landmarks only change near ties.
        assertThat(error[1]).isLessThan(error[0] + 2 * TestDevice.epsilon(ElementType.F8_E4M3));
    }

    @Test
    void rerankSelectsNoWorse() {
        Tokens tokens = CacheRunner.tokens(random, 900, 24);
        double[] error = new double[2];
        for (int i = 0; i < 2; i++) {
            try (ShadowKvCache cache = builder(1, 1, 1000).rerank(i == 0 ? 0 : 3).build();
                 KvSession session = cache.open(1000)) {
                CacheRunner.append(session, tokens, 0, 800, random);
                session.seal();
                error[i] = error(session, tokens, 800, 900);
            }
        }
        assertThat(error[1]).isLessThan(error[0] * 1.02);
    }

    @Test
    void truncateWithinTheWindowRepeatsBitForBit() {
        Tokens tokens = CacheRunner.tokens(random, 700, RANK);
        try (ShadowKvCache cache = builder(2, 1, 800).build(); KvSession session = cache.open(800)) {
            CacheRunner.append(session, tokens, 0, 500, random);
            session.seal();
            CacheRunner.decode(session, tokens, 500, 560);
            float[][] first = CacheRunner.decode(session, tokens, 560, 600);
            session.truncate(560);
            assertThat(session.length()).isEqualTo(560);
            float[][] second = CacheRunner.decode(session, tokens, 560, 600);
            for (int i = 0; i < 40; i++) {
                Compare.same(first[i], second[i], "token " + (560 + i));
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"F32, 700, 600", "F32, 700, 505", "F32, 700, 300", "F8_E4M3, 700, 310", "F32, 700, 40", "F32, 700, 0"})
    void truncateBehindTheWindowKeepsTheContent(ElementType values, int generated, int position) {
        ElementType valueType = values == ElementType.F32 ? storageType : values;
        Tokens tokens = CacheRunner.tokens(random, 900, 24);
        try (ShadowKvCache cache = builder(2, 2,
                1000).valueType(valueType).build(); KvSession session = cache.open(1000)) {
            CacheRunner.append(session, tokens, 0, 500, random);
            session.seal();
            CacheRunner.decode(session, tokens, 500, generated);
            session.truncate(position);
            assertThat(session.length()).isEqualTo(position);
            for (int layer = 0; layer < 2; layer++) {
                LayerState state = ((ShadowSession) session).state(layer);
                assertThat(state.recentBegin).isLessThanOrEqualTo(position);
                assertThat(position - state.recentBegin).isLessThanOrEqualTo(cache.options.geometry().window());
            }
            // The keys have fewer directions than the basis, so that what was rebuilt is what it was.
            ShadowOracle oracle = new ShadowOracle(dense(), cache.options);
            for (int t = 0; t < position; t++) {
                oracle.add(tokens, t);
            }
            oracle.restore(basis(session, 1), ((ShadowSession) session).state(1));
            oracle.rounding = ExpectedError.of(storageType, valueType);
            Errors errors = new Errors();
            double scores = scoreError(tokens);
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int t = position; t < position + 100; t++) {
                    float[] output = CacheRunner.step(batch, tokens, t);
                    double[] expected = oracle.step(tokens, t);
                    if (oracle.margin > scores) {
                        errors.add(expected, output, oracle.expectedSquares, "token " + t);
                    }
                }
            }
            assertThat(errors.steps).isGreaterThan(storageType == ElementType.F32 ? 80 : 3);
            errors.assertExpected();
        }
    }

    @Test
    void forksDoNotDisturbOneAnother() {
        Tokens tokens = CacheRunner.tokens(random, 900, RANK);
        Tokens other = CacheRunner.tokens(random, 900, RANK);
        try (ShadowKvCache cache = builder(2, 3, 1000).build(); KvSession trunk = cache.open(900)) {
            CacheRunner.append(trunk, tokens, 0, 450, random);
            trunk.seal();
            List<float[][]> expected = new ArrayList<>();
            for (Tokens each : List.of(tokens, other)) {
                KvSession fork = trunk.fork();
                expected.add(CacheRunner.decode(fork, each, 450, 800));
                fork.close();
            }
            KvSession a = trunk.fork();
            KvSession b = trunk.fork();
            try (KvBatch batch = cache.batch(List.of(a, b))) {
                for (int t = 450; t < 800; t++) {
                    float[] output = CacheRunner.step(batch, new Tokens[] {tokens, other}, new int[] {t, t});
                    int width = tokens.queryWidth;
                    Compare.same(expected.get(0)[t - 450], Arrays.copyOfRange(output, 0, width), "first fork " + t);
                    Compare.same(expected.get(1)[t - 450], Arrays.copyOfRange(output, width, 2 * width),
                            "second fork " + t);
                }
            }
        }
    }

    @Test
    void savedSessionsContinueBitForBit(@TempDir Path folder) throws Exception {
        Tokens tokens = CacheRunner.tokens(random, 900, RANK);
        for (int prompt : new int[] {60, 500}) {
            for (ElementType values : new ElementType[] {storageType, ElementType.F8_E4M3}) {
                try (ShadowKvCache cache = builder(2, 2, 1000).valueType(values).landmarkType(ElementType.I8).build();
                     KvSession session = cache.open(1000)) {
                    CacheRunner.append(session, tokens, 0, prompt, random);
                    session.seal();
                    CacheRunner.decode(session, tokens, prompt, prompt + 90);
                    Path file = folder.resolve("saved-" + prompt + values);
                    session.save(file);
                    try (KvSession loaded = cache.load(file)) {
                        float[][] first = CacheRunner.decode(session, tokens, prompt + 90, prompt + 300);
                        float[][] second = CacheRunner.decode(loaded, tokens, prompt + 90, prompt + 300);
                        for (int i = 0; i < first.length; i++) {
                            Compare.same(first[i], second[i], "token " + i);
                        }
                    }
                    assertThat(Files.list(folder).filter(p -> p.toString().endsWith(".partial"))).isEmpty();
                }
            }
        }
    }

    @Test
    void chunksThatTheBasisMissesStayDense() {
        int prompt = 400;
        Tokens narrow = CacheRunner.tokens(random, prompt, 12);
        Tokens strange = CacheRunner.tokens(random, 400, 40);
        for (int reserve : new int[] {0, 32}) {
            try (ShadowKvCache cache = builder(1, 1, 1000).rank(16).basisReserve(reserve).residualOutliers(6).build();
                 KvSession session = cache.open(1000)) {
                CacheRunner.append(session, narrow, 0, prompt, random);
                session.seal();
                LayerState state = ((ShadowSession) session).state(0);
                int before = state.outliers;
                CacheRunner.decode(session, strange, 0, 400);
                assertThat(state.outliers).isGreaterThan(before);
                assertThat(state.basisRows > 16).isEqualTo(reserve > 0);
                if (reserve > 0) {
                    double[][] basis = basis(session, 0);
                    for (int i = 0; i < state.basisRows; i++) {
                        for (int j = 0; j <= i; j++) {
                            assertThat(Oracle.dot(basis[i], basis[j]))
                                    .isCloseTo(i == j ? 1 : 0, org.assertj.core.api.Assertions.within(
                                            16 * Math.sqrt(128) * TestDevice.epsilon(storageType)));
                        }
                    }
                }
                session.truncate(prompt + 10);
                assertThat(state.outliers).isLessThanOrEqualTo(before);
            }
        }
    }

    @Test
    void operandsMayLieApartInDeviceMemory() {
        int prompt = 300;
        Tokens tokens = CacheRunner.tokens(random, prompt + 1, RANK);
        int q = tokens.queryWidth;
        int k = tokens.keyWidth;
        int stride = q + 2 * k + 32;
        try (ShadowKvCache cache = builder(1, 2, 400).inputType(ElementType.F32).build();
             DeviceArena arena = device.newArena()) {
            float[] fused = new float[(prompt + 1) * stride];
            for (int t = 0; t <= prompt; t++) {
                System.arraycopy(tokens.queries, t * q, fused, t * stride, q);
                System.arraycopy(tokens.keys, t * k, fused, t * stride + q, k);
                System.arraycopy(tokens.values, t * k, fused, t * stride + q + k, k);
            }
            DeviceBuffer buffer = arena.allocate(4L * fused.length);
            device.copy(MemorySegment.ofArray(fused), buffer);
            DeviceBuffer out = arena.allocate(4L * prompt * q);
            KvSession strided = cache.open(400);
            strided.prefill(0, prompt, buffer, stride, buffer.slice(4L * q), stride, buffer.slice(4L * (q + k)),
                    stride, out);
            strided.seal();
            float[] prefilled = new float[prompt * q];
            device.copy(out, MemorySegment.ofArray(prefilled));
            KvSession dense = cache.open(400);
            float[] expected = new float[prompt * q];
            dense.prefill(0, prompt, tokens.queries(0, prompt), tokens.keys(0, prompt), tokens.values(0, prompt),
                    MemorySegment.ofArray(expected));
            dense.seal();
            Compare.same(expected, prefilled, "prefill");
            DeviceBuffer last = buffer.slice(4L * prompt * stride);
            try (KvBatch batch = cache.batch(List.of(strided))) {
                cache.attend(0, batch, last, stride, last.slice(4L * q), stride, last.slice(4L * (q + k)), stride, out);
            }
            float[] decoded = new float[q];
            device.copy(out, MemorySegment.ofArray(decoded));
            Compare.same(CacheRunner.decode(dense, tokens, prompt, prompt + 1)[0], decoded, "decode");
        }
    }
}
