package dev.shadowkv;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.locks.ReentrantLock;
import java.util.zip.CRC32C;

import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.Lifetime;
import dev.shadowkv.kernels.CacheKernels;
import dev.shadowkv.kernels.DecodeKernels;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.TransformerKernels;

/** What both caches share: the device, the tables, the order of a step. */
abstract sealed class CacheBase implements KvCache permits DenseKvCache, ShadowKvCache {

    /** Tokens whose rotated queries prefill keeps at once. */
    static final int PREFILL_TOKENS = 2048;

    final CacheShape shape;
    final Device device;
    final Lifetime lifetime;
    final Children children = new Children();
    final DeviceArena arena;
    final RopeTable ropeTable;
    final CacheKernels cacheKernels;
    final DecodeKernels decodeKernels;
    final TransformerKernels transformer;
    final HostOperands hostOperands;
    /** Rotated queries of a prefill, and, before that, of the widest input type. */
    final DeviceBuffer prefillQueries;
    /** One change of the cache at a time: temporaries are shared by its sessions. */
    final ReentrantLock lock = new ReentrantLock();

    private final MemoryPlan plan;
    private final Children.Child closing;

    CacheBase(CacheShape shape, MemoryPlan plan, String name) {
        this.shape = shape;
        this.plan = plan;
        device = shape.device;
        refuseUnlessItFits(device, plan);
        lifetime = new Lifetime(name, device.lifetime());
        arena = device.newArena();
        // Parents close children in reverse order; what fails below must not leave the arena behind.
        try {
            ropeTable = new RopeTable(device, shape.rope, ropePositions(plan));
            children.add(ropeTable::close);
            cacheKernels = new CacheKernels(device);
            decodeKernels = new DecodeKernels(device);
            transformer = new TransformerKernels(device);
            hostOperands = new HostOperands(arena, shape);
            prefillQueries = arena.allocate(prefillQueryBytes(shape, plan));
        } catch (RuntimeException e) {
            children.close();
            arena.close();
            throw e;
        }
        closing = device.children().add(this::close);
    }

    /** Positions are rounded up so that whole chunks can be rotated. */
    static long ropePositions(MemoryPlan plan) {
        return plan.tokens() + 16;
    }

    static int prefillTokens(MemoryPlan plan) {
        return (int) Math.min(PREFILL_TOKENS, plan.stagingTokens());
    }

    static long prefillQueryBytes(CacheShape shape, MemoryPlan plan) {
        return 4L * prefillTokens(plan) * shape.queryWidth();
    }

    /** Device bytes of what every cache has beside its pools. */
    static long commonBytes(CacheShape shape, MemoryPlan plan) {
        return RopeTable.bytes(shape.rope, ropePositions(plan)) + HostOperands.bytes(shape)
                + prefillQueryBytes(shape, plan);
    }

    private static void refuseUnlessItFits(Device device, MemoryPlan plan) {
        Device.Memory memory = device.memory();
        long needed = plan.deviceBytes() + (device.isCpu() ? plan.pinnedBytes() : 0);
        if (needed > memory.free()) {
            throw new ShadowKvException(device.isCpu() ? Status.OUT_OF_HOST_MEMORY : Status.OUT_OF_DEVICE_MEMORY,
                    "build cache", "the plan needs " + needed + " bytes, but " + memory.free() + " of " + memory.total()
                    + " are free on " + device + "; " + plan);
        }
    }

    @Override
    public final Device device() {
        return device;
    }

    @Override
    public final int layers() {
        return shape.layers;
    }

    @Override
    public final int queryHeads() {
        return shape.queryHeads;
    }

    @Override
    public final int keyValueHeads() {
        return shape.keyValueHeads;
    }

    @Override
    public final int headDim() {
        return shape.headDim;
    }

    @Override
    public final ElementType inputType() {
        return shape.inputType;
    }

    @Override
    public final MemoryPlan memoryPlan() {
        return plan;
    }

    @Override
    public final KvSession open(long capacity) {
        lifetime.check();
        if (capacity < 1 || capacity > plan.tokens()) {
            throw new IllegalArgumentException(
                    "capacity must be from 1 to the plan's " + plan.tokens() + " tokens: " + capacity);
        }
        lock.lock();
        try {
            return openSession(capacity);
        } finally {
            lock.unlock();
        }
    }

    @Override
    public final KvBatch batch(List<? extends KvSession> sessions) {
        lifetime.check();
        if (sessions.isEmpty() || sessions.size() > Geometry.MAX_BATCH) {
            throw new IllegalArgumentException(
                    "a batch has from 1 to " + Geometry.MAX_BATCH + " sessions: " + sessions.size());
        }
        SessionBase[] members = new SessionBase[sessions.size()];
        long capacity = 0;
        for (int i = 0; i < members.length; i++) {
            members[i] = member(members, i, Objects.requireNonNull(sessions.get(i), "session"));
            capacity = Math.max(capacity, members[i].capacity);
        }
        return newBatchLocked(members, capacity);
    }

