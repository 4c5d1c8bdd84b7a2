package dev.shadowkv;

import java.util.Map;
import java.util.TreeMap;

/** Hands out contiguous ranges of one allocation, first fit, so that opening a session asks no driver for memory. */
final class SlabPool {

    /** Ranges begin at multiples of this, as vector loads and copy engines like it. */
    static final long ALIGNMENT = 256;

    private final TreeMap<Long, Long> free = new TreeMap<>();

    SlabPool(long bytes) {
        if (bytes > 0) {
            free.put(0L, bytes);
        }
    }

    static long align(long bytes) {
        return Math.addExact(bytes, ALIGNMENT - 1) & -ALIGNMENT;
    }

    /** Returns where a range begins, or -1 when there is no room. */
    synchronized long allocate(long bytes) {
        long size = align(bytes);
        if (size == 0) {
            return 0;
        }
        for (Map.Entry<Long, Long> range : free.entrySet()) {
            if (range.getValue() >= size) {
                long offset = range.getKey();
                long rest = range.getValue() - size;
                free.remove(offset);
                if (rest > 0) {
                    free.put(offset + size, rest);
                }
                return offset;
            }
        }
        return -1;
    }

    synchronized void release(long offset, long bytes) {
        long size = align(bytes);
        if (size == 0) {
            return;
        }
        Map.Entry<Long, Long> before = free.lowerEntry(offset);
        Long after = free.remove(offset + size);
        long length = size + (after == null ? 0 : after);
        if (before != null && before.getKey() + before.getValue() == offset) {
            free.put(before.getKey(), before.getValue() + length);
        } else {
            free.put(offset, length);
        }
    }

    /** The largest range that could be had now. */
    synchronized long largest() {
        return free.values().stream().mapToLong(Long::longValue).max().orElse(0);
    }
}
