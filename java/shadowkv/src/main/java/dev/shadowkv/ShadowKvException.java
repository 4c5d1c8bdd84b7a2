package dev.shadowkv;

import java.util.Objects;

/**
 * An operation failed. Misuse that Java can see is an {@link IllegalArgumentException}, {@link IllegalStateException}
 * or
 * {@link IndexOutOfBoundsException} instead.
 */
public final class ShadowKvException extends RuntimeException {

    private static final long serialVersionUID = 1L;

    private final Status status;
    private final String operation;

    /**
     * @param status why it failed
     * @param operation what failed, by its name in {@code dev.shadowkv.kernels} or of the public method
     * @param message one line for people
     */
    public ShadowKvException(Status status, String operation, String message) {
        this(status, operation, message, null);
    }

    /** As above, with what caused it. */
    public ShadowKvException(Status status, String operation, String message, Throwable cause) {
        super(operation + ": " + message + " (" + status + ")", cause);
        this.status = Objects.requireNonNull(status);
        this.operation = Objects.requireNonNull(operation);
    }

    /** Why it failed. */
    public Status status() {
        return status;
    }

    /** What failed. */
    public String operation() {
        return operation;
    }
}
