package dev.shadowkv;

import dev.shadowkv.kernels.Ring;

/** Where one layer of a prompt lies until it is sealed; row = position. */
final class Staging {

    final Ring rotatedKeys;
    final Ring values;
    /** Keys before RoPE, {@code [tokens][K*D]}. */
    final DeviceBuffer rawKeys;
    final long tokens;
    /** Chunks whose values are on the host or on their way there, beside other work. */
    int sentChunks;

    Staging(DeviceBuffer memory, CacheShape shape, long tokens) {
        long part = partBytes(shape, tokens);
        long bytes = tokens * shape.keyWidth() * shape.storageType.bytes();
        this.tokens = tokens;
        rotatedKeys = new Ring(memory.slice(0, bytes), shape.storageType, tokens);
        values = new Ring(memory.slice(part, bytes), shape.storageType, tokens);
        rawKeys = memory.slice(2 * part, bytes);
    }

    static long bytes(CacheShape shape, long tokens) {
        return 3 * partBytes(shape, tokens);
    }

    private static long partBytes(CacheShape shape, long tokens) {
        return SlabPool.align(tokens * shape.keyWidth() * shape.storageType.bytes());
    }
}
