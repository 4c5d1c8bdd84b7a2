package dev.shadowkv.internal;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;

/** What an object closes with itself: the youngest first, all of them, the first failure with the others suppressed. */
public final class Children {

    /** Something that closes without a checked exception. */
    @FunctionalInterface
    public interface Child {
        /** Closes it; does nothing the second time. */
        void close();
    }

    private final Set<Child> open = new LinkedHashSet<>();

    /** Adds a child. */
    public synchronized <T extends Child> T add(T child) {
        open.add(child);
        return child;
    }

    /** Forgets a child that was closed on its own. */
    public synchronized void remove(Child child) {
        open.remove(child);
    }

    /** Closes all of them. */
    public void close() {
        List<Child> all;
        synchronized (this) {
            all = new ArrayList<>(open);
            open.clear();
        }
        RuntimeException failure = null;
        for (Child child : all.reversed()) {
            failure = close(child, failure);
        }
        if (failure != null) {
            throw failure;
        }
    }

    /** Closes one and returns the failure so far. */
    public static RuntimeException close(Child child, RuntimeException failure) {
        try {
            child.close();
        } catch (RuntimeException e) {
            if (failure == null) {
                return e;
            }
            failure.addSuppressed(e);
        }
        return failure;
    }
}
