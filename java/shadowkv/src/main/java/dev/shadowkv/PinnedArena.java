package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.LeakDetector;
import dev.shadowkv.internal.Lifetime;

/**
 * Host memory that the device reads and writes directly (page-locked on CUDA, ordinary on the CPU), zeroed, on huge
 * pages where the system has them. Its segments are ordinary segments of exactly the size asked for.
 *
 * <p>May be used and closed from any thread. Closing waits for the device first.
 */
public final class PinnedArena implements Arena {

    private final Device device;
    private final Arena arena = Arena.ofShared();
    private final Lifetime lifetime;
    private final Children.Child closing;

    PinnedArena(Device device) {
        this.device = device;
        this.lifetime = new Lifetime("PinnedArena", device.lifetime());
        Lifetime own = lifetime;
        Arena segments = arena;
        LeakDetector.Ticket ticket = LeakDetector.watch(this, "PinnedArena");
        closing = device.children().add(() -> {
            ticket.closed();
            if (own.close()) {
                segments.close();
            }
        });
    }

    /** The device that can follow the segments' addresses. */
    public Device device() {
        return device;
    }

    /**
     * Allocates zeroed memory.
     *
     * @param alignment at most 64
     * @throws ShadowKvException if the memory does not suffice
     */
    @Override
    public MemorySegment allocate(long bytes, long alignment) {
        lifetime.check();
        if (bytes < 0 || alignment <= 0 || (alignment & (alignment - 1)) != 0 || alignment > 64) {
            throw new IllegalArgumentException(
                    "bytes must not be negative and alignment a power of two up to 64: " + bytes + ", " + alignment);
        }
        long size = Math.max(bytes, 1);
        MemorySegment raw = device.memoryCalls().allocatePinned(size);
        return raw.reinterpret(bytes, arena, ignored -> device.memoryCalls().freePinned(raw, size));
    }

    @Override
    public MemorySegment.Scope scope() {
        return arena.scope();
    }

    /** Waits for the device and frees everything; does nothing the second time. */
    @Override
    public void close() {
        // After a fault of the device the memory goes back all the same.
        RuntimeException failure = lifetime.isClosed() ? null : Children.close(device::synchronize, null);
        failure = Children.close(closing, failure);
        device.children().remove(closing);
        if (failure != null) {
            throw failure;
        }
    }
}
