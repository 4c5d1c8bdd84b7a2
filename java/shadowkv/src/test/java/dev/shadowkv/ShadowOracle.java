package dev.shadowkv;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * The whole method in double precision, for one layer: section by section as it is described, not as it is built. Only
 * the basis is taken from the cache, where its own test proves it: subspaces of equal quality are many.
 */
final class ShadowOracle {

    final DenseOracle dense;
    final ShadowOptions options;
    final int chunk;
    /** {@code [head][position]}: keys as the basis has them, rotated. */
    private final List<List<double[]>> rebuilt = new ArrayList<>();
    private final List<double[]> raw = new ArrayList<>();
    private List<Set<Integer>> outliers = new ArrayList<>();
    private double[][] basis;
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
        for (int head = 0; head < dense.keyValueHeads; head++) {
            rebuilt.add(new ArrayList<>());
            outliers.add(new HashSet<>());
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
            for (int head = 0; head < dense.keyValueHeads; head++) {
                chooseOutliers(head, chunks);
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
        for (int i = 0; i < state.chosenIds.length; i++) {
            outliers.get(i / state.chosen).add(state.chosenIds[i]);
        }
    }

    private void rebuild(int position) {
        int d = dense.headDim;
        double[] approximate = new double[dense.keyValueHeads * d];
        for (double[] row : basis) {
            double coefficient = Oracle.dot(row, raw.get(position));
            for (int i = 0; i < approximate.length; i++) {
                approximate[i] += coefficient * row[i];
            }
        }
        for (int head = 0; head < dense.keyValueHeads; head++) {
            double[] part = java.util.Arrays.copyOfRange(approximate, head * d, (head + 1) * d);
            rebuilt.get(head).add(dense.rotated(part, position));
        }
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
            Set<Integer> selected = exact ? Set.of() : select(head, queries);
            for (int p = 0; p < length; p++) {
                int c = p / chunk;
                if (p >= recentBegin || exact || outliers.get(head).contains(c)) {
                    keys.add(dense.keys.get(head).get(p));
                    values.add(dense.values.get(head).get(p));
                } else if (selected.contains(c)) {
                    keys.add(rebuilt.get(head).get(p));
                    values.add(dense.values.get(head).get(p));
                }
            }
            for (int g = 0; g < group; g++) {
                double[] out = Oracle.attend(queries[g], keys, values);
                System.arraycopy(out, 0, result, (head * group + g) * dense.headDim, dense.headDim);
                if (rounding != null) {
                    expectedSquares += rounding.squares(queries[g], keys, values, rewound);
                }
            }
        }
        return result;
    }

    private void makeRoom() {
        if (dense.length() - recentBegin == options.geometry().window()) {
            recentBegin += options.geometry().window() - options.local() * chunk;
            if (exact && recentBegin / chunk >= options.select()) {
                throw new IllegalStateException("becoming indexed while decoding is tested against the exact answer");
            }
        }
    }

    private Set<Integer> select(int head, double[][] queries) {
        List<Integer> indexed = new ArrayList<>();
        for (int c = 0; c < recentBegin / chunk; c++) {
            if (!outliers.get(head).contains(c)) {
                indexed.add(c);
            }
        }
        if (indexed.isEmpty()) {
            return Set.of();
        }
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
            double total = Oracle.logSumExp(logits);
            for (int i = 0; i < scores.length; i++) {
                scores[i] = Math.max(scores[i], logits[i] - total);
            }
        }
        int[] chosen = Oracle.best(scores, options.select());
        if (chosen.length < scores.length) {
            margin = Math.min(margin, margin(scores, chosen));
        }
        Set<Integer> result = new HashSet<>();
        for (int i : chosen) {
            result.add(indexed.get(i));
        }
        return result;
    }
}
