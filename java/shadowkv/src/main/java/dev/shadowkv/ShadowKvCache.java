package dev.shadowkv;

/**
 * A cache by the ShadowKV method.
 */
public abstract class ShadowKvCache implements KvCache {

    ShadowKvCache() {
    }

    /** Starts building a cache. */
    public static Builder builder(Device device) {
        return new Builder(device);
    }

    /** Options of a shadow cache. */
    public static final class Builder extends CacheBuilder<Builder> {

        private int rank = 160;
        private int basisReserve;
        private int chunk = 8;
        private int budget = 2048;
        private int outliers = -1;
        private int residualOutliers = 16;
        private float residualLimit = 0.5f;
        private int local = 4;
        private int window;
        private float radiusWeight = 0.5f;
        private double rerank;
        private int slots = -1;
        private ElementType valueType;
        private ElementType landmarkType;

        private Builder(Device device) {
            super(device);
        }

        /** Rank of the keys, 16 to 256 and at most the joint width of the key/value heads. Default 160. */
        public Builder rank(int directions) {
            rank = directions;
            return this;
        }

        /** Directions kept free for what only later tokens need; rank and reserve are at most 256. Default 0. */
        public Builder basisReserve(int directions) {
            basisReserve = directions;
            return this;
        }

        /** Tokens a chunk, 8 or 16. Default 8. */
        public Builder chunk(int tokens) {
            chunk = tokens;
            return this;
        }

        /** Tokens that a step selects for each key/value head, rounded down to whole chunks. Default 2048. */
        public Builder budget(int tokens) {
            budget = tokens;
            return this;
        }

        /** Chunks a key/value head that stay dense. Default 24 for each 1024 tokens of budget. */
        public Builder outliers(int chunks) {
            outliers = chunks;
            return this;
        }

        /** Later chunks that may stay dense because the basis misses them. Default 16. */
        public Builder residualOutliers(int chunks) {
            residualOutliers = chunks;
            return this;
        }

        /** Mean share of a later chunk's key energy that the basis may miss before it stays dense. Default 0.5. */
        public Builder residualLimit(float share) {
            residualLimit = share;
            return this;
        }

        /** Chunks before the end that always stay dense. Default 4. */
        public Builder local(int chunks) {
            local = chunks;
            return this;
        }

        /** Tokens that the dense recent window holds. Default: the local chunks and 64 tokens. */
        public Builder window(int tokens) {
            window = tokens;
            return this;
        }

        /** Weight of a landmark's radius in its logit; 0 is the paper's method. Default 0.5. */
        public Builder radiusWeight(float weight) {
            radiusWeight = weight;
            return this;
        }

        /** Shortlists this many times the budget by landmark and picks from it by exact attention; 1 or less: off. */
        public Builder rerank(double factor) {
            rerank = factor;
            return this;
        }

        /** Value slots a key/value head; 0 reads values in place. Default: 0 on a CPU, the budget's chunks on a GPU. */
        public Builder slots(int count) {
            slots = count;
            return this;
        }

        /** How values are kept in host memory: the storage type or F8_E4M3. Default: the storage type. */
        public Builder valueType(ElementType type) {
            valueType = type;
            return this;
        }

        /** How landmarks are kept: the storage type or I8. Default: the storage type. */
        public Builder landmarkType(ElementType type) {
            landmarkType = type;
            return this;
        }

        @Override
        public MemoryPlan plan() {
            throw new UnsupportedOperationException();
        }

        @Override
        public ShadowKvCache build() {
            throw new UnsupportedOperationException();
        }

        @Override
        Builder self() {
            return this;
        }
    }
}
