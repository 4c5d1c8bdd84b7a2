package dev.shadowkv.llm.internal.jinja;

/** A template is malformed, uses something that is not supported, or raised an exception of its own. */
public final class JinjaException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public JinjaException(String message) {
        super(message);
    }
}
