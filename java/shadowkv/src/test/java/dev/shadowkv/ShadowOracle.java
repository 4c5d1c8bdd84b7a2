package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.IntFunction;

/**
 * The whole method in double precision, for one layer: section by section as it is described, not as it is built. Only
 * the basis is taken from the cache, where its own test proves it: subspaces of equal quality are many. So are whole
 * numbers of coefficients of 8 bits, each of which must be within half a step of what it rounds.
 */
final class ShadowOracle {

    /** How much further than a landmark's score rounding may move the mass of a chunk's rebuilt keys. */
    private static final double REBUILT_ROUNDINGS = 3;

    final DenseOracle dense;
    final ShadowOptions options;
    final int chunk;
    /** {@code [head][position]}: keys as the basis has them, rotated. */
    private final List<List<double[]>> rebuilt = new ArrayList<>();
    /** {@code [position][rank]}. */
    private final List<double[]> coefficients = new ArrayList<>();
    /** {@code [head]}, of the tokens that were sealed; null: none are predicted. */
    private List<ValueOracle> predicted;
    private final List<double[]> raw = new ArrayList<>();
    private List<Set<Integer>> outliers = new ArrayList<>();
    private final List<MomentOracle> moments = new ArrayList<>();
    /** Tokens that the moments have seen. */
    private long counted;
    private double[][] basis;
    /** What keys of each head are multiplied by before they are factored; the basis of the head is divided by it. */
    float[] headScales;
    /** What coefficients of a direction are counted in; the basis rows of the direction are multiplied by it. */
    private float[] coefficientScales;
    /** Of a position: what the session has; null where coefficients are as stored. */
    private IntFunction<double[]> wholeNumbers;
    long recentBegin;
    boolean exact;
    /** The smallest distance, over heads, between the last selected and the first rejected score of the last step. */
    double margin;
    double outlierMargin = Double.POSITIVE_INFINITY;
    /** What to expect of the errors of a step, if it is wanted. */
    ExpectedError rounding;
    /** The expected sum of the squares of the last step's errors. */
    double expectedSquares;
    private int rewound;

    ShadowOracle(DenseOracle dense, ShadowOptions options) {
        this.dense = dense;
        this.options = options;
        chunk = options.geometry().chunk();
        headScales = new float[dense.keyValueHeads];
        java.util.Arrays.fill(headScales, 1);
        for (int head = 0; head < dense.keyValueHeads; head++) {
            rebuilt.add(new ArrayList<>());
            outliers.add(new HashSet<>());
            moments.add(new MomentOracle(dense.headDim));
        }
    }

    void add(Tokens tokens, int token) {
        int width = dense.keyValueHeads * dense.headDim;
        double[] key = new double[width];
        for (int i = 0; i < width; i++) {
            key[i] = tokens.keys[token * width + i];
        }
        raw.add(key);
        dense.add(tokens, token);
        if (basis != null) {
            rebuild(raw.size() - 1);
        }
    }

    /** Takes over by what a session's layer has scaled its heads, and has counted its coefficients. */
    void follow(KvSession session, int layer) {
        headScales = ShadowTest.headScales(session, layer);
        coefficientScales = ShadowTest.coefficientScales(session, layer);
        wholeNumbers = coefficientScales == null ? null : position -> ShadowTest.wholeNumbers(session, layer, position);
    }

    /** Seals what was added; the basis {@code [row][joint width]} is the cache's. */
    void seal(double[][] basisRows) {
        int chunks = Math.max(0, dense.length() / chunk - options.local());
        recentBegin = (long) chunks * chunk;
        exact = chunks < options.select();
        if (!exact) {
            basis = basisRows;
            for (int t = 0; t < raw.size(); t++) {
                rebuild(t);
            }
            takeWholeNumbers(0, raw.size());
            for (int head = 0; head < dense.keyValueHeads; head++) {
                chooseOutliers(head, chunks);
            }
            if (options.predictDropped()) {
                predicted = new ArrayList<>();
                for (int head = 0; head < dense.keyValueHeads; head++) {
                    predicted.add(ValueOracle.fit(coefficients, dense.values.get(head),
                            options.geometry().storageType(), wholeNumbers != null));
                }
            }
        }
    }

    /** Takes up where a rewound session stands, whose outliers are some of those that it had. */
    void restore(double[][] basisRows, LayerState state) {
        basis = basisRows;
        rewound = 1;
        exact = state.exact;
        recentBegin = state.recentBegin;
        for (int t = 0; t < raw.size(); t++) {
            rebuild(t);
        }
        takeWholeNumbers(0, (int) recentBegin);
        for (int i = 0; i < state.chosenIds.length; i++) {
            outliers.get(i / state.chosen).add(state.chosenIds[i]);
        }
    }

