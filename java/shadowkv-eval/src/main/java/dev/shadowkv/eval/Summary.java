package dev.shadowkv.eval;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.internal.json.Json;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeSet;
import java.util.function.Function;

/** Scores of an evaluation by variant, task and length. Scores are shown times 100, as is usual. */
public final class Summary {
    /** What is averaged over. */
    public record Group(String variant, String task, int length) {}

    private final List<Result> results;
    private final List<String> variants;
    private final List<String> tasks;
    private final List<Integer> lengths;

    /** Summarizes results, usually {@link ResultStore#results}. */
    public Summary(Collection<Result> results) {
        this.results = List.copyOf(results);
        variants = this.results.stream().map(Result::variant).distinct().toList();
        tasks = this.results.stream()
                .map(result -> result.prompt().origin().task())
                .distinct()
                .toList();
        lengths = new ArrayList<>(new TreeSet<>(this.results.stream()
                .map(result -> result.prompt().origin().length())
                .toList()));
    }

    /** Scores of every group that has results. */
    public Map<Group, Statistics> scores() {
        return statistics(Result::score);
    }

    /** Any number of every group, such as a measurement of the answers. */
    public Map<Group, Statistics> statistics(Function<Result, Double> number) {
        Map<Group, List<Double>> values = new LinkedHashMap<>();
        for (Result result : results) {
            Case origin = result.prompt().origin();
            values.computeIfAbsent(
                            new Group(result.variant(), origin.task(), origin.length()), group -> new ArrayList<>())
                    .add(number.apply(result));
        }
        Map<Group, Statistics> statistics = new LinkedHashMap<>();
        values.forEach((group, numbers) -> statistics.put(group, Statistics.of(numbers)));
        return statistics;
    }

    /**
     * By how much a variant's scores differ from a baseline's on the same prompts. The error of these differences is
     * much smaller than that of the scores, since both variants meet the same easy and hard prompts.
     *
     * @return by task and length, the variant's name in the groups; only cases that both have answered count
     */
    public Map<Group, Statistics> differences(String baseline, String variant) {
        Map<Case, Double> base = new HashMap<>();
        results.stream()
                .filter(result -> result.variant().equals(baseline))
                .forEach(result -> base.put(result.prompt().origin(), result.score()));
        Map<Group, List<Double>> values = new LinkedHashMap<>();
        for (Result result : results) {
            Case origin = result.prompt().origin();
            if (result.variant().equals(variant) && base.containsKey(origin)) {
                values.computeIfAbsent(new Group(variant, origin.task(), origin.length()), group -> new ArrayList<>())
                        .add(result.score() - base.get(origin));
            }
        }
        Map<Group, Statistics> differences = new LinkedHashMap<>();
        values.forEach((group, numbers) -> differences.put(group, Statistics.of(numbers)));
        return differences;
    }

    public List<String> variants() {
        return variants;
    }

    public List<String> tasks() {
        return tasks;
    }

    public List<Integer> lengths() {
        return List.copyOf(lengths);
    }

    /**
     * A table for a terminal: a row a task and length, a column a variant with mean and standard error, and beside
     * every variant but the first its paired difference from the first.
     */
    public String table() {
        Map<Group, Statistics> scores = scores();
        String baseline = variants.isEmpty() ? "" : variants.getFirst();
        List<String> header = new ArrayList<>(List.of("task", "length", "prompts"));
        for (String variant : variants) {
            header.add(variant);
            if (!variant.equals(baseline)) {
                header.add("difference");
            }
        }
        TextTable table = new TextTable(header);
        for (String task : tasks) {
            for (int length : lengths) {
                List<String> row = new ArrayList<>(List.of(task, length == 0 ? "-" : Integer.toString(length)));
                int prompts = 0;
                List<String> cells = new ArrayList<>();
                for (String variant : variants) {
                    Group group = new Group(variant, task, length);
                    Statistics score = scores.get(group);
                    prompts = Math.max(prompts, score == null ? 0 : score.count());
                    cells.add(show(score, false));
                    if (!variant.equals(baseline)) {
                        cells.add(show(differences(baseline, variant).get(group), true));
                    }
                }
                if (prompts > 0) {
                    row.add(Integer.toString(prompts));
                    row.addAll(cells);
                    table.add(row);
                }
            }
        }
        return table.toString();
    }

    /**
     * The same as the table for machines: an array of objects with variant, task, length, prompts, mean,
     * standardError, and, of all variants but the first, difference and differenceError; scores from 0 to 1.
     */
    public String json() {
        ArrayNode array = Json.array();
        Map<Group, Statistics> scores = scores();
        for (Map.Entry<Group, Statistics> entry : scores.entrySet()) {
            Group group = entry.getKey();
            ObjectNode object = array.addObject();
            object.put("variant", group.variant());
            object.put("task", group.task());
            object.put("length", group.length());
            object.put("prompts", entry.getValue().count());
            object.put("mean", entry.getValue().mean());
            putNumber(object, "standardError", entry.getValue().standardError());
            if (!group.variant().equals(variants.getFirst())) {
                Statistics difference = differences(variants.getFirst(), group.variant()).get(group);
                putNumber(object, "difference", difference == null ? Double.NaN : difference.mean());
                putNumber(object, "differenceError", difference == null ? Double.NaN : difference.standardError());
            }
        }
        return array.toString();
    }

    /** JSON knows no NaN. */
    private static void putNumber(ObjectNode object, String name, double value) {
        if (!Double.isNaN(value)) {
            object.put(name, value);
        }
    }

    private static String show(Statistics statistics, boolean signed) {
        if (statistics == null || statistics.count() == 0) {
            return "-";
        }
        String mean = String.format(Locale.ROOT, signed ? "%+.1f" : "%.1f", 100 * statistics.mean());
        return Double.isNaN(statistics.standardError())
                ? mean
                : mean + String.format(Locale.ROOT, " ± %.1f", 100 * statistics.standardError());
    }
}
