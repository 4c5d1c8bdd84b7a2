package dev.shadowkv.internal;

import java.lang.ref.Cleaner;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Reports objects that were forgotten without being closed. For tests: on with {@code
 * -Ddev.shadowkv.leakDetection=true},
 * since each watched object then keeps the stack trace of its making.
 */
public final class LeakDetector {

    private static final boolean ON = Boolean.getBoolean("dev.shadowkv.leakDetection");
    private static final AtomicLong LEAKS = new AtomicLong();

    private LeakDetector() {
    }

    /** Told when its object is closed properly. */
    public static final class Ticket {
        private final AtomicBoolean closed = new AtomicBoolean();

        /** The object was closed. */
        public void closed() {
            closed.set(true);
        }
    }

    /** Watches an object until it is closed or collected. */
    public static Ticket watch(Object object, String what) {
        Ticket ticket = new Ticket();
        if (ON) {
            AtomicBoolean closed = ticket.closed;
            Throwable origin = new Throwable(what + " was made here");
            Watch.CLEANER.register(object, () -> {
                if (!closed.get()) {
                    LEAKS.incrementAndGet();
                    System.getLogger("dev.shadowkv").log(System.Logger.Level.ERROR, what + " was never closed", origin);
                }
            });
        }
        return ticket;
    }

    /** How many were forgotten so far. */
    public static long leaks() {
        return LEAKS.get();
    }

    /** The cleaner's thread exists only where detection is on. */
    private static final class Watch {
        static final Cleaner CLEANER = Cleaner.create();
    }
}
