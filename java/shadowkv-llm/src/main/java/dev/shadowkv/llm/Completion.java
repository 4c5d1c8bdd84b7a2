package dev.shadowkv.llm;

/**
 * A finished request.
 *
 * @param ids the new tokens, without the one that ended them
 * @param reason why it ended
 * @param promptTokens tokens of the prompt
 * @param prefillSeconds from the beginning of the prefill to the first token
 * @param decodeSeconds from the first token to the last, in whatever company
 */
public record Completion(
        int[] ids, Reason reason, int promptTokens, double prefillSeconds, double decodeSeconds) {
    /** Why a request ended. */
    public enum Reason {
        /** It has all the tokens that it may have. */
        LENGTH,
        /** A token that ends answers came. */
        END,
        /** It was cancelled, or the engine closed. */
        CANCELLED
    }
}
