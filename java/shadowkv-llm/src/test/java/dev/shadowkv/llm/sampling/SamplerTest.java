package dev.shadowkv.llm.sampling;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.Comparator;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class SamplerTest {
    private static float[] logits(int count, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        float[] logits = new float[count];
        for (int i = 0; i < count; i++) {
            // Rounded, so that some are equal.
            logits[i] = Math.round(random.nextDouble(-4, 4) * 8) / 8f;
        }
        return logits;
    }

    /** Probabilities after temperature, top-k and top-p, by sorting boxed ids: no code shared with the sampler. */
    private static double[] expected(float[] logits, double temperature, int topK, double topP) {
        Integer[] order = IntStream.range(0, logits.length).boxed().toArray(Integer[]::new);
        Arrays.sort(order, Comparator.comparingDouble((Integer id) -> -logits[id]).thenComparing(id -> id));
        int kept = topK == 0 ? logits.length : Math.min(topK, logits.length);
        double[] weights = new double[kept];
        for (int i = 0; i < kept; i++) {
            weights[i] = Math.exp(logits[order[i]] / temperature);
        }
        double total = Arrays.stream(weights).sum();
        double[] probabilities = new double[logits.length];
        double sum = 0;
        for (int i = 0; i < kept; i++) {
            probabilities[order[i]] = weights[i] / total;
            sum += weights[i] / total;
            if (topP < 1 && sum >= topP) {
                break;
            }
        }
        for (int i = 0; i < probabilities.length; i++) {
            probabilities[i] /= sum;
        }
        return probabilities;
    }

    @ParameterizedTest
    @CsvSource({"1.0,0,1.0", "0.7,0,1.0", "1.0,7,1.0", "1.5,0,0.8", "0.9,12,0.7", "1.0,0,0.05", "2.0,1000,0.999", "1.0,36,0.9"})
    void drawsByTheProbabilities(double temperature, int topK, double topP) {
        float[] logits = logits(37, 11);
        double[] expected = expected(logits, temperature, topK, topP);
        Sampler sampler = new Sampler(new SamplingOptions(temperature, topK, topP, 3));
        int draws = 40_000;
        int[] counts = new int[logits.length];
        for (int i = 0; i < draws; i++) {
            counts[sampler.sample(logits)]++;
        }
        for (int id = 0; id < logits.length; id++) {
            double deviation = Math.sqrt(expected[id] * (1 - expected[id]) / draws);
            assertThat(counts[id] / (double) draws).as("token " + id).isCloseTo(expected[id], within(5 * deviation));
        }
    }

    @Test
    void greedyTakesTheFirstOfTheLargest() {
        Sampler sampler = new Sampler(SamplingOptions.greedy());
        assertThat(sampler.sample(new float[] {-3, 2, 5, 5, Float.NEGATIVE_INFINITY})).isEqualTo(2);
        assertThat(sampler.sample(new float[] {-0.0f, 0.0f})).isZero();
        assertThat(new Sampler(new SamplingOptions(0.8, 1, 1, 9)).sample(new float[] {1, 3, 2})).isEqualTo(1);
        float[] row = logits(50_001, 4);
        row[41_234] = 9;
        assertThat(sampler.sample(MemorySegment.ofArray(row))).isEqualTo(41_234);
    }

    @Test
    void theSeedDecidesAlone() {
        SamplingOptions options = new SamplingOptions(1, 0, 0.95, 77);
        Sampler first = new Sampler(options);
        Sampler second = new Sampler(options);
        Sampler other = new Sampler(new SamplingOptions(1, 0, 0.95, 78));
        int differences = 0;
        for (int step = 0; step < 200; step++) {
            float[] logits = logits(100 + step, step);
            int token = first.sample(logits);
            assertThat(second.sample(MemorySegment.ofArray(logits))).isEqualTo(token);
            differences += other.sample(logits) == token ? 0 : 1;
        }
        assertThat(differences).isGreaterThan(100);
    }

    @Test
    void maskedTokensAreNeverDrawn() {
        float[] logits = {Float.NEGATIVE_INFINITY, 0, Float.NEGATIVE_INFINITY, 0, Float.NEGATIVE_INFINITY};
        for (SamplingOptions options : new SamplingOptions[] {
            new SamplingOptions(1, 0, 1, 1), new SamplingOptions(1, 4, 1, 1), new SamplingOptions(1, 0, 0.99, 1)
        }) {
            Sampler sampler = new Sampler(options);
            for (int i = 0; i < 500; i++) {
                assertThat(sampler.sample(logits)).isIn(1, 3);
            }
        }
    }

    @Test
    void refusesWhatIsNoDistribution() {
        Sampler sampler = new Sampler(SamplingOptions.greedy());
        assertThatThrownBy(() -> sampler.sample(new float[] {1, Float.NaN}))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("the logit of token 1 is NaN");
        assertThatThrownBy(() -> sampler.sample(new float[] {Float.POSITIVE_INFINITY})).hasMessageContaining("Infinity");
        assertThatThrownBy(() -> sampler.sample(new float[] {Float.NEGATIVE_INFINITY}))
                .hasMessageContaining("negative infinity");
        assertThatThrownBy(() -> sampler.sample(new float[0])).hasMessageContaining("no logits");
        assertThatThrownBy(() -> sampler.sample(MemorySegment.ofArray(new byte[6]))).hasMessageContaining("6 bytes");
        assertThatThrownBy(() -> new SamplingOptions(-1, 0, 1, 0)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new SamplingOptions(Double.NaN, 0, 1, 0)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new SamplingOptions(1, -1, 1, 0)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new SamplingOptions(1, 0, 0, 0)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> new SamplingOptions(1, 0, 1.1, 0)).isInstanceOf(IllegalArgumentException.class);
    }
}
