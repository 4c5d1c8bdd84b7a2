package dev.shadowkv.internal;

/** Whether an object, and what it lives in, is still open. */
public final class Lifetime {

    private final String what;
    private final Lifetime parent;
    private volatile boolean closed;

    /** @param parent what must be open too, or null */
    public Lifetime(String what, Lifetime parent) {
        this.what = what;
        this.parent = parent;
    }

    /** @throws IllegalStateException if this or a parent is closed */
    public void check() {
        if (closed) {
            throw new IllegalStateException(what + " is closed");
        }
        if (parent != null) {
            parent.check();
        }
    }

    /** Whether this or a parent is closed. */
    public boolean isClosed() {
        return closed || parent != null && parent.isClosed();
    }

    /** Returns false when it was closed before. */
    public synchronized boolean close() {
        boolean first = !closed;
        closed = true;
        return first;
    }
}
