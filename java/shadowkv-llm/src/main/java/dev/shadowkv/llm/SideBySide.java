package dev.shadowkv.llm;

import dev.shadowkv.KvBatch;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/**
 * Several caches that answer the same prompts greedily, each from the very same keys and values: a prompt is computed
 * once. Answers of several prompts are decoded together, cache by cache. For one thread at a time.
 */
public final class SideBySide implements AutoCloseable {
    /**
     * What is asked.
     *
     * @param ids the prompt
     * @param maxNewTokens tokens that an answer has at most
     */
    public record Question(int[] ids, int maxNewTokens) {
        public Question {
            if (ids.length == 0 || maxNewTokens < 1) {
                throw new IllegalArgumentException(
                        "a prompt of " + ids.length + " tokens and an answer of at most " + maxNewTokens);
            }
        }
    }

    /**
     * What one cache answered.
     *
     * @param ids the answer, without the token that ended it
     * @param sealSeconds what this cache did with the keys and values after the prompt's computation: nothing for an
     *     exact cache, the factorization and index for a shadow
     * @param steps decode steps; the first token comes from the prompt's computation
     * @param decodeSeconds time of the steps; of one that several prompts took together, each has its share
     * @param attentionMilliseconds time of the cache within the mean step, all layers; NaN where it is not taken
     * @param statistics what the steps selected and fetched, of all prompts that were decoded together
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

    /** A prompt whose computation is done. */
    private record Begun(Question question, List<KvSession> sessions, int first, double prefill, double[] seals) {}

    private final Model model;
    private final Transformer transformer;
    private final NamedCaches caches;
    private final int together;
    /** Of each cache, made once so that its steps stay recorded. */
    private final List<KvBatch> batches = new ArrayList<>();

    private boolean timed = true;

    /** Allocates caches for one prompt at a time. */
    public SideBySide(Model model, Map<String, CacheOptions> options, long capacity) {
        this(model, options, capacity, 1);
    }

