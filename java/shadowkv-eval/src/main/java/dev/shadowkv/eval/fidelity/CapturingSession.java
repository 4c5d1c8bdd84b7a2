package dev.shadowkv.eval.fidelity;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.function.Consumer;

/** A session that keeps a copy of what passes through a layer, and hands it on when the layer is sealed. */
final class CapturingSession implements KvSession {
    private final KvSession session;
    private final int tokens;
    private final int firstQuery;
    private final Consumer<LayerCapture> sink;
    private final int keyWidth;
    private final int queryWidth;
    private float[] keys;
    private float[] values;
    private float[] queries;

    /**
     * @param tokens of the whole text
     * @param firstQuery the first of them whose query is wanted
     */
    CapturingSession(KvSession session, int tokens, int firstQuery, Consumer<LayerCapture> sink) {
        this.session = session;
        this.tokens = tokens;
        this.firstQuery = firstQuery;
        this.sink = sink;
        keyWidth = session.cache().keyValueHeads() * session.cache().headDim();
        queryWidth = session.cache().queryHeads() * session.cache().headDim();
    }

    @Override
    public void append(int layer, long count, DeviceBuffer newKeys, long keyStride, DeviceBuffer newValues, long valueStride) {
        take(layer, (int) count, newKeys, keyStride, newValues, valueStride);
        session.append(layer, count, newKeys, keyStride, newValues, valueStride);
    }

    @Override
    public void prefill(
            int layer,
            long count,
            DeviceBuffer newQueries,
            long queryStride,
            DeviceBuffer newKeys,
            long keyStride,
            DeviceBuffer newValues,
            long valueStride,
            DeviceBuffer output) {
        int at = take(layer, (int) count, newKeys, keyStride, newValues, valueStride);
        int from = Math.max(0, firstQuery - at);
        if (from < count) {
            long stride = queryStride == 0 ? queryWidth : queryStride;
            int rows = (int) count - from;
            copy(newQueries.slice(from * stride * type().bytes()), stride, rows, queryWidth, queries, at + from - firstQuery);
        }
        session.prefill(
                layer, count, newQueries, queryStride, newKeys, keyStride, newValues, valueStride, output);
    }

    private ElementType type() {
        return session.cache().inputType();
    }

    private int take(int layer, int count, DeviceBuffer newKeys, long keyStride, DeviceBuffer newValues, long valueStride) {
        if (keys == null) {
            keys = new float[Math.multiplyExact(tokens, keyWidth)];
            values = new float[keys.length];
            queries = new float[Math.multiplyExact(tokens - firstQuery, queryWidth)];
        }
        int at = (int) session.length(layer);
        copy(newKeys, keyStride == 0 ? keyWidth : keyStride, count, keyWidth, keys, at);
        copy(newValues, valueStride == 0 ? keyWidth : valueStride, count, keyWidth, values, at);
        return at;
    }

    private void copy(DeviceBuffer rows, long stride, int count, int width, float[] target, int firstRow) {
        Device device = session.cache().device();
        ElementType type = type();
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment host = arena.allocate(((count - 1) * stride + width) * type.bytes(), 64);
            device.copy(rows.slice(0, host.byteSize()), host);
            for (int row = 0; row < count; row++) {
                for (int i = 0; i < width; i++) {
                    target[(firstRow + row) * width + i] = element(host, type, row * stride + i);
                }
            }
        }
    }

    private static float element(MemorySegment host, ElementType type, long index) {
        return switch (type) {
            case F32 -> host.getAtIndex(ValueLayout.JAVA_FLOAT, index);
            case BF16 -> Float.intBitsToFloat(host.getAtIndex(ValueLayout.JAVA_SHORT, index) << 16);
            case F16 -> Float.float16ToFloat(host.getAtIndex(ValueLayout.JAVA_SHORT, index));
            default -> throw new IllegalArgumentException("keys are not of type " + type);
        };
    }

    @Override
    public void seal(int layer) {
        session.seal(layer);
        KvCache cache = session.cache();
        sink.accept(new LayerCapture(
                layer, cache.queryHeads(), cache.keyValueHeads(), cache.headDim(), tokens, tokens - firstQuery, keys, values,
                queries));
        keys = null;
        values = null;
        queries = null;
    }

    @Override
    public void append(int layer, long count, MemorySegment newKeys, MemorySegment newValues) {
        throw new UnsupportedOperationException("a capture takes what lies in device memory");
    }

    @Override
    public void prefill(
            int layer,
            long count,
            MemorySegment newQueries,
            MemorySegment newKeys,
            MemorySegment newValues,
            MemorySegment output) {
        throw new UnsupportedOperationException("a capture takes what lies in device memory");
    }

    @Override
    public KvCache cache() {
        return session.cache();
    }

    @Override
    public long capacity() {
        return session.capacity();
    }

    @Override
    public long length() {
        return session.length();
    }

    @Override
    public long length(int layer) {
        return session.length(layer);
    }

    @Override
    public boolean sealed() {
        return session.sealed();
    }

    @Override
    public void seal() {
        throw new UnsupportedOperationException("a capture is sealed layer by layer");
    }

    @Override
    public void truncate(long length) {
        session.truncate(length);
    }

    @Override
    public KvSession fork() {
        return session.fork();
    }

    @Override
    public void save(Path file) throws IOException {
        session.save(file);
    }

    @Override
    public void close() {
        session.close();
    }
}
