package dev.shadowkv;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.file.Path;
import java.util.Objects;

import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.Lifetime;
import dev.shadowkv.kernels.Rows;

/** What both sessions share: one caller at a time, argument checks, operands from the host. */
abstract sealed class SessionBase implements KvSession permits DenseSession, ShadowSession {

    private static final VarHandle CALLER;

    static {
        try {
            CALLER = MethodHandles.lookup().findVarHandle(SessionBase.class, "caller", Thread.class);
        } catch (ReflectiveOperationException e) {
            throw new ExceptionInInitializerError(e);
        }
    }

    final Lifetime lifetime;
    final long capacity;
    /** The batch whose step this session has begun and not finished, or null. */
    StepBatch step;

    private final CacheBase cache;
    private final Children.Child closing;
    private Thread caller;
    private int depth;

    SessionBase(CacheBase cache, long capacity) {
        this.cache = cache;
        this.capacity = capacity;
        lifetime = new Lifetime("KvSession", cache.lifetime);
        closing = cache.children.add(this::close);
    }

    @Override
    public final CacheBase cache() {
        return cache;
    }

    @Override
    public final long capacity() {
        return capacity;
    }

    @Override
    public final long length() {
        long shortest = length(0);
        for (int layer = 1; layer < cache.shape.layers; layer++) {
            shortest = Math.min(shortest, length(layer));
        }
        return shortest;
    }

    /** Becomes the caller of this session, again if it is already. */
    final void enter() {
        Thread current = Thread.currentThread();
        if (caller != current) {
            Thread other = (Thread) CALLER.compareAndExchange(this, (Thread) null, current);
            if (other != null) {
                throw new IllegalStateException("the session is in use by thread \"" + other.getName()
                        + "\"; a session is confined to one caller at a time");
            }
        }
        depth++;
    }

    final void exit() {
        if (--depth == 0) {
            CALLER.setRelease(this, (Thread) null);
        }
    }

    /** Enters the session and the cache for a change. */
    private void begin() {
        enter();
        cache.lock.lock();
        try {
            lifetime.check();
        } catch (IllegalStateException e) {
            end();
            throw e;
        }
    }

    private void end() {
        cache.lock.unlock();
        exit();
    }

    final void requireNoStep() {
        if (step != null) {
            throw new IllegalStateException("a decode step of the session is not finished: layer " + step.nextLayer()
                    + " is next; truncate to " + (length() - 1) + " to give it up");
        }
    }

    @Override
    public final void append(int layer, long count, DeviceBuffer keys, long keyStride, DeviceBuffer values,
                             long valueStride) {
        Rows keyRows = new Rows(keys, cache.shape.inputType, keyStride);
        Rows valueRows = new Rows(values, cache.shape.inputType, valueStride);
        begin();
        try {
            store(layer, count, null, keyRows, valueRows, null);
        } finally {
            end();
        }
    }

    @Override
    public final void append(int layer, long count, MemorySegment keys, MemorySegment values) {
        fromHost(layer, count, null, keys, values, null);
    }

    @Override
    public final void prefill(int layer, long count, DeviceBuffer queries, long queryStride, DeviceBuffer keys,
                              long keyStride, DeviceBuffer values, long valueStride, DeviceBuffer output) {
        ElementType type = cache.shape.inputType;
        Rows queryRows = new Rows(queries, type, queryStride);
        Rows keyRows = new Rows(keys, type, keyStride);
        Rows valueRows = new Rows(values, type, valueStride);
        begin();
        try {
            store(layer, count, queryRows, keyRows, valueRows, Objects.requireNonNull(output, "output"));
        } finally {
            end();
        }
    }

    @Override
    public final void prefill(int layer, long count, MemorySegment queries, MemorySegment keys, MemorySegment values,
                              MemorySegment output) {
        Objects.requireNonNull(output, "output");
        fromHost(layer, count, Objects.requireNonNull(queries, "queries"), keys, values, output);
    }

    private void fromHost(int layer, long count, MemorySegment queries, MemorySegment keys, MemorySegment values,
                          MemorySegment output) {
        CacheShape shape = cache.shape;
        check(layer, count);
        HostOperands.require("keys", keys, count, shape.keyWidth());
        HostOperands.require("values", values, count, shape.keyWidth());
        if (queries != null) {
            HostOperands.require("queries", queries, count, shape.queryWidth());
            HostOperands.require("output", output, count, shape.queryWidth());
        }
        begin();
        try {
            HostOperands host = cache.hostOperands;
            Rows queryRows = Rows.of(host.queries.buffer, ElementType.F32);
            Rows keyRows = Rows.of(host.keys.buffer, ElementType.F32);
            Rows valueRows = Rows.of(host.values.buffer, ElementType.F32);
            requireRoom(layer, count);
            for (long done = 0; done < count; done += host.tokens) {
                long part = Math.min(host.tokens, count - done);
                host.keys.take(keys, done, part);
                host.values.take(values, done, part);
                if (queries != null) {
                    host.queries.take(queries, done, part);
                }
                store(layer, part, queries == null ? null : queryRows, keyRows, valueRows,
                        queries == null ? null : host.output.buffer);
                if (queries != null) {
                    host.output.give(output, done, part);
                }
            }
        } finally {
            end();
        }
    }

