package dev.shadowkv.llm.throughput;

/**
 * What computing a prompt took with one cache.
 *
 * @param tokens of the prompt
 * @param layers that were measured
 * @param seconds of the whole computation, from the tokens on the host to the last one's logits there
 * @param sealSeconds of them, what the cache did with finished keys and values: nothing for a dense one; factorization,
 *     index and the values' way to the host for a shadow
 */
public record PromptResult(long tokens, int layers, double seconds, double sealSeconds) {
    /** Tokens a second. */
    public double tokensPerSecond() {
        return tokens / seconds;
    }
}
