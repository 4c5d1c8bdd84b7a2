package dev.shadowkv.bench;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.ShadowLayer;

/** Selection and attention of one session and key/value head in double precision, from what the device holds. */
final class AttentionOracle {

    /** How many standard deviations of accumulated rounding a score may be off. */
    private static final double SCORE_DEVIATIONS = 5;

    private final Geometry g;
    private final DecodeState state;
    private final ShadowSession session;
    private final ShadowLayer layer;
    private final int head;
    private final double[] landmarks;
    private final double[] radius;
    private final double[] basis;
    private final double inputEpsilon;

    AttentionOracle(DecodeState state, int sessionIndex, int copy, int head) {
        this.state = state;
        this.g = state.geometry;
        this.head = head;
        session = state.sessions[sessionIndex];
        layer = session.layers[copy];
        long capacity = layer.chunkCapacity();
        landmarks = state.download(layer.landmarks(), g.landmarkType(), head * capacity * g.headDim(),
                session.chunks * g.headDim());
        radius = state.download(layer.radius(), ElementType.F32, head * capacity, session.chunks);
        if (g.landmarkType() == ElementType.I8) {
            double[] scales = state.download(layer.landmarkScales(), ElementType.F32, head * capacity, session.chunks);
            for (int i = 0; i < landmarks.length; i++) {
                landmarks[i] *= scales[i / g.headDim()];
            }
        }
        basis = state.download(layer.basis(), g.storageType(), (long) head * g.rank() * g.headDim(), g.rank() * g.headDim());
        inputEpsilon = Math.max(Numbers.epsilon(state.inputType), Numbers.epsilon(g.storageType()));
    }

    /** Whether a chunk is in the index of the head. */
    boolean indexed(int chunk) {
        return radius[chunk] >= 0;
    }

    /** The score of every chunk for a group of queries; minus infinity for one that is not in the index. */
    double[] scores(double[][] queries) {
        double[] best = new double[session.chunks];
        Arrays.fill(best, Double.NEGATIVE_INFINITY);
        for (double[] q : queries) {
            double norm = Math.sqrt(dot(q, 0, q, 0, q.length));
            double[] logits = new double[session.chunks];
            double largest = Double.NEGATIVE_INFINITY;
            for (int chunk = 0; chunk < logits.length; chunk++) {
                logits[chunk] = !indexed(chunk) ? Double.NEGATIVE_INFINITY
                        : (dot(q, 0, landmarks, chunk * g.headDim(), g.headDim())
                        + DecodeState.RADIUS_WEIGHT * norm * radius[chunk]) / Math.sqrt(g.headDim());
                largest = Math.max(largest, logits[chunk]);
            }
            double sum = 0;
            for (double logit : logits) {
                sum += Math.exp(logit - largest);
            }
            for (int chunk = 0; chunk < logits.length; chunk++) {
                best[chunk] = Math.max(best[chunk], logits[chunk] - largest - Math.log(sum));
            }
        }
        return best;
    }

    /**
     * How far a score may be off: by sums in fp32, and by rounding of the queries' elements, if they are rotated before
     * the landmarks see them, or to 8 bits if the landmarks have 8.
     */
    double scoreTolerance(double[][] queries, boolean rotated) {
        double relative = 0x1p-24 * Math.sqrt(g.headDim()) + (rotated ? Numbers.epsilon(state.inputType) : 0);
        double tolerance = 0;
        for (double[] q : queries) {
            double largest = 0;
            for (double x : q) {
                largest = Math.max(largest, Math.abs(x));
            }
            for (int chunk = 0; chunk < session.chunks; chunk += 17) {
                double products = 0;
                double squares = 0;
                for (int i = 0; i < q.length; i++) {
                    double m = landmarks[chunk * g.headDim() + i];
                    products += q[i] * q[i] * m * m;
                    squares += m * m;
                }
                double off = relative * Math.sqrt(products)
                        + (g.landmarkType() == ElementType.I8 ? largest / 254 / Math.sqrt(3) * Math.sqrt(squares) : 0);
                tolerance = Math.max(tolerance, off / Math.sqrt(g.headDim()));
            }
        }
        return SCORE_DEVIATIONS * tolerance;
    }

