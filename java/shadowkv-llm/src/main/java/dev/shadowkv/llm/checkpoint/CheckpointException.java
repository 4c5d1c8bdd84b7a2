package dev.shadowkv.llm.checkpoint;

/**
 * A checkpoint, or another file of model data, cannot be used. The message is one line that names the file and, where
 * there is one, the tensor or the configuration field; it is meant to be shown to a user as it is.
 */
public final class CheckpointException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public CheckpointException(String message) {
        super(message);
    }

    public CheckpointException(String message, Throwable cause) {
        super(message, cause);
    }
}
