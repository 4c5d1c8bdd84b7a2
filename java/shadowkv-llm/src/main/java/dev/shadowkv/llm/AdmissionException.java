package dev.shadowkv.llm;

/** A request, or an engine's sessions, do not fit into the memory that there is. The message has the numbers. */
public final class AdmissionException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public AdmissionException(String message) {
        super(message);
    }

    public AdmissionException(String message, Throwable cause) {
        super(message, cause);
    }
}
