package dev.shadowkv.kernels;

/**
 * Where a session stands in a step, as an entry of {@link SessionStates}.
 *
 * @param length tokens attended, the new one included; 0: the row of the batch is idle and its output is zero
 * @param recentBegin first position of the recent window, a multiple of the chunk
 * @param indexedChunks chunks before this are in the index where their radius is not negative
 * @param outliers outlier chunks in use, the same for every head
 * @param step stamp of this step, increasing
 */
public record SessionState(long length, long recentBegin, int indexedChunks, int outliers, int step) {
}
