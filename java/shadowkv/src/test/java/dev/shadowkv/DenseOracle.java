package dev.shadowkv;

import java.util.ArrayList;
import java.util.List;

/** Exact attention over a sequence of {@link Tokens}. */
final class DenseOracle {

    final Rope rope;
    final int queryHeads;
    final int keyValueHeads;
    final int headDim;
    /** {@code [head][position]}: rotated keys, and values. */
    final List<List<double[]>> keys = new ArrayList<>();
    final List<List<double[]>> values = new ArrayList<>();

    DenseOracle(Rope rope, int queryHeads, int keyValueHeads, int headDim) {
        this.rope = rope;
        this.queryHeads = queryHeads;
        this.keyValueHeads = keyValueHeads;
        this.headDim = headDim;
        for (int head = 0; head < keyValueHeads; head++) {
            keys.add(new ArrayList<>());
            values.add(new ArrayList<>());
        }
    }

    int length() {
        return keys.getFirst().size();
    }

    void add(Tokens tokens, int token) {
        int position = length();
        for (int head = 0; head < keyValueHeads; head++) {
            keys.get(head).add(rotated(Oracle.head(tokens.keys, tokens.keyWidth, token, head, headDim), position));
            values.get(head).add(Oracle.head(tokens.values, tokens.keyWidth, token, head, headDim));
        }
    }

    double[] rotated(double[] head, long position) {
        return Oracle.rotate(head, rope.inverseFrequencies(), rope.pairing() == Rope.Pairing.INTERLEAVED, rope.scale(),
                position);
    }

    /** Attention of a token's queries over everything added up to a length. */
    double[] attend(Tokens tokens, int token, int length) {
        double[] result = new double[queryHeads * headDim];
        for (int h = 0; h < queryHeads; h++) {
            int head = h / (queryHeads / keyValueHeads);
            double[] query = rotated(Oracle.head(tokens.queries, tokens.queryWidth, token, h, headDim), length - 1);
            double[] out = Oracle.attend(query, keys.get(head).subList(0, length), values.get(head).subList(0, length));
            System.arraycopy(out, 0, result, h * headDim, headDim);
        }
        return result;
    }
}
