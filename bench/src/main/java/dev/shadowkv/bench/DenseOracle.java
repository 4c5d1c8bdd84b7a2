package dev.shadowkv.bench;

/** Softmax attention of one query in double precision, with a bound on what rounding may do to it. */
final class DenseOracle {

    /** How many standard deviations of accumulated rounding a result may be off. */
    private static final double DEVIATIONS = 8;

    private final double[] q;
    private final double epsilon;
    private final double[] sum;
    /** Per element: the sum over tokens of squared weight times squared value. */
    private final double[] spread;
    private double largest = Double.NEGATIVE_INFINITY;
    private double weights;
    private double logitNoise;
    private double largestValue;
    private double partError;
    private double[] part;

    /**
     * @param epsilon of the types in which queries, keys, weights and values are rounded
     */
    DenseOracle(double[] q, double epsilon) {
        this.q = q;
        this.epsilon = epsilon;
        sum = new double[q.length];
        spread = new double[q.length];
    }

    void add(double[] keys, int key, double[] values, int value) {
        double products = 0;
        double noise = 0;
        for (int i = 0; i < q.length; i++) {
            double product = q[i] * keys[key + i];
            products += product;
            noise += product * product;
        }
        double logit = products / Math.sqrt(q.length);
        // The largest of the deviations stands for all.
        logitNoise = Math.max(logitNoise, Math.sqrt(noise / q.length));
        if (logit > largest) {
            double factor = Math.exp(largest - logit);
            weights *= factor;
            for (int i = 0; i < sum.length; i++) {
                sum[i] *= factor;
                spread[i] *= factor * factor;
            }
            largest = logit;
        }
        double weight = Math.exp(logit - largest);
        weights += weight;
        for (int i = 0; i < sum.length; i++) {
            double v = values[value + i];
            sum[i] += weight * v;
            spread[i] += weight * weight * v * v;
            largestValue = Math.max(largestValue, Math.abs(v));
        }
    }

    /**
     * Adds something that has a weight and a value of its own; to be added last.
     *
     * @param logWeight natural logarithm of its weight
     * @param error how far that may be off
     */
    void addPart(double logWeight, double error, double[] value) {
        double weight = Math.exp(logWeight - largest);
        weights += weight;
        partError = error * weight / weights;
        for (int i = 0; i < sum.length; i++) {
            sum[i] += weight * value[i];
            spread[i] += weight * weight * value[i] * value[i];
        }
        part = value;
    }

    double logSum() {
        return largest + Math.log(weights);
    }

    /**
     * Fails unless an output is near enough.
     *
     * @param outputEpsilon of the output's type
     * @param doubtfulShare share of the weights that may or may not be in it
     */
    void check(double[] output, double outputEpsilon, double doubtfulShare) {
        for (int i = 0; i < sum.length; i++) {
            double expected = sum[i] / weights;
            // Roundings of query, key (once more after its rotation), weight and value are independent from token to
            // token: each moves the token's share by its relative error, and the squares add up.
            double relative = epsilon * Math.sqrt(3 * logitNoise * logitNoise + 2);
            double random = relative * (Math.sqrt(spread[i]) / weights + Math.abs(expected));
            // The query's own rounding is common to all tokens, and is bounded by the same relative error.
            double allowed = outputEpsilon * Math.abs(expected) + DEVIATIONS * random + 2 * doubtfulShare * largestValue
                    + (part == null ? 0 : partError * Math.abs(part[i] - expected)) + 0x1p-40;
            Tolerance.within("attention output " + i, output[i], expected, allowed);
        }
    }
}
