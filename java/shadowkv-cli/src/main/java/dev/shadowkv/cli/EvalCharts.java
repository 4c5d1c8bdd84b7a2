package dev.shadowkv.cli;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Charts;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Result;
import dev.shadowkv.eval.Statistics;
import dev.shadowkv.eval.Summary;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SortedMap;
import java.util.TreeMap;

/** The charts of an evaluation's results. */
final class EvalCharts {
    private EvalCharts() {}

    /**
     * Draws what the results have to show: a heat map a variant where there are depths, scores against the length where
     * there are several, and against budget or rank where variants differ in that alone.
     *
     * @return the files
     */
    static List<Path> draw(Collection<Result> results, List<Variant> variants, Path folder) {
        try {
            Files.createDirectories(folder);
        } catch (IOException e) {
            throw new EvaluationException(folder + ": cannot be made: " + e.getMessage(), e);
        }
        List<Path> drawn = new ArrayList<>();
        try {
            if (results.stream().anyMatch(result -> result.prompt().origin().depth() != Case.NO_DEPTH)) {
                for (Variant variant : variants) {
                    Path file = folder.resolve("depths-" + variant.name() + ".png");
                    Charts.heatMap(results, variant.name(), "Needle in a haystack: " + variant.name(), file);
                    drawn.add(file);
                }
            }
            Map<Summary.Group, Statistics> scores = new Summary(results).scores();
            lengths(scores, folder, drawn);
            settings(scores, variants, "budget", "budget (tokens)", Variant::budgetAxis, folder, drawn);
            settings(scores, variants, "rank", "rank", Variant::rankAxis, folder, drawn);
        } catch (LinkageError e) {
            throw new EvaluationException("charts need the JDK's module java.desktop: " + e.getMessage(), e);
        }
        return drawn;
    }

    private static void lengths(Map<Summary.Group, Statistics> scores, Path folder, List<Path> drawn) {
        Map<String, Map<String, SortedMap<Double, Statistics>>> byTask = new LinkedHashMap<>();
        scores.forEach((group, score) -> byTask.computeIfAbsent(group.task(), task -> new LinkedHashMap<>())
                .computeIfAbsent(group.variant(), variant -> new TreeMap<>())
                .put((double) group.length(), score));
        byTask.forEach((task, lines) -> {
            if (lines.values().iterator().next().size() > 1) {
                Path file = folder.resolve("length-" + task + ".png");
                Charts.accuracy(task, "context (tokens)", lines, file);
                drawn.add(file);
            }
        });
    }

    /** What a variant has on the axis of a setting, and what is left of it without that setting. */
    record Axis(String rest, double value) {}

    private static void settings(
            Map<Summary.Group, Statistics> scores,
            List<Variant> variants,
            String name,
            String title,
            java.util.function.BiFunction<Variant, Integer, Axis> axis,
            Path folder,
            List<Path> drawn) {
        Map<String, Map<String, SortedMap<Double, Statistics>>> charts = new LinkedHashMap<>();
        for (Variant variant : variants) {
            scores.forEach((group, score) -> {
                if (!group.variant().equals(variant.name()) || !variant.isShadow()) {
                    return;
                }
                Axis place = axis.apply(variant, group.length());
                charts.computeIfAbsent(place.rest() + " " + group.length(), rest -> new LinkedHashMap<>())
                        .computeIfAbsent(group.task(), task -> new TreeMap<>())
                        .put(place.value(), score);
            });
        }
        int number = 0;
        for (Map.Entry<String, Map<String, SortedMap<Double, Statistics>>> chart : charts.entrySet()) {
            if (chart.getValue().values().iterator().next().size() > 1) {
                String length = chart.getKey().substring(chart.getKey().lastIndexOf(' ') + 1);
                Path file = folder.resolve(name + "-" + length + (number == 0 ? "" : "-" + number) + ".png");
                if (drawn.contains(file)) {
                    file = folder.resolve(name + "-" + length + "-" + ++number + ".png");
                }
                Charts.accuracy("Score against " + name + ", context " + length, title, chart.getValue(), file);
                drawn.add(file);
            }
        }
    }
}
