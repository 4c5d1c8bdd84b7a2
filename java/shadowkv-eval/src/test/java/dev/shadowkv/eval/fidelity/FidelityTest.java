package dev.shadowkv.eval.fidelity;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.eval.Result;
import dev.shadowkv.eval.ResultStore;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class FidelityTest {
    private static final double EPSILON = 1e-12;

    private static BitSet tokens(int... tokens) {
        BitSet set = new BitSet();
        Arrays.stream(tokens).forEach(set::set);
        return set;
    }

    @Test
    void massAndOverlapByHand() {
        // Weights 1/8, 1/8, 1/2, 1/4.
        float[] logits = {0, 0, (float) Math.log(4), (float) Math.log(2)};
        AttentionFidelity fidelity = AttentionFidelity.of(logits, tokens(1, 2));
        assertThat(fidelity.capturedMass()).isCloseTo(0.625, within(1e-7));
        assertThat(fidelity.bestMass()).isCloseTo(0.75, within(1e-7));
        assertThat(fidelity.overlap()).isEqualTo(0.5);
        assertThat(fidelity.recall()).isCloseTo(0.625 / 0.75, within(1e-7));
        // Of two equal ones the first belongs to the best three.
        assertThat(AttentionFidelity.of(logits, tokens(0, 2, 3)).overlap()).isEqualTo(1);
        assertThat(AttentionFidelity.of(logits, tokens(1, 2, 3)).overlap()).isCloseTo(2.0 / 3, within(EPSILON));
        assertThat(AttentionFidelity.of(logits, tokens(1, 2, 3)).recall()).isCloseTo(1, within(EPSILON));
    }

    @Test
    void noSelectionBeatsTheBest() {
        SplittableRandom random = new SplittableRandom(6);
        for (int round = 0; round < 300; round++) {
            float[] logits = new float[random.nextInt(1, 400)];
            for (int i = 0; i < logits.length; i++) {
                // Large logits: a softmax that does not subtract the largest overflows.
                logits[i] = (float) (1000 + random.nextGaussian() * 5);
            }
            BitSet selected = new BitSet();
            for (int i = 0; i < logits.length; i++) {
                selected.set(i, random.nextDouble() < 0.2);
            }
            selected.set(random.nextInt(logits.length));
            AttentionFidelity fidelity = AttentionFidelity.of(logits, selected);
            assertThat(fidelity.capturedMass()).isBetween(0.0, fidelity.bestMass() + EPSILON);
            assertThat(fidelity.bestMass()).isLessThanOrEqualTo(1 + EPSILON);
            selected.set(0, logits.length);
            assertThat(AttentionFidelity.of(logits, selected).capturedMass()).isCloseTo(1, within(EPSILON));
        }
    }

    @Test
    void outputErrorIsRelative() {
        assertThat(AttentionFidelity.outputError(new float[] {3, 4}, new float[] {3, 3.5f})).isCloseTo(0.1, within(EPSILON));
        assertThat(AttentionFidelity.outputError(new float[] {0, 0}, new float[] {0, 0})).isZero();
        assertThat(AttentionFidelity.outputError(new float[] {0}, new float[] {1})).isInfinite();
        assertThatThrownBy(() -> AttentionFidelity.outputError(new float[1], new float[2]))
                .isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> AttentionFidelity.outputError(new float[1], new float[] {Float.NaN}))
                .isInstanceOf(IllegalArgumentException.class);
    }

    @Test
    void refusesWhatIsNoSelection() {
        assertThatThrownBy(() -> AttentionFidelity.of(new float[3], tokens())).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> AttentionFidelity.of(new float[3], tokens(3))).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> AttentionFidelity.of(new float[] {Float.NaN}, tokens(0)))
                .isInstanceOf(IllegalArgumentException.class);
    }

    @Test
    void agreementCountsTokens() {
        int[] exact = {1, 2, 3, 4, 5, 6, 7};
        int[] other = {1, 2, 9, 4, 5, 9};
        assertThat(Agreement.of(exact, other)).isEqualTo(new Agreement(6, 4, 2));
        assertThat(Agreement.of(exact, other).share()).isCloseTo(4.0 / 6, within(EPSILON));
        assertThat(Agreement.of(exact, exact)).isEqualTo(new Agreement(7, 7, 7));
        assertThat(Agreement.of(exact, new int[0]).share()).isNaN();
        assertThat(Agreement.shares(exact, other, 4)).containsExactly(0.75, 0.5);
        assertThatThrownBy(() -> Agreement.shares(exact, other, 0)).isInstanceOf(IllegalArgumentException.class);
    }

    @Test
    void distributionOfATextbook() {
        Distribution distribution = Distribution.of(5, 1, 4, 2, 3);
        assertThat(distribution.mean()).isEqualTo(3);
        assertThat(distribution.median()).isEqualTo(3);
        assertThat(distribution.least()).isEqualTo(1);
        assertThat(distribution.greatest()).isEqualTo(5);
        assertThat(distribution.low()).isCloseTo(1.2, within(EPSILON));
        assertThat(distribution.high()).isCloseTo(4.8, within(EPSILON));
        assertThat(Distribution.of(7).median()).isEqualTo(7);
        assertThatThrownBy(() -> Distribution.of()).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> Distribution.of(1, Double.NaN)).isInstanceOf(IllegalArgumentException.class);
    }

    private static FidelityReport report(int layer, double... masses) {
        FidelityReport report = new FidelityReport(layer);
        for (double mass : masses) {
            report.add(1, new AttentionFidelity(mass, 0.75, mass / 2), mass / 10);
            report.add(0, new AttentionFidelity(mass / 2, 0.75, mass / 2), mass);
        }
        return report;
    }

    @Test
    void aReportIsTheMeanOverSteps() {
        assertThat(report(3, 0.5, 0.75).heads())
                .containsExactly(
                        new HeadFidelity(3, 0, 0.3125, 0.75, 0.3125, 0.625),
                        new HeadFidelity(3, 1, 0.625, 0.75, 0.3125, 0.0625));
    }

    @Test
    void theSummaryKeepsCachesLayersAndHeadsApart() {
        List<Result> results = new ArrayList<>();
        report(1, 0.5).heads().forEach(head -> results.add(head.result("a", 0, 100, 1)));
        report(1, 0.7).heads().forEach(head -> results.add(head.result("a", 1, 90, 1)));
        report(0, 0.75).heads().forEach(head -> results.add(head.result("a", 0, 100, 1)));
        report(1, 0.25).heads().forEach(head -> results.add(head.result("b", 0, 100, 1)));
        FidelitySummary summary = new FidelitySummary(results);
        assertThat(summary.variants()).containsExactly("a", "b");
        assertThat(summary.capturedMass("a")[1][1]).isCloseTo(0.6, within(EPSILON));
        assertThat(summary.capturedMass("b")[0][0]).isNaN();
        assertThat(summary.capturedMass("b")[1]).containsExactly(0.125, 0.25);
        assertThat(summary.layers().toString().lines().skip(2))
                .containsExactly(
                        "a          0      2  0.5625      0.3750         0.7500   0.3750        0.4125      0.7500",
                        "a          1      2  0.4500      0.3000         0.7500   0.3000        0.3300      0.6000",
                        "b          1      2  0.1875      0.1250         0.7500   0.1250        0.1375      0.2500");
        assertThat(summary.heads().toString().lines().skip(2)).hasSize(6);
    }

    @Test
    void aHeadIsStoredAndRead(@TempDir Path folder) {
        // A sum of all weights that rounds to more than 1 is no refused score.
        HeadFidelity head = new HeadFidelity(2, 5, 1 + EPSILON, 1, 0.25, Double.MIN_NORMAL);
        Path file = folder.resolve("heads.jsonl");
        try (ResultStore store = ResultStore.open(file, Map.of())) {
            store.append(head.result("mine", 1, 4096, 16));
        }
        try (ResultStore store = ResultStore.open(file, Map.of())) {
            assertThat(store.contains("mine", HeadFidelity.origin(2, 5, 1, 4096))).isTrue();
            assertThat(store.contains("mine", HeadFidelity.origin(2, 5, 0, 4096))).isFalse();
            assertThat(HeadFidelity.of(store.results().getFirst()))
                    .isEqualTo(new HeadFidelity(2, 5, 1, 1, 0.25, Double.MIN_NORMAL));
        }
    }

    @Test
    void divergenceOfDistributions() {
        float[] even = {0, 0};
        float[] three = {(float) Math.log(3), 0};
        // 1/2 log((1/2)/(3/4)) + 1/2 log((1/2)/(1/4)), and the other way round.
        assertThat(StepByStep.divergence(even, three)).isCloseTo(0.5 * Math.log(4.0 / 3), within(1e-7));
        assertThat(StepByStep.divergence(three, even))
                .isCloseTo(0.75 * Math.log(1.5) + 0.25 * Math.log(0.5), within(1e-7));
        assertThat(StepByStep.divergence(new float[] {100, 101, 99}, new float[] {0, 1, -1})).isCloseTo(0, within(1e-6));
        assertThat(StepByStep.divergence(even, new float[] {Float.NaN, 0})).isNaN();
        assertThatThrownBy(() -> StepByStep.divergence(even, new float[3])).isInstanceOf(IllegalArgumentException.class);
    }
}
