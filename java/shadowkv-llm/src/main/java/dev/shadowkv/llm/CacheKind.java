package dev.shadowkv.llm;

/** Which cache keeps keys and values. */
public enum CacheKind {
    /** Exact. */
    DENSE,
    /** By the ShadowKV method. */
    SHADOW,
    /**
     * Dense for contexts of at most four budgets, where there is little to leave out and exact attention is as fast;
     * shadow for longer ones.
     */
    AUTO
}
