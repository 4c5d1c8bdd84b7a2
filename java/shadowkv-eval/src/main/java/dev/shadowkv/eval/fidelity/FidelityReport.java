package dev.shadowkv.eval.fidelity;

import dev.shadowkv.eval.TextTable;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;

/**
 * Collects the fidelity of many steps, layer by layer and head by head, so that a user sees where a setting loses
 * attention. For one thread at a time.
 */
public final class FidelityReport {
    private record Place(int layer, int head) implements Comparable<Place> {
        @Override
        public int compareTo(Place other) {
            return layer != other.layer ? Integer.compare(layer, other.layer) : Integer.compare(head, other.head);
        }
    }

    private static final class Samples {
        private final List<AttentionFidelity> attention = new ArrayList<>();
        private final List<Double> errors = new ArrayList<>();
    }

    private final TreeMap<Place, Samples> places = new TreeMap<>();

    public FidelityReport() {}

    /** Adds one step of one query head. */
    public void add(int layer, int head, AttentionFidelity fidelity, double outputError) {
        Samples samples = places.computeIfAbsent(new Place(layer, head), place -> new Samples());
        samples.attention.add(fidelity);
        samples.errors.add(outputError);
    }

    /**
     * Means over the steps of one head.
     *
     * @param capturedMass share of the exact weights that the attended tokens hold
     * @param bestMass the most that as many tokens could hold
     * @param overlap share of the attended tokens that are among those
     * @param outputError length of the difference of the outputs over the length of the exact one
     */
    public record Head(int layer, int head, double capturedMass, double bestMass, double overlap, double outputError) {}

    /** All heads, layer by layer. */
    public List<Head> heads() {
        List<Head> heads = new ArrayList<>();
        places.forEach((place, samples) -> heads.add(new Head(
                place.layer,
                place.head,
                samples.attention.stream().mapToDouble(AttentionFidelity::capturedMass).average().orElse(Double.NaN),
                samples.attention.stream().mapToDouble(AttentionFidelity::bestMass).average().orElse(Double.NaN),
                samples.attention.stream().mapToDouble(AttentionFidelity::overlap).average().orElse(Double.NaN),
                samples.errors.stream().mapToDouble(Double::doubleValue).average().orElse(Double.NaN))));
        return heads;
    }

    /** Captured mass by layer and head, as {@code [layer][head]} mean over the steps; ready for a picture. */
    public double[][] capturedMass() {
        int layers = places.keySet().stream().mapToInt(Place::layer).max().orElse(-1) + 1;
        int heads = places.keySet().stream().mapToInt(Place::head).max().orElse(-1) + 1;
        double[][] means = new double[layers][heads];
        for (double[] row : means) {
            java.util.Arrays.fill(row, Double.NaN);
        }
        places.forEach((place, samples) -> means[place.layer][place.head] = samples.attention.stream()
                .mapToDouble(AttentionFidelity::capturedMass)
                .average()
                .orElse(Double.NaN));
        return means;
    }

    /** A row a layer over all its heads and steps: mass, what was possible, overlap, error. */
    public String table() {
        TextTable table = new TextTable(List.of(
                "layer", "steps", "mass", "worst 5 %", "best possible", "overlap", "output error", "worst 5 %"));
        Map<Integer, List<Samples>> layers = new TreeMap<>();
        places.forEach((place, samples) -> layers.computeIfAbsent(place.layer, layer -> new ArrayList<>()).add(samples));
        layers.forEach((layer, heads) -> {
            List<AttentionFidelity> all = heads.stream().flatMap(samples -> samples.attention.stream()).toList();
            Distribution mass = Distribution.of(all.stream().mapToDouble(AttentionFidelity::capturedMass).toArray());
            Distribution best = Distribution.of(all.stream().mapToDouble(AttentionFidelity::bestMass).toArray());
            Distribution overlap = Distribution.of(all.stream().mapToDouble(AttentionFidelity::overlap).toArray());
            Distribution error = Distribution.of(
                    heads.stream().flatMap(samples -> samples.errors.stream()).mapToDouble(Double::doubleValue).toArray());
            table.add(List.of(
                    Integer.toString(layer),
                    Integer.toString(mass.count()),
                    show(mass.mean()),
                    show(mass.low()),
                    show(best.mean()),
                    show(overlap.mean()),
                    show(error.mean()),
                    show(error.high())));
        });
        return table.toString();
    }

    private static String show(double value) {
        return String.format(Locale.ROOT, "%.4f", value);
    }
}
