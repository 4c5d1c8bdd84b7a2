package dev.shadowkv.llm;

import dev.shadowkv.CacheBuilder;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.ShadowKvException;
import dev.shadowkv.Status;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.lang.foreign.MemorySegment;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Continuous batching: requests of any length join and leave between two decode steps. A prompt is computed when there
 * is room for its whole sequence; while it is, the requests that are under way go on.
 *
 * <p>What a request gets depends on its tokens, limits and seed alone, not on its company: rows of a product do not
 * depend on each other on a CPU, and on a GPU steps are always computed for as many rows as the engine has sessions.
 *
 * <p>Usable from any thread. One thread, named {@code shadowkv-engine-N}, does the work and calls the listeners; it ends
 * with {@link #close}.
 */
public final class Engine implements AutoCloseable {
    private static final AtomicInteger COUNT = new AtomicInteger();
    private static final long OTHERS_EVERY_NANOS = 50_000_000;

    private final Model model;
    private final ModelConfig config;
    private final Transformer transformer;
    private final List<Lane> lanes = new ArrayList<>();
    private final MemoryPlan plan;
    private final int sessions;
    private final Thread thread;
    private final int[] input;
    private final int[] best;

    private final Deque<ActiveRequest> waiting = new ArrayDeque<>();
    private boolean closed;
    private ActiveRequest entering;
    private long lastOthers;

    private Engine(Builder builder) {
        model = builder.model;
        config = model.config();
        sessions = builder.sessions;
        input = new int[sessions];
        best = new int[sessions];
        long shortLimit = Rotation.shortLimit(config.rope());
        MemoryPlan wish = MemoryPlan.of(sessions, builder.capacity).withStaging(builder.capacity, 1);
        CacheBuilder<?> cache = builder.cache.builder(model.device(), config, wish, builder.capacity);
        plan = cache.plan();
        try {
            if (builder.capacity > shortLimit) {
                // Sequences that are still short have other keys, so they need a cache of their own.
                MemoryPlan small = MemoryPlan.of(sessions, shortLimit).withStaging(shortLimit, 1);
                KvCache shorts = builder.cache.build(model.device(), config, small, shortLimit);
                lanes.add(new Lane(shorts, shortLimit, sessions));
            }
            lanes.add(new Lane(cache.build(), builder.capacity, sessions));
            transformer = new Transformer(model, sessions);
            try {
                transformer.reservePrompt(builder.capacity);
            } catch (RuntimeException e) {
                transformer.close();
                throw e;
            }
        } catch (ShadowKvException e) {
            lanes.forEach(Lane::close);
            if (e.status() == Status.OUT_OF_DEVICE_MEMORY || e.status() == Status.OUT_OF_HOST_MEMORY) {
                throw new AdmissionException(e.getMessage() + "; planned: " + plan, e);
            }
            throw e;
        } catch (RuntimeException e) {
            lanes.forEach(Lane::close);
            throw e;
        }
        thread = new Thread(this::work, "shadowkv-engine-" + COUNT.incrementAndGet());
        thread.setDaemon(true);
        thread.start();
    }

    /** Starts building an engine. */
    public static Builder builder(Model model) {
        return new Builder(model);
    }

    /** Options of an engine. */
    public static final class Builder {
        private final Model model;
        private CacheOptions cache = CacheOptions.dense();
        private int sessions = 1;
        private long capacity = 4096;

        private Builder(Model model) {
            this.model = Objects.requireNonNull(model, "model");
        }

        /** Which cache; default dense. */
        public Builder cache(CacheOptions options) {
            cache = Objects.requireNonNull(options, "options");
            return this;
        }

        /** How many requests decode together; default 1. */
        public Builder sessions(int count) {
            if (count < 1) {
                throw new IllegalArgumentException("sessions must be positive: " + count);
            }
            sessions = count;
            return this;
        }

        /** Tokens of the longest request, prompt and answer; default 4096. */
        public Builder capacity(long tokens) {
            if (tokens < 1) {
                throw new IllegalArgumentException("capacity must be positive: " + tokens);
            }
            capacity = tokens;
            return this;
        }

        /**
         * Allocates the cache and starts the thread.
         *
         * @throws AdmissionException when the sessions do not fit into memory, with the numbers
         */
        public Engine build() {
            return new Engine(this);
        }
    }

    /** The memory of the sessions. */
    public MemoryPlan memoryPlan() {
        return plan;
    }

    /** What decode steps did since the engine was made. Approximate while it works. */
    public synchronized KvBatch.Statistics statistics() {
        return statistics;
    }

    private KvBatch.Statistics statistics = new KvBatch.Statistics(0, 0, 0, 0);

    /**
     * Submits a request. It waits for its turn when all sessions are busy.
     *
     * @throws AdmissionException when no session can ever hold it
     * @throws IllegalArgumentException when a token is outside the vocabulary
     * @throws IllegalStateException when the engine is closed
     */
    public Generation submit(GenerationRequest request, TokenListener listener) {
        Objects.requireNonNull(listener, "listener");
        if (request.capacity() > plan.tokens()) {
            throw new AdmissionException("a prompt of " + request.promptTokens() + " tokens and "
                    + request.maxNewTokens() + " new ones exceed the capacity of " + plan.tokens() + " tokens a session");
        }
        for (int id : request.ids()) {
            if (id < 0 || id >= config.vocabularySize()) {
                throw new IllegalArgumentException(
                        "token id " + id + " is outside the vocabulary of " + config.vocabularySize());
            }
        }
        ActiveRequest active = new ActiveRequest(new Generation(request), listener);
        synchronized (waiting) {
            if (closed) {
                throw new IllegalStateException("the engine is closed");
            }
            waiting.add(active);
            waiting.notifyAll();
        }
        return active.generation;
    }

    /** A publisher of the request's tokens: it is submitted when its one subscriber subscribes. */
    public Flow.Publisher<Integer> publisher(GenerationRequest request) {
        return new TokenPublisher(this, request);
    }

    private void work() {
        try {
            while (awaitWork()) {
                admit();
                steps();
            }
        } catch (RuntimeException | Error e) {
            // Nothing can be computed any more; nobody may wait for it.
            failAll(e);
        } finally {
            cancelAll();
        }
    }

    private boolean awaitWork() {
        synchronized (waiting) {
            while (!closed && waiting.isEmpty() && idle()) {
                try {
                    waiting.wait();
                } catch (InterruptedException e) {
                    closed = true;
                }
            }
            return !closed;
        }
    }

    private boolean idle() {
        return lanes.stream().allMatch(lane -> lane.active.isEmpty());
    }

    private int activeCount() {
        return lanes.stream().mapToInt(lane -> lane.active.size()).sum();
    }

    /** Starts waiting requests, first come first served, while there is room. */
    private void admit() {
        while (activeCount() < sessions) {
            ActiveRequest next;
            synchronized (waiting) {
                next = waiting.peek();
            }
            if (next == null || !enter(next)) {
                return;
            }
            synchronized (waiting) {
                waiting.remove(next);
            }
        }
    }

    /** Computes a request's prompt; false when it has to wait for memory. */
    private boolean enter(ActiveRequest request) {
        if (request.generation.cancelled()) {
            request.complete(Completion.Reason.CANCELLED);
            return true;
        }
        try {
            return prefill(request, laneOf(request.length()));
        } catch (CancelledException e) {
            request.release();
            request.complete(Completion.Reason.CANCELLED);
        } catch (RuntimeException e) {
            request.release();
            request.fail(e);
        }
        return true;
    }

    private Lane laneOf(long length) {
        return lanes.stream().filter(lane -> length <= lane.limit).findFirst().orElseThrow();
    }

    private boolean prefill(ActiveRequest request, Lane lane) {
        try {
            request.session = lane.cache.open(Math.min(lane.limit, request.request.capacity()));
        } catch (ShadowKvException e) {
            boolean full = e.status() == Status.OUT_OF_DEVICE_MEMORY || e.status() == Status.OUT_OF_HOST_MEMORY;
            if (full && !idle()) {
                return false;
            }
            throw full ? new AdmissionException(e.getMessage() + "; planned: " + plan, e) : e;
        }
        request.begin();
        entering = request;
        int[] ids = request.sequence();
        int[] chosen = new int[1];
        try {
            transformer.prefill(
                    request.session,
                    ids,
                    ids.length - 1,
                    (first, rows, logits) -> chosen[0] = request.sampler.sample(logits),
                    this::between);
        } finally {
            entering = null;
        }
        if (!finished(request, chosen[0])) {
            lane.join(request);
        } else {
            request.release();
        }
        return true;
    }

    /** Between two blocks of a prompt the others take a step, and the prompt can be cancelled. */
    private void between(long done, long total) {
        entering.listener.onPrefill(done, total);
        if (entering.generation.cancelled() || stopping()) {
            throw new CancelledException();
        }
        if (System.nanoTime() - lastOthers > OTHERS_EVERY_NANOS) {
            steps();
        }
    }

    private boolean stopping() {
        synchronized (waiting) {
            return closed;
        }
    }

    private void steps() {
        for (int i = 0; i < lanes.size(); i++) {
            step(lanes.get(i));
        }
        lastOthers = System.nanoTime();
    }

    private void step(Lane lane) {
        dropCancelled(lane);
        if (!moveGrown(lane) || lane.active.isEmpty()) {
            return;
        }
        int count = lane.active.size();
        for (int i = 0; i < count; i++) {
            input[i] = lane.active.get(i).newest();
        }
        transformer.decode(lane.batch, input, model.device().isCpu() ? count : sessions);
        List<ActiveRequest> stepped = List.copyOf(lane.active);
        if (stepped.stream().allMatch(request -> request.greedy)) {
            transformer.largest(best, count);
            for (int i = 0; i < count; i++) {
                take(lane, stepped.get(i), best[i]);
            }
        } else {
            MemorySegment logits = transformer.logits(count);
            long row = logits.byteSize() / count;
            for (int i = 0; i < count; i++) {
                sample(lane, stepped.get(i), logits.asSlice(i * row, row));
            }
        }
    }

    private void sample(Lane lane, ActiveRequest request, MemorySegment logits) {
        int token;
        try {
            token = request.sampler.sample(logits);
        } catch (IllegalArgumentException e) {
            leave(lane, request);
            request.fail(e);
            return;
        }
        take(lane, request, token);
    }

    private void take(Lane lane, ActiveRequest request, int token) {
        if (finished(request, token)) {
            leave(lane, request);
        }
    }

    private void leave(Lane lane, ActiveRequest request) {
        lane.leave(request);
        request.release();
        KvBatch.Statistics all = new KvBatch.Statistics(0, 0, 0, 0);
        for (Lane each : lanes) {
            all = Lane.sum(all, each.batch.statistics());
        }
        synchronized (this) {
            statistics = all;
        }
    }

    private void dropCancelled(Lane lane) {
        for (ActiveRequest request : List.copyOf(lane.active)) {
            if (request.generation.cancelled()) {
                leave(lane, request);
                request.complete(Completion.Reason.CANCELLED);
            }
        }
    }

    /**
     * A sequence that outgrew its rotation is computed again with the next one, as the model was published to.
     *
     * @return false when the lane cannot step yet, since another prompt is being computed
     */
    private boolean moveGrown(Lane lane) {
        for (ActiveRequest request : List.copyOf(lane.active)) {
            if (request.length() > lane.limit) {
                if (entering != null) {
                    return false;
                }
                leave(lane, request);
                if (!enter(request)) {
                    // All requests before it have left when it is its turn again.
                    synchronized (waiting) {
                        waiting.addFirst(request);
                    }
                }
            }
        }
        return true;
    }

    /** Gives a request its next token; true when it ends with it. */
    private static boolean finished(ActiveRequest request, int token) {
        try {
            if (token < 0) {
                throw new ArithmeticException("the model gave a logit that is not a number");
            }
            Completion.Reason reason = request.accept(token);
            if (reason != null) {
                request.complete(reason);
            }
            return reason != null;
        } catch (RuntimeException e) {
            request.fail(e);
            return true;
        }
    }

    private void failAll(Throwable thrown) {
        drain().forEach(request -> request.fail(thrown));
    }

    private void cancelAll() {
        drain().forEach(request -> request.complete(Completion.Reason.CANCELLED));
    }

    private List<ActiveRequest> drain() {
        List<ActiveRequest> all = new ArrayList<>();
        for (Lane lane : lanes) {
            all.addAll(lane.active);
            lane.active.clear();
        }
        synchronized (waiting) {
            closed = true;
            all.addAll(waiting);
            waiting.clear();
        }
        return all;
    }

    /** Ends a prefill from within. */
    private static final class CancelledException extends RuntimeException {
        private static final long serialVersionUID = 1L;

        CancelledException() {
            super("cancelled", null, false, false);
        }
    }

    /**
     * Cancels what is waiting or under way, ends the thread and frees the memory, not the model's; does nothing the
     * second time. Not to be called from a listener.
     */
    @Override
    public void close() {
        if (Thread.currentThread() == thread) {
            throw new IllegalStateException("an engine cannot be closed by its own thread");
        }
        synchronized (waiting) {
            closed = true;
            waiting.notifyAll();
        }
        boolean interrupted = false;
        while (thread.isAlive()) {
            try {
                thread.join();
            } catch (InterruptedException e) {
                interrupted = true;
            }
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
        transformer.close();
        lanes.forEach(Lane::close);
    }
}
