package dev.shadowkv;

/** Why an operation failed, as the native library says it. */
public enum Status {
    /** Not a failure. */
    OK,
    /** An argument is outside its limits. */
    INVALID_ARGUMENT,
    /** The shape, type or combination has no kernel; the message names the limits. */
    UNSUPPORTED,
    /** Host memory, pinned or not, is exhausted. */
    OUT_OF_HOST_MEMORY,
    /** Device memory is exhausted. */
    OUT_OF_DEVICE_MEMORY,
    /** The device reported a fault, perhaps of earlier asynchronous work. */
    DEVICE_ERROR,
    /** A device, driver or library is missing; the message says which and where it was looked for. */
    NOT_AVAILABLE,
    /** A defect of this library. */
    INTERNAL;

    /** The status of a native code. */
    public static Status of(int code) {
        Status[] all = values();
        return code >= 0 && code < all.length ? all[code] : INTERNAL;
    }
}
