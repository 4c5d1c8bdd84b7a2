package dev.shadowkv;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.LeakDetector;
import dev.shadowkv.internal.Lifetime;

/**
 * Owns device memory: what is allocated from it is freed together when it is closed. It keeps the contract of
 * {@link java.lang.foreign.Arena} (exact sizes, deterministic end, {@link IllegalStateException} afterwards) without
 * implementing it, since device memory is handed out as {@link DeviceBuffer}s and never as segments.
 *
 * <p>May be used from any thread.
 */
public final class DeviceArena implements AutoCloseable {

    private final Device device;
    private final Lifetime lifetime;
    private final Children allocations = new Children();
    private final Children.Child closing;

    DeviceArena(Device device) {
        this.device = device;
        this.lifetime = new Lifetime("DeviceArena", device.lifetime());
        Lifetime own = lifetime;
        Children all = allocations;
        // The device keeps this action, not the arena, so that a forgotten arena can be found.
        LeakDetector.Ticket ticket = LeakDetector.watch(this, "DeviceArena");
        closing = device.children().add(() -> {
            ticket.closed();
            if (own.close()) {
                all.close();
            }
        });
    }

    /** Whose memory it hands out. */
    public Device device() {
        return device;
    }

    /**
     * Allocates memory that is not initialised.
     *
     * @throws IllegalStateException if the arena is closed
     * @throws ShadowKvException if the memory does not suffice
     */
    public DeviceBuffer allocate(long bytes) {
        lifetime.check();
        if (bytes <= 0) {
            throw new IllegalArgumentException("bytes must be positive: " + bytes);
        }
        MemorySegment address = device.memoryCalls().allocate(bytes);
        allocations.add(() -> device.memoryCalls().free(address, bytes));
        return new DeviceBuffer(device, lifetime, address.address(), bytes);
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
