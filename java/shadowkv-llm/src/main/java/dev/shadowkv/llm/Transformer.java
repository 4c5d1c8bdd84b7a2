package dev.shadowkv.llm;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.PinnedArena;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.TransformerKernels;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Objects;

/**
 * Runs a model's layers over any {@link KvCache}: prompts layer by layer, decode steps for a batch of sessions.
 *
 * <p>A prompt goes through a layer as a whole, in blocks of rows, before the next layer begins, so that the cache needs
 * staging memory for one layer alone and the temporaries are as large as a block. Only the residual stream is as long as
 * the prompt; on a GPU that of a long one lies in host memory but for two blocks, so that it takes no session's place. It
 * is of F32 there: every layer adds to it, and in BF16 every addition would round it.
 *
 * <p>For one caller at a time; but a {@link PrefillListener} may run decode steps, which use memory of their own.
 */
public final class Transformer implements AutoCloseable {
    /** Rows that go through a layer together: enough to keep a device busy, few enough for modest temporaries. */
    private static final int CPU_BLOCK = 512;

    /** As many as the cache's attention takes at once; twice as many would cost an 8B model a quarter of a GiB. */
    private static final int GPU_BLOCK = 2048;
    private static final long LOGITS_BYTES = 64L << 20;

    /** Blocks of the longest prompt whose residual stream lies on a GPU: so short that copies would not hide. */
    private static final long RESIDENT_BLOCKS = 4;

    private final Model model;
    private final ModelConfig config;
    private final Device device;
    private final ElementType type;
    private final ElementType streamType;
    private final TransformerKernels kernels;
    private final DeviceArena arena;
    private final Arena hostArena = Arena.ofShared();
    private final int maxBatch;
    private final int block;
    /** Longest prompt whose residual stream lies on the device. */
    private final long residentRows;
    private final float epsilon;
    private final int vocabulary;

    private final Scratch prompt;
    private final Scratch step;
    private final Rows stepHidden;
    private final DeviceBuffer stepIds;
    private final Rows stepLogits;
    private final DeviceBuffer stepBest;
    private final MemorySegment hostIds;
    private final MemorySegment hostLogits;
    private final MemorySegment hostBest;
    private final Rows promptLogits;
    private final MemorySegment hostPromptLogits;
    private final int logitsBlock;

    /** Pinned memory for the residual stream of long prompts, as long as the longest so far; or null. */
    private PinnedArena promptArena;

    private DeviceBuffer promptRows;

    /** Queries that take the place of the model's own, or null. */
    private DeviceBuffer replaced;
    private final StepRecordings recordings;

    private boolean timing;
    private double attentionMilliseconds;
    private long[] sealNanos = new long[0];

    /**
     * Reserves the memory.
     *
     * @param maxBatch sessions of the largest batch
     */
    public Transformer(Model model, int maxBatch) {
        this(model, maxBatch, model.device().isCpu() ? CPU_BLOCK : GPU_BLOCK);
    }

    /** As above, with a number of rows that go through a layer together. */
    public Transformer(Model model, int maxBatch, int block) {
        this(model, maxBatch, block, residentRows(model.device(), block));
    }

    Transformer(Model model, int maxBatch, int block, long residentRows) {
        this.residentRows = Math.max(residentRows, block);
        this.model = Objects.requireNonNull(model, "model");
        if (maxBatch < 1 || block < 1) {
            throw new IllegalArgumentException("maxBatch and block must be positive: " + maxBatch + ", " + block);
        }
        this.maxBatch = maxBatch;
        this.block = block;
        config = model.config();
        device = model.device();
        type = model.type();
        streamType = streamType(device, type);
        kernels = new TransformerKernels(device);
        recordings = new StepRecordings(device, this::stepLayers);
        epsilon = (float) config.rmsNormEpsilon();
        vocabulary = config.vocabularySize();
        logitsBlock = Math.clamp(LOGITS_BYTES / (4L * vocabulary), 1, block);
        arena = device.newArena();
        try {
            prompt = new Scratch(config, type, arena, block);
            step = new Scratch(config, type, arena, maxBatch);
            stepHidden = Rows.of(
                    arena.allocate((long) maxBatch * config.hiddenSize() * streamType.bytes()), streamType);
            stepIds = arena.allocate(4L * maxBatch);
            stepBest = arena.allocate(4L * maxBatch);
            stepLogits = Rows.of(arena.allocate(4L * maxBatch * vocabulary), ElementType.F32);
            promptLogits = Rows.of(arena.allocate(4L * logitsBlock * vocabulary), ElementType.F32);
        } catch (RuntimeException e) {
            arena.close();
            throw e;
        }
        hostIds = hostArena.allocate(ValueLayout.JAVA_INT, maxBatch);
        hostBest = hostArena.allocate(ValueLayout.JAVA_INT, maxBatch);
        hostLogits = hostArena.allocate(4L * maxBatch * vocabulary, 64);
        hostPromptLogits = hostArena.allocate(4L * logitsBlock * vocabulary, 64);
    }

