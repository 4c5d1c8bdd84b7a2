package dev.shadowkv.llm.throughput;

import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.util.Objects;
import java.util.OptionalInt;

/**
 * What is measured.
 *
 * @param shape the whole model
 * @param layers layers that are measured; memory plans are of the whole model all the same
 * @param context tokens of each session when the steps begin
 * @param deviceLimit device memory that weights, sessions and everything else may take, in bytes
 * @param hostLimit pinned host memory that the sessions may take, in bytes
 * @param batch sessions; empty: the most that fit
 * @param steps steps that are timed
 * @param resident share of the selected chunks that queries shall find on the device
 * @param slots value slots a key-value head; empty: the cache's default
 * @param seed of everything that is random
 */
public record ThroughputSettings(
        ModelConfig shape,
        int layers,
        long context,
        long deviceLimit,
        long hostLimit,
        OptionalInt batch,
        int steps,
        double resident,
        OptionalInt slots,
        long seed) {
    /** Steps before and after the timed ones: the search for a drift, warming up, timing attention apart. */
    static final int OTHER_STEPS = 88;

    public ThroughputSettings {
        Objects.requireNonNull(shape, "shape");
        Objects.requireNonNull(batch, "batch");
        Objects.requireNonNull(slots, "slots");
        if (layers < 1 || layers > shape.layers()) {
            throw new IllegalArgumentException("layers is " + layers + ", it must be from 1 to " + shape.layers());
        }
        if (context < 1 || context > 1L << 29) {
            throw new IllegalArgumentException("context is " + context + ", it must be from 1 to " + (1L << 29));
        }
        if (deviceLimit < 1 || hostLimit < 1) {
            throw new IllegalArgumentException("memory limits must be positive: " + deviceLimit + ", " + hostLimit);
        }
        if (batch.isPresent() && batch.getAsInt() < 1) {
            throw new IllegalArgumentException("batch is " + batch.getAsInt() + ", it must be positive");
        }
        if (steps < 1) {
            throw new IllegalArgumentException("steps is " + steps + ", it must be positive");
        }
        if (!(resident >= 0 && resident <= 1)) {
            throw new IllegalArgumentException("resident is " + resident + ", it must be from 0 to 1");
        }
    }

    /** The model that is measured. */
    ModelConfig measured() {
        return ModelShapes.withLayers(shape, layers);
    }

    /** Tokens that a session must have room for. */
    long capacity() {
        return context + OTHER_STEPS + steps;
    }
}
