package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The shapes of the design, each through sealing and decoding with folds, against the method in double precision. */
class ShapesTest {

    private static final Random random = TestDevice.random(ShapesTest.class);

    @ParameterizedTest(name = "{0} query heads, {1} key/value heads of {2}, rank {3}, chunk {4}, {5} tokens, coefficients {6}")
    @CsvSource({
        "1, 1, 64, 16, 8, 301,",
        "4, 4, 64, 24, 16, 333,",
        "8, 2, 96, 32, 8, 290,",
        "7, 1, 128, 40, 8, 310,",
        "8, 1, 128, 64, 16, 400,",
        "16, 1, 64, 32, 8, 277,",
        "32, 8, 64, 160, 8, 300,",
        "32, 32, 16, 100, 8, 260,",
        "6, 3, 34, 33, 8, 299,",
        "4, 2, 256, 256, 8, 300,",
        "2, 2, 10, 16, 16, 350,",
        "4, 4, 64, 24, 16, 334, I8",
        "8, 2, 96, 32, 8, 291, I8",
        "7, 1, 128, 40, 8, 310, I8",
        "32, 8, 64, 160, 8, 300, I8",
        "6, 3, 34, 33, 8, 299, I8",
        "4, 2, 256, 256, 8, 300, I8",
        "2, 2, 10, 16, 16, 350, I8"})
    void everyShapeIsTheMethod(int queryHeads, int keyValueHeads, int headDim, int rank, int chunk, int prompt,
            ElementType coefficients) {
        int total = prompt + 80;
        Tokens tokens = Tokens.random(random, total, queryHeads, keyValueHeads, headDim, Math.min(rank, 16));
        // A rotary dimension smaller than the head's wherever the head is large, interleaved for odd prompts.
        Rope half = Rope.standard(headDim > 64 ? headDim / 2 : headDim, 10_000);
        Rope rope = prompt % 2 == 1 ? half.interleaved() : half;
        try (Device device = TestDevice.open();
             ShadowKvCache cache = ShadowKvCache.builder(device).layers(1).queryHeads(queryHeads)
                     .keyValueHeads(keyValueHeads).headDim(headDim).rope(rope).rank(rank).chunk(chunk).budget(8 * chunk)
                     .outliers(2).residualLimit(1).tail(true).coefficientType(coefficients).memory(MemoryPlan.of(1, total)).build();
             KvSession session = cache.open(total)) {
            float[] prefilled = new float[prompt * tokens.queryWidth];
            session.prefill(0, prompt, tokens.queries(0, prompt), tokens.keys(0, prompt), tokens.values(0, prompt),
                    MemorySegment.ofArray(prefilled));
            session.seal();
            DenseOracle dense = new DenseOracle(rope, queryHeads, keyValueHeads, headDim);
            ShadowOracle oracle = new ShadowOracle(dense, cache.options);
            for (int t = 0; t < prompt; t++) {
                oracle.add(tokens, t);
            }
            double tolerance = tolerance(device.defaultType(), tokens, headDim, rank);
            for (int t = 0; t < prompt; t += 29) {
                Compare.close(dense.attend(tokens, t, t + 1), prefilled, t * tokens.queryWidth, tolerance,
                        "prefill " + t);
            }
            oracle.follow(session, 0);
            oracle.seal(basis(session, rank, keyValueHeads, headDim));
            assertThat(oracle.exact).isFalse();
            double eps = 64 * TestDevice.epsilon(device.defaultType());
            int compared = 0;
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int t = prompt; t < total; t++) {
                    float[] output = CacheRunner.step(batch, tokens, t);
                    if (t % 4 != 0) {
                        oracle.pass(tokens, t);
                        continue;
                    }
                    double[] expected = oracle.step(tokens, t);
                    if (oracle.margin > eps && oracle.outlierMargin > eps) {
                        Compare.close(expected, output, 0, tolerance, "token " + t);
                        compared++;
                    }
                }
            }
            if (device.isCpu() && oracle.outlierMargin > eps) {
                assertThat(compared).isGreaterThanOrEqualTo(15);
            }
        }
    }

    private static double tolerance(ElementType type, Tokens tokens, int headDim, int rank) {
        double key = largestNorm(tokens.keys, headDim);
        double query = largestNorm(tokens.queries, headDim);
        double value = 0;
        for (float v : tokens.values) {
            value = Math.max(value, Math.abs(v));
        }
        return Compare.attentionTolerance(type, headDim, query, key, value) * 2 * Math.sqrt(rank);
    }

    private static double largestNorm(float[] rows, int headDim) {
        double largest = 0;
        for (int i = 0; i < rows.length; i += headDim) {
            double sum = 0;
            for (int d = 0; d < headDim; d++) {
                sum += (double) rows[i + d] * rows[i + d];
            }
            largest = Math.max(largest, sum);
        }
        return Math.sqrt(largest);
    }

    private static double[][] basis(KvSession session, int rank, int heads, int headDim) {
        DeviceBuffer buffer = ((ShadowSession) session).shared.layers[0].basis;
        Device device = buffer.device();
        MemorySegment host = MemorySegment.ofArray(new long[(int) (buffer.byteSize() / 8) + 1]).asSlice(0,
                buffer.byteSize());
        device.copy(buffer, host);
        double[][] rows = new double[rank][heads * headDim];
        for (int head = 0; head < heads; head++) {
            for (int r = 0; r < rank; r++) {
                for (int d = 0; d < headDim; d++) {
                    long at = ((long) head * rank + r) * headDim + d;
                    rows[r][head * headDim + d] = device.isCpu() ? host.getAtIndex(ValueLayout.JAVA_FLOAT, at)
                            : Float.intBitsToFloat(host.getAtIndex(ValueLayout.JAVA_SHORT, at) << 16);
                }
            }
        }
        return rows;
    }
}