    @Override
    public final KvBatch batch(int rows) {
        lifetime.check();
        if (rows < 1 || rows > Geometry.MAX_BATCH) {
            throw new IllegalArgumentException("a batch has from 1 to " + Geometry.MAX_BATCH + " rows: " + rows);
        }
        return newBatchLocked(new SessionBase[rows], plan.tokens());
    }

    private StepBatch newBatchLocked(SessionBase[] members, long capacity) {
        lock.lock();
        try {
            return newBatch(members, capacity);
        } finally {
            lock.unlock();
        }
    }

    /** A session as a row of a batch, if it can be one. */
    final SessionBase member(SessionBase[] others, int row, KvSession session) {
        if (session.cache() != this) {
            throw new IllegalArgumentException("session " + row + " belongs to another cache");
        }
        SessionBase member = (SessionBase) session;
        member.lifetime.check();
        for (int j = 0; j < others.length; j++) {
            if (j != row && others[j] == member) {
                throw new IllegalArgumentException("session " + row + " is also session " + j + " of the batch");
            }
        }
        return member;
    }

    @Override
    public final void attend(int layer, KvBatch batch, DeviceBuffer queries, long queryStride, DeviceBuffer keys,
                             long keyStride, DeviceBuffer values, long valueStride, DeviceBuffer output) {
        step(layer, own(batch), shape.inputType, queries, queryStride, keys, keyStride, values, valueStride, output);
    }

    @Override
    public final void attend(int layer, KvBatch batch, MemorySegment queries, MemorySegment keys, MemorySegment values,
                             MemorySegment output) {
        StepBatch step = own(batch);
        int count = step.size();
        HostOperands.require("queries", queries, count, shape.queryWidth());
        HostOperands.require("keys", keys, count, shape.keyWidth());
        HostOperands.require("values", values, count, shape.keyWidth());
        HostOperands.require("output", output, count, shape.queryWidth());
        HostOperands host = hostOperands;
        if (count > host.tokens) {
            throw new IllegalArgumentException(
                    "operands in host memory are for up to " + host.tokens + " sessions of this cache: " + count);
        }
        lock.lock();
        try {
            lifetime.check();
            host.queries.take(queries, 0, count);
            host.keys.take(keys, 0, count);
            host.values.take(values, 0, count);
            step(layer, step, ElementType.F32, host.queries.buffer, 0, host.keys.buffer, 0, host.values.buffer, 0,
                    host.output.buffer);
            host.output.give(output, 0, count);
        } finally {
            lock.unlock();
        }
    }

    private void step(int layer, StepBatch batch, ElementType type, DeviceBuffer queries, long queryStride,
                      DeviceBuffer keys, long keyStride, DeviceBuffer values, long valueStride, DeviceBuffer output) {
        Objects.checkIndex(layer, shape.layers);
        lock.lock();
        try {
            lifetime.check();
            batch.enter();
            try {
                batch.begin(layer);
                batch.decode(layer, type, queries, queryStride, keys, keyStride, values, valueStride, output);
                batch.end(layer);
            } finally {
                batch.exit();
            }
        } finally {
            lock.unlock();
        }
    }

    private StepBatch own(KvBatch batch) {
        Objects.requireNonNull(batch, "batch");
        if (batch.cache() != this) {
            throw new IllegalArgumentException("the batch belongs to another cache");
        }
        return (StepBatch) batch;
    }

    @Override
    public final void close() {
        lock.lock();
        try {
            if (lifetime.isClosed()) {
                return;
            }
            RuntimeException failure = Children.close(device::synchronize, null);
            failure = Children.close(children::close, failure);
            lifetime.close();
            failure = Children.close(this::closePools, failure);
            failure = Children.close(arena::close, failure);
            device.children().remove(closing);
            if (failure != null) {
                throw failure;
            }
        } finally {
            lock.unlock();
        }
    }

    @Override
    public final KvSession load(Path file) {
        lifetime.check();
        lock.lock();
        try {
            return SessionFile.read(this, file);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        } finally {
            lock.unlock();
        }
    }

    /** What a saved session must agree with, name by name. */
    Map<String, String> identity() {
        Map<String, String> fields = new LinkedHashMap<>();
        fields.put("cache", getClass().getSimpleName());
        fields.put("layers", Integer.toString(shape.layers));
        fields.put("keyValueHeads", Integer.toString(shape.keyValueHeads));
        fields.put("headDim", Integer.toString(shape.headDim));
        fields.put("storageType", shape.storageType.name());
        CRC32C frequencies = new CRC32C();
        for (double frequency : shape.rope.inverseFrequencies()) {
            frequencies.update(ByteBuffer.allocate(Double.BYTES).putDouble(0, frequency));
        }
        fields.put("rope", shape.rope + " " + Long.toHexString(frequencies.getValue()));
        return fields;
    }

    abstract KvSession openSession(long capacity);

    abstract StepBatch newBatch(SessionBase[] members, long capacity);

    abstract void closePools();
}