    /**
     * Allocates the caches.
     *
     * @param options by name; the first one's attention computes the prompts, which is exact in any cache
     * @param capacity tokens of the longest prompt and answer
     * @param together prompts that can be decoded together
     */
    public SideBySide(Model model, Map<String, CacheOptions> options, long capacity, int together) {
        this.model = Objects.requireNonNull(model, "model");
        this.together = together;
        caches = new NamedCaches(model, options, capacity, together);
        try {
            caches.names().forEach(name -> batches.add(caches.get(name).batch(together)));
            transformer = new Transformer(model, together);
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
     * Whether to take the time of attention, as is done at first. It waits for the device at every layer, and on a GPU
     * steps cannot be replayed from a recording meanwhile, so small models decode several times faster without.
     */
    public void timeAttention(boolean on) {
        timed = on;
    }

    /**
     * Answers a prompt with every cache.
     *
     * @param endIds tokens that end an answer
     */
    public Answers answer(int[] ids, int maxNewTokens, Set<Integer> endIds, PrefillListener listener) {
        return answer(List.of(new Question(ids, maxNewTokens)), endIds, listener).getFirst();
    }

    /**
     * Answers prompts with every cache. They may differ in length; those of about the same length of answer waste the
     * fewest steps.
     *
     * @param questions as many as can be decoded together, at most
     * @param endIds tokens that end an answer
     * @return in the order of the questions
     */
    public List<Answers> answer(List<Question> questions, Set<Integer> endIds, PrefillListener listener) {
        if (questions.isEmpty() || questions.size() > together) {
            throw new IllegalArgumentException(questions.size() + " prompts, of at most " + together + " together");
        }
        List<Begun> begun = new ArrayList<>();
        try {
            questions.forEach(question -> begun.add(begin(question, listener)));
            List<Map<String, Outcome>> outcomes = new ArrayList<>();
            begun.forEach(prompt -> outcomes.add(new LinkedHashMap<>()));
            for (int cache = 0; cache < batches.size(); cache++) {
                List<Outcome> answered = decode(cache, begun, endIds);
                for (int i = 0; i < answered.size(); i++) {
                    outcomes.get(i).put(caches.names().get(cache), answered.get(i));
                }
            }
            List<Answers> answers = new ArrayList<>();
            for (int i = 0; i < begun.size(); i++) {
                answers.add(new Answers(begun.get(i).prefill(), outcomes.get(i)));
            }
            return answers;
        } finally {
            begun.forEach(prompt -> prompt.sessions().forEach(KvSession::close));
        }
    }

    private Begun begin(Question question, PrefillListener listener) {
        int[] ids = question.ids();
        List<KvSession> sessions = caches.open((long) ids.length + question.maxNewTokens());
        try {
            int vocabulary = model.config().vocabularySize();
            int[] first = new int[1];
            long start = System.nanoTime();
            transformer.prefill(
                    sessions, ids, ids.length - 1, (row, rows, logits) -> first[0] = Logits.largest(logits, vocabulary), listener);
            double shared = (System.nanoTime() - start) * 1e-9;
            double[] seals = new double[sessions.size()];
            for (int i = 0; i < seals.length; i++) {
                seals[i] = transformer.sealSeconds(i);
                shared -= seals[i];
            }
            return new Begun(question, sessions, first[0], shared, seals);
        } catch (RuntimeException e) {
            sessions.forEach(KvSession::close);
            throw e;
        }
    }

    private List<Outcome> decode(int cache, List<Begun> begun, Set<Integer> endIds) {
        KvBatch batch = batches.get(cache);
        KvBatch.Statistics before = batch.statistics();
        GreedyAnswers answers = new GreedyAnswers(begun.stream().map(Begun::question).toList(), endIds);
        int steps = 0;
        transformer.timeAttention(timed);
        try {
            for (int row = 0; row < begun.size(); row++) {
                batch.set(row, begun.get(row).sessions().get(cache));
                answers.accept(row, begun.get(row).first());
            }
            int[] next = new int[together];
            long start = System.nanoTime();
            while (leave(batch, answers, begun.size())) {
                answers.next(next);
                transformer.decode(batch, next, together);
                transformer.largest(next, together);
                steps++;
                for (int row = 0; row < begun.size(); row++) {
                    if (!answers.done(row)) {
                        answers.accept(row, next[row]);
                    }
                }
            }
            double seconds = (System.nanoTime() - start) * 1e-9;
            double attention = !timed ? Double.NaN : steps == 0 ? 0 : transformer.attentionMilliseconds() / steps;
            return outcomes(cache, begun, answers, seconds, attention, since(before, batch.statistics()));
        } finally {
            transformer.timeAttention(false);
            for (int row = 0; row < begun.size(); row++) {
                batch.set(row, null);
            }
        }
    }

    /** Takes finished answers out of the batch; says whether any is left in it. */
    private static boolean leave(KvBatch batch, GreedyAnswers answers, int rows) {
        boolean left = false;
        for (int row = 0; row < rows; row++) {
            if (!answers.done(row)) {
                left = true;
            } else if (batch.sessions().get(row) != null) {
                batch.set(row, null);
            }
        }
        return left;
    }

    private static List<Outcome> outcomes(
            int cache,
            List<Begun> begun,
            GreedyAnswers answers,
            double seconds,
            double attention,
            KvBatch.Statistics statistics) {
        int all = 0;
        for (int row = 0; row < begun.size(); row++) {
            all += answers.steps(row);
        }
        List<Outcome> outcomes = new ArrayList<>();
        for (int row = 0; row < begun.size(); row++) {
            double share = all == 0 ? 0 : seconds * answers.steps(row) / all;
            outcomes.add(new Outcome(
                    answers.ids(row), begun.get(row).seals()[cache], answers.steps(row), share, attention, statistics));
        }
        return outcomes;
    }

    /** What came to a batch's statistics, whose mass is a mean over selections of a like number of chunks. */
    private static KvBatch.Statistics since(KvBatch.Statistics before, KvBatch.Statistics now) {
        long selected = now.selectedChunks() - before.selectedChunks();
        double mass = selected == 0
                ? 0
                : (now.landmarkMass() * now.selectedChunks() - before.landmarkMass() * before.selectedChunks()) / selected;
        return new KvBatch.Statistics(
                now.steps() - before.steps(), selected, now.fetchedChunks() - before.fetchedChunks(), mass);
    }

    /** Frees the caches, not the model; does nothing the second time. */
    @Override
    public void close() {
        transformer.close();
        batches.forEach(KvBatch::close);
        caches.close();
    }

    /** Answers that grow token by token. */
    private static final class GreedyAnswers {
        private final int[][] ids;
        private final int[] counts;
        private final int[] steps;
        private final boolean[] done;
        private final Set<Integer> endIds;

        GreedyAnswers(List<Question> questions, Set<Integer> endIds) {
            ids = questions.stream().map(question -> new int[question.maxNewTokens()]).toArray(int[][]::new);
            counts = new int[ids.length];
            steps = new int[ids.length];
            done = new boolean[ids.length];
            this.endIds = endIds;
        }

        /** Takes the next token of an answer. */
        void accept(int row, int id) {
            if (id < 0) {
                throw new ArithmeticException("a logit is not a number");
            }
            if (endIds.contains(id)) {
                done[row] = true;
                return;
            }
            ids[row][counts[row]++] = id;
            done[row] = counts[row] == ids[row].length;
        }

        boolean done(int row) {
            return done[row];
        }

        /** Writes the tokens that the next step reads. */
        void next(int[] next) {
            for (int row = 0; row < ids.length; row++) {
                next[row] = done[row] ? 0 : ids[row][counts[row] - 1];
                steps[row] += done[row] ? 0 : 1;
            }
        }

        int[] ids(int row) {
            return Arrays.copyOf(ids[row], counts[row]);
        }

        int steps(int row) {
            return steps[row];
        }
    }
}
