package dev.shadowkv.eval.fidelity;

import dev.shadowkv.eval.Result;
import dev.shadowkv.eval.TextTable;
import java.util.Arrays;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.ToDoubleFunction;
import java.util.stream.Collectors;

/** The fidelity of caches over prompts, by layer and head, so that one sees where a setting loses attention. */
public final class FidelitySummary {
    private final Map<String, List<HeadFidelity>> variants;

    /** Summarizes stored results of {@link HeadFidelity#result}. */
    public FidelitySummary(Collection<Result> results) {
        variants = results.stream()
                .collect(Collectors.groupingBy(
                        Result::variant, LinkedHashMap::new, Collectors.mapping(HeadFidelity::of, Collectors.toList())));
    }

    /** The caches, in the order of their results. */
    public List<String> variants() {
        return List.copyOf(variants.keySet());
    }

    /** The heads of a cache, layer by layer; means over the prompts. */
    public List<HeadFidelity> heads(String variant) {
        Map<Integer, Map<Integer, List<HeadFidelity>>> places = variants.get(variant).stream()
                .collect(Collectors.groupingBy(
                        HeadFidelity::layer, TreeMap::new, Collectors.groupingBy(HeadFidelity::head, TreeMap::new, Collectors.toList())));
        return places.values().stream()
                .flatMap(layer -> layer.values().stream())
                .map(FidelitySummary::mean)
                .toList();
    }

    private static HeadFidelity mean(List<HeadFidelity> prompts) {
        return new HeadFidelity(
                prompts.getFirst().layer(),
                prompts.getFirst().head(),
                mean(prompts, HeadFidelity::capturedMass),
                mean(prompts, HeadFidelity::bestMass),
                mean(prompts, HeadFidelity::overlap),
                mean(prompts, HeadFidelity::outputError));
    }

    private static double mean(List<HeadFidelity> heads, ToDoubleFunction<HeadFidelity> number) {
        return heads.stream().mapToDouble(number).average().orElse(Double.NaN);
    }

    /** Captured mass of a cache as {@code [layer][head]}, NaN where nothing was measured; ready for a picture. */
    public double[][] capturedMass(String variant) {
        List<HeadFidelity> heads = heads(variant);
        int layerCount = heads.stream().mapToInt(HeadFidelity::layer).max().orElse(-1) + 1;
        int headCount = heads.stream().mapToInt(HeadFidelity::head).max().orElse(-1) + 1;
        double[][] means = new double[layerCount][headCount];
        Arrays.stream(means).forEach(row -> Arrays.fill(row, Double.NaN));
        heads.forEach(head -> means[head.layer()][head.head()] = head.capturedMass());
        return means;
    }

    /** A row a cache and layer: means over its heads, and the worst head. */
    public TextTable layers() {
        TextTable table = new TextTable(List.of(
                "cache", "layer", "heads", "mass", "worst head", "best possible", "overlap", "output error", "worst head"));
        for (String variant : variants()) {
            heads(variant).stream()
                    .collect(Collectors.groupingBy(HeadFidelity::layer, TreeMap::new, Collectors.toList()))
                    .forEach((layer, heads) -> {
                        Distribution mass = distribution(heads, HeadFidelity::capturedMass);
                        Distribution error = distribution(heads, HeadFidelity::outputError);
                        table.add(List.of(
                                variant,
                                Integer.toString(layer),
                                Integer.toString(heads.size()),
                                show(mass.mean()),
                                show(mass.least()),
                                show(mean(heads, HeadFidelity::bestMass)),
                                show(mean(heads, HeadFidelity::overlap)),
                                show(error.mean()),
                                show(error.greatest())));
                    });
        }
        return table;
    }

    /** A row a cache, layer and head. */
    public TextTable heads() {
        TextTable table =
                new TextTable(List.of("cache", "layer", "head", "mass", "best possible", "overlap", "output error"));
        for (String variant : variants()) {
            heads(variant).forEach(head -> table.add(List.of(
                    variant,
                    Integer.toString(head.layer()),
                    Integer.toString(head.head()),
                    show(head.capturedMass()),
                    show(head.bestMass()),
                    show(head.overlap()),
                    show(head.outputError()))));
        }
        return table;
    }

    private static Distribution distribution(List<HeadFidelity> heads, ToDoubleFunction<HeadFidelity> number) {
        return Distribution.of(heads.stream().mapToDouble(number).toArray());
    }

    private static String show(double value) {
        return String.format(Locale.ROOT, "%.4f", value);
    }
}
