package dev.shadowkv.llm;

import dev.shadowkv.KvSession;
import dev.shadowkv.llm.sampling.Sampler;
import java.util.Arrays;

/** A request on its way through an engine; for the engine's thread alone. */
final class ActiveRequest {
    final Generation generation;
    final GenerationRequest request;
    final TokenListener listener;
    final Sampler sampler;
    final boolean greedy;
    KvSession session;

    private int[] tokens;
    private int count;
    private long prefillStart;
    private long firstToken;
    private long lastToken;

    ActiveRequest(Generation generation, TokenListener listener) {
        this.generation = generation;
        this.listener = listener;
        request = generation.request();
        sampler = new Sampler(request.sampling());
        greedy = request.sampling().temperature() == 0;
        tokens = new int[16];
    }

    void begin() {
        if (prefillStart == 0) {
            prefillStart = System.nanoTime();
        }
    }

    /** The prompt and all tokens so far. */
    int[] sequence() {
        int[] prompt = request.ids();
        int[] all = Arrays.copyOf(prompt, prompt.length + count);
        System.arraycopy(tokens, 0, all, prompt.length, count);
        return all;
    }

    int newest() {
        return tokens[count - 1];
    }

    /** Tokens of prompt and answer. */
    long length() {
        return (long) request.promptTokens() + count;
    }

    /** Takes a token and returns why the request ends with it, or null. */
    Completion.Reason accept(int id) {
        lastToken = System.nanoTime();
        if (firstToken == 0) {
            firstToken = lastToken;
        }
        if (request.endIds().contains(id)) {
            return Completion.Reason.END;
        }
        if (count == tokens.length) {
            tokens = Arrays.copyOf(tokens, 2 * count);
        }
        tokens[count++] = id;
        listener.onToken(count - 1, id);
        return count == request.maxNewTokens() ? Completion.Reason.LENGTH : null;
    }

    void complete(Completion.Reason reason) {
        double prefill = firstToken == 0 ? 0 : (firstToken - prefillStart) * 1e-9;
        generation.outcome().complete(new Completion(
                Arrays.copyOf(tokens, count),
                reason,
                request.promptTokens(),
                prefill,
                (lastToken - firstToken) * 1e-9));
    }

    void fail(Throwable thrown) {
        generation.outcome().completeExceptionally(thrown);
    }

    void release() {
        if (session != null) {
            session.close();
            session = null;
        }
    }
}
