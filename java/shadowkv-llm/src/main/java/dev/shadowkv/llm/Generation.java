package dev.shadowkv.llm;

import java.util.concurrent.CompletableFuture;

/** A request that an {@link Engine} has taken. Usable from any thread. */
public final class Generation {
    private final GenerationRequest request;
    private final CompletableFuture<Completion> result = new CompletableFuture<>();
    private volatile boolean cancelled;

    Generation(GenerationRequest request) {
        this.request = request;
    }

    /** What was asked. */
    public GenerationRequest request() {
        return request;
    }

    /**
     * The outcome. A cancelled request completes with what it had and {@link Completion.Reason#CANCELLED}; one that
     * cannot be served completes exceptionally, with an {@link AdmissionException} when memory is what is missing.
     * Dependent stages run on the engine's thread unless they are asynchronous. A copy: completing it changes nothing.
     */
    public CompletableFuture<Completion> result() {
        return result.copy();
    }

    /** Waits for the outcome. */
    public Completion join() {
        return result.join();
    }

    /** Ends the request soon, also while it waits or its prompt is being computed. */
    public void cancel() {
        cancelled = true;
    }

    boolean cancelled() {
        return cancelled;
    }

    CompletableFuture<Completion> outcome() {
        return result;
    }
}
