package dev.shadowkv.llm;

import dev.shadowkv.KvBatch;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/**
 * Several caches that answer the same prompts greedily, each from the very same keys and values: a prompt is computed
 * once. For one thread at a time.
 */
public final class SideBySide implements AutoCloseable {
    /**
     * What one cache answered.
     *
     * @param ids the answer, without the token that ended it
     * @param sealSeconds what this cache did with the keys and values after the prompt's computation: nothing for an
     *     exact cache, the factorization and index for a shadow
     * @param steps decode steps; the first token comes from the prompt's computation
     * @param decodeSeconds time of the steps
     * @param attentionMilliseconds time of the cache within a step, all layers
     * @param statistics what the steps selected and fetched
     */
    public record Outcome(
            int[] ids,
            double sealSeconds,
            int steps,
            double decodeSeconds,
            double attentionMilliseconds,
            KvBatch.Statistics statistics) {}

    /**
     * Outcomes of one prompt.
     *
     * @param prefillSeconds of the computation that the caches share
     * @param outcomes by the cache's name
     */
    public record Answers(double prefillSeconds, Map<String, Outcome> outcomes) {}

    private final Model model;
    private final Transformer transformer;
    private final NamedCaches caches;

    /**
     * Allocates the caches.
     *
     * @param options by name; the first one's attention computes the prompts, which is exact in any cache
     * @param capacity tokens of the longest prompt and answer
     */
    public SideBySide(Model model, Map<String, CacheOptions> options, long capacity) {
        this.model = Objects.requireNonNull(model, "model");
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
     * Answers a prompt with every cache.
     *
     * @param endIds tokens that end an answer
     */
    public Answers answer(int[] ids, int maxNewTokens, Set<Integer> endIds, PrefillListener listener) {
        if (maxNewTokens < 1) {
            throw new IllegalArgumentException("an answer of " + maxNewTokens + " tokens");
        }
        List<String> names = caches.names();
        List<KvSession> sessions = caches.open((long) ids.length + maxNewTokens);
        try {
            int vocabulary = model.config().vocabularySize();
            int[] first = new int[1];
            long start = System.nanoTime();
            transformer.prefill(
                    sessions, ids, ids.length - 1, (row, rows, logits) -> first[0] = Logits.largest(logits, vocabulary), listener);
            double shared = (System.nanoTime() - start) * 1e-9;
            Map<String, Outcome> outcomes = new LinkedHashMap<>();
            for (int i = 0; i < names.size(); i++) {
                double seal = transformer.sealSeconds(i);
                shared -= seal;
                outcomes.put(names.get(i), decode(names.get(i), sessions.get(i), first[0], maxNewTokens, endIds, seal));
            }
            return new Answers(shared, outcomes);
        } finally {
            sessions.forEach(KvSession::close);
        }
    }

    private Outcome decode(
            String name, KvSession session, int first, int maxNewTokens, Set<Integer> endIds, double seal) {
        int[] answer = new int[maxNewTokens];
        int count = 0;
        int steps = 0;
        int[] next = {first};
        transformer.timeAttention(true);
        try (KvBatch batch = session.cache().batch(List.of(session))) {
            long start = System.nanoTime();
            while (!endIds.contains(next[0])) {
                answer[count++] = next[0];
                if (count == maxNewTokens) {
                    break;
                }
                transformer.decode(batch, next, 1);
                transformer.largest(next, 1);
                steps++;
                if (next[0] < 0) {
                    throw new ArithmeticException(name + " gave a logit that is not a number");
                }
            }
            double seconds = (System.nanoTime() - start) * 1e-9;
            double attention = steps == 0 ? 0 : transformer.attentionMilliseconds() / steps;
            return new Outcome(Arrays.copyOf(answer, count), seal, steps, seconds, attention, batch.statistics());
        } finally {
            transformer.timeAttention(false);
        }
    }

    /** Frees the caches, not the model; does nothing the second time. */
    @Override
    public void close() {
        transformer.close();
        caches.close();
    }
}
