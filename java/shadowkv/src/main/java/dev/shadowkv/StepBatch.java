package dev.shadowkv;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Objects;

import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.Lifetime;
import dev.shadowkv.kernels.SessionStates;

/** What both batches share: the order of layers and steps. */
abstract sealed class StepBatch implements KvBatch permits DenseBatch, ShadowBatch {

    /** By row; null where a row is idle. */
    final SessionBase[] members;
    final long capacity;
    final Lifetime lifetime;
    long steps;
    DecodeStepEvent event;

    private final CacheBase cache;
    private final List<KvSession> view;
    private final Children.Child closing;
    private int nextLayer;
    /** Whether the step was begun by {@link #advance()}. */
    private boolean advanced;

    StepBatch(CacheBase cache, SessionBase[] members, long capacity) {
        this.cache = cache;
        this.members = members;
        this.capacity = capacity;
        view = Collections.unmodifiableList(Arrays.asList(members));
        lifetime = new Lifetime("KvBatch", cache.lifetime);
        closing = cache.children.add(this::close);
    }

    @Override
    public final KvCache cache() {
        return cache;
    }

    @Override
    public final List<KvSession> sessions() {
        return view;
    }

    @Override
    public final long capacity() {
        return capacity;
    }

    @Override
    public final void set(int row, KvSession session) {
        Objects.checkIndex(row, members.length);
        cache.lock.lock();
        try {
            lifetime.check();
            if (nextLayer != 0 && inStep()) {
                throw new IllegalStateException("the step is not finished: layer " + nextLayer + " is next");
            }
            SessionBase member = session == null ? null : cache.member(members, row, session);
            if (member != null && member.capacity > capacity) {
                throw new IllegalArgumentException("the session is of " + member.capacity
                        + " tokens, the batch is for sessions of at most " + capacity);
            }
            members[row] = member;
            changed(row);
        } finally {
            cache.lock.unlock();
        }
    }

    final int size() {
        return members.length;
    }

    final int nextLayer() {
        return nextLayer;
    }

    final void enter() {
        int entered = 0;
        try {
            for (; entered < members.length; entered++) {
                if (members[entered] != null) {
                    members[entered].enter();
                }
            }
        } catch (IllegalStateException e) {
            for (int i = 0; i < entered; i++) {
                if (members[i] != null) {
                    members[i].exit();
                }
            }
            throw e;
        }
    }

    final void exit() {
        for (SessionBase member : members) {
            if (member != null) {
                member.exit();
            }
        }
    }

    @Override
    public final void advance() {
        cache.lock.lock();
        try {
            lifetime.check();
            if (cache.device.capturing()) {
                throw new IllegalStateException("advance() is to be called before a capture, not within");
            }
            enter();
            try {
                if (nextLayer != 0 && inStep()) {
                    throw new IllegalStateException("the step is not finished: layer " + nextLayer + " is next");
                }
                if (advanced) {
                    // The step that was begun before has been replayed: nobody told its end.
                    complete();
                }
                advanceNow();
                advanced = true;
            } finally {
                exit();
            }
        } finally {
            cache.lock.unlock();
        }
    }

    /** Comes before a layer's work. */
    final void begin(int layer) {
        lifetime.check();
        if (layer == 0) {
            if (nextLayer != 0 && inStep()) {
                throw new IllegalStateException("the step is not finished: layer " + nextLayer + " is next, not 0");
            }
            if (!advanced) {
                if (cache.device.capturing()) {
                    throw new IllegalStateException("KvBatch.advance() must be called before a step is captured");
                }
                advanceNow();
            }
            advanced = false;
            nextLayer = 0;
            for (SessionBase member : members) {
                if (member != null) {
                    member.step = this;
                }
            }
        } else {
            if (layer != nextLayer || !inStep()) {
                throw new IllegalStateException("layer " + (inStep() ? nextLayer : 0) + " is next, not " + layer);
            }
            for (SessionBase member : members) {
                if (member != null) {
                    member.lifetime.check();
                }
            }
        }
    }

    /** Comes after a layer's work. */
    final void end(int layer) {
        nextLayer = layer + 1;
        if (nextLayer == cache.shape.layers) {
            nextLayer = 0;
            for (SessionBase member : members) {
                if (member != null) {
                    member.step = null;
                }
            }
            complete();
        }
    }

    private void complete() {
        finished();
        if (event != null) {
            event.commit();
            event = null;
        }
    }

    private boolean inStep() {
        for (SessionBase member : members) {
            if (member != null && member.step == this) {
                return true;
            }
        }
        return false;
    }

    private void advanceNow() {
        boolean idle = true;
        for (SessionBase member : members) {
            if (member != null) {
                member.requireReady(this);
                idle = false;
            }
        }
        if (idle) {
            throw new IllegalStateException("no row of the batch has a session");
        }
        if (DecodeStepEvent.on()) {
            event = new DecodeStepEvent();
            event.begin();
            for (SessionBase member : members) {
                event.sessions += member == null ? 0 : 1;
            }
        }
        for (SessionBase member : members) {
            if (member != null) {
                member.makeRoom();
            }
        }
        for (SessionBase member : members) {
            if (member != null) {
                member.grow();
            }
        }
        if (event != null) {
            for (SessionBase member : members) {
                event.tokens = Math.max(event.tokens, member == null ? 0 : member.length(0));
            }
        }
        steps++;
        describe();
    }

    @Override
    public final void close() {
        cache.lock.lock();
        try {
            if (lifetime.close()) {
                free();
                cache.children.remove(closing);
            }
        } finally {
            cache.lock.unlock();
        }
    }

    /** Entries of a table for all layers and members. */
    final long entries() {
        return (long) cache.shape.layers * members.length;
    }

    /** A row has been given to another session. */
    abstract void changed(int row);

    /** Tells the device where the sessions stand. */
    abstract void describe();

    abstract void decode(int layer, ElementType type, DeviceBuffer queries, long queryStride, DeviceBuffer keys,
                         long keyStride, DeviceBuffer values, long valueStride, DeviceBuffer output);

    /** Comes after the last layer. */
    abstract void finished();

    abstract void free();

    /** Device bytes of the states of a batch. */
    static long stateBytes(long entries) {
        return entries * SessionStates.entryBytes();
    }
}
