package dev.shadowkv.eval;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/**
 * A suite whose prompts are made and encoded by other threads while the model answers earlier ones. Encoding a prompt of
 * 32768 tokens takes longer than a small model on a GPU takes to read it. Closing it ends the threads.
 *
 * <p>For one thread at a time.
 */
public final class PromptsAhead implements Suite, AutoCloseable {
    private record Encoded(Prompt prompt, int[] ids) {}

    private final Suite suite;
    private final PromptEncoder encoder;
    private final List<Case> cases;
    private final Map<Case, Integer> places = new HashMap<>();
    private final int ahead;
    private final ExecutorService threads;
    private final Map<Case, Future<Encoded>> made = new HashMap<>();

    /**
     * Begins nothing yet.
     *
     * @param cases those that will be asked for, in this order; others are made when they are asked for
     * @param ahead prompts that may lie ready
     * @param threads that make them
     */
    public PromptsAhead(Suite suite, PromptEncoder encoder, List<Case> cases, int ahead, int threads) {
        this.suite = Objects.requireNonNull(suite, "suite");
        this.encoder = Objects.requireNonNull(encoder, "encoder");
        this.cases = List.copyOf(cases);
        for (int i = 0; i < this.cases.size(); i++) {
            places.put(this.cases.get(i), i);
        }
        this.ahead = ahead;
        this.threads = Executors.newFixedThreadPool(
                threads, Thread.ofPlatform().daemon().name("prompts-", 0).factory());
    }

    @Override
    public String name() {
        return suite.name();
    }

    @Override
    public List<Case> cases() {
        return suite.cases();
    }

    @Override
    public double score(Prompt prompt, String answer) {
        return suite.score(prompt, answer);
    }

    @Override
    public Prompt prompt(Case origin) {
        return get(origin).prompt();
    }

    /** The tokens of a prompt; it may be asked for again, but is then made again. */
    public int[] take(Case origin) {
        Encoded encoded = get(origin);
        made.remove(origin);
        return encoded.ids();
    }

    private Encoded get(Case origin) {
        int place = places.getOrDefault(origin, cases.size());
        begin(origin);
        for (int next = place + 1; next < cases.size() && made.size() <= ahead; next++) {
            begin(cases.get(next));
        }
        try {
            return made.get(origin).get();
        } catch (ExecutionException e) {
            made.remove(origin);
            if (e.getCause() instanceof RuntimeException cause) {
                throw cause;
            }
            throw new CompletionException(e.getCause());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new EvaluationException("interrupted while a prompt was made", e);
        }
    }

    private void begin(Case origin) {
        made.computeIfAbsent(origin, missing -> threads.submit(() -> {
            Prompt prompt = suite.prompt(missing);
            return new Encoded(prompt, encoder.encode(prompt));
        }));
    }

    /** Ends the threads; prompts that are being made are waited for. */
    @Override
    public void close() {
        threads.shutdownNow();
        threads.close();
    }
}
