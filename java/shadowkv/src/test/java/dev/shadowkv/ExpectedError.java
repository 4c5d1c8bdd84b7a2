package dev.shadowkv;

import java.util.List;

import dev.shadowkv.kernels.Geometry;

/**
 * How large the error of an attention output is on average, when every number that is kept is rounded. To first order:
 * an error e of a logit with weight p moves the output by {@code p e (value - output)}; errors are independent, so their
 * squares add.
 *
 * @param storage relative rounding error of queries and keys, wherever they are kept
 * @param sums relative rounding error within a sum
 * @param products how many products the sums behind a logit have: those of a coefficient, of an element of the rebuilt
 *     key, and of the logit itself; each partial sum is rounded
 * @param values relative rounding error of values
 * @param smallest rounding error of the smallest values, as a share of the largest
 * @param parts how many tokens are added to the sums over the index at once
 */
record ExpectedError(double storage, double sums, int products, double values, double smallest, int parts) {

    /** Roundings that change a logit in proportion to its products: two of the query, two of the key, one of the weight. */
    private static final int OF_PRODUCTS = 5;
    /** Roundings that change a rebuilt key in any direction: its coefficients, the basis. */
    private static final int OF_DIRECTIONS = 2;

    static ExpectedError of(ShadowOptions options) {
        Geometry geometry = options.geometry();
        ElementType storageType = geometry.storageType();
        ElementType valueType = geometry.valueType();
        return new ExpectedError(TestDevice.epsilon(storageType), 0x1p-24,
                geometry.keyValueHeads() * geometry.headDim() + geometry.rank() + geometry.headDim(),
                Math.max(TestDevice.epsilon(storageType), TestDevice.epsilon(valueType)), TestDevice.smallest(valueType),
                options.foldTokens());
    }

    /**
     * The expected sum of squares over a head's output.
     *
     * @param tail what the tokens that were left out add, or null
     * @param rewound how many times the keys went from coefficients to the window and back
     */
    double squares(double[] query, List<double[]> keys, List<double[]> values, TailOracle tail, int rewound) {
        int d = query.length;
        double[] out = TailOracle.attend(query, keys, values, tail);
        double[] logits = Oracle.logits(query, keys);
        double total = Oracle.logSumExp(logits);
        if (tail != null) {
            total = Oracle.logSumExp(new double[] {total, tail.logWeight()});
        }
        double sum = uniform(storage) * Oracle.dot(out, out);
        // The largest of all is at least the largest of any chunk.
        double ofSmall = smallest == 0 ? 0 : d * uniform(smallest * largest(values));
        for (int i = 0; i < logits.length; i++) {
            double logit = logitVariance(query, keys.get(i), OF_DIRECTIONS, rewound);
            double weight = Math.exp(logits[i] - total);
            double distance = Oracle.distance(values.get(i), out);
            sum += weight * weight * (distance * distance * logit
                    + uniform(this.values) * Oracle.dot(values.get(i), values.get(i)) + ofSmall);
        }
        return tail == null ? sum : sum + tailSquares(query, out, total, tail, rewound);
    }

    private double logitVariance(double[] query, double[] key, int ofDirections, int rewound) {
        int d = query.length;
        double elements = 0;
        for (int j = 0; j < d; j++) {
            elements += query[j] * query[j] * key[j] * key[j];
        }
        double anyDirection = Oracle.dot(query, query) * Oracle.dot(key, key) / d;
        double kept = uniform(storage) * (1 + rewound) * (OF_PRODUCTS * elements + ofDirections * anyDirection);
        double summed = uniform(sums) * (1 + rewound) * products * anyDirection;
        return (kept + summed) / d + uniform(storage);
    }

    /** Of the tail: of its weight, as of one logit, and of its value. */
    private double tailSquares(double[] query, double[] out, double total, TailOracle tail, int rewound) {
        double logit = 0;
        for (int i = 0; i < tail.keys().size(); i++) {
            // Errors that all chunks share, those of the query, add up: at most to the mean of their variances.
            logit += Math.exp(tail.logits()[i] - tail.logWeight())
                    * logitVariance(query, tail.keys().get(i), OF_DIRECTIONS, rewound);
        }
        // What is selected is subtracted from the sum over all chunks, with the rounding of that.
        logit += uniform(sums) * tail.keys().size() * Math.exp(2 * (tail.logOfAll() - tail.logWeight()));
        MomentOracle moments = tail.moments();
        double roundings = (1 + rewound) * (parts + (double) moments.tokens / parts);
        double weight = Math.exp(tail.logWeight() - total);
        double distance = Oracle.distance(tail.value(), out);
        return weight * weight * (distance * distance * logit
                + moments.variance(query, uniform(storage) * (1 + rewound), uniform(sums), roundings));
    }

    private static double largest(List<double[]> values) {
        double largest = 0;
        for (double[] value : values) {
            for (double v : value) {
                largest = Math.max(largest, Math.abs(v));
            }
        }
        return largest;
    }

    /** The variance of an error that may be anything up to a bound. */
    private static double uniform(double bound) {
        return bound * bound / 3;
    }
}
