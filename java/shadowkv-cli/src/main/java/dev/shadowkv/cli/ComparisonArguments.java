package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.eval.ResultStore;
import dev.shadowkv.eval.Summary;
import dev.shadowkv.llm.CacheOptions;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import picocli.CommandLine.Option;

/** Which caches are compared, and where the results go. */
final class ComparisonArguments {
    /** Caches that have a name, as variants. */
    private static final Map<String, String> NAMED = Map.of(
            "dense", "exact=dense",
            "shadow", "shadow=shadow,budget=length/64",
            "paper", "paper=shadow,budget=length/64,radius-weight=0,rerank=0,tail=off,balance=off");

    @Option(
            names = "--cache",
            paramLabel = "NAME",
            split = ",",
            description = "Caches to compare by name, the first as the baseline: dense, shadow, paper (the selection of the paper); the "
                    + "latter two with a budget of length/64. Default: dense,shadow.")
    private List<String> named;

    @Option(
            names = "--variant",
            paramLabel = "NAME=KIND[,SETTING=VALUE...]",
            description = "In place of --cache: a cache to compare; the first is the baseline. Settings are the options of a shadow "
                    + "cache without their dashes, such as rank=160 or rerank=0; those that take no value are on or off; "
                    + "budget may also be length/N.")
    private List<String> variants;

    @Option(
            names = "--out",
            paramLabel = "F.jsonl",
            required = true,
            description = "File for the results; what it has already is not computed again.")
    private Path out;

    @Option(
            names = "--charts",
            paramLabel = "DIR",
            description = "Folder for charts of whatever the results have to show: depths, lengths, budgets, ranks, or "
                    + "numbers over time.")
    private Path charts;

    List<Variant> variants() {
        return texts().stream().map(Variant::parse).toList();
    }

    private List<String> texts() {
        if (variants != null && named != null) {
            throw new IllegalArgumentException("--cache and --variant exclude each other");
        }
        return variants != null ? variants
                : (named != null ? named : List.of("dense", "shadow")).stream().map(ComparisonArguments::variant).toList();
    }

    private static String variant(String name) {
        String variant = NAMED.get(name);
        if (variant == null) {
            throw new IllegalArgumentException("--cache is " + name + "; it is dense, shadow or paper, others are given by --variant");
        }
        return variant;
    }

    /** The caches by name for prompts of a length. */
    Map<String, CacheOptions> caches(int length) {
        Map<String, CacheOptions> caches = new LinkedHashMap<>();
        variants().forEach(variant -> caches.put(variant.name(), variant.options(length)));
        return caches;
    }

    Optional<Path> charts() {
        return Optional.ofNullable(charts);
    }

    /**
     * Opens the file of results.
     *
     * @param settings what decides about them beside the variants
     */
    ResultStore open(Map<String, String> settings) {
        return ResultStore.open(out, withVariants(settings));
    }

    private Map<String, String> withVariants(Map<String, String> settings) {
        Map<String, String> all = new LinkedHashMap<>(settings);
        all.put("variants", String.join(" ", texts()));
        return all;
    }

    /** Prints scores and what they are of. */
    void print(ReportArguments report, Map<String, String> settings, ResultStore store) {
        Summary summary = new Summary(store.results());
        report.print(summary::table, () -> {
            ObjectNode node = Output.object();
            withVariants(settings).forEach(node::put);
            node.set("scores", Output.tree(summary.json()));
            return node;
        });
    }
}
