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
 */
record ExpectedError(double storage, double sums, int products, double values) {

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
                Math.max(TestDevice.epsilon(storageType), TestDevice.epsilon(valueType)));
    }

    /**
     * The expected sum of squares over a head's output.
     *
     * @param rewound how many times the keys went from coefficients to the window and back
     */
    double squares(double[] query, List<double[]> keys, List<double[]> values, int rewound) {
        int d = query.length;
        double[] out = Oracle.attend(query, keys, values);
        double[] logits = new double[keys.size()];
        for (int i = 0; i < logits.length; i++) {
            logits[i] = Oracle.dot(query, keys.get(i)) / Math.sqrt(d);
        }
        double total = Oracle.logSumExp(logits);
        double queries = Oracle.dot(query, query);
        double sum = uniform(storage) * Oracle.dot(out, out);
        for (int i = 0; i < logits.length; i++) {
            double[] key = keys.get(i);
            double elements = 0;
            for (int j = 0; j < d; j++) {
                elements += query[j] * query[j] * key[j] * key[j];
            }
            double anyDirection = queries * Oracle.dot(key, key) / d;
            double kept = uniform(storage) * (OF_PRODUCTS * (1 + rewound) * elements
                    + OF_DIRECTIONS * (1 + rewound) * anyDirection);
            double summed = uniform(sums) * (1 + rewound) * this.products * anyDirection;
            double logit = (kept + summed) / d + uniform(storage);
            double weight = Math.exp(logits[i] - total);
            double distance = Oracle.distance(values.get(i), out);
            sum += weight * weight * (distance * distance * logit
                    + uniform(this.values) * Oracle.dot(values.get(i), values.get(i)));
        }
        return sum;
    }

    /** The variance of an error that may be anything up to a bound. */
    private static double uniform(double bound) {
        return bound * bound / 3;
    }
}
