package dev.shadowkv;

/**
 * Queues of a device's work. Each keeps its own order; {@link Device#meet} states what order there is between
 * {@link #MAIN} and another. On a CPU work is done when it is given, in whatever lane.
 */
public enum DeviceLane {
    /** The device's stream, where all work goes that is not given to another lane. */
    MAIN,
    /** On which shadow caches bring a prompt's values to the host while it is computed. */
    VALUES,
    /** For the copies of whoever uses the device. */
    COPIES
}