    private void rebuild(int position) {
        coefficients.add(exactCoefficients(position));
        for (int head = 0; head < dense.keyValueHeads; head++) {
            rebuilt.get(head).add(rebuilt(head, position));
        }
    }

    /** In what a session counts them, but not rounded, so that nothing is left for refinements. */
    private double[] exactCoefficients(int position) {
        double[] own = new double[basis.length];
        for (int j = 0; j < own.length; j++) {
            if (wholeNumbers == null) {
                own[j] = coefficient(basis[j], raw.get(position), headScales);
            } else if (CoefficientColumns.refined(j, own.length) < 0) {
                own[j] = Math.clamp(steps(position, j), -127, 127);
            }
        }
        return own;
    }

    /** A coefficient that is to be rounded to a whole number, by its row of the basis. */
    private double steps(int position, int column) {
        double scale = coefficientScales[column];
        return scale == 0 ? 0 : coefficient(basis[column], raw.get(position), headScales) / (scale * scale);
    }

    /** Keys of a head by the coefficients, rotated. */
    private double[] rebuilt(int head, int position) {
        double[] key = new double[dense.headDim];
        double[] own = coefficients.get(position);
        for (int j = 0; j < own.length; j++) {
            for (int i = 0; i < key.length; i++) {
                key[i] += own[j] * basis[j][head * dense.headDim + i];
            }
        }
        return dense.rotated(key, position);
    }

    /**
     * Rounding to whole numbers is the session's: near a half it cannot be foreseen. It is off by no more than half a step, and
     * what rounding of keys and basis, and of the sum, may move the number that is rounded. A refinement is what rounding left
     * of its direction, by a row of the basis that is rounded once more.
     */
    private void takeWholeNumbers(int from, int to) {
        for (int position = from; wholeNumbers != null && position < to; position++) {
            // Tokens that were in the window when it was sealed are projected anew when they are folded.
            double[] own = exactCoefficients(position);
            double[] taken = wholeNumbers.apply(position);
            for (int j = 0; j < own.length; j++) {
                double scale = coefficientScales[j];
                int refined = CoefficientColumns.refined(j, own.length);
                double exact = refined < 0 || scale == 0 ? own[j]
                        : (steps(position, refined) - taken[refined]) * coefficientScales[refined] / scale;
                double rows = refined < 0 ? 1 : Math.sqrt(2);
                double moved = scale == 0 ? 0 : rows * (1 + rewound) * coefficientError(position) / scale;
                assertThat(Math.abs(taken[j] - Math.clamp(exact, -127, 127)))
                        .as("coefficient %s of token %s: %s for %s", j, position, taken[j], exact)
                        .isLessThanOrEqualTo(0.5 + moved);
            }
            coefficients.set(position, taken);
            for (int head = 0; head < dense.keyValueHeads; head++) {
                rebuilt.get(head).set(position, rebuilt(head, position));
            }
        }
    }

    /** Six standard deviations of a coefficient's error, of any direction: key and basis are rounded, and the sum is. */
    private double coefficientError(int position) {
        double[] key = raw.get(position);
        double squares = 0;
        for (int i = 0; i < key.length; i++) {
            squares += Math.pow(key[i] * headScales[i / dense.headDim], 2);
        }
        double epsilon = TestDevice.epsilon(options.geometry().storageType());
        return 6 * Math.sqrt(squares * (2.0 / 3 * epsilon * epsilon + key.length * 0x1p-48 / 3));
    }

    /**
     * Takes what a rewound session has in its recent window, rotated keys by head, for the key of a token. It must be the key
     * as it was, or as the index had it: each coefficient within half a step.
     */
    void takeWindowKey(int position, double[][] keys) {
        double steps = 0;
        for (float scale : coefficientScales) {
            steps += scale * scale / 4.0;
        }
        double[] joint = new double[keys.length * dense.headDim];
        for (int head = 0; head < keys.length; head++) {
            double rounding = 4 * TestDevice.epsilon(options.geometry().storageType()) * Oracle.norm(keys[head])
                    + basis.length * coefficientError(position) / headScales[head];
            double asItWas = Oracle.distance(keys[head], dense.keys.get(head).get(position));
            double asIndexed = Oracle.distance(keys[head], rebuilt.get(head).get(position));
            assertThat(Math.min(asItWas, asIndexed - Math.sqrt(steps) / headScales[head])).as("key %s of head %s", position, head)
                    .isLessThanOrEqualTo(rounding);
            dense.keys.get(head).set(position, keys[head]);
            System.arraycopy(dense.rotated(keys[head], -position), 0, joint, head * dense.headDim, dense.headDim);
        }
        // An outlier of one head is as it was there, and its key is none that the coefficients have: it is folded anew.
        raw.set(position, joint);
    }

