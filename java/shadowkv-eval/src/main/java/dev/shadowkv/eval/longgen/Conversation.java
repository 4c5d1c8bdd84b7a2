package dev.shadowkv.eval.longgen;

import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.Transformer;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.List;

/**
 * One session that is asked in turn: a context is read and sealed, then each question is appended to all that was said
 * before and answered greedily. For one thread at a time.
 */
public final class Conversation implements AutoCloseable {
    private final Transformer transformer;
    private final KvCache cache;
    private final KvSession session;
    private final KvBatch batch;
    /** The end of the last answer, which no step has read yet. */
    private int[] unread = new int[0];

    /**
     * Reads the context.
     *
     * @param capacity tokens of the context with all questions and answers
     */
    public Conversation(Model model, CacheOptions options, int[] context, long capacity) {
        KvCache made = options.build(
                model.device(), model.config(), MemoryPlan.of(1, capacity).withStaging(capacity, 1), capacity);
        cache = made;
        Transformer own = null;
        try {
            own = new Transformer(model, 1);
            transformer = own;
            session = made.open(capacity);
            transformer.prefill(
                    session, context, context.length - 1, (first, rows, logits) -> {}, (done, total) -> {});
            batch = made.batch(List.of(session));
        } catch (RuntimeException e) {
            if (own != null) {
                own.close();
            }
            made.close();
            throw e;
        }
    }

    /** Tokens read so far. */
    public long length() {
        return session.length();
    }

    /** What the steps of the answers selected and fetched so far. */
    public KvBatch.Statistics statistics() {
        return batch.statistics();
    }

    /** Asks a question; the answer has exactly {@code newTokens} tokens. */
    public int[] ask(int[] question, int newTokens) {
        int[] read = Arrays.copyOf(unread, unread.length + question.length);
        System.arraycopy(question, 0, read, unread.length, question.length);
        int[] answer = new int[newTokens];
        transformer.prefill(
                session, read, read.length - 1, (first, rows, logits) -> answer[0] = largest(logits), (done, total) -> {});
        int[] next = {answer[0]};
        for (int i = 1; i < newTokens; i++) {
            transformer.decode(batch, next, 1);
            transformer.largest(next, 1);
            if (next[0] < 0) {
                throw new ArithmeticException("a logit is not a number");
            }
            answer[i] = next[0];
        }
        unread = new int[] {answer[newTokens - 1]};
        return answer;
    }

    private static int largest(MemorySegment logits) {
        int best = 0;
        for (int i = 1; i < logits.byteSize() / Float.BYTES; i++) {
            best = logits.getAtIndex(ValueLayout.JAVA_FLOAT, i) > logits.getAtIndex(ValueLayout.JAVA_FLOAT, best) ? i : best;
        }
        return best;
    }

    /** Frees the cache, not the model; does nothing the second time. */
    @Override
    public void close() {
        transformer.close();
        cache.close();
    }
}
