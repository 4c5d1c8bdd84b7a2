package dev.shadowkv;

import java.util.List;

/**
 * The map from coefficients to the values of a key/value head, in double precision.
 *
 * @param rows {@code [rank][headDim]}
 * @param magnitudes of each element, what the magnitudes of the terms of its sum come to
 */
record ValueOracle(double[][] rows, double[][] magnitudes) {

    /**
     * Row j is {@code sum(a_j v) / sum(a_j^2)}: least squares where the columns of the coefficients are orthogonal; columns
     * that are rounding alone give zeros, and refinements, if coefficients have any.
     */
    static ValueOracle fit(List<double[]> coefficients, List<double[]> values, ElementType storageType, boolean refined) {
        int rank = coefficients.getFirst().length;
        int headDim = values.getFirst().length;
        double[][] rows = new double[rank][headDim];
        double[][] magnitudes = new double[rank][headDim];
        double[] squares = new double[rank];
        for (int t = 0; t < coefficients.size(); t++) {
            for (int j = 0; j < rank; j++) {
                double a = coefficients.get(t)[j];
                squares[j] += a * a;
                for (int d = 0; d < headDim; d++) {
                    double product = a * values.get(t)[d];
                    rows[j][d] += product;
                    magnitudes[j][d] += Math.abs(product);
                }
            }
        }
        double least = java.util.Arrays.stream(squares).max().orElseThrow()
                * (storageType == ElementType.BF16 ? 0x1p-20 : 0x1p-24);
        for (int j = 0; j < rank; j++) {
            boolean none = squares[j] <= least || refined && CoefficientColumns.refined(j, rank) >= 0;
            for (int d = 0; d < headDim; d++) {
                rows[j][d] = none ? 0 : rows[j][d] / squares[j];
                magnitudes[j][d] = none ? 0 : magnitudes[j][d] / squares[j];
            }
        }
        return new ValueOracle(rows, magnitudes);
    }

    double[] value(double[] coefficients) {
        double[] value = new double[rows[0].length];
        for (int j = 0; j < rows.length; j++) {
            for (int d = 0; d < value.length; d++) {
                value[d] += coefficients[j] * rows[j][d];
            }
        }
        return value;
    }
}
