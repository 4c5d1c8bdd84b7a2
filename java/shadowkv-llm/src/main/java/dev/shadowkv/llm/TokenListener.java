package dev.shadowkv.llm;

/**
 * Told about the tokens of one request, in order, by the engine's thread, which waits meanwhile: hand over work that
 * takes long. An exception ends the request with it.
 */
@FunctionalInterface
public interface TokenListener {
    /** Does nothing. */
    TokenListener NONE = (index, id) -> {};

    /**
     * The next token.
     *
     * @param index from 0
     * @param id the token
     */
    void onToken(int index, int id);

    /**
     * The prompt is being computed.
     *
     * @param done rows of layers that are done
     * @param total tokens times layers
     */
    default void onPrefill(long done, long total) {}
}
