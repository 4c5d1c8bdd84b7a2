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

/**
 * Which cache a model gets, and its settings. What is empty is the cache builder's default. Others than the usual settings
 * are named one by one: {@code CacheOptions.shadow(2048).toBuilder().rank(96).valueType(ElementType.F8_E4M3).build()}.
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
 * @param coefficientType how the coefficients of keys are kept: as stored, or I8; by default as stored
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
        Optional<ElementType> coefficientType,
        Optional<ElementType> storageType) {
    /** Rerank factor where none is wished. */
    public static final double USUAL_RERANK = 4;

    /** Tokens that a step selects where nothing is said. */
    public static final int USUAL_BUDGET = 2048;

    /** Tokens a chunk where nothing is said. */
    public static final int USUAL_CHUNK = 8;

    private static final float USUAL_RADIUS_WEIGHT = 0.5f;
    private static final int USUAL_RANK = 160;
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
        Objects.requireNonNull(coefficientType, "coefficientType");
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
        return new Builder(CacheKind.DENSE).build();
    }

    /** The shadow cache with a budget and the defaults. */
    public static CacheOptions shadow(int budget) {
        return new Builder(CacheKind.SHADOW).budget(budget).build();
    }

    /** The exact cache for sessions of up to four budgets, else the shadow cache, with the defaults. */
    public static CacheOptions auto(int budget) {
        return new Builder(CacheKind.AUTO).budget(budget).build();
    }

    /** A builder that begins with these settings. */
    public Builder toBuilder() {
        return new Builder(this);
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
        return toBuilder().kind(capacity <= (long) SHORT_BUDGETS * budget ? CacheKind.DENSE : CacheKind.SHADOW).build();
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
                        .rank(rankFor(config.keyValueWidth()))
                        .chunk(chunk)
                        .budget(budget)
                        .radiusWeight(radiusWeight)
                        .rerank(rerankWithinLimits());
                // On a CPU the builder's own default, which follows a storage type that it is told later.
                if (valueType.isPresent() || !device.isCpu()) {
                    shadow.valueType(valueTypeOn(device));
                }
                outliers.ifPresent(shadow::outliers);
                tail.ifPresent(shadow::tail);
                predict.ifPresent(wish -> shadow.predictDropped(wish && predictsDropped()));
                balance.ifPresent(shadow::balanceHeads);
                landmarkType.ifPresent(shadow::landmarkType);
                coefficientType.ifPresent(shadow::coefficientType);
                yield shape(shadow, device, config, memory, length);
            }
        };
    }

    /** The rank for a model whose key-value heads have so many elements together. */
    public int rankFor(int keyValueWidth) {
        return rank.orElse(Math.min(USUAL_RANK, keyValueWidth));
    }

    /** Chunks a head that stay dense, where there are as many. */
    public int outlierChunks() {
        return outliers.orElse(ShadowKvCache.usualOutliers(budget));
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

    /** How a cache on a device keeps the coefficients of keys. */
    public ElementType coefficientTypeOn(Device device) {
        return coefficientType.orElse(storageTypeOn(device));
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

    /** Collects settings; the components of the record say what each means. */
    public static final class Builder {
        private CacheKind kind;
        private OptionalInt rank = OptionalInt.empty();
        private int budget = USUAL_BUDGET;
        private int chunk = USUAL_CHUNK;
        private OptionalInt outliers = OptionalInt.empty();
        private float radiusWeight = USUAL_RADIUS_WEIGHT;
        private double rerank = USUAL_RERANK;
        private Optional<Boolean> tail = Optional.empty();
        private Optional<Boolean> predict = Optional.empty();
        private Optional<Boolean> balance = Optional.empty();
        private Optional<ElementType> valueType = Optional.empty();
        private Optional<ElementType> landmarkType = Optional.empty();
        private Optional<ElementType> coefficientType = Optional.empty();
        private Optional<ElementType> storageType = Optional.empty();

        private Builder(CacheKind kind) {
            this.kind = kind;
        }

        private Builder(CacheOptions from) {
            kind = from.kind;
            rank = from.rank;
            budget = from.budget;
            chunk = from.chunk;
            outliers = from.outliers;
            radiusWeight = from.radiusWeight;
            rerank = from.rerank;
            tail = from.tail;
            predict = from.predict;
            balance = from.balance;
            valueType = from.valueType;
            landmarkType = from.landmarkType;
            coefficientType = from.coefficientType;
            storageType = from.storageType;
        }

        public Builder kind(CacheKind value) {
            kind = value;
            return this;
        }

        public Builder rank(int value) {
            rank = OptionalInt.of(value);
            return this;
        }

        public Builder budget(int value) {
            budget = value;
            return this;
        }

        public Builder chunk(int value) {
            chunk = value;
            return this;
        }

        public Builder outliers(int value) {
            outliers = OptionalInt.of(value);
            return this;
        }

        public Builder radiusWeight(float value) {
            radiusWeight = value;
            return this;
        }

        public Builder rerank(double value) {
            rerank = value;
            return this;
        }

        public Builder tail(boolean value) {
            tail = Optional.of(value);
            return this;
        }

        public Builder predict(boolean value) {
            predict = Optional.of(value);
            return this;
        }

        public Builder balance(boolean value) {
            balance = Optional.of(value);
            return this;
        }

        public Builder valueType(ElementType value) {
            valueType = Optional.of(value);
            return this;
        }

        public Builder landmarkType(ElementType value) {
            landmarkType = Optional.of(value);
            return this;
        }

        public Builder coefficientType(ElementType value) {
            coefficientType = Optional.of(value);
            return this;
        }

        public Builder storageType(ElementType value) {
            storageType = Optional.of(value);
            return this;
        }

        /**
         * The settings.
         *
         * @throws IllegalArgumentException if one is outside its range or lacks what it needs
         */
        public CacheOptions build() {
            return new CacheOptions(
                    kind, rank, budget, chunk, outliers, radiusWeight, rerank, tail, predict, balance, valueType, landmarkType,
                    coefficientType, storageType);
        }
    }
}
