package dev.shadowkv.llm;

/**
 * Told how far a prefill is, every few milliseconds to seconds, by the thread that runs it. An exception ends the
 * prefill.
 */
@FunctionalInterface
public interface PrefillListener {
    /** Does nothing. */
    PrefillListener NONE = (done, total) -> {};

    /**
     * Some more is done.
     *
     * @param done rows of layers that are done
     * @param total tokens times layers
     */
    void progress(long done, long total);
}
