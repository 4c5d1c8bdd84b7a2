package dev.shadowkv.llm.throughput;

import dev.shadowkv.Device;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.Transformer;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.util.function.IntFunction;

/**
 * How many sessions fit.
 *
 * @param sessions the count; 0 if not even one fits
 * @param device bytes of device memory that the count takes, or, of 0, that one session would
 * @param host bytes of pinned host memory, likewise
 * @param plan the cache's share of it
 */
public record SessionCount(int sessions, long device, long host, MemoryPlan plan) {
    /**
     * The most sessions within limits, next to a model's weights and an engine that can take prompts as long as the
     * sessions.
     *
     * @param plans the cache's plan for a number of sessions
     */
    static SessionCount largest(
            Device device, ModelConfig config, long promptTokens, long deviceLimit, long hostLimit, IntFunction<MemoryPlan> plans) {
        int fits = 0;
        int tooMany = Geometry.MAX_BATCH + 1;
        while (tooMany - fits > 1) {
            int middle = fits == 0 && tooMany > Geometry.MAX_BATCH ? 1 : (fits + tooMany) >>> 1;
            MemoryPlan plan = plans.apply(middle);
            if (deviceBytes(device, config, promptTokens, plan) <= deviceLimit
                    && hostBytes(device, config, promptTokens, plan) <= hostLimit) {
                fits = middle;
            } else {
                tooMany = middle;
            }
        }
        return of(device, config, promptTokens, fits, plans);
    }

    static SessionCount of(
            Device device, ModelConfig config, long promptTokens, int sessions, IntFunction<MemoryPlan> plans) {
        MemoryPlan plan = plans.apply(Math.max(1, sessions));
        return new SessionCount(sessions, deviceBytes(device, config, promptTokens, plan),
                hostBytes(device, config, promptTokens, plan), plan);
    }

    /** Values of the cache, and the engine's longest prompt. */
    private static long hostBytes(Device device, ModelConfig config, long promptTokens, MemoryPlan plan) {
        return plan.pinnedBytes() + Transformer.pinnedBytes(config, device, device.defaultType(), promptTokens);
    }

    /** Weights, cache and engine. */
    private static long deviceBytes(Device device, ModelConfig config, long promptTokens, MemoryPlan plan) {
        return Model.weightBytes(config, device.defaultType())
                + plan.deviceBytes()
                + Transformer.bytes(config, device, device.defaultType(), plan.sessions(), promptTokens);
    }
}
