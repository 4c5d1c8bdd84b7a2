package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.concurrent.atomic.AtomicLong;

import dev.shadowkv.internal.NativeContext;
import dev.shadowkv.internal.ffi.ShadowKv;

/** Memory of a native context: given, taken back, counted, copied and filled. What is passed here was checked before. */
final class NativeMemory {

    private final NativeContext context;
    private final AtomicLong deviceBytes = new AtomicLong();
    private final AtomicLong pinnedBytes = new AtomicLong();

    NativeMemory(NativeContext context) {
        this.context = context;
    }

    long deviceBytes() {
        return deviceBytes.get();
    }

    long pinnedBytes() {
        return pinnedBytes.get();
    }

    Device.Memory info() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment free = arena.allocate(ValueLayout.JAVA_LONG);
            MemorySegment total = arena.allocate(ValueLayout.JAVA_LONG);
            MemorySegment handle = context.enter();
            try {
                context.check(ShadowKv.skv_memory_info(handle, free, total), "memory_info");
            } finally {
                context.exit();
            }
            return new Device.Memory(free.get(ValueLayout.JAVA_LONG, 0), total.get(ValueLayout.JAVA_LONG, 0));
        }
    }

    MemorySegment allocate(long bytes) {
        return allocate(bytes, ShadowKv::skv_device_allocate, "device_allocate", deviceBytes);
    }

    MemorySegment allocatePinned(long bytes) {
        return allocate(bytes, ShadowKv::skv_host_allocate, "host_allocate", pinnedBytes);
    }

    void free(MemorySegment address, long bytes) {
        free(address, bytes, ShadowKv::skv_device_free, "device_free", deviceBytes);
    }

    void freePinned(MemorySegment address, long bytes) {
        free(address, bytes, ShadowKv::skv_host_free, "host_free", pinnedBytes);
    }

    private interface Allocate {
        int call(MemorySegment context, long bytes, MemorySegment out);
    }

    private interface Free {
        int call(MemorySegment context, MemorySegment address);
    }

    private MemorySegment allocate(long bytes, Allocate function, String operation, AtomicLong counter) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
            MemorySegment handle = context.enter();
            try {
                context.check(function.call(handle, bytes, out), operation);
            } finally {
                context.exit();
            }
            counter.addAndGet(bytes);
            return out.get(ValueLayout.ADDRESS, 0);
        }
    }

    private void free(MemorySegment address, long bytes, Free function, String operation, AtomicLong counter) {
        MemorySegment handle = context.enter();
        try {
            context.check(function.call(handle, address), operation);
        } finally {
            context.exit();
            // Whatever the device says: nobody frees it twice.
            counter.addAndGet(-bytes);
        }
    }

    void copy(MemorySegment target, MemorySegment source, long bytes) {
        if (bytes == 0) {
            return;
        }
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_copy(handle, target, source, bytes), "copy");
        } finally {
            context.exit();
        }
    }

    void copyRows(long target, long targetPitch, long source, long sourcePitch, long width, long rows) {
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_copy_2d(handle, MemorySegment.ofAddress(target), targetPitch,
                    MemorySegment.ofAddress(source), sourcePitch, width, rows), "copy_2d");
        } finally {
            context.exit();
        }
    }

    void fill(long target, int value, long bytes) {
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_fill(handle, MemorySegment.ofAddress(target), value, bytes), "fill");
        } finally {
            context.exit();
        }
    }
}
