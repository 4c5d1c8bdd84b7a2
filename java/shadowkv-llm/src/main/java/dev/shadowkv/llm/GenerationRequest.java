package dev.shadowkv.llm;

import dev.shadowkv.llm.sampling.SamplingOptions;
import java.util.Objects;
import java.util.Set;

/**
 * What an {@link Engine} is asked to continue.
 *
 * @param ids the prompt
 * @param maxNewTokens how many tokens it may get at most
 * @param endIds tokens that end the answer; they are not part of it
 * @param sampling how tokens are chosen, with the request's own seed
 */
public record GenerationRequest(int[] ids, int maxNewTokens, Set<Integer> endIds, SamplingOptions sampling) {
    public GenerationRequest {
        ids = ids.clone();
        endIds = Set.copyOf(endIds);
        Objects.requireNonNull(sampling, "sampling");
        if (ids.length == 0) {
            throw new IllegalArgumentException("the prompt has no tokens");
        }
        if (maxNewTokens < 1) {
            throw new IllegalArgumentException("maxNewTokens is " + maxNewTokens + ", it must be positive");
        }
    }

    /** Greedy, with no token that ends it. */
    public static GenerationRequest of(int[] ids, int maxNewTokens) {
        return new GenerationRequest(ids, maxNewTokens, Set.of(), SamplingOptions.greedy());
    }

    /** The prompt; a copy. */
    @Override
    public int[] ids() {
        return ids.clone();
    }

    int promptTokens() {
        return ids.length;
    }

    /** Tokens that the session must have room for. */
    long capacity() {
        return (long) ids.length + maxNewTokens;
    }
}
