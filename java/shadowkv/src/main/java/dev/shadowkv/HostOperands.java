package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** Room on the device for 32-bit operands that a caller gives in host memory, some tokens at a time. */
final class HostOperands {

    final int tokens;
    final Operand queries;
    final Operand keys;
    final Operand values;
    final Operand output;

    /** Device memory and the host memory that it is copied from; on a CPU both are the same. */
    static final class Operand {
        final DeviceBuffer buffer;
        final long tokenBytes;
        private final MemorySegment host;

        Operand(DeviceArena arena, int tokens, int width) {
            tokenBytes = 4L * width;
            buffer = arena.allocate(tokens * tokenBytes);
            host = arena.device().isCpu() ? buffer.asSegment() : Arena.ofAuto().allocate(tokens * tokenBytes, 64);
        }

        /** Takes tokens from the caller's memory. */
        void take(MemorySegment source, long firstToken, long count) {
            MemorySegment.copy(source, firstToken * tokenBytes, host, 0, count * tokenBytes);
            Device device = buffer.device();
            if (!device.isCpu()) {
                device.memoryCalls().copy(MemorySegment.ofAddress(buffer.address()), host, count * tokenBytes);
            }
        }

        /** Gives tokens to the caller's memory; waits for the device. */
        void give(MemorySegment target, long firstToken, long count) {
            Device device = buffer.device();
            if (!device.isCpu()) {
                device.memoryCalls().copy(host, MemorySegment.ofAddress(buffer.address()), count * tokenBytes);
            }
            device.synchronize();
            MemorySegment.copy(host, 0, target, firstToken * tokenBytes, count * tokenBytes);
        }
    }

    HostOperands(DeviceArena arena, CacheShape shape) {
        tokens = tokens(shape);
        queries = new Operand(arena, tokens, shape.queryWidth());
        keys = new Operand(arena, tokens, shape.keyWidth());
        values = new Operand(arena, tokens, shape.keyWidth());
        output = new Operand(arena, tokens, shape.queryWidth());
    }

    static int tokens(CacheShape shape) {
        return Math.max(128, shape.memory.sessions());
    }

    static long bytes(CacheShape shape) {
        return tokens(shape) * 8L * (shape.queryWidth() + shape.keyWidth());
    }

    static void require(String name, MemorySegment segment, long count, int width) {
        long bytes = Math.multiplyExact(count, 4L * width);
        if (segment.byteSize() < bytes) {
            throw new IndexOutOfBoundsException(name + " has " + segment.byteSize() + " bytes, but " + count
                    + " tokens of " + width + " 32-bit floats are " + bytes);
        }
    }
}
