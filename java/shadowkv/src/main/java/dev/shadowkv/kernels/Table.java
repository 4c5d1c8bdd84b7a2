package dev.shadowkv.kernels;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.internal.NativeContext;
import dev.shadowkv.internal.ffi.ShadowKv;

/**
 * An array of structs in device memory, with a copy on the host in which entries are changed before they are
 * uploaded.
 */
abstract class Table implements AutoCloseable {

    final Device device;
    final MemorySegment host;
    private final DeviceArena arena;
    private final DeviceBuffer buffer;
    private final MemorySegment target;
    private final NativeContext context;
    private final long entryBytes;
    private final long entries;

    Table(Device device, long entries, long entryBytes) {
        if (entries < 1) {
            throw new IllegalArgumentException("entries must be positive: " + entries);
        }
        this.device = device;
        this.entries = entries;
        this.entryBytes = entryBytes;
        arena = device.newArena();
        long bytes = Math.multiplyExact(entries, entryBytes);
        buffer = arena.allocate(bytes);
        target = MemorySegment.ofAddress(buffer.address());
        context = NativeContext.of(device);
        host = Arena.ofAuto().allocate(bytes, 8);
    }

    /** How many entries there are. */
    public final long entries() {
        return entries;
    }

    /** Brings the host's entries to the device. */
    public final void upload() {
        // Once a step: the address is kept as a segment, so that nothing is allocated for it.
        buffer.address();
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_copy(handle, target, host, host.byteSize()), "copy");
        } finally {
            context.exit();
        }
    }

    /** Frees the table; does nothing the second time. */
    @Override
    public final void close() {
        arena.close();
    }

    final MemorySegment entry(long index) {
        Objects.checkIndex(index, entries);
        return host.asSlice(index * entryBytes, entryBytes);
    }

    final long offset(long index) {
        return Objects.checkIndex(index, entries) * entryBytes;
    }

    final long address(Params params, long first, long count) {
        Objects.checkFromIndexSize(first, count, entries);
        return params.address(getClass().getSimpleName(), buffer, entries * entryBytes) + first * entryBytes;
    }
}
