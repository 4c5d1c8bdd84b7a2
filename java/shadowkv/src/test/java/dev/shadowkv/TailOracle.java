package dev.shadowkv;

import java.util.ArrayList;
import java.util.List;

/**
 * The tokens of a head's index that a query's selection leaves out, as they take part in its softmax: together, as one more
 * token.
 *
 * @param logits natural logarithms of the weights of its parts: of chunks by their landmarks, of tokens that were
 *     shortlisted and dropped by their rebuilt keys
 * @param keys the keys behind them
 * @param logOfAll of the weight that landmarks give all indexed tokens
 * @param moments over all indexed tokens
 * @param value what it adds, times its weight
 */
record TailOracle(double[] logits, List<double[]> keys, double logOfAll, MomentOracle moments, double[] value) {

    /**
     * Of a selection.
     *
     * @param left means of the chunks that are neither selected nor shortlisted
     * @param dropped rebuilt keys of tokens that are shortlisted and not selected
     * @param all means of all indexed chunks
     */
    static TailOracle of(double[] query, int chunk, List<double[]> left, List<double[]> dropped, List<double[]> all,
            MomentOracle moments) {
        if (left.isEmpty() && dropped.isEmpty()) {
            return null;
        }
        List<double[]> keys = new ArrayList<>(left);
        keys.addAll(dropped);
        double[] logits = Oracle.logits(query, keys);
        for (int i = 0; i < left.size(); i++) {
            logits[i] += Math.log(chunk);
        }
        return new TailOracle(logits, keys, Oracle.logSumExp(Oracle.logits(query, all)) + Math.log(chunk), moments,
                moments.value(query));
    }

    double logWeight() {
        return Oracle.logSumExp(logits);
    }

    /** Attention over tokens and a tail; null is none. */
    static double[] attend(double[] query, List<double[]> keys, List<double[]> values, TailOracle tail) {
        if (tail == null) {
            return Oracle.attend(query, keys, values);
        }
        double[] some = Oracle.logits(query, keys);
        double[] logits = java.util.Arrays.copyOf(some, some.length + 1);
        logits[some.length] = tail.logWeight();
        List<double[]> all = new ArrayList<>(values);
        all.add(tail.value);
        return Oracle.weigh(logits, all);
    }
}
