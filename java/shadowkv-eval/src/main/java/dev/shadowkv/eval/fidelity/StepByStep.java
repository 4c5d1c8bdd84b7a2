package dev.shadowkv.eval.fidelity;

import dev.shadowkv.KvBatch;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.LogitsSink;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.NamedCaches;
import dev.shadowkv.llm.Transformer;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Several caches that read the same tokens, step by step, with what each says about the next one: how far an approximate
 * cache is from exact attention where both have read the same text. The first cache is the exact one. For one thread at a
 * time.
 */
public final class StepByStep implements AutoCloseable {
    /**
     * One step of one cache.
     *
     * @param divergence of the cache's distribution of the next token from the exact one: Kullback-Leibler, in nats
     * @param agrees whether both have the same most likely token
     * @param landmarkMass share of the landmarks' softmax weight that the selections held, mean over layers and heads
     * @param selectedChunks chunks selected, over layers and heads
     * @param fetchedChunks of which were not resident
     * @param attentionMilliseconds time of the cache, all layers; 0 where time is not taken
     */
    public record Step(
            double divergence,
            boolean agrees,
            double landmarkMass,
            long selectedChunks,
            long fetchedChunks,
            double attentionMilliseconds) {}

    /**
     * A run.
     *
     * @param tokens that were read, one a step
     * @param choices of the exact cache after each
     * @param steps by cache, the exact one left out
     * @param exactMilliseconds time of the exact cache a step, all layers; 0 where time is not taken
     */
    public record Run(int[] tokens, int[] choices, Map<String, List<Step>> steps, double exactMilliseconds) {}

    /** Told after every step. */
    @FunctionalInterface
    public interface Listener {
        void step(int done, int total);
    }

    private final Transformer transformer;
    private final NamedCaches caches;

    /**
     * Allocates the caches.
     *
     * @param options by name, the exact one first
     * @param capacity tokens of the longest prompt with its steps
     */
    public StepByStep(Model model, Map<String, CacheOptions> options, long capacity) {
        caches = new NamedCaches(model, options, capacity);
        try {
            transformer = new Transformer(model, 1);
        } catch (RuntimeException e) {
            caches.close();
            throw e;
        }
    }

    /** The memory of a cache. */
    public MemoryPlan memoryPlan(String name) {
        return caches.get(name).memoryPlan();
    }

    /**
     * Reads a prompt and then tokens that are given.
     *
     * @param timed whether to take the time of attention, which waits for the device at each layer
     */
    public Run given(int[] prompt, int[] tokens, boolean timed, Listener listener) {
        return run(prompt, tokens.clone(), tokens.length, timed, listener);
    }

    /** Reads a prompt and then what the exact cache chooses, whatever it says about an end. */
    public Run chosen(int[] prompt, int steps, boolean timed, Listener listener) {
        return run(prompt, null, steps, timed, listener);
    }

    private Run run(int[] prompt, int[] given, int steps, boolean timed, Listener listener) {
        if (steps < 1) {
            throw new IllegalArgumentException(steps + " steps");
        }
        List<String> names = caches.names();
        List<KvSession> sessions = caches.open((long) prompt.length + steps);
        List<KvBatch> batches = new ArrayList<>();
        try {
            float[][] exact = new float[1][];
            LogitsSink first = (row, rows, logits) -> exact[0] = floats(logits);
            transformer.prefill(sessions, prompt, prompt.length - 1, first, (done, total) -> {});
            sessions.forEach(session -> batches.add(session.cache().batch(List.of(session))));
            int[] tokens = given == null ? new int[steps] : given;
            int[] choices = new int[steps];
            Map<String, List<Step>> all = new LinkedHashMap<>();
            names.stream().skip(1).forEach(name -> all.put(name, new ArrayList<>(steps)));
            KvBatch.Statistics[] before = new KvBatch.Statistics[names.size()];
            double exactMilliseconds = 0;
            for (int step = 0; step < steps; step++) {
                if (given == null) {
                    tokens[step] = largest(exact[0]);
                }
                for (int i = 0; i < names.size(); i++) {
                    transformer.timeAttention(timed);
                    transformer.decode(batches.get(i), new int[] {tokens[step]}, 1);
                    float[] logits = floats(transformer.logits(1));
                    double milliseconds = timed ? transformer.attentionMilliseconds() : 0;
                    if (i == 0) {
                        exact[0] = logits;
                        choices[step] = largest(logits);
                        exactMilliseconds += milliseconds / steps;
                    } else {
                        KvBatch.Statistics now = batches.get(i).statistics();
                        all.get(names.get(i)).add(step(exact[0], logits, before[i], now, milliseconds));
                        before[i] = now;
                    }
                }
                listener.step(step + 1, steps);
            }
            return new Run(tokens, choices, all, exactMilliseconds);
        } finally {
            transformer.timeAttention(false);
            batches.forEach(KvBatch::close);
            sessions.forEach(KvSession::close);
        }
    }

    private static Step step(
            float[] exact, float[] logits, KvBatch.Statistics before, KvBatch.Statistics now, double milliseconds) {
        long selected = now.selectedChunks() - (before == null ? 0 : before.selectedChunks());
        long fetched = now.fetchedChunks() - (before == null ? 0 : before.fetchedChunks());
        // The statistics are a mean over all steps so far.
        double mass = before == null
                ? now.landmarkMass()
                : now.landmarkMass() * now.steps() - before.landmarkMass() * before.steps();
        return new Step(
                divergence(exact, logits), largest(exact) == largest(logits), mass, selected, fetched, milliseconds);
    }

    private static float[] floats(MemorySegment logits) {
        return logits.toArray(ValueLayout.JAVA_FLOAT);
    }

    private static int largest(float[] logits) {
        int best = 0;
        for (int i = 0; i < logits.length; i++) {
            if (Float.isNaN(logits[i])) {
                throw new ArithmeticException("the logit of token " + i + " is not a number");
            }
            best = logits[i] > logits[best] ? i : best;
        }
        return best;
    }

    /**
     * The Kullback-Leibler divergence of the softmax of {@code logits} from that of {@code exact}, in nats.
     *
     * @throws IllegalArgumentException when the lengths differ
     */
    public static double divergence(float[] exact, float[] logits) {
        if (exact.length != logits.length) {
            throw new IllegalArgumentException("logits of " + exact.length + " and " + logits.length + " tokens");
        }
        double exactSum = logSum(exact);
        double sum = logSum(logits);
        double divergence = 0;
        for (int i = 0; i < exact.length; i++) {
            double logProbability = exact[i] - exactSum;
            divergence += Math.exp(logProbability) * (logProbability - (logits[i] - sum));
        }
        return Math.max(0, divergence);
    }

    private static double logSum(float[] logits) {
        double largest = Double.NEGATIVE_INFINITY;
        for (float logit : logits) {
            largest = Math.max(largest, logit);
        }
        double sum = 0;
        for (float logit : logits) {
            sum += Math.exp(logit - largest);
        }
        return largest + Math.log(sum);
    }

    /** Frees the caches, not the model; does nothing the second time. */
    @Override
    public void close() {
        transformer.close();
        caches.close();
    }
}
