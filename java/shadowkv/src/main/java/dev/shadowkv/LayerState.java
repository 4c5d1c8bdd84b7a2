package dev.shadowkv;

import java.util.Arrays;

/** Where one layer of a shadow session stands. What lies in device memory is addressed elsewhere. */
final class LayerState {

    /** Tokens. */
    long length;
    boolean sealed;
    /** Whether everything before the recent window is kept dense, in place of an index. */
    boolean exact;
    /** First position of the recent window. */
    long recentBegin;
    /** Dense chunks: the exact ones, or the outliers. */
    int outliers;
    /** Lowest position whose row of the recent window is intact. */
    long ringBegin;
    /** The length and the window's begin from which folding counts, so that both follow from a length. */
    long anchorLength;
    long anchorBegin;
    /** Basis rows in use. */
    int basisRows;
    /** Outliers chosen at sealing, the same number for each head: ids ascending and what their radius was. */
    int chosen;
    int[] chosenIds = {};
    float[] chosenRadius = {};
    /** Chunks that became outliers because the basis misses them, and their radius; ascending. */
    int[] residualIds = {};
    float[] residualRadius = {};

    LayerState copy() {
        LayerState copy = new LayerState();
        copy.length = length;
        copy.sealed = sealed;
        copy.exact = exact;
        copy.recentBegin = recentBegin;
        copy.outliers = outliers;
        copy.ringBegin = ringBegin;
        copy.anchorLength = anchorLength;
        copy.anchorBegin = anchorBegin;
        copy.basisRows = basisRows;
        copy.chosen = chosen;
        copy.chosenIds = chosenIds.clone();
        copy.chosenRadius = chosenRadius.clone();
        copy.residualIds = residualIds.clone();
        copy.residualRadius = residualRadius.clone();
        return copy;
    }

    int indexedChunks(int chunk) {
        return exact ? 0 : Math.toIntExact(recentBegin / chunk);
    }

    /** The begin of the recent window when the layer has a length not below the anchor's. */
    long recentBegin(long atLength, int window, int fold) {
        long over = atLength - anchorBegin - window;
        return over <= 0 ? anchorBegin : anchorBegin + (over + fold - 1) / fold * fold;
    }

    void addResidualOutlier(int chunkId, float[] radius) {
        int n = residualIds.length;
        residualIds = Arrays.copyOf(residualIds, n + 1);
        residualIds[n] = chunkId;
        residualRadius = Arrays.copyOf(residualRadius, residualRadius.length + radius.length);
        System.arraycopy(radius, 0, residualRadius, residualRadius.length - radius.length, radius.length);
    }
}
