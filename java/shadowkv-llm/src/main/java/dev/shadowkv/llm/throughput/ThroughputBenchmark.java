package dev.shadowkv.llm.throughput;

import dev.shadowkv.CacheBuilder;
import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.ShadowKvCache;
import dev.shadowkv.llm.AdmissionException;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.PrefillListener;
import dev.shadowkv.llm.Transformer;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.OptionalDouble;
import java.util.SplittableRandom;

/**
 * Measures decode steps of a model with random weights over contexts that were filled directly. For one thread.
 *
 * <p>The largest batch is what fits into the device memory beside the weights and an engine that could compute prompts
 * as long as the context. Where the host's memory is too small for it, fewer sessions are run, and the result tells both
 * numbers.
 */
public final class ThroughputBenchmark implements AutoCloseable {
    private static final int SETTLING_STEPS = 2;
    private static final int PROBE_STEPS = 4;
    private static final int PROBES = 12;
    private static final double LARGEST_DRIFT = 8;
    /** Near what most shapes need for the usual share. */
    private static final double USUAL_DRIFT = 0.3;
    /** As near as a probe of few steps can tell. */
    private static final double NEAR = 0.004;

    /**
     * Random weights give new keys that have nothing in common with the context's basis, so that by the usual limit every
     * folded chunk would have to stay dense, which a trained model's hardly do. They are measured all the same.
     */
    private static final float RANDOM_KEYS_RESIDUAL = 0.999f;

    /** Steps from one folding of a session to its next. */
    private static final int FOLD_STEPS = 64;

    private static final int WARM_UP_STEPS = 6;
    private static final int ATTENTION_STEPS = 4;
    private static final int WARM_UP_TOKENS = 8192;

    /** Told what is being done, and how much of it. */
    @FunctionalInterface
    public interface Listener {
        /** Some more is done. */
        void progress(String what, long done, long total);
    }

    private final Device device;
    private final ThroughputSettings settings;
    private final ModelConfig config;
    private final Listener listener;
    private final Model model;
    private final boolean ownsModel;

    /** Makes the weights. */
    public ThroughputBenchmark(Device device, ThroughputSettings settings, Listener listener) {
        this(Model.random(settings.measured(), device), true, settings, listener);
    }

    private ThroughputBenchmark(Model model, boolean ownsModel, ThroughputSettings settings, Listener listener) {
        this.model = model;
        this.ownsModel = ownsModel;
        this.settings = Objects.requireNonNull(settings, "settings");
        this.listener = Objects.requireNonNull(listener, "listener");
        device = model.device();
        config = model.config();
    }

    /**
     * Another measurement with the same weights, which stay this one's.
     *
     * @throws IllegalArgumentException when its shape or its number of layers is another
     */
    public ThroughputBenchmark with(ThroughputSettings other) {
        if (!other.measured().equals(config)) {
            throw new IllegalArgumentException("the weights are of another shape");
        }
        return new ThroughputBenchmark(model, false, other, listener);
    }

    /** The most sessions of the whole model that fit into the device memory, whatever the host has. */
    public static SessionCount plan(Device device, ThroughputSettings settings, CacheOptions options) {
        return SessionCount.largest(
                device,
                settings.shape(),
                settings.context(),
                settings.deviceLimit(),
                Long.MAX_VALUE,
                sessions -> builder(device, settings.shape(), settings, options, sessions).plan());
    }

    private static CacheBuilder<?> builder(
            Device device, ModelConfig config, ThroughputSettings settings, CacheOptions options, int sessions) {
        MemoryPlan memory = MemoryPlan.of(sessions, settings.capacity()).withStaging(settings.context(), 1);
        CacheBuilder<?> builder = options.builder(device, config, memory, settings.capacity());
        if (builder instanceof ShadowKvCache.Builder shadow) {
            settings.slots().ifPresent(shadow::slots);
            shadow.residualLimit(RANDOM_KEYS_RESIDUAL);
        }
        return builder;
    }

    /**
     * Measures one cache.
     *
     * @throws AdmissionException when not one session fits, or the batch that was asked for does not
     */
    public ThroughputResult run(CacheOptions options) {
        SessionCount planned = plan(device, settings, options);
        SessionCount count = count(options, planned);
        ModelConfig measured = config;
        long begin = System.nanoTime();
        try (KvCache cache =
                        builder(device, measured, settings, options, count.sessions()).build();
                Transformer transformer = new Transformer(model, count.sessions())) {
            List<KvSession> sessions = new ArrayList<>();
            long start = System.nanoTime();
            double buildSeconds = (start - begin) * 1e-9;
            fill(cache, sessions, count.sessions());
            double fillSeconds = (System.nanoTime() - start) * 1e-9;
            try (DriftingQueries queries =
                            new DriftingQueries(device, measured, count.sessions(), model.type(), settings.seed() + 7);
                    KvBatch batch = cache.batch(sessions)) {
                transformer.replaceQueries(queries.queries());
                return measure(options, cache, transformer, queries, batch, planned, count, buildSeconds, fillSeconds);
            }
        }
    }

