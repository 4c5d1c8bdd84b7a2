package dev.shadowkv;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;

/**
 * One sequence in a {@link KvCache}. It is first filled with a prompt ({@link #append} or {@link #prefill}, layer by
 * layer or chunk by chunk), then sealed, then takes part in decode steps; after sealing it can still be appended to,
 * rewound, forked and saved.
 *
 * <p>A session is confined to one caller at a time: a second thread that calls while a call is running gets an
 * {@link IllegalStateException}. Different sessions may be used from different threads.
 */
public interface KvSession extends AutoCloseable {

    /** Whose session it is. */
    KvCache cache();

    /** Tokens that it can hold. */
    long capacity();

    /** Tokens that every layer holds. */
    long length();

    /** Tokens that a layer holds; differs from {@link #length()} only while a prompt is being filled in. */
    long length(int layer);

    /** Whether every layer is sealed, so that decode steps can begin. */
    boolean sealed();

    /**
     * Adds tokens to a layer.
     *
     * @param keys {@code [count][keyValueHeads][headDim]} before RoPE, of the cache's input type
     * @param keyStride elements between tokens; 0: dense
     * @param values {@code [count][keyValueHeads][headDim]}
     * @param valueStride elements between tokens; 0: dense
     */
    void append(int layer, long count, DeviceBuffer keys, long keyStride, DeviceBuffer values, long valueStride);

    /** As above, dense. */
    default void append(int layer, long count, DeviceBuffer keys, DeviceBuffer values) {
        append(layer, count, keys, 0, values, 0);
    }

    /** As above with 32-bit floats in host memory, native or heap. */
    void append(int layer, long count, MemorySegment keys, MemorySegment values);

    /**
     * Adds tokens to a layer and computes the causal attention of their queries over everything that the layer holds up
     * to and with each: exactly before sealing; after sealing as a decode step of each token would.
     *
     * @param queries {@code [count][queryHeads][headDim]} before RoPE
     * @param output {@code [count][queryHeads][headDim]}, dense
     */
    void prefill(int layer, long count, DeviceBuffer queries, long queryStride, DeviceBuffer keys, long keyStride,
                 DeviceBuffer values, long valueStride, DeviceBuffer output);

    /** As above, dense. */
    default void prefill(int layer, long count, DeviceBuffer queries, DeviceBuffer keys, DeviceBuffer values,
                         DeviceBuffer output) {
        prefill(layer, count, queries, 0, keys, 0, values, 0, output);
    }

    /** As above with 32-bit floats in host memory, native or heap; waits for the result. */
    void prefill(int layer, long count, MemorySegment queries, MemorySegment keys, MemorySegment values,
                 MemorySegment output);

    /**
     * Ends the prompt of a layer: a shadow cache factors the keys, builds the index and moves the values to the host,
     * and the layer's staging memory serves the next layer. Does nothing on a sealed layer.
     */
    void seal(int layer);

    /** Seals every layer that is not sealed yet. All layers must hold the same number of tokens. */
    void seal();

    /**
     * Rewinds to a length, for instance after a rejected speculation. Does nothing when it is the present length.
     *
     * @param length from 0 to {@link #length()}
     */
    void truncate(long length);

    /**
     * A second session that continues from the same tokens. What is sealed is shared until one of the two changes it.
     *
     * @throws IllegalStateException if this session is not sealed
     */
    KvSession fork();

    /**
     * Writes a sealed session to a file, for {@link KvCache#load}.
     *
     * @throws IllegalStateException if this session is not sealed
     */
    void save(Path file) throws IOException;

    /** Gives the memory back to the cache; does nothing the second time. */
    @Override
    void close();
}
