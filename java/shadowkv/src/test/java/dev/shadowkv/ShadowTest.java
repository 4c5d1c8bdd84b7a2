package dev.shadowkv;

import static dev.shadowkv.CacheRunner.HEAD_DIM;
import static dev.shadowkv.CacheRunner.KEY_VALUE_HEADS;
import static dev.shadowkv.CacheRunner.QUERY_HEADS;
import static dev.shadowkv.CacheRunner.ROPE;
import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;

/** What the tests of shadow caches share: a device, a cache of a usual shape, and how far rounding may lead. */
abstract class ShadowTest {

    static final int RANK = 32;

    Device device;
    ElementType storageType;
    /** Of the caches that {@link #builder} begins; null: as stored. */
    ElementType coefficientType;

    @BeforeEach
    void open() {
        device = TestDevice.open();
        storageType = TestDevice.storageType(device);
    }

    @AfterEach
    void close() {
        device.close();
    }

    final ShadowKvCache.Builder builder(int layers, int sessions, long capacity) {
        return CacheRunner.shape(ShadowKvCache.builder(device), layers, sessions, capacity).rank(RANK).budget(128)
                .outliers(3).storageType(storageType).coefficientType(coefficientType).tail(true);
    }

    static DenseOracle dense() {
        return new DenseOracle(ROPE, QUERY_HEADS, KEY_VALUE_HEADS, HEAD_DIM);
    }

    final double tolerance(Tokens tokens) {
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
    final double rebuiltTolerance(Tokens tokens) {
        return tolerance(tokens) * 2 * Math.sqrt(RANK);
    }

    /**
     * What rounding may change in the difference of two chunks' scores: each is a product of a query that is rounded
     * twice with a mean of rounded keys that is rounded again. Six standard deviations of errors in any direction.
     */
    final double scoreError(Tokens tokens) {
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
    final double cosineError() {
        double relative = Math.hypot(TestDevice.epsilon(storageType), 0x1p-24 * Math.sqrt(HEAD_DIM));
        return 6 * Math.sqrt(2) * relative / Math.sqrt(HEAD_DIM);
    }

    /** Collects errors and what is expected of them. */
    static final class Errors {
        private double squares;
        private double expected;
        int steps;

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

    /** As the factorization wrote them; ones where it wrote none. */
    static float[] headScales(KvSession session, int layer) {
        DeviceBuffer scales = ((ShadowSession) session).shared.layers[layer].headScales;
        if (scales != null) {
            return Scratch.floats(scales, session.cache().keyValueHeads());
        }
        float[] ones = new float[session.cache().keyValueHeads()];
        java.util.Arrays.fill(ones, 1);
        return ones;
    }

    /** As the factorization wrote them; null where coefficients are as stored. */
    static float[] coefficientScales(KvSession session, int layer) {
        DeviceBuffer scales = ((ShadowSession) session).shared.layers[layer].coefficientScales;
        return scales == null ? null : Scratch.floats(scales, ((ShadowKvCache) session.cache()).geometry().rank());
    }

    /** The coefficients of 8 bits of a position. */
    static double[] wholeNumbers(KvSession session, int layer, int position) {
        int rank = ((ShadowKvCache) session.cache()).geometry().rank();
        DeviceBuffer coefficients = ((ShadowSession) session).shared.layers[layer].coefficients;
        byte[] bytes = new byte[rank];
        coefficients.device().copy(coefficients.slice((long) position * rank, rank), MemorySegment.ofArray(bytes));
        double[] numbers = new double[rank];
        java.util.Arrays.setAll(numbers, j -> bytes[j]);
        return numbers;
    }

    /** A key of the recent window, rotated. */
    static double[] windowKey(KvSession session, int layer, int head, int position) {
        Geometry g = ((ShadowKvCache) session.cache()).geometry();
        Ring ring = ((ShadowSession) session).own[layer].keyRing;
        long row = g.storageType().bytes(g.headDim());
        MemorySegment host = MemorySegment.ofArray(new long[(int) (row / 8)]);
        session.cache().device().copy(ring.buffer().slice((head * ring.capacity() + position % ring.capacity()) * row, row), host);
        double[] key = new double[g.headDim()];
        java.util.Arrays.setAll(key, d -> read(host, g.storageType(), d));
        return key;
    }

    private static double read(MemorySegment host, ElementType type, long index) {
        return type == ElementType.F32 ? host.getAtIndex(java.lang.foreign.ValueLayout.JAVA_FLOAT, index)
                : Float.intBitsToFloat(host.getAtIndex(java.lang.foreign.ValueLayout.JAVA_SHORT, index) << 16);
    }
}