    private static long residentRows(Device device, long block) {
        return device.isCpu() ? Long.MAX_VALUE : RESIDENT_BLOCKS * block;
    }

    private static ElementType streamType(Device device, ElementType type) {
        return device.isCpu() ? type : ElementType.F32;
    }

    /** Device memory that a transformer takes while a prompt of a length goes through it. */
    public static long bytes(Model model, int maxBatch, long promptTokens) {
        return bytes(model.config(), model.device(), model.type(), maxBatch, promptTokens);
    }

    /**
     * As above, before there is a model.
     *
     * @param type of the weights
     */
    public static long bytes(ModelConfig config, Device device, ElementType type, int maxBatch, long promptTokens) {
        long block = device.isCpu() ? CPU_BLOCK : GPU_BLOCK;
        long logits = 4L * config.vocabularySize() * (maxBatch + Math.clamp(LOGITS_BYTES / (4L * config.vocabularySize()), 1, block));
        ElementType stream = streamType(device, type);
        return Scratch.bytes(config, type, block + maxBatch)
                + (Math.min(promptTokens, residentRows(device, block)) + maxBatch) * config.hiddenSize() * stream.bytes()
                + 4 * promptTokens
                + logits;
    }

    /** Pinned host memory that a transformer takes once a prompt of a length has gone through it. */
    public static long pinnedBytes(ModelConfig config, Device device, ElementType type, long promptTokens) {
        boolean resident = device.isCpu() || promptTokens <= residentRows(device, GPU_BLOCK);
        return resident ? 0 : promptTokens * config.hiddenSize() * streamType(device, type).bytes();
    }

    /** The model that it runs. */
    public Model model() {
        return model;
    }

    /** Sessions of the largest batch. */
    public int maxBatch() {
        return maxBatch;
    }

    /** Begins or ends measuring the attention of decode steps; waits for the device around each, so it costs time. */
    public void timeAttention(boolean on) {
        timing = on;
        attentionMilliseconds = 0;
    }

    /**
     * Gives attention other queries than the model's own, which are still computed: for measurements with random
     * weights, whose queries resemble each other less from step to step than those of a trained model.
     *
     * @param queries {@code [layers][maxBatch][queryWidth]} before RoPE, of the model's type, read by each step; null:
     *     the model's own again
     */
    public void replaceQueries(DeviceBuffer queries) {
        if (queries != null) {
            Objects.checkFromIndexSize(
                    0, (long) config.layers() * maxBatch * config.queryWidth() * type.bytes(), queries.byteSize());
        }
        recordings.close();
        replaced = queries;
    }

    /** Milliseconds that the attention of decode steps took since {@link #timeAttention}. */
    public double attentionMilliseconds() {
        return attentionMilliseconds;
    }

    /**
     * Runs a prompt through the model into an empty or partly filled session and seals it.
     *
     * @param ids the tokens
     * @param firstLogits the first of them whose logits are wanted: {@code ids.length - 1} for the last alone
     * @throws IllegalArgumentException when there is no token, or one is outside the vocabulary
     */
    public void prefill(KvSession session, int[] ids, int firstLogits, LogitsSink sink, PrefillListener listener) {
        prefill(List.of(session), ids, firstLogits, sink, listener);
    }

    /**
     * As above for several caches at once: the first session's attention carries the computation, the others get the
     * same keys and values.
     */
    public void prefill(
            List<KvSession> sessions, int[] ids, int firstLogits, LogitsSink sink, PrefillListener listener) {
        if (ids.length == 0) {
            throw new IllegalArgumentException("there are no tokens");
        }
        Objects.checkIndex(firstLogits, ids.length);
        check(ids, ids.length);
        sealNanos = new long[sessions.size()];
        List<ResidualStream.Block> blocks = ResidualStream.blocks(ids.length, config.layers(), block, firstLogits);
        try (DeviceArena own = device.newArena()) {
            DeviceBuffer tokens = own.allocate(4L * ids.length);
            device.copy(MemorySegment.ofArray(ids), tokens);
            ResidualStream stream = stream(blocks, ids.length, own);
            long total = (long) ids.length * config.layers();
            for (int i = 0; i < blocks.size(); i++) {
                ResidualStream.Block now = blocks.get(i);
                Rows rows = stream.begin(i);
                if (now.layer() == 0) {
                    kernels.embed(model.embedding(), tokens.slice(4L * now.first()), rows, now.rows(), config.hiddenSize(), vocabulary);
                }
                if (now.continued()) {
                    layerBlock(now.layer(), sessions, rows, now.rows());
                } else {
                    appendBlock(now.layer(), sessions, rows, now.rows());
                }
                listener.progress((long) now.layer() * ids.length + now.first() + now.rows(), total);
                if (now.first() + now.rows() == ids.length) {
                    seal(now.layer(), sessions, sealNanos);
                }
            }
            stream.end();
            logits(stream, firstLogits, ids.length, sink);
        }
    }