    /**
     * Measures the computation of one prompt as long as the context.
     *
     * @throws AdmissionException when its session does not fit
     */
    public PromptResult prompt(CacheOptions options) {
        SessionCount possible = possible(options);
        if (possible.sessions() < 1) {
            throw refusal(options, 1, possible);
        }
        int[] ids = new SplittableRandom(settings.seed())
                .ints(Math.toIntExact(settings.context()), 0, config.vocabularySize())
                .toArray();
        try (KvCache cache = builder(device, config, settings, options, 1).build();
                Transformer transformer = new Transformer(model, 1)) {
            // What is made at first use, or with an engine, is no part of the measurement.
            transformer.reservePrompt(settings.context());
            prompt(cache, transformer, Arrays.copyOf(ids, Math.min(ids.length, WARM_UP_TOKENS)), (done, total) -> {});
            device.synchronize();
            long start = System.nanoTime();
            double sealing = prompt(cache, transformer, ids, (done, total) -> listener.progress("computing the prompt", done, total));
            return new PromptResult(ids.length, config.layers(), (System.nanoTime() - start) * 1e-9, sealing);
        }
    }

    private double prompt(KvCache cache, Transformer transformer, int[] ids, PrefillListener progress) {
        try (KvSession session = cache.open(settings.capacity())) {
            float[] first = new float[1];
            transformer.prefill(
                    session,
                    ids,
                    ids.length - 1,
                    (at, rows, logits) -> first[0] = logits.get(ValueLayout.JAVA_FLOAT, 0),
                    progress);
            if (Float.isNaN(first[0])) {
                throw new ArithmeticException("a logit of the prompt is not a number");
            }
            return transformer.sealSeconds(0);
        }
    }

    private SessionCount count(CacheOptions options, SessionCount planned) {
        SessionCount possible = possible(options);
        int wanted = settings.batch().orElse(Math.min(planned.sessions(), possible.sessions()));
        if (wanted < 1 || wanted > possible.sessions()) {
            throw refusal(options, Math.max(1, wanted), possible);
        }
        return of(options, wanted);
    }

    /** With fewer layers the batch of the whole model is measured, as far as there is memory for it. */
    private SessionCount possible(CacheOptions options) {
        return SessionCount.largest(
                device,
                config,
                settings.context(),
                settings.deviceLimit(),
                settings.hostLimit(),
                sessions -> builder(device, config, settings, options, sessions).plan());
    }

    private SessionCount of(CacheOptions options, int sessions) {
        return SessionCount.of(
                device, config, settings.context(), sessions, n -> builder(device, config, settings, options, n).plan());
    }

    private AdmissionException refusal(CacheOptions options, int wanted, SessionCount possible) {
        SessionCount refused = of(options, wanted);
        return new AdmissionException(wanted + (wanted == 1 ? " session of " : " sessions of ") + settings.context() + " tokens, weights and engine take "
                + refused.device() + " bytes of device memory and " + refused.host()
                + " of host memory; the limits are " + settings.deviceLimit() + " and " + settings.hostLimit()
                + ", which hold " + possible.sessions());
    }

    /**
     * How many tokens of a session's context count as decoded: sessions that began together would fold together, as those
     * of real requests do not.
     */
    static int decodedBefore(int session, int sessions, long context) {
        return (int) Math.min(context / 2, (long) FOLD_STEPS * session / sessions);
    }

    private void fill(KvCache cache, List<KvSession> sessions, int count) {
        long total = (long) count * config.layers();
        try (SyntheticContext context = new SyntheticContext(device, config, model.type(), settings.seed())) {
            for (int i = 0; i < count; i++) {
                KvSession session = cache.open(settings.capacity());
                sessions.add(session);
                int decoded = decodedBefore(i, count, settings.context());
                for (int layer = 0; layer < config.layers(); layer++) {
                    context.fill(session, layer, settings.context(), decoded);
                    listener.progress("filling contexts", (long) i * config.layers() + layer + 1, total);
                }
            }
        }
    }

