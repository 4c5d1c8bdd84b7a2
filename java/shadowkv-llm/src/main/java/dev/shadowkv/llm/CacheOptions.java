package dev.shadowkv.llm;

import dev.shadowkv.CacheBuilder;
import dev.shadowkv.DenseKvCache;
import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvCache;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.ShadowKvCache;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.util.Objects;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.OptionalLong;

/**
 * Which cache a model gets, and its settings. What is empty is the cache builder's default.
 *
 * @param kind dense, shadow, or whichever suits the capacity
 * @param rank rank of the keys; by default 160, or the joint width of the key-value heads where that is less
 * @param budget tokens that a step selects
 * @param chunk tokens a chunk
 * @param outliers chunks a head that stay dense
 * @param radiusWeight weight of a landmark's radius; 0 is the paper's method
 * @param rerank how many times the budget is shortlisted and then ranked by exact attention, within the bounds of
 *     {@link ShadowKvCache#shortlist}; 1 or less: off
 * @param tail whether the tokens that a step does not select take part together, by their moments; not in the paper's
 *     method; by default as there is a rerank
 * @param predict whether those of them that reranking drops take part with values that their coefficients predict; by
 *     default as there are a rerank and a tail
 * @param balance whether the heads' keys are brought to the same length before they are factored; not in the paper's
 *     method
 * @param valueType how values are kept in host memory: as stored, F8_E4M3, F12_E4M7 or F6_E2M3; by default
 *     {@link #valueTypeOn}
 * @param landmarkType how landmarks are kept; by default as stored
 * @param storageType how everything else is kept
 */
