/**
 * The operations that the caches are made of, one typed and bounds-checked method each, for those who build a cache or
 * a runtime of their own. All operands are {@link dev.shadowkv.DeviceBuffer}s of one device; work is asynchronous on
 * the
 * device's stream. Shapes are row-major; the letters in them: H query heads, K key/value heads, D head dim, C tokens a
 * chunk, r rank, B sessions of a batch, S selected chunks.
 *
 * <p>What is checked: that each operand is open, belongs to the device, and holds the bytes that the operation touches
 * for the sizes given. What cannot be checked from the host: numbers that lie in device memory, such as chunk ids and
 * session states.
 *
 * <p>Workspace grows by itself when an operation asks for more than there is, which waits for the stream; run an
 * operation once before capturing it in a graph.
 */
package dev.shadowkv.kernels;