    /** Of a key of the joint width, whose heads and whose row are scaled as the factorization scales them. */
    static double coefficient(double[] row, double[] key, float[] headScales) {
        int headDim = key.length / headScales.length;
        double sum = 0;
        for (int i = 0; i < key.length; i++) {
            double scale = headScales[i / headDim];
            sum += row[i] * scale * key[i] * scale;
        }
        return sum;
    }

    private List<double[]> members(int head, int c) {
        return dense.keys.get(head).subList(c * chunk, (c + 1) * chunk);
    }

    private void chooseOutliers(int head, int chunks) {
        double[] worst = new double[chunks];
        for (int c = 0; c < chunks; c++) {
            double[] mean = Oracle.mean(members(head, c));
            double cosine = 1;
            for (double[] member : members(head, c)) {
                cosine = Math.min(cosine, Oracle.dot(member, mean) / Oracle.norm(member) / Oracle.norm(mean));
            }
            worst[c] = -cosine;
        }
        int count = Math.min(options.outliers(), chunks);
        int[] chosen = Oracle.best(worst, count);
        for (int c : chosen) {
            outliers.get(head).add(c);
        }
        outlierMargin = Math.min(outlierMargin, margin(worst, chosen));
    }

    /** Difference of the smallest chosen and the largest other score. */
    private static double margin(double[] scores, int[] chosen) {
        Set<Integer> set = new HashSet<>();
        double smallest = Double.POSITIVE_INFINITY;
        for (int c : chosen) {
            set.add(c);
            smallest = Math.min(smallest, scores[c]);
        }
        double largest = Double.NEGATIVE_INFINITY;
        for (int c = 0; c < scores.length; c++) {
            if (!set.contains(c)) {
                largest = Math.max(largest, scores[c]);
            }
        }
        return smallest - largest;
    }

    /** One decode step of a token that is not added yet, without its attention. */
    void pass(Tokens tokens, int token) {
        makeRoom();
        add(tokens, token);
    }

    /** One decode step of a token that is not added yet. */
    double[] step(Tokens tokens, int token) {
        pass(tokens, token);
        margin = Double.POSITIVE_INFINITY;
        expectedSquares = 0;
        int length = dense.length();
        int group = dense.queryHeads / dense.keyValueHeads;
        double[] result = new double[dense.queryHeads * dense.headDim];
        for (int head = 0; head < dense.keyValueHeads; head++) {
            double[][] queries = new double[group][];
            for (int g = 0; g < group; g++) {
                queries[g] = dense.rotated(
                        Oracle.head(tokens.queries, tokens.queryWidth, token, head * group + g, dense.headDim),
                                length - 1);
            }
            List<double[]> keys = new ArrayList<>();
            List<double[]> values = new ArrayList<>();
            List<Integer> indexed = exact ? List.of() : indexed(head);
            Set<Integer> shortlist = shortlist(head, queries, indexed);
            Set<Integer> selected = rerank(head, queries, shortlist);
            for (int p = 0; p < length; p++) {
                int c = p / chunk;
                if (p >= recentBegin || exact || outliers.get(head).contains(c)) {
                    keys.add(dense.keys.get(head).get(p));
                    values.add(dense.values.get(head).get(p));
                } else if (selected.contains(c)) {
                    keys.add(rebuilt.get(head).get(p));
                    values.add(dense.values.get(head).get(p));
                } else if (predicted != null && shortlist.contains(c)) {
                    keys.add(rebuilt.get(head).get(p));
                    values.add(predicted.get(head).value(coefficients.get(p)));
                }
            }
            for (int g = 0; g < group; g++) {
                TailOracle tail = options.tail() ? tail(head, queries[g], indexed, shortlist, selected) : null;
                double[] out = TailOracle.attend(queries[g], keys, values, tail);
                System.arraycopy(out, 0, result, (head * group + g) * dense.headDim, dense.headDim);
                if (rounding != null) {
                    expectedSquares += rounding.squares(queries[g], keys, values, tail, rewound);
                }
            }
        }
        return result;
    }

