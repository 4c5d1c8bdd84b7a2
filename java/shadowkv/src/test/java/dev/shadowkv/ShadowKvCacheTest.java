package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.NullSource;

/** The shadow cache against the method in double precision, and against the dense cache. */
class ShadowKvCacheTest extends ShadowTest {

    private static final Random random = TestDevice.random(ShadowKvCacheTest.class);

    /** What knows the first tokens of layer 0 as the session that sealed them does. */
    private static ShadowOracle sealedOracle(ShadowKvCache cache, KvSession session, Tokens tokens, int count) {
        ShadowOracle oracle = new ShadowOracle(dense(), cache.options);
        for (int t = 0; t < count; t++) {
            oracle.add(tokens, t);
        }
        oracle.follow(session, 0);
        oracle.seal(basis(session, 0));
        oracle.rounding = ExpectedError.of(cache.options);
        return oracle;
    }

    @ParameterizedTest
    @CsvSource({"600, 8, 0.5, 0, true, 0, false,", "603, 8, 0, 0, true, 0, false,", "777, 16, 0.5, 0, true, 0, false,",
        "601, 8, 0.25, 40, true, 0, false,", "600, 8, 0.5, 0, false, 0, false,", "1404, 8, 0.5, 0, true, 2.5, false,",
        "1805, 8, 0.5, 20, true, 4, false,", "605, 8, 0.5, 0, true, 1.1, false,", "602, 16, 0.5, 0, false, 2, false,",
        "1403, 8, 0.5, 0, true, 2.5, true,", "1802, 8, 0.5, 20, true, 4, true,", "607, 8, 0.5, 0, true, 1.1, true,",
        "2603, 16, 0.5, 0, true, 2, true,", "602, 8, 0.5, 0, true, 0, false, I8", "601, 16, 0.25, 40, false, 0, false, I8",
        "1404, 8, 0.5, 0, true, 2.5, false, I8", "1803, 8, 0.5, 20, true, 4, true, I8", "2602, 16, 0.5, 0, true, 2, true, I8"})
    void isTheMethod(int prompt, int chunk, float radiusWeight, int slots, boolean tail, double rerank, boolean predict,
            ElementType coefficients) {
        coefficientType = coefficients;
        Tokens tokens = CacheRunner.tokens(random, prompt + 150, RANK);
        if (prompt % 2 == 1) {
            shorten(tokens, 1, 0.2f);
        }
        try (ShadowKvCache cache = builder(1, 1, 3000).chunk(chunk).radiusWeight(radiusWeight).residualLimit(1)
                .slots(slots).tail(tail).rerank(rerank).predictDropped(predict).build();
             KvSession session = cache.open(prompt + 200)) {
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            ShadowOracle oracle = sealedOracle(cache, session, tokens, prompt);
            assertThat(oracle.exact).isFalse();
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
                if (storageType == ElementType.F32) {
                    assertThat(errors.steps).isGreaterThan(120);
                } else {
                    Assumptions.assumeTrue(errors.steps > 0, "no step without a near tie");
                }
                errors.assertExpected();
            }
        }
    }

    /** Keys of one head, times a factor. */
    private static void shorten(Tokens tokens, int head, float factor) {
        for (int i = 0; i < tokens.keys.length; i++) {
            if (i % tokens.keyWidth / CacheRunner.HEAD_DIM == head) {
                tokens.keys[i] *= factor;
            }
        }
    }

    /** With heads of unequal keys, the short ones are rebuilt better where the heads are balanced. */
    @Test
    void balancedHeadsKeepShortKeys() {
        Tokens tokens = CacheRunner.tokens(random, 900, 90);
        shorten(tokens, 1, 0.1f);
        double[] missed = new double[2];
        for (int balanced = 0; balanced < 2; balanced++) {
            try (ShadowKvCache cache = builder(1, 1, 1000).rank(40).balanceHeads(balanced == 1).build();
                 KvSession session = cache.open(1000)) {
                CacheRunner.append(session, tokens, 0, 900, random);
                session.seal();
                double[][] basis = basis(session, 0);
                float[] scales = headScales(session, 0);
                assertThat(scales[1] / scales[0]).isEqualTo(balanced == 1 ? 8 : 1);
                for (int t = 0; t < 900; t += 7) {
                    double[] key = Oracle.head(tokens.keys, tokens.keyWidth, t, 0, tokens.keyWidth);
                    double[] rest = key.clone();
                    for (double[] row : basis) {
                        double own = ShadowOracle.coefficient(row, key, scales);
                        for (int i = 0; i < rest.length; i++) {
                            rest[i] -= own * row[i];
                        }
                    }
                    for (int d = CacheRunner.HEAD_DIM; d < 2 * CacheRunner.HEAD_DIM; d++) {
                        missed[balanced] += rest[d] * rest[d];
                    }
                }
            }
        }
        assertThat(missed[1]).isLessThan(0.5 * missed[0]);
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

    @ParameterizedTest
    @NullSource
    @EnumSource(names = "I8")
    void shortContextsAreExactAndThenIndexed(ElementType coefficients) {
        coefficientType = coefficients;
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

    @ParameterizedTest
    @NullSource
    @EnumSource(names = "I8")
    void thousandsOfGeneratedTokens(ElementType coefficients) {
        coefficientType = coefficients;
        int total = 3000;
        Tokens tokens = CacheRunner.tokens(random, total, 24);
        try (ShadowKvCache cache = builder(1, 1,
                total).residualLimit(1).build(); KvSession session = cache.open(total)) {
            CacheRunner.append(session, tokens, 0, 300, random);
            session.seal();
            ShadowOracle oracle = sealedOracle(cache, session, tokens, 300);
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
                assertThat(errors.steps).isGreaterThan(storageType == ElementType.F32 ? 70 : 0);
                errors.assertExpected();
            }
        }
    }

    /**
     * A key is off by what rounding its coefficients to whole numbers takes from it, a twelfth of the squared step in each
     * direction on average, beside what the basis misses of it.
     */
    @Test
    void coefficientsOfEightBitsAreOffByTheirRounding() {
        coefficientType = ElementType.I8;
        int prompt = 900;
        Tokens tokens = CacheRunner.tokens(random, prompt, RANK);
        shorten(tokens, 1, 0.2f);
        try (ShadowKvCache cache = builder(1, 1, 1000).build(); KvSession session = cache.open(1000)) {
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            double[][] basis = basis(session, 0);
            float[] heads = headScales(session, 0);
            float[] steps = coefficientScales(session, 0);
            double expected = 0;
            double spread = 0;
            double squares = 0;
            double[] largest = new double[RANK];
            // A direction that is refined is rounded in the steps of its second column.
            for (int j = 0; j < RANK; j++) {
                if (!isRefined(j)) {
                    expected += steps[j] * steps[j] / 12.0;
                    spread += Math.pow(steps[j], 4) / 180 / prompt;
                }
            }
            for (int t = 0; t < prompt; t++) {
                double[] key = Oracle.head(tokens.keys, tokens.keyWidth, t, 0, tokens.keyWidth);
                double[] numbers = wholeNumbers(session, 0, t);
                for (int j = 0; j < RANK; j++) {
                    largest[j] = Math.max(largest[j], Math.abs(numbers[j]));
                    if (CoefficientColumns.refined(j, RANK) < 0) {
                        double exact = ShadowOracle.coefficient(basis[j], key, heads) / steps[j];
                        double rest = isRefined(j) ? numbers[j + 1] * steps[j + 1] : 0;
                        squares += Math.pow(numbers[j] * steps[j] + rest - exact, 2) / prompt;
                    }
                }
            }
            for (int j = 0; j < RANK; j++) {
                boolean refines = CoefficientColumns.refined(j, RANK) >= 0;
                assertThat(largest[j]).isBetween(refines ? 120.0 : 63.0, refines ? 127.0 : 64.0);
            }
            // Five standard deviations of the average, and twice the squares that rounded keys and a rounded basis add.
            double energy = 0;
            for (int i = 0; i < tokens.keys.length; i++) {
                energy += Math.pow(tokens.keys[i] * heads[i % tokens.keyWidth / CacheRunner.HEAD_DIM], 2) / prompt;
            }
            double moved = 2 * energy * 2 / 3 * Math.pow(TestDevice.epsilon(storageType), 2);
            assertThat(squares).isBetween(expected - 5 * Math.sqrt(spread), expected + 5 * Math.sqrt(spread) + moved);
        }
    }

    private static boolean isRefined(int column) {
        return CoefficientColumns.refined(column + 1, RANK) == column;
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
    @CsvSource({"F8_E4M3,,", "F12_E4M7,,", "F6_E2M3,,", ",I8,", "F8_E4M3,I8,", "F6_E2M3,I8,", ",,I8", "F6_E2M3,I8,I8"})
    void smallerTypesStayClose(ElementType values, ElementType landmarks, ElementType coefficients) {
        Tokens tokens = CacheRunner.tokens(random, 640, 24);
        double[] error = new double[2];
        for (int i = 0; i < 2; i++) {
            ShadowKvCache.Builder builder = builder(1, 1, 700);
            if (i == 1) {
                builder.valueType(values == null ? storageType : values);
                builder.landmarkType(landmarks == null ? storageType : landmarks);
                builder.coefficientType(coefficients == null ? storageType : coefficients);
            }
            try (ShadowKvCache cache = builder.build(); KvSession session = cache.open(700)) {
                CacheRunner.append(session, tokens, 0, 500, random);
                session.seal();
                error[i] = error(session, tokens, 500, 640);
            }
        }
        // e4m3 rounds each value by up to 1/16 of itself, six bits by 1/120 of the largest too; int8 landmarks only change near
        // ties, and int8 coefficients are off by 1/254 of the largest.
        double rounding = TestDevice.epsilon(ElementType.F8_E4M3);
        if (values != null) {
            rounding = TestDevice.epsilon(values) + TestDevice.smallest(values) * largestOverMean(tokens.values);
        }
        assertThat(error[1]).isLessThan(error[0] + 2 * rounding);
    }

    /** The largest magnitude over the root of the mean square. */
    private static double largestOverMean(float[] numbers) {
        double largest = 0;
        double squares = 0;
        for (float x : numbers) {
            largest = Math.max(largest, Math.abs(x));
            squares += (double) x * x;
        }
        return largest / Math.sqrt(squares / numbers.length);
    }

    /** Each value in the index is off by its type's rounding; errors of tokens are independent. */
    @ParameterizedTest
    @CsvSource({"F8_E4M3, 0", "F8_E4M3, 24", "F12_E4M7, 0", "F12_E4M7, 24", "F6_E2M3, 0", "F6_E2M3, 24"})
    void valuesOfFewerBitsAreOffByTheirRounding(ElementType values, int slots) {
        int prompt = 700;
        Tokens tokens = CacheRunner.tokens(random, prompt + 150, RANK);
        try (ShadowKvCache cache = builder(1, 1, 3000).residualLimit(1).slots(slotsOf(slots)).valueType(values).build();
             KvSession session = cache.open(prompt + 200)) {
            CacheRunner.append(session, tokens, 0, prompt, random);
            session.seal();
            ShadowOracle oracle = sealedOracle(cache, session, tokens, prompt);
            Errors errors = new Errors();
            double scores = scoreError(tokens);
            Assumptions.assumeTrue(oracle.outlierMargin > cosineError(), "outliers nearly tie");
            float[][] outputs = CacheRunner.decode(session, tokens, prompt, prompt + 150);
            for (int t = 0; t < 150; t++) {
                double[] expected = oracle.step(tokens, prompt + t);
                if (oracle.margin > scores) {
                    errors.add(expected, outputs[t], oracle.expectedSquares, "token " + (prompt + t));
                }
            }
            assertThat(errors.steps).isGreaterThan(storageType == ElementType.F32 ? 120 : 0);
            errors.assertExpected();
        }
    }

    /** A GPU has slots in any case. */
    private int slotsOf(int slots) {
        return slots == 0 && !device.isCpu() ? 16 : slots;
    }

    /** Numbers of BF16 within 2^-14 of the largest are kept as they are: so are answers, and others nearly. */
    @ParameterizedTest
    @CsvSource({"0, true", "24, true", "0, false", "24, false"})
    void twelveBitsAreBfloat16(int slots, boolean exact) {
        storageType = ElementType.BF16;
        int prompt = 600;
        int total = 800;
        Tokens tokens = CacheRunner.tokens(random, total, 24);
        double largest = 0;
        for (int i = 0; i < tokens.values.length; i++) {
            // Multiples of 1/8 below 64: zero, or at least 2^-9 of the largest.
            tokens.values[i] = exact ? Math.clamp(Math.round(8 * tokens.values[i]) / 8f, -63f, 63f) : tokens.values[i];
            largest = Math.max(largest, Math.abs(tokens.values[i]));
        }
        float[][][] outputs = new float[2][][];
        for (int i = 0; i < 2; i++) {
            try (ShadowKvCache cache = builder(2, 1, total).slots(slotsOf(slots))
                    .valueType(i == 0 ? ElementType.BF16 : ElementType.F12_E4M7).build(); KvSession session = cache.open(total)) {
                CacheRunner.append(session, tokens, 0, prompt, null);
                session.seal();
                outputs[i] = CacheRunner.decode(session, tokens, prompt, total);
            }
        }
        // Selection and weights are the same. The weights sum to one, so the output is off by no more than a value is; and the
        // products and partial sums of both, of all that is attended, are rounded each for itself.
        int attended = 128 + 3 * 8 + 96;
        double tolerance = largest * (0x1p-22 + 2 * 2 * attended * 0x1p-24 + 2 * TestDevice.epsilon(device.defaultType()));
        for (int t = 0; t < total - prompt; t++) {
            if (exact) {
                Compare.same(outputs[0][t], outputs[1][t], "token " + (prompt + t));
                continue;
            }
            for (int i = 0; i < outputs[0][t].length; i++) {
                assertThat((double) Math.abs(outputs[0][t][i] - outputs[1][t][i])).as("token %s", prompt + t)
                        .isLessThanOrEqualTo(tolerance);
            }
        }
    }

    /** What stays in the slots from step to step is what would be rebuilt. */
    @ParameterizedTest
    @CsvSource({"F32, 0,", "BF16, 0,", "BF16, 2,", "F32, 0, I8", "BF16, 2, I8"})
    void keptKeysAreWhatIsRebuilt(ElementType storage, double rerank, ElementType coefficients) {
        Assumptions.assumeTrue(device.isCpu(), "keys are kept on a CPU");
        storageType = storage;
        coefficientType = coefficients;
        Tokens tokens = CacheRunner.tokens(random, 1700, 24);
        try (ShadowKvCache cache = builder(2, 2, 2000).rerank(rerank).keepKeys(true).build(); KvSession kept = cache.open(2000)) {
            CacheRunner.append(kept, tokens, 0, 1500, random);
            kept.seal();
            KvSession fresh = kept.fork();
            try (KvBatch one = cache.batch(List.of(kept)); KvBatch other = cache.batch(List.of(fresh))) {
                for (int t = 1500; t < 1700; t++) {
                    for (OwnLayer layer : ((ShadowSession) fresh).own) {
                        cache.index.resetSlots(layer);
                    }
                    Compare.same(CacheRunner.step(other, tokens, t), CacheRunner.step(one, tokens, t), "token " + t);
                    if (t == 1600) {
                        kept.truncate(1480);
                        fresh.truncate(1480);
                        CacheRunner.append(kept, tokens, 1480, 1601, null);
                        CacheRunner.append(fresh, tokens, 1480, 1601, null);
                    }
                }
                KvBatch.Statistics now = one.statistics();
                assertThat(now.fetchedChunks()).isLessThan(other.statistics().fetchedChunks());
                assertThat(now.fetchedChunks()).isPositive();
            }
        }
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

    @ParameterizedTest
    @NullSource
    @EnumSource(names = "I8")
    void chunksThatTheBasisMissesStayDense(ElementType coefficients) {
        coefficientType = coefficients;
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
                    float[] scales = headScales(session, 0);
                    float[] steps = stepsOf(session);
                    for (int i = 0; i < state.basisRows; i++) {
                        for (int j = 0; j <= i; j++) {
                            if (steps[i] == 0 || steps[j] == 0) {
                                // The prompt has fewer directions.
                                assertThat(Oracle.norm(basis[steps[i] == 0 ? i : j])).isZero();
                                continue;
                            }
                            boolean same = i == j || coefficients != null && CoefficientColumns.refined(i, 16 + reserve) == j;
                            assertThat(ShadowOracle.coefficient(basis[i], basis[j], scales) / steps[i] / steps[j])
                                    .isCloseTo(same ? 1 : 0, org.assertj.core.api.Assertions.within(
                                            16 * Math.sqrt(128) * TestDevice.epsilon(storageType)));
                        }
                    }
                }
                session.truncate(prompt + 10);
                assertThat(state.outliers).isLessThanOrEqualTo(before);
            }
        }
    }

    /** What the rows of the basis of layer 0 are multiplied by; ones where coefficients are as stored. */
    private static float[] stepsOf(KvSession session) {
        float[] steps = coefficientScales(session, 0);
        if (steps == null) {
            steps = new float[basis(session, 0).length];
            java.util.Arrays.fill(steps, 1);
        }
        return steps;
    }

    /** A direction that is added counts in steps of its own: twice what the tokens at hand need, of which none is clamped. */
    @Test
    void directionsThatAreAddedHaveScalesOfTheirOwn() {
        coefficientType = ElementType.I8;
        int prompt = 400;
        Tokens narrow = CacheRunner.tokens(random, prompt, 16);
        Tokens strange = CacheRunner.tokens(random, 200, 40);
        try (ShadowKvCache cache = builder(1, 1, 1000).rank(16).basisReserve(32).outliers(0).residualOutliers(0).build();
             KvSession session = cache.open(1000)) {
            CacheRunner.append(session, narrow, 0, prompt, random);
            session.seal();
            LayerState state = ((ShadowSession) session).state(0);
            double[] before = wholeNumbers(session, 0, 17);
            float[] steps = coefficientScales(session, 0);
            int first = 0;
            int t = 0;
            try (KvBatch batch = cache.batch(List.of(session))) {
                while (state.basisRows == 16) {
                    first = (int) state.recentBegin;
                    CacheRunner.step(batch, strange, t++);
                }
            }
            assertThat(state.basisRows).isEqualTo(16 + 8);
            float[] longer = coefficientScales(session, 0);
            assertThat(java.util.Arrays.copyOf(longer, 16)).isEqualTo(java.util.Arrays.copyOf(steps, 16));
            assertThat(wholeNumbers(session, 0, 17)).isEqualTo(before);
            assertThat(java.util.Arrays.copyOfRange(longer, 24, 48)).containsOnly(0);
            double[] largest = new double[48];
            for (int p = first; p < state.recentBegin; p++) {
                double[] numbers = wholeNumbers(session, 0, p);
                for (int j = 0; j < 48; j++) {
                    largest[j] = Math.max(largest[j], Math.abs(numbers[j]));
                }
            }
            double key = 0;
            for (int i = 0; i < t; i++) {
                key = Math.max(key, Oracle.norm(Oracle.head(strange.keys, strange.keyWidth, i, 0, strange.keyWidth)));
            }
            float[] heads = headScales(session, 0);
            for (int j = 16; j < 24; j++) {
                // Half of 127, but for six standard deviations of what rounding of the basis, the keys and sums may move.
                double moved = 6 * Math.sqrt(2.0 / 3) * (TestDevice.epsilon(storageType) + 0x1p-24 * Math.sqrt(strange.keyWidth))
                        * key * Math.max(heads[0], heads[1]) / longer[j];
                assertThat(largest[j]).as("direction %s", j).isBetween(63 - moved, 64 + moved);
            }
            assertThat(java.util.Arrays.copyOfRange(largest, 24, 48)).containsOnly(0);
        }
    }

    /** Layers are folded together, but what each one's basis misses is its own. */
    @Test
    void layersThatFoldTogetherKeepWhatTheyMissThemselves() {
        int prompt = 400;
        int steps = 150;
        Tokens narrow = CacheRunner.tokens(random, prompt + steps, 12);
        Tokens strange = CacheRunner.tokens(random, steps, 40);
        for (int reserve : new int[] {0, 32}) {
            try (ShadowKvCache three = builder(3, 1, 1000).rank(16).basisReserve(reserve).residualOutliers(6).build();
                 ShadowKvCache one = builder(1, 1, 1000).rank(16).basisReserve(reserve).residualOutliers(6).build();
                 KvSession all = three.open(1000); KvSession alone = one.open(1000)) {
                for (KvSession session : List.of(all, alone)) {
                    CacheRunner.append(session, narrow, 0, prompt, random);
                    session.seal();
                }
                try (KvBatch together = three.batch(List.of(all)); KvBatch single = one.batch(List.of(alone))) {
                    for (int t = 0; t < steps; t++) {
                        float[] expected = attend(one, single, 0, strange, t);
                        attend(three, together, 0, narrow, prompt + t);
                        Compare.same(expected, attend(three, together, 1, strange, t), "token " + t);
                        attend(three, together, 2, narrow, prompt + t);
                    }
                }
                LayerState expected = ((ShadowSession) alone).state(0);
                LayerState missed = ((ShadowSession) all).state(1);
                assertThat(expected.residualIds).isNotEmpty();
                assertThat(missed.residualIds).isEqualTo(expected.residualIds);
                assertThat(missed.residualRadius).isEqualTo(expected.residualRadius);
                assertThat(basis(all, 1)).isDeepEqualTo(basis(alone, 0));
                for (int layer : new int[] {0, 2}) {
                    assertThat(((ShadowSession) all).state(layer).residualIds).isEmpty();
                    assertThat(((ShadowSession) all).state(layer).basisRows).isEqualTo(16);
                }
                assertThat(missed.basisRows > 16).isEqualTo(reserve > 0);
            }
        }
    }

    private static float[] attend(KvCache cache, KvBatch batch, int layer, Tokens tokens, int at) {
        float[] output = new float[tokens.queryWidth];
        cache.attend(layer, batch, tokens.queries(at, at + 1), tokens.keys(at, at + 1), tokens.values(at, at + 1),
                MemorySegment.ofArray(output));
        return output;
    }
}
