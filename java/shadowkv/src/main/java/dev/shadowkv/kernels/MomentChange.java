package dev.shadowkv.kernels;

/** What {@link CacheKernels#momentUpdate} does with what the moments hold. */
public enum MomentChange {
    /** The chunks are added to it. */
    ADD,
    /** The chunks are taken away from it. */
    SUBTRACT,
    /** The chunks take its place. */
    REPLACE
}