    private void makeRoom() {
        if (dense.length() - recentBegin == options.geometry().window()) {
            int folded = (int) recentBegin;
            recentBegin += options.geometry().window() - options.local() * chunk;
            takeWholeNumbers(folded, basis == null ? folded : (int) recentBegin);
            if (exact && recentBegin / chunk >= options.select()) {
                throw new IllegalStateException("becoming indexed while decoding is tested against the exact answer");
            }
        }
    }

    /** Chunks in the index of a head. */
    private List<Integer> indexed(int head) {
        List<Integer> result = new ArrayList<>();
        for (int c = 0; c < recentBegin / chunk; c++) {
            if (!outliers.get(head).contains(c)) {
                result.add(c);
            }
        }
        return result;
    }

    private Set<Integer> shortlist(int head, double[][] queries, List<Integer> indexed) {
        double[] scores = new double[indexed.size()];
        java.util.Arrays.fill(scores, Double.NEGATIVE_INFINITY);
        for (double[] query : queries) {
            double[] logits = new double[scores.length];
            for (int i = 0; i < logits.length; i++) {
                List<double[]> members = members(head, indexed.get(i));
                double[] mean = Oracle.mean(members);
                double radius = 0;
                for (double[] member : members) {
                    radius = Math.max(radius, Oracle.distance(member, mean));
                }
                logits[i] = (Oracle.dot(query, mean) + options.radiusWeight() * Oracle.norm(query) * radius)
                        / Math.sqrt(dense.headDim);
            }
            raise(scores, logits);
        }
        return best(scores, indexed, Math.max(options.select(), options.shortlist()), 1);
    }

    private Set<Integer> rerank(int head, double[][] queries, Set<Integer> shortlist) {
        if (options.shortlist() == 0) {
            return shortlist;
        }
        List<Integer> listed = shortlist.stream().sorted().toList();
        double[] scores = new double[listed.size()];
        java.util.Arrays.fill(scores, Double.NEGATIVE_INFINITY);
        for (double[] query : queries) {
            double[] masses = new double[scores.length];
            for (int i = 0; i < masses.length; i++) {
                masses[i] = Oracle.logSumExp(Oracle.logits(query, rebuiltMembers(head, listed.get(i))));
            }
            raise(scores, masses);
        }
        // Rebuilt keys have more roundings than landmarks.
        return best(scores, listed, options.select(), REBUILT_ROUNDINGS);
    }

    /** Raises scores to what one query gives: its logits within the softmax over all. */
    private static void raise(double[] scores, double[] logits) {
        double total = logits.length == 0 ? 0 : Oracle.logSumExp(logits);
        for (int i = 0; i < scores.length; i++) {
            scores[i] = Math.max(scores[i], logits[i] - total);
        }
    }

    private Set<Integer> best(double[] scores, List<Integer> chunks, int count, double roundings) {
        int[] chosen = Oracle.best(scores, count);
        if (chosen.length < scores.length) {
            margin = Math.min(margin, margin(scores, chosen) / roundings);
        }
        Set<Integer> result = new HashSet<>();
        for (int i : chosen) {
            result.add(chunks.get(i));
        }
        return result;
    }

    private List<double[]> rebuiltMembers(int head, int c) {
        return rebuilt.get(head).subList(c * chunk, (c + 1) * chunk);
    }

    /** What of the index a query does not attend token by token; null if it is nothing. */
    private TailOracle tail(int head, double[] query, List<Integer> indexed, Set<Integer> shortlist, Set<Integer> selected) {
        count();
        List<double[]> left = new ArrayList<>();
        List<double[]> dropped = new ArrayList<>();
        List<double[]> all = new ArrayList<>();
        for (int c : indexed) {
            double[] mean = Oracle.mean(members(head, c));
            all.add(mean);
            if (!shortlist.contains(c)) {
                left.add(mean);
            } else if (!selected.contains(c) && predicted == null) {
                dropped.addAll(rebuiltMembers(head, c));
            }
        }
        return TailOracle.of(query, chunk, left, dropped, all, moments.get(head));
    }

    /** Adds to the moments what has been folded since. */
    private void count() {
        for (; counted < recentBegin; counted++) {
            int position = (int) counted;
            for (int head = 0; head < dense.keyValueHeads; head++) {
                if (!outliers.get(head).contains(position / chunk)) {
                    moments.get(head).add(dense.keys.get(head).get(position), dense.values.get(head).get(position));
                }
            }
        }
    }
}
