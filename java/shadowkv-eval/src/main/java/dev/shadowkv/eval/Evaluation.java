package dev.shadowkv.eval;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * Puts the same prompts to several caches. Every prompt is made once and answered by each variant before the next
 * batch, so a run that is stopped early has comparable results for all of them.
 */
public final class Evaluation {
    /** Told about progress after every result. */
    @FunctionalInterface
    public interface Listener {
        /**
         * A result is there.
         *
         * @param result the newest one
         * @param done results there, also those of an earlier run
         * @param total results that there will be
         */
        void onResult(Result result, int done, int total);
    }

    private final Suite suite;
    private final Map<String, Answerer> variants;
    private final int batch;

    /**
     * Prepares an evaluation.
     *
     * @param variants what answers, by the name that results carry; run in the map's order
     * @param batch prompts that an answerer gets at once
     */
    public Evaluation(Suite suite, Map<String, Answerer> variants, int batch) {
        this.suite = Objects.requireNonNull(suite, "suite");
        this.variants = new LinkedHashMap<>(variants);
        this.batch = batch;
        if (variants.isEmpty() || batch <= 0) {
            throw new IllegalArgumentException("an evaluation needs a variant and a batch of at least 1");
        }
    }

    /**
     * Runs every case that has no result yet. Stops at the first exception; the results so far are stored, and the
     * next run goes on after them. Stops between two batches when the thread is interrupted.
     *
     * @return true when every case has a result of every variant
     */
    public boolean run(ResultStore store, Listener listener) {
        List<Case> cases = suite.cases();
        int total = cases.size() * variants.size();
        int done = 0;
        for (Case origin : cases) {
            for (String variant : variants.keySet()) {
                done += store.contains(variant, origin) ? 1 : 0;
            }
        }
        for (int first = 0; first < cases.size(); first += batch) {
            List<Case> group = cases.subList(first, Math.min(first + batch, cases.size()));
            Map<Case, Prompt> prompts = new LinkedHashMap<>();
            for (Map.Entry<String, Answerer> variant : variants.entrySet()) {
                List<Prompt> missing = new ArrayList<>();
                for (Case origin : group) {
                    if (!store.contains(variant.getKey(), origin)) {
                        missing.add(prompts.computeIfAbsent(origin, suite::prompt));
                    }
                }
                if (missing.isEmpty()) {
                    continue;
                }
                if (Thread.interrupted()) {
                    return false;
                }
                List<Answer> answers = variant.getValue().answerAll(missing);
                if (answers.size() != missing.size()) {
                    throw new IllegalStateException(
                            variant.getKey() + " gave " + answers.size() + " answers to " + missing.size() + " prompts");
                }
                List<Result> results = new ArrayList<>();
                for (int i = 0; i < missing.size(); i++) {
                    double score = suite.score(missing.get(i), answers.get(i).text());
                    results.add(new Result(variant.getKey(), missing.get(i), answers.get(i), score));
                }
                store.append(results);
                for (Result result : results) {
                    listener.onResult(result, ++done, total);
                }
            }
        }
        return true;
    }
}
