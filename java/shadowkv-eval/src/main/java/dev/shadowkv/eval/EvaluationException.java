package dev.shadowkv.eval;

/** An evaluation cannot be set up or continued; the message is one line meant for a user. */
public final class EvaluationException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public EvaluationException(String message) {
        super(message);
    }

    public EvaluationException(String message, Throwable cause) {
        super(message, cause);
    }
}
