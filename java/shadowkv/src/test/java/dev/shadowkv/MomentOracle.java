package dev.shadowkv;

/** What the indexed tokens of one key/value head sum up to, and the value that they have for a query. Double precision. */
final class MomentOracle {

    final int headDim;
    /** {@code [v][k]}: sums of products, and of their magnitudes. */
    final double[][] products;
    final double[][] magnitudes;
    final double[] keys;
    final double[] values;
    private final double[] keySquares;
    private final double[] valueSquares;
    int tokens;

    MomentOracle(int headDim) {
        this.headDim = headDim;
        products = new double[headDim][headDim];
        magnitudes = new double[headDim][headDim];
        keys = new double[headDim];
        values = new double[headDim];
        keySquares = new double[headDim];
        valueSquares = new double[headDim];
    }

    void add(double[] key, double[] value) {
        for (int i = 0; i < headDim; i++) {
            for (int j = 0; j < headDim; j++) {
                double product = value[i] * key[j];
                products[i][j] += product;
                magnitudes[i][j] += Math.abs(product);
            }
            keys[i] += key[i];
            values[i] += value[i];
            keySquares[i] += key[i] * key[i];
            valueSquares[i] += value[i] * value[i];
        }
        tokens++;
    }

    /** At least the sum of the magnitudes of an element of the keys: by Cauchy's inequality. */
    double keyMagnitude(int i) {
        return Math.sqrt(tokens * keySquares[i]);
    }

    double valueMagnitude(int i) {
        return Math.sqrt(tokens * valueSquares[i]);
    }

    /** mean(v) + cov(v, k) q / sqrt(D). */
    double[] value(double[] query) {
        double[] result = new double[headDim];
        for (int i = 0; i < headDim; i++) {
            result[i] = values[i] / tokens;
            for (int j = 0; j < headDim; j++) {
                result[i] += covariance(i, j) * query[j] / Math.sqrt(headDim);
            }
        }
        return result;
    }

    private double covariance(int i, int j) {
        return products[i][j] / tokens - values[i] / tokens * (keys[j] / tokens);
    }

    /**
     * The variance of the errors of that value, summed over its elements.
     *
     * @param storage variance of a relative rounding error of queries, keys and values
     * @param sums the same of a sum
     * @param summed how many roundings a sum has had
     */
    double variance(double[] query, double storage, double sums, double summed) {
        double n = tokens;
        double total = 0;
        for (int i = 0; i < headDim; i++) {
            double size = Math.abs(values[i]) / n;
            double kept = 0;
            double perToken = valueSquares[i] / n;
            for (int j = 0; j < headDim; j++) {
                double q = query[j] / Math.sqrt(headDim);
                size += Math.abs(q) * (magnitudes[i][j] + Math.abs(values[i] * keys[j]) / n) / n;
                // A query is rounded before and after its rotation; keys and values once, each token for itself.
                kept += 2 * Math.pow(covariance(i, j) * q, 2);
                perToken += 2 * q * q * keySquares[j] / n * valueSquares[i] / n;
            }
            total += sums * summed * size * size + storage * (kept + perToken / n);
        }
        return total;
    }
}