    private ThroughputResult measure(
            CacheOptions options,
            KvCache cache,
            Transformer transformer,
            DriftingQueries queries,
            KvBatch batch,
            SessionCount planned,
            SessionCount count,
            double buildSeconds,
            double fillSeconds) {
        Steps steps = new Steps(transformer, queries, batch);
        boolean fetches = cache instanceof ShadowKvCache shadow && shadow.geometry().slots() > 0;
        steps.run(SETTLING_STEPS);
        if (fetches) {
            findDrift(steps, queries);
        }
        steps.run(WARM_UP_STEPS);
        KvBatch.Statistics before = batch.statistics();
        device.synchronize();
        double[] times = new double[settings.steps()];
        long start = System.nanoTime();
        for (int i = 0; i < times.length; i++) {
            long begin = System.nanoTime();
            steps.step();
            times[i] = (System.nanoTime() - begin) * 1e-6;
            listener.progress("timing steps", i + 1, times.length);
        }
        double seconds = (System.nanoTime() - start) * 1e-9;
        long deviceBytes = device.allocatedBytes();
        long hostBytes = device.pinnedBytes();
        KvBatch.Statistics after = batch.statistics();
        double attention = attentionMilliseconds(transformer, steps);

        double length = sessionLength(batch) - ATTENTION_STEPS - times.length / 2.0;
        ElementType storage = options.storageType().orElse(device.defaultType());
        double cacheBytes = batch.sessions().size() * StepTraffic.cache(config, cache, options, length, storage);
        OptionalDouble limit = options.decided(settings.capacity()).kind() == CacheKind.DENSE
                ? OptionalDouble.of(batch.sessions().size() * 1000 / attention)
                : OptionalDouble.empty();
        long fetched = after.fetchedChunks() - before.fetchedChunks();
        long selected = after.selectedChunks() - before.selectedChunks();
        double linkBytes = fetches ? (double) fetched / times.length * ((ShadowKvCache) cache).geometry().hostChunkBytes() : 0;
        double mean = seconds * 1000 / times.length;
        double[] sorted = times.clone();
        Arrays.sort(sorted);
        return new ThroughputResult(
                planned,
                count,
                config.layers(),
                settings.context(),
                buildSeconds,
                fillSeconds,
                queries.drift(),
                fetches && selected > 0 ? OptionalDouble.of(1 - (double) fetched / selected) : OptionalDouble.empty(),
                mean,
                sorted[sorted.length / 2],
                sorted[sorted.length - 1],
                attention,
                batch.sessions().size() * 1000 / mean,
                StepTraffic.weights(config, model.byteSize(), model.type()) + cacheBytes,
                cacheBytes,
                linkBytes,
                deviceBytes,
                hostBytes,
                limit);
    }

    private static long sessionLength(KvBatch batch) {
        return batch.sessions().getFirst().length();
    }

    /** Looks for the deviation of the noise that leaves the wanted share of chunks where it is. */
    private void findDrift(Steps steps, DriftingQueries queries) {
        double low = 0;
        double lowShare = 1;
        double high = LARGEST_DRIFT;
        double highShare = 0;
        double drift = USUAL_DRIFT;
        for (int probe = 0; probe < PROBES; probe++) {
            queries.drift(drift);
            double share = steps.residentShare();
            listener.progress("finding the drift", probe + 1, PROBES);
            if (Math.abs(share - settings.resident()) < NEAR) {
                return;
            }
            if (share > settings.resident()) {
                low = drift;
                lowShare = share;
            } else {
                high = drift;
                highShare = share;
            }
            drift = between(low, lowShare, high, highShare);
        }
    }

    /** A straight line between what is known, but not so near to an end that the other hardly moves. */
    private double between(double low, double lowShare, double high, double highShare) {
        double far = high == LARGEST_DRIFT ? Math.min(high, 2 * low) : high;
        double part = high == LARGEST_DRIFT || lowShare <= highShare
                ? 0.9
                : (lowShare - settings.resident()) / (lowShare - highShare);
        return low + Math.clamp(part, 0.1, 0.9) * (far - low);
    }

    private double attentionMilliseconds(Transformer transformer, Steps steps) {
        transformer.timeAttention(true);
        steps.run(1);
        transformer.timeAttention(true);
        steps.run(ATTENTION_STEPS - 1);
        double milliseconds = transformer.attentionMilliseconds() / (ATTENTION_STEPS - 1);
        transformer.timeAttention(false);
        return milliseconds;
    }

    /** Steps as an engine takes them: tokens to the device, all layers, the likeliest tokens back. */
    private static final class Steps {
        private final Transformer transformer;
        private final DriftingQueries queries;
        private final KvBatch batch;
        private final int[] ids;

        Steps(Transformer transformer, DriftingQueries queries, KvBatch batch) {
            this.transformer = transformer;
            this.queries = queries;
            this.batch = batch;
            ids = new int[batch.sessions().size()];
        }

        void step() {
            queries.step();
            transformer.decode(batch, ids, ids.length);
            transformer.largest(ids, ids.length);
            for (int id : ids) {
                if (id < 0) {
                    throw new ArithmeticException("a logit of the step is not a number");
                }
            }
        }

        void run(int count) {
            for (int i = 0; i < count; i++) {
                step();
            }
        }

        double residentShare() {
            run(SETTLING_STEPS);
            KvBatch.Statistics before = batch.statistics();
            run(PROBE_STEPS);
            KvBatch.Statistics after = batch.statistics();
            long selected = after.selectedChunks() - before.selectedChunks();
            return selected == 0 ? 1 : 1 - (double) (after.fetchedChunks() - before.fetchedChunks()) / selected;
        }
    }

    /** Frees the weights, if they are its own; does nothing the second time. */
    @Override
    public void close() {
        if (ownsModel) {
            model.close();
        }
    }
}
