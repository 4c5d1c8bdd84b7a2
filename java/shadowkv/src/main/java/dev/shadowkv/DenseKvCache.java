package dev.shadowkv;

/**
 * A cache that keeps every key and value exactly.
 */
public abstract class DenseKvCache implements KvCache {

    DenseKvCache() {
    }

    /** Starts building a cache. */
    public static Builder builder(Device device) {
        return new Builder(device);
    }

    /** Options of a dense cache. */
    public static final class Builder extends CacheBuilder<Builder> {

        private Builder(Device device) {
            super(device);
        }

        @Override
        public MemoryPlan plan() {
            throw new UnsupportedOperationException();
        }

        @Override
        public DenseKvCache build() {
            throw new UnsupportedOperationException();
        }

        @Override
        Builder self() {
            return this;
        }
    }
}