    /** Fails unless the chunks are the best by score, as far as rounding lets one tell. */
    void checkSelection(int[] selected, double[] scores, double tolerance, int select) {
        int indexed = 0;
        for (int chunk = 0; chunk < session.chunks; chunk++) {
            indexed += indexed(chunk) ? 1 : 0;
        }
        Tolerance.within("chunks selected", selected.length, Math.min(select, indexed), 0);
        double worst = Double.POSITIVE_INFINITY;
        boolean[] taken = new boolean[session.chunks];
        for (int i = 0; i < selected.length; i++) {
            Tolerance.require(i == 0 || selected[i] > selected[i - 1], "selected chunks must ascend");
            Tolerance.require(indexed(selected[i]), "a chunk was selected that is not in the index");
            taken[selected[i]] = true;
            worst = Math.min(worst, scores[selected[i]]);
        }
        for (int chunk = 0; chunk < taken.length; chunk++) {
            Tolerance.require(taken[chunk] || scores[chunk] <= worst + 2 * tolerance,
                    "chunk " + chunk + " was left out with a better score than one that was selected");
        }
    }

    /** The best chunks, and behind them those whose rank rounding might change. */
    int[][] best(double[] scores, double tolerance, int select) {
        Integer[] order = new Integer[scores.length];
        Arrays.setAll(order, i -> i);
        Arrays.sort(order, (a, b) -> Double.compare(scores[b], scores[a]));
        int count = 0;
        while (count < Math.min(select, order.length) && scores[order[count]] != Double.NEGATIVE_INFINITY) {
            count++;
        }
        int[] chosen = new int[count];
        for (int i = 0; i < count; i++) {
            chosen[i] = order[i];
        }
        Arrays.sort(chosen);
        if (count == 0 || count < select) {
            return new int[][] {chosen, {}};
        }
        double threshold = scores[order[count - 1]];
        // Nothing is in doubt if the best that was left out is clearly worse.
        boolean clear = count == order.length || scores[order[count]] < threshold - 2 * tolerance;
        int[] doubtful = Arrays.stream(order).mapToInt(i -> i)
                .filter(i -> !clear && Math.abs(scores[i] - threshold) <= 2 * tolerance).toArray();
        return new int[][] {chosen, doubtful};
    }

    /** Logarithm of the summed weights of a chunk's rebuilt keys. */
    double chunkMass(double[] q, int chunk) {
        double sum = 0;
        for (int i = 0; i < g.chunk(); i++) {
            double[] key = rebuilt((long) chunk * g.chunk() + i);
            sum += Math.exp(dot(q, 0, key, 0, key.length) / Math.sqrt(g.headDim()));
        }
        return Math.log(sum);
    }

    /**
     * What the indexed tokens that are not selected add.
     *
     * @param logWeight natural logarithm of their weight
     * @param error how far it may be off
     */
    record Tail(double logWeight, double error, double[] value) { }

    /** The tail of a selection, by the landmarks of what is left and by the moments. */
    Tail tail(double[] q, int[] selected, double error) {
        double[] logits = new double[session.chunks];
        double largest = Double.NEGATIVE_INFINITY;
        for (int chunk = 0; chunk < logits.length; chunk++) {
            boolean left = indexed(chunk) && Arrays.binarySearch(selected, chunk) < 0;
            logits[chunk] = left ? dot(q, 0, landmarks, chunk * g.headDim(), g.headDim()) / Math.sqrt(g.headDim())
                    : Double.NEGATIVE_INFINITY;
            largest = Math.max(largest, logits[chunk]);
        }
        if (largest == Double.NEGATIVE_INFINITY) {
            return null;
        }
        double sum = 0;
        for (double logit : logits) {
            sum += Math.exp(logit - largest);
        }
        return new Tail(largest + Math.log(g.chunk() * sum), error, meanValue(q));
    }

    /** mean(v) + cov(v, k) q / sqrt(D). */
    private double[] meanValue(double[] q) {
        int d = g.headDim();
        int floats = Math.toIntExact(g.momentFloats() / g.keyValueHeads());
        double[] m = state.download(layer.moments(), ElementType.F32, (long) head * floats, floats);
        double tokens = m[d * d + 2 * d];
        double product = dot(q, 0, m, d * d, d) / tokens;
        double[] value = new double[d];
        for (int i = 0; i < d; i++) {
            double mean = m[d * d + d + i] / tokens;
            value[i] = mean + (dot(q, 0, m, i * d, d) / tokens - mean * product) / Math.sqrt(d);
        }
        return value;
    }

