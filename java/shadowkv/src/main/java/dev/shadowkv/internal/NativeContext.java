package dev.shadowkv.internal;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Function;

import dev.shadowkv.ShadowKvException;
import dev.shadowkv.Status;
import dev.shadowkv.internal.ffi.ShadowKv;

/**
 * A native context: turns statuses into exceptions, lets in one thread at a time, and refuses calls after its end.
 * Non-capturing method references as operations keep calls free of allocation.
 */
public final class NativeContext {

    /** A native function of a context and one parameter struct. */
    @FunctionalInterface
    public interface Operation {
        /** Returns the status. */
        int invoke(MemorySegment context, MemorySegment params);
    }

    private static final int MESSAGE_BYTES = 4096;

    /** How packages that share no access with {@code Device} find its context. */
    private static volatile Function<Object, NativeContext> lookup;

    private final ReentrantLock lock = new ReentrantLock();
    private final MemorySegment bytes = Arena.ofAuto().allocate(ValueLayout.JAVA_LONG);
    private MemorySegment handle;
    private long reserved;
    private final KeptCalls kept = new KeptCalls();
    private boolean keeping;

    private NativeContext(MemorySegment handle) {
        this.handle = handle;
    }

    /** Tells how to find the context of a device. */
    public static void lookup(Function<Object, NativeContext> function) {
        lookup = function;
    }

    /** The context of a device. */
    public static NativeContext of(Object device) {
        return lookup.apply(device);
    }

    /** Creates a context from a filled {@code skv_context_params}. */
    public static NativeContext create(MemorySegment params) {
        NativeLibrary.load();
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
            MemorySegment message = arena.allocate(MESSAGE_BYTES);
            int status = ShadowKv.skv_context_create(params, out, message, MESSAGE_BYTES);
            check(status, "context_create", message);
            return new NativeContext(out.get(ValueLayout.ADDRESS, 0));
        }
    }

    /** Throws what a function without a context reported. */
    public static void check(int status, String operation, MemorySegment message) {
        if (status != 0) {
            throw new ShadowKvException(Status.of(status), operation, message.getString(0));
        }
    }

    /** Bytes of workspace that were reserved so far. */
    public long reservedWorkspace() {
        return reserved;
    }

    /** Calls a function. */
    public void run(String operation, Operation function, MemorySegment params) {
        lock.lock();
        try {
            check(function.invoke(handle(), params), operation);
        } finally {
            lock.unlock();
        }
    }

    /** Enters the context for calls with other signatures; leave with {@link #exit()}. */
    public MemorySegment enter() {
        lock.lock();
        if (handle == null) {
            lock.unlock();
            throw new IllegalStateException("Device is closed");
        }
        return handle;
    }

    /** Leaves the context. */
    public void exit() {
        lock.unlock();
    }

    /** Throws what the last call reported; between {@link #enter()} and {@link #exit()}. */
    public void check(int status, String operation) {
        if (status != 0) {
            throw failure(status, operation);
        }
    }

    /** Bytes of workspace that an operation asks for. */
    public long workspaceBytes(String operation, int number, MemorySegment params) {
        MemorySegment context = enter();
        try {
            check(ShadowKv.skv_workspace_bytes(context, number, params, bytes), operation);
            return bytes.get(ValueLayout.JAVA_LONG, 0);
        } finally {
            exit();
        }
    }

    /**
     * Keeps back what {@code work} gives to {@link #runReserved}, and then makes the calls of each operation as one, in
     * the order in which operations were first called. So calls of one operation must not depend on each other.
     */
    public void together(Runnable work) {
        MemorySegment context = enter();
        try {
            if (keeping) {
                throw new IllegalStateException("calls are being kept back already");
            }
            kept.clear();
            keeping = true;
            try {
                work.run();
            } finally {
                keeping = false;
            }
            for (KeptCalls.OfOperation each : kept.operations) {
                long needed = 0;
                for (int i = 0; i < each.count(); i++) {
                    MemorySegment params = each.params().asSlice(i * each.stride, each.stride);
                    needed = Math.max(needed, workspaceBytes(each.operation, each.number, params));
                }
                if (needed > reserved) {
                    reserveWorkspace(needed);
                }
                check(ShadowKv.skv_each(context, each.number, each.params(), each.count()), each.operation);
            }
        } finally {
            exit();
        }
    }

    /**
     * Calls a function after making the workspace as large as it asks for; growing waits for the stream. Within
     * {@link #together} the call is kept back.
     */
    public void runReserved(String operation, int number, Operation function, MemorySegment params) {
        MemorySegment context = enter();
        try {
            if (keeping) {
                kept.add(operation, number, params);
                return;
            }
            long needed = workspaceBytes(operation, number, params);
            if (needed > reserved) {
                reserveWorkspace(needed);
            }
            check(function.invoke(context, params), operation);
        } finally {
            exit();
        }
    }

    /** Makes the workspace at least so large. */
    public void reserveWorkspace(long bytes) {
        MemorySegment context = enter();
        try {
            int status = ShadowKv.skv_reserve_workspace(context, bytes);
            // A workspace that cannot grow is gone: the old one is freed first.
            reserved = status == 0 ? Math.max(reserved, bytes) : 0;
            check(status, "reserve_workspace");
        } finally {
            exit();
        }
    }

    /** Frees the native context; does nothing the second time. */
    public void destroy() {
        lock.lock();
        try {
            if (handle != null) {
                MemorySegment context = handle;
                handle = null;
                int status = ShadowKv.skv_context_destroy(context);
                if (status != 0) {
                    throw new ShadowKvException(Status.of(status), "context_destroy", "the context ended with a fault");
                }
            }
        } finally {
            lock.unlock();
        }
    }

    private MemorySegment handle() {
        if (handle == null) {
            throw new IllegalStateException("Device is closed");
        }
        return handle;
    }

    private ShadowKvException failure(int status, String operation) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment message = arena.allocate(MESSAGE_BYTES);
            ShadowKv.skv_context_message(handle, message, MESSAGE_BYTES);
            return new ShadowKvException(Status.of(status), operation, message.getString(0));
        }
    }
}