    private ResidualStream stream(List<ResidualStream.Block> blocks, int tokens, DeviceArena own) {
        if (tokens <= residentRows) {
            return new ResidualStream.OnDevice(blocks, tokens, streamType, config.hiddenSize(), own);
        }
        reservePrompt(tokens);
        return new ResidualStream.OnHost(blocks, promptRows, block, streamType, config.hiddenSize(), own);
    }

    /**
     * Takes the host memory that prompts up to a length need, so that none of them has to ask for it; what there is
     * already is kept.
     */
    public void reservePrompt(long tokens) {
        long bytes = tokens <= residentRows ? 0 : tokens * config.hiddenSize() * streamType.bytes();
        if (bytes == 0 || promptRows != null && promptRows.byteSize() >= bytes) {
            return;
        }
        freePromptRows();
        promptArena = device.newPinnedArena();
        promptRows = DeviceBuffer.ofAddress(device, promptArena.allocate(bytes, 64).address(), bytes);
    }

    private void freePromptRows() {
        promptRows = null;
        if (promptArena != null) {
            promptArena.close();
            promptArena = null;
        }
    }

    private void seal(int layer, List<KvSession> sessions, long[] nanos) {
        for (int i = 0; i < nanos.length; i++) {
            // A session that was sealed before goes on; it has nothing to seal.
            if (!sessions.get(i).sealed()) {
                device.synchronize();
                long start = System.nanoTime();
                sessions.get(i).seal(layer);
                device.synchronize();
                nanos[i] += System.nanoTime() - start;
            }
        }
    }

    /** Seconds that the last prefill spent on sealing one of its sessions. */
    public double sealSeconds(int session) {
        return sealNanos[session] * 1e-9;
    }

    private void appendBlock(int layer, List<KvSession> sessions, Rows stream, int rows) {
        project(model.layers().get(layer), stream, rows, prompt);
        for (KvSession session : sessions) {
            session.append(layer, rows, prompt.keys, prompt.stride, prompt.values, prompt.stride);
        }
    }

    private void layerBlock(int layer, List<KvSession> sessions, Rows stream, int rows) {
        Model.Layer weights = model.layers().get(layer);
        project(weights, stream, rows, prompt);
        for (int i = 1; i < sessions.size(); i++) {
            sessions.get(i).append(layer, rows, prompt.keys, prompt.stride, prompt.values, prompt.stride);
        }
        sessions.getFirst().prefill(
                layer,
                rows,
                prompt.queries,
                prompt.stride,
                prompt.keys,
                prompt.stride,
                prompt.values,
                prompt.stride,
                prompt.attended.buffer());
        rest(weights, stream, rows, prompt);
    }

    /** Normalizes rows of the residual stream into the scratch, in the type of the products that follow. */
    private void norm(Rows stream, Rows weight, int rows, Scratch scratch) {
        kernels.rmsNorm(stream, null, weight, scratch.normed, rows, config.hiddenSize(), epsilon);
    }

    /** Norm and projections before attention. */
    private void project(Model.Layer weights, Rows stream, int rows, Scratch scratch) {
        int hidden = config.hiddenSize();
        norm(stream, weights.attentionNorm(), rows, scratch);
        kernels.matmul(
                scratch.normed, weights.attention(), weights.attentionBias(), scratch.projected, rows, scratch.stride, hidden, false);
    }

    /** Everything behind attention. */
    private void rest(Model.Layer weights, Rows stream, int rows, Scratch scratch) {
        int hidden = config.hiddenSize();
        int intermediate = config.intermediateSize();
        kernels.matmul(
                scratch.attended, weights.output(), weights.outputBias(), stream, rows, hidden, config.queryWidth(), true);
        norm(stream, weights.mlpNorm(), rows, scratch);
        kernels.matmul(scratch.normed, weights.gateUp(), null, scratch.gateUp, rows, 2L * intermediate, hidden, false);
        kernels.siluMultiply(scratch.gate, scratch.up, scratch.activated.buffer(), rows, intermediate);
        kernels.matmul(scratch.activated, weights.down(), null, stream, rows, hidden, intermediate, true);
    }