    private void check(int layer, long count) {
        Objects.checkIndex(layer, cache.shape.layers);
        if (count < 0) {
            throw new IllegalArgumentException("count must not be negative: " + count);
        }
    }

    private void requireRoom(int layer, long count) {
        if (count > capacity - length(layer)) {
            throw new IllegalStateException("layer " + layer + " of the session holds " + length(layer) + " of "
                    + capacity + " tokens; " + count + " more do not fit");
        }
    }

    private void store(int layer, long count, Rows queries, Rows keys, Rows values, DeviceBuffer output) {
        check(layer, count);
        requireNoStep();
        requireRoom(layer, count);
        if (count == 0) {
            return;
        }
        if (!AppendEvent.on()) {
            storeTokens(layer, count, queries, keys, values, output);
            return;
        }
        AppendEvent event = new AppendEvent();
        event.begin();
        storeTokens(layer, count, queries, keys, values, output);
        event.layer = layer;
        event.tokens = count;
        event.bytes = 2L * count * cache.shape.keyWidth() * cache.shape.storageType.bytes();
        event.commit();
    }

    @Override
    public final void seal(int layer) {
        Objects.checkIndex(layer, cache.shape.layers);
        begin();
        try {
            requireNoStep();
            sealLayer(layer);
        } finally {
            end();
        }
    }

    @Override
    public final void seal() {
        begin();
        try {
            requireNoStep();
            for (int layer = 1; layer < cache.shape.layers; layer++) {
                if (length(layer) != length(0)) {
                    throw new IllegalStateException("layer " + layer + " holds " + length(layer)
                            + " tokens, layer 0 holds " + length(0) + ": all layers must be filled equally");
                }
            }
            for (int layer = 0; layer < cache.shape.layers; layer++) {
                sealLayer(layer);
            }
        } finally {
            end();
        }
    }

    @Override
    public final void truncate(long length) {
        begin();
        try {
            if (length < 0 || length > length()) {
                throw new IllegalArgumentException("length must be from 0 to " + length() + ": " + length);
            }
            if (step != null && length == length()) {
                requireNoStep();
            }
            rewind(length);
            step = null;
        } finally {
            end();
        }
    }

    @Override
    public final KvSession fork() {
        begin();
        try {
            requireNoStep();
            requireSealed("fork");
            return copy();
        } finally {
            end();
        }
    }

    @Override
    public final void save(Path file) throws IOException {
        begin();
        try {
            requireNoStep();
            requireSealed("save");
            SessionFile.write(this, file);
        } finally {
            end();
        }
    }

    final void requireSealed(String what) {
        if (!sealed()) {
            throw new IllegalStateException("the session must be sealed to " + what);
        }
    }

    /** Before a decode step: sealed, filled equally, and with room for one token more. */
    final void requireReady(StepBatch batch) {
        lifetime.check();
        if (step != null && step != batch) {
            throw new IllegalStateException("a session of the batch has begun a step in another batch");
        }
        if (!sealed()) {
            throw new IllegalStateException("a session of the batch is not sealed");
        }
        long length = length(0);
        for (int layer = 1; layer < cache.shape.layers; layer++) {
            if (length(layer) != length) {
                throw new IllegalStateException("a session holds " + length(layer) + " tokens in layer " + layer
                        + ", but " + length + " in layer 0");
            }
        }
        if (length >= capacity) {
            throw new IllegalStateException("a session of the batch is full: it holds " + length + " tokens");
        }
    }

    @Override
    public final void close() {
        if (lifetime.isClosed()) {
            return;
        }
        enter();
        cache.lock.lock();
        try {
            if (lifetime.close()) {
                release();
                cache.children.remove(closing);
            }
        } finally {
            end();
        }
    }

    /** Adds tokens to a layer, with attention when there are queries. */
    abstract void storeTokens(int layer, long count, Rows queries, Rows keys, Rows values, DeviceBuffer output);

    abstract void sealLayer(int layer);

    abstract void rewind(long length);

    abstract SessionBase copy();

    /** Makes room for one more token in every layer; may be repeated. */
    abstract void makeRoom();

    /** Counts one more token in every layer. */
    abstract void grow();

    /** Describes or restores everything that a file holds. */
    abstract void transfer(SessionFile.Transfer file) throws IOException;

    abstract void release();
}
