package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.List;

/**
 * Keeps the keys and values of many sequences for all layers of a model and computes attention over them.
 * {@link DenseKvCache} keeps everything exactly; {@link ShadowKvCache} keeps a shadow of it. A runtime written against
 * this interface can switch between them.
 *
 * <p>Queries and keys are given before RoPE; the cache rotates them. Device operands have the cache's
 * {@link #inputType()}, are token-major {@code [token][head][headDim]}, and their tokens may lie a stride apart (in
 * elements; 0 means dense), so that a fused projection needs no splitting. Host operands are 32-bit floats, dense, in
 * native or heap segments.
 *
 * <p>A cache may be used from several threads; a session only by one caller at a time. Closing a cache closes its
 * batches and sessions.
 */
public interface KvCache extends AutoCloseable {

    /** Where the cache computes. */
    Device device();

    /** Layers of the model. */
    int layers();

    /** Query heads of a layer. */
    int queryHeads();

    /** Key/value heads of a layer. */
    int keyValueHeads();

    /** Elements of a head. */
    int headDim();

    /** Element type of device operands: queries, keys, values and outputs. */
    ElementType inputType();

    /** What the cache holds of device and pinned memory. */
    MemoryPlan memoryPlan();

    /**
     * Opens an empty session.
     *
     * @param capacity tokens that it can hold, prompt and generated together
     * @throws ShadowKvException with {@link Status#OUT_OF_DEVICE_MEMORY} or {@link Status#OUT_OF_HOST_MEMORY} if the
     *     cache's pools have no room left for it
     */
    KvSession open(long capacity);

    /** Opens a session with what {@link KvSession#save} wrote; the cache must have the same shape. */
    KvSession load(Path file);

    /**
     * Puts sessions together for decode steps. They may differ in length and may be in several batches, but may take
     * part in one step at a time. A batch is cheap to make, but not free: make a new one when sessions join or leave.
     */
    KvBatch batch(List<? extends KvSession> sessions);

    /**
     * A batch of a number of idle rows, for sessions of any capacity that the cache has room for; see {@link
     * KvBatch#set}.
     */
    KvBatch batch(int rows);

    /**
     * One layer of one decode step: adds one new token to each session of the batch and attends over all that the
     * session holds, the new token included. Layers are called in order from 0; layer 0 begins a step, see
     * {@link KvBatch#advance()}.
     *
     * @param queries {@code [session][queryHeads][headDim]} before RoPE
     * @param queryStride elements between the sessions' rows; 0: dense
     * @param keys {@code [session][keyValueHeads][headDim]} before RoPE
     * @param values {@code [session][keyValueHeads][headDim]}
     * @param output {@code [session][queryHeads][headDim]}, dense
     * @throws IllegalStateException if the layer is not the next one, a session is not sealed, or it is full
     */
    void attend(int layer, KvBatch batch, DeviceBuffer queries, long queryStride, DeviceBuffer keys, long keyStride,
                DeviceBuffer values, long valueStride, DeviceBuffer output);

    /** As above with dense operands. */
    default void attend(int layer, KvBatch batch, DeviceBuffer queries, DeviceBuffer keys, DeviceBuffer values,
                        DeviceBuffer output) {
        attend(layer, batch, queries, 0, keys, 0, values, 0, output);
    }

    /** As above with 32-bit floats in host memory, dense; waits for the result. */
    void attend(int layer, KvBatch batch, MemorySegment queries, MemorySegment keys, MemorySegment values,
                MemorySegment output);

    /** Closes batches and sessions and frees the pools; does nothing the second time. */
    @Override
    void close();
}