    private void logits(ResidualStream hidden, int first, int end, LogitsSink sink) {
        if (sink == LogitsSink.NONE) {
            return;
        }
        int width = config.hiddenSize();
        for (int at = first; at < end; at += logitsBlock) {
            int rows = Math.min(logitsBlock, end - at);
            norm(hidden.rows(at, rows), model.finalNorm(), rows, prompt);
            kernels.matmul(prompt.normed, model.outputProjection(), null, promptLogits, rows, vocabulary, width, false);
            MemorySegment host = hostPromptLogits.asSlice(0, 4L * rows * vocabulary);
            device.copy(promptLogits.buffer(), host);
            sink.accept(at, rows, host);
        }
    }

    /**
     * One decode step: a token for each session of the batch. The logits are then at {@link #logits} and
     * {@link #largest}.
     *
     * @param ids a token for each session
     * @param rows how many rows to compute, at least the batch's: products of equal shape give equal results whatever
     *     the rest of the batch is, so a caller whose batches vary passes a constant; and each number is recorded apart
     */
    public void decode(KvBatch batch, int[] ids, int rows) {
        int count = inUse(batch);
        if (count > rows || rows > maxBatch || batch.sessions().size() > maxBatch || ids.length < count) {
            throw new IllegalArgumentException("a batch of " + batch.sessions().size() + " rows, " + count + " in use, with "
                    + ids.length + " tokens and " + rows + " rows to compute, of " + maxBatch + " that there is room for");
        }
        check(ids, count);
        stepInput(ids, count, rows);
        // Always here, for a step that was replayed leaves the batch with nothing begun.
        batch.advance();
        if (device.isCpu() || timing) {
            stepLayers(batch, rows);
        } else {
            recordings.step(batch, rows);
        }
    }

    /** How many kinds of steps are recorded now; 0 on a CPU. */
    int recordedSteps() {
        return recordings.count();
    }

    /** Rows up to the last one that has a session. */
    private static int inUse(KvBatch batch) {
        int count = batch.sessions().size();
        while (count > 0 && batch.sessions().get(count - 1) == null) {
            count--;
        }
        return count;
    }

    /** Brings the tokens of a step to the device; rows without a session get token 0. */
    void stepInput(int[] ids, int count, int rows) {
        for (int i = 0; i < rows; i++) {
            hostIds.setAtIndex(ValueLayout.JAVA_INT, i, i < count ? ids[i] : 0);
        }
        device.copy(hostIds, stepIds);
    }

    /** The part of a step that the device does alone, and that can be recorded. */
    void stepLayers(KvBatch batch, int rows) {
        KvCache cache = batch.cache();
        kernels.embed(model.embedding(), stepIds, stepHidden, rows, config.hiddenSize(), vocabulary);
        for (int layer = 0; layer < config.layers(); layer++) {
            Model.Layer weights = model.layers().get(layer);
            project(weights, stepHidden, rows, step);
            attend(cache, layer, batch);
            rest(weights, stepHidden, rows, step);
        }
        norm(stepHidden, model.finalNorm(), rows, step);
        kernels.matmul(
                step.normed, model.outputProjection(), null, stepLogits, rows, vocabulary, config.hiddenSize(), false);
        kernels.argmax(stepLogits, rows, vocabulary, stepBest);
    }

    private void attend(KvCache cache, int layer, KvBatch batch) {
        if (timing) {
            device.mark(0);
        }
        boolean own = replaced == null;
        cache.attend(
                layer,
                batch,
                own ? step.queries : replaced.slice((long) layer * maxBatch * config.queryWidth() * type.bytes()),
                own ? step.stride : config.queryWidth(),
                step.keys,
                step.stride,
                step.values,
                step.stride,
                step.attended.buffer());
        if (timing) {
            device.mark(1);
            attentionMilliseconds += device.elapsed(0, 1);
        }
    }

    /** The last step's logits: {@code [rows][vocabulary]} of f32, valid until the next step. */
    public MemorySegment logits(int rows) {
        MemorySegment host = hostLogits.asSlice(0, 4L * Objects.checkIndex(rows, maxBatch + 1) * vocabulary);
        device.copy(stepLogits.buffer(), host);
        return host;
    }

    /** The tokens with the largest logits of the last step, the first of equal ones; -1 where one is not a number. */
    public void largest(int[] ids, int rows) {
        device.copy(stepBest, hostBest.asSlice(0, 4L * Objects.checkIndex(rows, maxBatch + 1)));
        MemorySegment.copy(hostBest, ValueLayout.JAVA_INT, 0, ids, 0, rows);
    }

    private void check(int[] ids, int count) {
        for (int i = 0; i < count; i++) {
            if (ids[i] < 0 || ids[i] >= vocabulary) {
                throw new IllegalArgumentException(
                        "token id " + ids[i] + " is outside the vocabulary of " + vocabulary);
            }
        }
    }

    /** Frees the memory, not the model's; does nothing the second time. */
    @Override
    public void close() {
        recordings.close();
        freePromptRows();
        arena.close();
        if (hostArena.scope().isAlive()) {
            hostArena.close();
        }
    }
}
