package dev.shadowkv.internal;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;

/** Calls of operations that are kept back, the params of each operation as one array. */
final class KeptCalls {

    private static final int ALIGNMENT = 8;

    /** Calls of one operation. */
    static final class OfOperation {

        final String operation;
        final int number;
        final long stride;
        private MemorySegment params;
        private int count;

        private OfOperation(String operation, int number, long stride) {
            this.operation = operation;
            this.number = number;
            this.stride = stride;
            params = Arena.ofAuto().allocate(16 * stride, ALIGNMENT);
        }

        private void add(MemorySegment one) {
            if ((count + 1) * stride > params.byteSize()) {
                MemorySegment larger = Arena.ofAuto().allocate(2 * params.byteSize(), ALIGNMENT);
                larger.copyFrom(params);
                params = larger;
            }
            MemorySegment.copy(one, 0, params, count * stride, stride);
            count++;
        }

        int count() {
            return count;
        }

        /** {@code [count]}. */
        MemorySegment params() {
            return params;
        }
    }

    /** In the order in which they were first called. */
    final List<OfOperation> operations = new ArrayList<>();
    /** Of earlier calls, for their memory. */
    private final List<OfOperation> spare = new ArrayList<>();

    void add(String operation, int number, MemorySegment params) {
        OfOperation kept = find(operations, number);
        if (kept == null) {
            kept = find(spare, number);
            if (kept == null) {
                kept = new OfOperation(operation, number, params.byteSize());
            } else {
                spare.remove(kept);
            }
            operations.add(kept);
        }
        kept.add(params);
    }

    /** Forgets all calls. */
    void clear() {
        for (OfOperation kept : operations) {
            kept.count = 0;
        }
        spare.addAll(operations);
        operations.clear();
    }

    private static OfOperation find(List<OfOperation> among, int number) {
        for (OfOperation kept : among) {
            if (kept.number == number) {
                return kept;
            }
        }
        return null;
    }
}