public record CacheOptions(
        CacheKind kind,
        OptionalInt rank,
        int budget,
        int chunk,
        OptionalInt outliers,
        float radiusWeight,
        double rerank,
        Optional<Boolean> tail,
        Optional<Boolean> predict,
        Optional<Boolean> balance,
        Optional<ElementType> valueType,
        Optional<ElementType> landmarkType,
        Optional<ElementType> storageType) {
    /** Rerank factor where none is wished. */
    public static final double USUAL_RERANK = 4;

    private static final int RANK = 160;
    /** A context of so many budgets is short. */
    private static final int SHORT_BUDGETS = 4;

    public CacheOptions {
        Objects.requireNonNull(kind, "kind");
        Objects.requireNonNull(rank, "rank");
        Objects.requireNonNull(outliers, "outliers");
        Objects.requireNonNull(tail, "tail");
        Objects.requireNonNull(predict, "predict");
        Objects.requireNonNull(balance, "balance");
        Objects.requireNonNull(valueType, "valueType");
        Objects.requireNonNull(landmarkType, "landmarkType");
        Objects.requireNonNull(storageType, "storageType");
        if (chunk != 8 && chunk != 16) {
            throw new IllegalArgumentException("chunk is " + chunk + ", it must be 8 or 16");
        }
        if (budget < chunk) {
            throw new IllegalArgumentException("budget " + budget + " is below a chunk of " + chunk + " tokens");
        }
        if (rank.isPresent() && rank.getAsInt() < 1) {
            throw new IllegalArgumentException("rank " + rank.getAsInt() + " is not positive");
        }
        if (outliers.isPresent() && outliers.getAsInt() < 0) {
            throw new IllegalArgumentException("outliers " + outliers.getAsInt() + " is negative");
        }
        if (!(radiusWeight >= 0) || Float.isInfinite(radiusWeight)) {
            throw new IllegalArgumentException("radius weight " + radiusWeight + " is not a number >= 0");
        }
        if (!(rerank >= 0) || Double.isInfinite(rerank)) {
            throw new IllegalArgumentException("rerank factor " + rerank + " is not a number >= 0");
        }
        if (predict.orElse(false) && !(rerank > 1 && tail.orElse(true))) {
            throw new IllegalArgumentException("predict is on, which needs a rerank and a tail");
        }
    }

    /** The exact cache. */
    public static CacheOptions dense() {
        return of(CacheKind.DENSE, 2048);
    }

    /** The shadow cache with a budget and the defaults. */
    public static CacheOptions shadow(int budget) {
        return of(CacheKind.SHADOW, budget);
    }

    private static CacheOptions of(CacheKind kind, int budget) {
        return new CacheOptions(
                kind,
                OptionalInt.empty(),
                budget,
                8,
                OptionalInt.empty(),
                0.5f,
                USUAL_RERANK,
                Optional.empty(),
                Optional.empty(),
                Optional.empty(),
                Optional.empty(),
                Optional.empty(),
                Optional.empty());
    }

    /** The same with another rank. */
    public CacheOptions withRank(int value) {
        return new CacheOptions(
                kind, OptionalInt.of(value), budget, chunk, outliers, radiusWeight, rerank, tail, predict, balance, valueType, landmarkType,
                storageType);
    }

    /** The same with another weight of the radius. */
    public CacheOptions withRadiusWeight(float value) {
        return new CacheOptions(
                kind, rank, budget, chunk, outliers, value, rerank, tail, predict, balance, valueType, landmarkType, storageType);
    }

    /** The same with another rerank factor. */
    public CacheOptions withRerank(double value) {
        return new CacheOptions(
                kind, rank, budget, chunk, outliers, radiusWeight, value, tail, predict, balance, valueType, landmarkType, storageType);
    }

    /** The same with or without the tokens that a step does not select. */
    public CacheOptions withTail(boolean value) {
        return new CacheOptions(
                kind, rank, budget, chunk, outliers, radiusWeight, rerank, Optional.of(value), predict, balance, valueType, landmarkType,
                storageType);
    }

    /** The same with or without predicted values of the tokens that reranking drops. */
    public CacheOptions withPredict(boolean value) {
        return new CacheOptions(
                kind, rank, budget, chunk, outliers, radiusWeight, rerank, tail, Optional.of(value), balance, valueType, landmarkType,
                storageType);
    }

    /** The same with or without keys of all heads of the same length. */
    public CacheOptions withBalance(boolean value) {
        return new CacheOptions(
                kind, rank, budget, chunk, outliers, radiusWeight, rerank, tail, predict, Optional.of(value), valueType, landmarkType,
                storageType);
    }

    /** Whether the heads' keys are brought to the same length before they are factored. */
    public boolean balancesHeads() {
        return balance.orElse(true);
    }

    /** Whether the tokens that reranking drops take part with predicted values. */
    public boolean predictsDropped() {
        return rerankWithinLimits() > 1 && tailTakesPart() && predict.orElse(true);
    }

    /** Whether the tokens that a step does not select take part. */
    public boolean tailTakesPart() {
        return tail.orElse(rerankWithinLimits() > 1);
    }

    /** The same with {@link CacheKind#AUTO} decided for sessions of a capacity. */
    public CacheOptions decided(long capacity) {
        if (kind != CacheKind.AUTO) {
            return this;
        }
        CacheKind decided = capacity <= (long) SHORT_BUDGETS * budget ? CacheKind.DENSE : CacheKind.SHADOW;
        return new CacheOptions(
                decided, rank, budget, chunk, outliers, radiusWeight, rerank, tail, predict, balance, valueType, landmarkType, storageType);
    }

    /**
     * Prepares a cache for a model; {@code plan()} tells its memory, {@code build()} makes it.
     *
     * @param memory sessions and their capacity
     * @param length tokens of the longest sequence, which decides the rotation of longrope models
     */
    public CacheBuilder<?> builder(Device device, ModelConfig config, MemoryPlan memory, long length) {
        return switch (decided(memory.tokens()).kind) {
            case DENSE -> shape(DenseKvCache.builder(device), device, config, memory, length);
            default -> {
                ShadowKvCache.Builder shadow = ShadowKvCache.builder(device)
                        .rank(rank.orElse(Math.min(RANK, config.keyValueWidth())))
                        .chunk(chunk)
                        .budget(budget)
                        .radiusWeight(radiusWeight)
                        .rerank(rerankWithinLimits());
                if (valueType.isPresent() || !device.isCpu()) {
                    shadow.valueType(valueTypeOn(device));
                }
                outliers.ifPresent(shadow::outliers);
                tail.ifPresent(shadow::tail);
                predict.ifPresent(wish -> shadow.predictDropped(wish && predictsDropped()));
                balance.ifPresent(shadow::balanceHeads);
                landmarkType.ifPresent(shadow::landmarkType);
                yield shape(shadow, device, config, memory, length);
            }
        };
    }

    /** How a cache on a device keeps what has no type of its own. */
    public ElementType storageTypeOn(Device device) {
        return storageType.orElse(device.defaultType());
    }

    /**
     * How a cache on a device keeps values in host memory. By default as stored on a CPU; on a GPU, where they cross the
     * link, F12_E4M7: three quarters of the bytes of BF16, and almost exact.
     */
    public ElementType valueTypeOn(Device device) {
        return valueType.orElse(device.isCpu() ? storageTypeOn(device) : ElementType.F12_E4M7);
    }

    /** How a cache on a device keeps landmarks. */
    public ElementType landmarkTypeOn(Device device) {
        return landmarkType.orElse(storageTypeOn(device));
    }

    /** A budget of as many chunks as a shortlist may have leaves nothing to choose from. */
    private double rerankWithinLimits() {
        return budget / chunk < Geometry.MAX_SELECT ? rerank : 0;
    }

    /** Makes a cache for a model. */
    public KvCache build(Device device, ModelConfig config, MemoryPlan memory, long length) {
        return builder(device, config, memory, length).build();
    }

    private CacheBuilder<?> shape(
            CacheBuilder<?> builder, Device device, ModelConfig config, MemoryPlan memory, long length) {
        builder.layers(config.layers())
                .queryHeads(config.queryHeads())
                .keyValueHeads(config.keyValueHeads())
                .headDim(config.headDim())
                .rope(Rotation.of(config.rope(), length))
                .inputType(device.defaultType())
                .memory(memory);
        storageType.ifPresent(builder::storageType);
        return builder;
    }
}
