package dev.shadowkv;

import dev.shadowkv.kernels.Geometry;

/**
 * The choices of the method, complete and checked.
 *
 * @param rank columns of the coefficients that the prompt's factorization fills
 * @param basisReserve columns more, for directions that only later tokens need
 * @param budget tokens that a step selects
 * @param outliers chunks a head that stay dense at sealing
 * @param residualOutliers chunks more that may stay dense because the basis misses them
 * @param residualLimit mean share of a chunk's key energy that the basis may miss
 * @param local chunks before the end that stay dense
 * @param shortlist chunks to rerank; 0: no rerank
 * @param tail whether indexed tokens that a step does not select take part by their moments
 * @param predictDropped whether those that reranking drops take part by values that their coefficients predict
 * @param balanceHeads whether the heads' keys are scaled to the same length before they are factored
 * @param keepKeys whether rebuilt keys stay in the slots beside their values
 */
record ShadowOptions(Geometry geometry, int rank, int basisReserve, int budget, int outliers, int residualOutliers,
                     float residualLimit, int local, float radiusWeight, int shortlist, boolean tail,
                     boolean predictDropped, boolean balanceHeads, boolean keepKeys) {

    int select() {
        return budget / geometry.chunk();
    }

    /** Tokens that folding takes out of a full window at once. */
    int foldTokens() {
        return geometry.window() - local * geometry.chunk();
    }

    int outlierCapacity() {
        return outliers + residualOutliers;
    }
}