    /**
     * Fails unless an output is the attention over some chunks, the outliers and the recent window.
     *
     * @param tail of the chunks that are left out, or null
     */
    void checkOutput(double[] output, double[] q, int[] chunks, int[] doubtful, Tail tail) {
        Attention attention = new Attention(q);
        for (int chunk : chunks) {
            attention.addChunk(chunk);
        }
        long outlierRow = (long) head * layer.outlierCapacity() * g.chunk();
        addRows(attention, layer.outlierKeys(), layer.outlierValues(), outlierRow, session.outliers * g.chunk());
        for (long position = session.recentBegin; position < state.context; position++) {
            addRows(attention, layer.recentKeys(), layer.recentValues(), head * (long) g.window() + position % g.window(), 1);
        }
        if (tail != null) {
            attention.sum.addPart(tail.logWeight(), tail.error(), tail.value());
        }
        double doubtfulShare = 0;
        for (int chunk : doubtful) {
            doubtfulShare += Math.exp(chunkMass(q, chunk) - attention.logSum());
        }
        attention.check(output, doubtfulShare);
    }

    private void addRows(Attention attention, DeviceBuffer keys, DeviceBuffer values, long firstRow, int rows) {
        if (rows == 0) {
            return;
        }
        double[] k = state.download(keys, g.storageType(), firstRow * g.headDim(), rows * g.headDim());
        double[] v = state.download(values, g.storageType(), firstRow * g.headDim(), rows * g.headDim());
        for (int i = 0; i < rows; i++) {
            attention.add(k, i * g.headDim(), v, i * g.headDim());
        }
    }

    private double[] rebuilt(long position) {
        double[] a = state.download(layer.coefficients(), g.coefficientType(), position * g.rank(), g.rank());
        double[] key = new double[g.headDim()];
        for (int j = 0; j < g.rank(); j++) {
            for (int i = 0; i < key.length; i++) {
                key[i] += a[j] * basis[j * g.headDim() + i];
            }
        }
        rotate(key, state.rope.rope().inverseFrequencies(), position);
        return key;
    }

    /** Rotates pairs (i, i + n). */
    static void rotate(double[] x, double[] frequencies, long position) {
        for (int i = 0; i < frequencies.length; i++) {
            double angle = position * frequencies[i];
            double a = x[i];
            double b = x[i + frequencies.length];
            x[i] = a * Math.cos(angle) - b * Math.sin(angle);
            x[i + frequencies.length] = b * Math.cos(angle) + a * Math.sin(angle);
        }
    }

    static double dot(double[] a, int aFirst, double[] b, int bFirst, int count) {
        double sum = 0;
        for (int i = 0; i < count; i++) {
            sum += a[aFirst + i] * b[bFirst + i];
        }
        return sum;
    }

    /** A softmax-weighted sum, and how far rounding of keys, weights and values may move it. */
    private final class Attention {
        private final double[] q;
        private final DenseOracle sum;

        Attention(double[] q) {
            this.q = q;
            sum = new DenseOracle(q, inputEpsilon);
        }

        void addChunk(int chunk) {
            MemorySegment values = layer.values();
            double scale = g.valueType().isScaled()
                    ? state.download(layer.valueScales(), ElementType.F32, head * layer.chunkCapacity() + chunk, 1)[0] : 1;
            for (int i = 0; i < g.chunk(); i++) {
                double[] v = new double[g.headDim()];
                for (int j = 0; j < v.length; j++) {
                    v[j] = scale * Numbers.value(values, g.valueType(), head * layer.chunkCapacity() + chunk,
                            g.chunk() * g.headDim(), i * g.headDim() + j);
                }
                sum.add(rebuilt((long) chunk * g.chunk() + i), 0, v, 0);
            }
        }

        void add(double[] keys, int key, double[] values, int value) {
            sum.add(keys, key, values, value);
        }

        double logSum() {
            return sum.logSum();
        }

        void check(double[] output, double doubtfulShare) {
            sum.check(output, Numbers.epsilon(state.inputType), doubtfulShare);
        }
    }
}
