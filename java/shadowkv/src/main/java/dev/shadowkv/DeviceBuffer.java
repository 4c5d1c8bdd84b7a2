package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.util.Objects;

import dev.shadowkv.internal.Lifetime;

/**
 * A range of a device's memory: an address and a length. It is no segment, so that reading a GPU's memory from Java is
 * impossible rather than a crash; {@link Device#copy(DeviceBuffer, MemorySegment)} brings it to the host.
 *
 * <p>A buffer lives as long as the arena or device that it came from; slices share that life. Buffers are immutable
 * and may be shared between threads.
 */
public final class DeviceBuffer {

    private final Device device;
    private final Lifetime lifetime;
    private final long address;
    private final long byteSize;

    DeviceBuffer(Device device, Lifetime lifetime, long address, long byteSize) {
        this.device = device;
        this.lifetime = lifetime;
        this.address = address;
        this.byteSize = byteSize;
    }

    /**
     * Wraps memory that another library owns and keeps alive.
     *
     * @param device whose memory it is
     * @param address a pointer that kernels of the device can follow
     * @param bytes how many bytes may be touched
     */
    public static DeviceBuffer ofAddress(Device device, long address, long bytes) {
        Objects.requireNonNull(device, "device");
        if (address == 0 || bytes < 0) {
            throw new IllegalArgumentException(
                    "address must not be 0 and bytes not negative: " + address + ", " + bytes);
        }
        return new DeviceBuffer(device, device.lifetime(), address, bytes);
    }

    /**
     * The address of the first byte.
     *
     * @throws IllegalStateException if the memory was freed
     */
    public long address() {
        lifetime.check();
        return address;
    }

    /** The length in bytes. */
    public long byteSize() {
        return byteSize;
    }

    /** Whose memory it is. */
    public Device device() {
        return device;
    }

    /** Whether the memory can still be used. */
    public boolean isAlive() {
        return !lifetime.isClosed();
    }

    /**
     * A part of this buffer.
     *
     * @throws IndexOutOfBoundsException if it does not lie within
     */
    public DeviceBuffer slice(long offset, long bytes) {
        Objects.checkFromIndexSize(offset, bytes, byteSize);
        return new DeviceBuffer(device, lifetime, address + offset, bytes);
    }

    /** The part from an offset to the end. */
    public DeviceBuffer slice(long offset) {
        return slice(offset, byteSize - Objects.checkFromToIndex(0, offset, byteSize) - offset);
    }

    /**
     * The memory of a CPU device as a segment of exact size; use it no longer than the buffer.
     *
     * @throws UnsupportedOperationException if the device is not a CPU
     */
    public MemorySegment asSegment() {
        if (!device.isCpu()) {
            throw new UnsupportedOperationException(
                    "memory of " + device.name() + " cannot be read by Java: copy it with Device.copy");
        }
        lifetime.check();
        return MemorySegment.ofAddress(address).reinterpret(byteSize);
    }

    @Override
    public String toString() {
        return "DeviceBuffer[" + byteSize + " bytes at 0x" + Long.toHexString(address) + " of " + device.name()
                + (isAlive() ? "]" : ", freed]");
    }
}
