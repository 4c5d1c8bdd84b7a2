package dev.shadowkv;

import java.util.List;

/**
 * Sessions that decode together, one token each a step. Row i of a step's operands belongs to session i.
 *
 * <p>Closing a batch closes no session. A batch whose sessions were closed can no longer step.
 */
public interface KvBatch extends AutoCloseable {

    /**
     * What decode steps did since the batch was made, summed over layers and sessions.
     *
     * @param steps decode steps
     * @param selectedChunks chunks selected, over the key/value heads
     * @param fetchedChunks of which had to be brought from host memory
     * @param landmarkMass share of the landmarks' softmax weight that the selections held, on average
     */
    record Statistics(long steps, long selectedChunks, long fetchedChunks, double landmarkMass) {

        /** Share of the selected chunks that were resident. */
        public double hitRate() {
            return selectedChunks == 0 ? 1 : 1 - (double) fetchedChunks / selectedChunks;
        }
    }

    /** Whose sessions they are. */
    KvCache cache();

    /** The sessions in the order of the rows; null where a row is idle. */
    List<KvSession> sessions();

    /**
     * Gives a row to a session, or to none, between two steps. The batch stays as large as it was made, and a
     * {@link DeviceGraph} of its step stays valid: where sessions lie and how long they are is read from device memory
     * when it runs. The output of an idle row is zero. Take a session out before closing it.
     *
     * @param session one that fits into {@link #capacity()}; null: the row becomes idle
     * @throws IllegalStateException if a step is not finished, or the session is closed
     * @throws IllegalArgumentException if the session is of another cache, too large, or in another row already
     */
    void set(int row, KvSession session);

    /** Tokens of the largest session that a row can be given to. */
    long capacity();

    /**
     * Begins a decode step: makes room for one more token in each session and tells the device about it. Layer 0 of
     * {@link KvCache#attend} does this by itself unless it was done already. To replay a step that was captured in a
     * {@link DeviceGraph}, call this before each {@link DeviceGraph#launch()}; and before capturing, so that it is not
     * captured. A batch cannot see that a step was replayed, so the step after that must be begun by this too, even if
     * its layers are called one by one.
     *
     * @throws IllegalStateException if a step is not finished, all rows are idle, or a session is full, not sealed or
     *     closed
     */
    void advance();

    /** Waits for the device and reads what was counted. All zero for a dense cache. */
    Statistics statistics();

    /** Frees the batch's tables; does nothing the second time. */
    @Override
    void close();
}
