package dev.shadowkv.llm.sampling;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;
import java.util.SplittableRandom;

/**
 * Chooses tokens from logits. One sampler serves one request: its draws depend on its seed and on how many it has made,
 * not on other requests of the batch. Equal logits are ordered by token id. For one thread at a time; sampling
 * allocates nothing after the first call.
 *
 * <p>Order of the steps: temperature, top-k, top-p, draw; probabilities in double precision.
 */
public final class Sampler {
    private static final ValueLayout.OfFloat FLOAT = ValueLayout.JAVA_FLOAT_UNALIGNED;

    private final SamplingOptions options;
    private final SplittableRandom random;
    private float[] logits = new float[0];
    private double[] probabilities = new double[0];
    /** Logit and id of a candidate in one number, so that sorting needs no objects. */
    private long[] candidates = new long[0];

    public Sampler(SamplingOptions options) {
        this.options = Objects.requireNonNull(options, "options");
        random = new SplittableRandom(options.seed());
    }

    /**
     * Chooses a token.
     *
     * @param logits one f32 a token of the vocabulary
     * @throws IllegalArgumentException when there is no logit, or one is NaN or positive infinity, or all are negative
     *     infinity; the message names the token
     */
    public int sample(MemorySegment logits) {
        long count = logits.byteSize() / Float.BYTES;
        if (logits.byteSize() % Float.BYTES != 0 || count > Integer.MAX_VALUE) {
            throw new IllegalArgumentException(logits.byteSize() + " bytes are no row of f32 logits");
        }
        reserve((int) count);
        MemorySegment.copy(logits, FLOAT, 0, this.logits, 0, (int) count);
        return choose((int) count);
    }

    /** As {@link #sample(MemorySegment)}. */
    public int sample(float[] logits) {
        reserve(logits.length);
        System.arraycopy(logits, 0, this.logits, 0, logits.length);
        return choose(logits.length);
    }

    private void reserve(int count) {
        if (logits.length < count) {
            logits = new float[count];
            probabilities = new double[count];
            candidates = new long[count];
        }
    }

    private int choose(int count) {
        int best = largest(count);
        if (options.temperature() == 0 || options.topK() == 1) {
            return best;
        }
        boolean all = (options.topK() == 0 || options.topK() >= count) && options.topP() == 1;
        int kept = all ? everyCandidate(count) : filter(count, logits[best]);
        double total = 0;
        for (int i = 0; i < kept; i++) {
            probabilities[i] = weight(logits[id(candidates[i])], logits[best]);
            total += probabilities[i];
        }
        double left = random.nextDouble() * total;
        int last = 0;
        for (int i = 0; i < kept; i++) {
            if (probabilities[i] > 0) {
                last = i;
                left -= probabilities[i];
                if (left < 0) {
                    break;
                }
            }
        }
        return id(candidates[last]);
    }

    private int largest(int count) {
        if (count == 0) {
            throw new IllegalArgumentException("there are no logits to sample from");
        }
        int best = 0;
        for (int i = 0; i < count; i++) {
            if (Float.isNaN(logits[i]) || logits[i] == Float.POSITIVE_INFINITY) {
                throw new IllegalArgumentException("the logit of token " + i + " is " + logits[i]);
            }
            if (logits[i] > logits[best]) {
                best = i;
            }
        }
        if (logits[best] == Float.NEGATIVE_INFINITY) {
            throw new IllegalArgumentException("all " + count + " logits are negative infinity");
        }
        return best;
    }

    private double weight(float logit, float largest) {
        return Math.exp(((double) logit - largest) / options.temperature());
    }

    private int everyCandidate(int count) {
        for (int i = 0; i < count; i++) {
            candidates[i] = i;
        }
        return count;
    }

    /** Leaves the kept candidates at the front, largest logit first. */
    private int filter(int count, float largest) {
        boolean limited = options.topK() > 0 && options.topK() < count;
        int kept = limited ? largestCandidates(count) : likelyCandidates(count, largest);
        Arrays.sort(candidates, 0, kept);
        for (int i = 0, j = kept - 1; i < j; i++, j--) {
            long swap = candidates[i];
            candidates[i] = candidates[j];
            candidates[j] = swap;
        }
        double total = 0;
        for (int i = 0; i < kept; i++) {
            candidates[i] = Integer.MAX_VALUE - (int) candidates[i];
            total += weight(logits[id(candidates[i])], largest);
        }
        double wanted = options.topP() * (limited ? total : totalWeight(count, largest));
        double reached = 0;
        for (int i = 0; i < kept && options.topP() < 1; i++) {
            reached += weight(logits[id(candidates[i])], largest);
            if (reached >= wanted) {
                return i + 1;
            }
        }
        return kept;
    }

    private double totalWeight(int count, float largest) {
        double total = 0;
        for (int i = 0; i < count; i++) {
            total += weight(logits[i], largest);
        }
        return total;
    }

    /** All tokens that top-p can need: those below the floor sum to less than what top-p leaves out. */
    private int likelyCandidates(int count, float largest) {
        double floor = count == 1 ? 0 : (1 - options.topP()) / (count - 1) * totalWeight(count, largest);
        int kept = 0;
        for (int i = 0; i < count; i++) {
            if (weight(logits[i], largest) >= floor) {
                candidates[kept++] = candidate(i);
            }
        }
        return kept;
    }

    /** The top-k tokens, by a heap whose root is the smallest of those kept so far. */
    private int largestCandidates(int count) {
        int size = options.topK();
        for (int i = 0; i < size; i++) {
            candidates[i] = candidate(i);
        }
        for (int i = size / 2 - 1; i >= 0; i--) {
            sink(i, size);
        }
        for (int i = size; i < count; i++) {
            if (candidate(i) > candidates[0]) {
                candidates[0] = candidate(i);
                sink(0, size);
            }
        }
        return size;
    }

    private void sink(int start, int size) {
        int at = start;
        while (2 * at + 1 < size) {
            int child = 2 * at + 1;
            if (child + 1 < size && candidates[child + 1] < candidates[child]) {
                child++;
            }
            if (candidates[at] <= candidates[child]) {
                return;
            }
            long swap = candidates[at];
            candidates[at] = candidates[child];
            candidates[child] = swap;
            at = child;
        }
    }

    private long candidate(int id) {
        return (long) sortable(logits[id]) << Integer.SIZE | (Integer.MAX_VALUE - id);
    }

    private static int id(long candidate) {
        return (int) candidate;
    }

    /** An integer that orders as the float does; -0 and 0 are one. */
    private static int sortable(float value) {
        int bits = Float.floatToIntBits(value + 0.0f);
        return bits ^ (bits >> (Integer.SIZE - 1) & Integer.MAX_VALUE);
    }
}
