package dev.shadowkv.eval.fidelity;

import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.function.ToDoubleFunction;

/** Collects the fidelity of one layer of one cache, step by step and head by head. For one thread at a time. */
final class FidelityReport {
    private record Sample(AttentionFidelity attention, double outputError) {}

    private final int layer;
    private final TreeMap<Integer, List<Sample>> heads = new TreeMap<>();

    FidelityReport(int layer) {
        this.layer = layer;
    }

    /** Adds one step of one query head. */
    void add(int head, AttentionFidelity fidelity, double outputError) {
        heads.computeIfAbsent(head, number -> new ArrayList<>()).add(new Sample(fidelity, outputError));
    }

    /** Means over the steps, head by head. */
    List<HeadFidelity> heads() {
        List<HeadFidelity> all = new ArrayList<>();
        heads.forEach((head, samples) -> all.add(new HeadFidelity(
                layer,
                head,
                mean(samples, sample -> sample.attention.capturedMass()),
                mean(samples, sample -> sample.attention.bestMass()),
                mean(samples, sample -> sample.attention.overlap()),
                mean(samples, Sample::outputError))));
        return all;
    }

    private static double mean(List<Sample> samples, ToDoubleFunction<Sample> number) {
        return samples.stream().mapToDouble(number).average().orElse(Double.NaN);
    }
}
