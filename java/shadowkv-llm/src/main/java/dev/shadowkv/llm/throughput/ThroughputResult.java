package dev.shadowkv.llm.throughput;

import java.util.OptionalDouble;

/**
 * What one cache reached.
 *
 * @param planned sessions of the whole model that fit into the device memory, whatever the host has
 * @param run sessions that were measured
 * @param runLayers layers that were measured
 * @param context tokens of each session when the timed steps began
 * @param buildSeconds making the cache, most of it pinning host memory
 * @param fillSeconds making and sealing all contexts
 * @param drift of the queries
 * @param resident share of the selected chunks that were on the device, in the timed steps; empty where nothing has to
 *     be brought there
 * @param stepMilliseconds mean time of a timed step, from its tokens to the next ones on the host
 * @param medianMilliseconds of the same steps
 * @param slowestMilliseconds of the same steps
 * @param attentionMilliseconds the cache's part of a step, all layers, measured in other steps, layer by layer
 * @param tokensPerSecond of the whole batch
 * @param deviceBytesPerStep bytes that a step has to read from device memory: weights, and of the cache what {@link
 *     StepTraffic} counts
 * @param cacheBytesPerStep the cache's part of it
 * @param linkBytesPerStep values that were fetched from host memory
 * @param deviceBytes device memory that was taken
 * @param hostBytes pinned host memory that was taken
 * @param exactLimit tokens a second of exact attention in unlimited memory: as many sessions as to make the weights
 *     cost nothing, each step reading all keys and values at the bandwidth that was measured; empty but for the dense
 *     cache
 */
public record ThroughputResult(
        SessionCount planned,
        SessionCount run,
        int runLayers,
        long context,
        double buildSeconds,
        double fillSeconds,
        double drift,
        OptionalDouble resident,
        double stepMilliseconds,
        double medianMilliseconds,
        double slowestMilliseconds,
        double attentionMilliseconds,
        double tokensPerSecond,
        double deviceBytesPerStep,
        double cacheBytesPerStep,
        double linkBytesPerStep,
        long deviceBytes,
        long hostBytes,
        OptionalDouble exactLimit) {}
