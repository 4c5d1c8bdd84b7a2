package dev.shadowkv.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Stream;

import dev.shadowkv.bench.ResultFile.Measured;

/**
 * Makes {@code docs/benchmarks.md} and its charts of the committed results. What was not measured is not mentioned.
 *
 * <pre>java dev.shadowkv.bench.ResultPage bench/results docs/benchmarks.md</pre>
 */
public final class ResultPage {

    private static final String LAYER = "DecodeLayerBenchmark";
    private static final List<String> OPERATIONS = List.of("DecodeBenchmark", "BuildBenchmark", "PrefillBenchmark",
            "MatmulBenchmark", "TransformerBenchmark");
    private static final List<String> SHOWN = List.of("batch", "context", "budget", "tokens", "rows", "valueType",
            "landmarkType", "coefficientType");

    private final StringBuilder text = new StringBuilder();
    private final Path charts;

    private ResultPage(Path page) {
        charts = page.toAbsolutePath().getParent().resolve("benchmarks");
    }

    /** Folder of results, page to write. */
    public static void main(String[] arguments) throws IOException {
        Path results = Path.of(arguments.length > 0 ? arguments[0] : "bench/results");
        Path page = Path.of(arguments.length > 1 ? arguments[1] : "docs/benchmarks.md");
        write(results, page);
        System.out.println(page);
    }

    static void write(Path results, Path page) throws IOException {
        List<Path> files;
        try (Stream<Path> all = Files.list(results)) {
            files = all.filter(file -> file.toString().endsWith(".json")).sorted(Comparator.reverseOrder()).toList();
        }
        ResultPage made = new ResultPage(page);
        made.introduction();
        for (Path file : files) {
            made.section(ResultFile.read(file));
        }
        Files.createDirectories(page.toAbsolutePath().getParent());
        Files.writeString(page, made.text);
    }

    private void introduction() {
        text.append("""
                # Benchmarks

                Made by `dev.shadowkv.bench.ResultPage` of the files in `bench/results`; do not edit. Every figure below was
                measured by JMH; each benchmark first checks its result against arithmetic in double precision.

                The *floor* of an operation is the time that the machine needs at its own measured ceilings for the bytes that
                the operation must read and write, the bytes that must cross the link, or its multiplications, whichever
                takes longest. *Share* is the floor over the measured time. More than 100 % means that the ceiling did not
                apply: the operands lay in a processor's cache, the multiplications were of bf16 while the ceiling is that of
                fp32 (on a CPU), or the machine had other work while it was measured.

                To repeat: build the bundle (`bench/bundle.sh`), then `bin/shadowkv-bench quick`, `cpu-8b` or `gpu-8b`; or in a
                working copy `java -cp ... dev.shadowkv.bench.Bench quick`. JMH's own options work too:
                `bin/shadowkv-bench DecodeLayer -p device=cuda -p context=65536 -prof dev.shadowkv.bench.FloorProfiler`.
                """);
    }

    private void section(ResultFile file) throws IOException {
        Map<String, String> machine = file.machine();
        text.append("\n## ").append(file.set()).append(" on ").append(machine.get("device").equals("cpu")
                ? machine.get("processor") : machine.get("device")).append("\n\n");
        text.append("`").append(machine.get("command")).append("`, ").append(machine.get("date")).append(", commit ")
                .append(machine.get("commit")).append(".\n\n");
        if (!machine.getOrDefault("note", "").isEmpty()) {
            text.append(machine.get("note")).append("\n\n");
        }
        if (!machine.getOrDefault("left", "").isEmpty()) {
            text.append("Left out for want of time: ").append(machine.get("left")).append(".\n\n");
        }
        text.append("| | |\n|---|---|\n");
        for (String key : List.of("device", "processor", "processors", "threads", "instructionSet", "memory", "driver", "system",
                "java", "library", "blas", "loadAverageBefore", "loadAverageAfter")) {
            if (!machine.getOrDefault(key, "").isEmpty()) {
                text.append("| ").append(key).append(" | ").append(machine.get(key).replace("\n", "; ")).append(" |\n");
            }
        }
        ceiling(file, "copyBandwidth", "copy within the memory, read and written", 1e9, "GB/s");
        ceiling(file, "readBandwidth", "reading", 1e9, "GB/s");
        ceiling(file, "linkBandwidth", "link to the device", 1e9, "GB/s");
        ceiling(file, "matrixRate", "matrix product, " + machine.get("matrixType"), 1e12, "TFLOP/s");
        layers(file);
        javaShare(file);
        operations(file);
    }

    private void ceiling(ResultFile file, String key, String name, double unit, String suffix) {
        double value = file.ceilings().getOrDefault(key, 0.0);
        if (value > 0) {
            text.append(String.format(Locale.ROOT, "| ceiling: %s | %.4g %s |%n", name, value / unit, suffix));
        }
    }

    /** Dense against shadow: pairs of results with the same batch and context. */
    private void layers(ResultFile file) throws IOException {
        List<Measured> all = file.of(LAYER);
        if (all.isEmpty()) {
            return;
        }
        text.append("\n### One decode layer, exact against ShadowKV\n\n");
        text.append("| batch | context | budget | values | landmarks | called | resident | exact us | shadow us | faster | share of floor |\n");
        text.append("|---:|---:|---:|---|---|---|---:|---:|---:|---:|---:|\n");
        List<String> labels = new ArrayList<>();
        List<Double> gains = new ArrayList<>();
        List<Measured> shadows = all.stream().filter(result -> result.operation().startsWith("shadow"))
                .sorted(Comparator.comparingInt((Measured one) -> Integer.parseInt(one.parameter("batch")))
                        .thenComparingInt(one -> Integer.parseInt(one.parameter("context")))).toList();
        for (Measured shadow : shadows) {
            Optional<Measured> dense = all.stream().filter(one -> one.operation().equals(shadow.operation().replace("shadow", "dense"))
                    && one.parameter("batch").equals(shadow.parameter("batch"))
                    && one.parameter("context").equals(shadow.parameter("context"))).findFirst();
            double gain = dense.map(one -> one.microseconds() / shadow.microseconds()).orElse(Double.NaN);
            text.append(String.format(Locale.ROOT, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |%n",
                    shadow.parameter("batch"), shadow.parameter("context"), shadow.parameter("budget"),
                    stored(shadow, "valueType"), joined(stored(shadow, "landmarkType"), coefficients(shadow)),
                    shadow.operation().endsWith("Graph") ? "by graph" : "layer by layer", percent(shadow.get("resident")),
                    dense.map(ResultPage::time).orElse(""), time(shadow), Double.isNaN(gain) ? "" : String.format(Locale.ROOT, "%.2fx", gain),
                    percent(shadow.get(FloorProfiler.SHARE))));
            if (!Double.isNaN(gain)) {
                labels.add(label(shadow, all.getFirst()));
                gains.add(gain);
            }
        }
        text.append("\nResident is the share of the selected chunks whose values were on the device already; the queries' drift\n"
                + "was set to reach it. Where it is empty, values are read where they are.\n");
        if (labels.size() > 1) {
            chart(file, "speedup", "times faster than exact attention",
                    path -> ResultCharts.bars("Decode layer: ShadowKV against exact attention", "times faster", labels, gains, path));
        }
        overContext(file, all);
        bandwidths(file, all);
    }

    private void overContext(ResultFile file, List<Measured> all) throws IOException {
        // By graph where that was measured; of each line every context once.
        boolean graphs = all.stream().anyMatch(one -> one.operation().endsWith("Graph") && !one.parameter("context").equals(
                all.getFirst().parameter("context")));
        String budget = all.getFirst().parameter("budget");
        Map<String, TreeMap<Double, Double>> points = new LinkedHashMap<>();
        for (Measured one : all) {
            if (one.operation().endsWith("Graph") == graphs && one.parameter("budget").equals(budget)) {
                String name = (one.operation().startsWith("dense") ? "exact" : "ShadowKV") + types(one) + ", batch " + one.parameter("batch");
                points.computeIfAbsent(name, key -> new TreeMap<>())
                        .putIfAbsent(Double.parseDouble(one.parameter("context")) / 1000, one.microseconds());
            }
        }
        Map<String, double[][]> series = new LinkedHashMap<>();
        points.forEach((name, line) -> {
            if (line.size() > 1) {
                series.put(name, new double[][] {line.keySet().stream().mapToDouble(x -> x).toArray(),
                    line.values().stream().mapToDouble(y -> y).toArray()});
            }
        });
        if (!series.isEmpty()) {
            chart(file, "context", "time of a decode layer against context",
                    path -> ResultCharts.lines("Time of a decode layer", "microseconds", series, path));
        }
    }

    /** How much of the memory's and of the link's bandwidth the layers use, for machines that have a link. */
    private void bandwidths(ResultFile file, List<Measured> all) throws IOException {
        double memory = file.ceilings().getOrDefault("readBandwidth", 0.0);
        double link = file.ceilings().getOrDefault("linkBandwidth", 0.0);
        if (memory <= 0 || link <= 0) {
            return;
        }
        List<String> labels = new ArrayList<>();
        List<Double> ofMemory = new ArrayList<>();
        List<Double> ofLink = new ArrayList<>();
        for (Measured one : all) {
            String label = (one.operation().startsWith("dense") ? "exact " : "") + label(one, all.getFirst());
            if (!labels.contains(label) && !Double.isNaN(one.get(FloorProfiler.BYTES))) {
                labels.add(label);
                double seconds = one.microseconds() * 1e-6;
                ofMemory.add(100 * one.get(FloorProfiler.BYTES) / seconds / memory);
                ofLink.add(100 * one.more().getOrDefault(FloorProfiler.LINK_BYTES, 0.0) / seconds / link);
            }
        }
        if (labels.size() > 1) {
            Map<String, List<Double>> bars = new LinkedHashMap<>();
            bars.put("memory of the device", ofMemory);
            bars.put("link to the host", ofLink);
            chart(file, "bandwidth", "share of the bandwidths that decode layers use",
                    path -> ResultCharts.bars("Decode layer: share of the bandwidth", "% of the ceiling", labels, bars, path));
        }
    }

    private void javaShare(ResultFile file) {
        List<Measured> all = file.of("JavaShareBenchmark");
        if (all.isEmpty()) {
            return;
        }
        text.append("\n### Java's share of a layer's call\n\nOn the smallest of shapes: the call through the cache, the native call"
                + " alone with the same parameters, and the difference; medians.\n\n");
        text.append("| cache | batch | call us | native us | Java us |\n|---|---:|---:|---:|---:|\n");
        for (Measured one : all) {
            text.append(String.format(Locale.ROOT, "| %s | %s | %.2f | %.2f | %.2f |%n", one.parameter("kind"), one.parameter("batch"),
                    one.get(FloorProfiler.CALL), one.get(FloorProfiler.NATIVE), one.get(FloorProfiler.JAVA)));
        }
    }

    private void operations(ResultFile file) throws IOException {
        List<String> labels = new ArrayList<>();
        List<Double> shares = new ArrayList<>();
        boolean any = false;
        for (String group : OPERATIONS) {
            for (Measured one : file.of(group)) {
                if (!any) {
                    text.append("\n### Operations\n\n| operation | parameters | time us | MB | link MB | GB/s | GFLOP/s | floor us | share |\n");
                    text.append("|---|---|---:|---:|---:|---:|---:|---:|---:|\n");
                    any = true;
                }
                text.append(String.format(Locale.ROOT, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |%n", one.operation(),
                        parameters(one), time(one), number(one.get(FloorProfiler.BYTES) / 1e6),
                        number(one.get(FloorProfiler.LINK_BYTES) / 1e6), number(one.get(FloorProfiler.BANDWIDTH)),
                        number(one.get(FloorProfiler.RATE)), number(one.get(FloorProfiler.FLOOR)),
                        percent(one.get(FloorProfiler.SHARE))));
                String label = one.operation() + types(one)
                        + (one.parameter("rows").isEmpty() ? "" : " " + one.parameter("rows"));
                if (!labels.contains(label)) {
                    labels.add(label);
                    shares.add(100 * one.get(FloorProfiler.SHARE));
                }
            }
        }
        if (labels.size() > 1) {
            chart(file, "floor", "share of the floor by operation",
                    path -> ResultCharts.bars("Share of the floor", "% of the floor", labels, shares, path));
        }
    }

    private interface Drawing {
        void draw(Path file) throws IOException;
    }

    private void chart(ResultFile file, String kind, String description, Drawing drawing) throws IOException {
        String name = file.name() + "-" + kind + ".png";
        drawing.draw(charts.resolve(name));
        text.append("\n![").append(description).append("](benchmarks/").append(name).append(")\n");
    }

    /** What tells a layer from others; the budget where it is not that of the first. */
    private static String label(Measured one, Measured first) {
        Set<String> parts = new LinkedHashSet<>();
        parts.add("batch " + one.parameter("batch"));
        parts.add(Integer.parseInt(one.parameter("context")) / 1000 + "K");
        parts.add(one.parameter("budget").equals(first.parameter("budget")) ? "" : "budget " + one.parameter("budget"));
        parts.add(stored(one, "valueType"));
        parts.add(coefficients(one));
        if (!Double.isNaN(one.get("resident"))) {
            parts.add(percent(one.get("resident")));
        }
        if (one.operation().endsWith("Graph")) {
            parts.add("graph");
        }
        parts.remove("");
        return String.join(" ", parts);
    }

    private static String parameters(Measured one) {
        List<String> parts = new ArrayList<>();
        for (String key : SHOWN) {
            String value = one.parameter(key);
            if (!value.isEmpty() && !value.equals("default") && !(key.equals("batch") && value.equals("1"))) {
                parts.add(key + " " + value);
            }
        }
        return String.join(", ", parts);
    }

    /**
     * Of values, landmarks and coefficients where they are not as everything else is stored: " fp8/i8", " fp12",
     * " landmarks i8", " fp8/i8, coefficients i8".
     */
    static String types(String valueType, String landmarkType, String coefficientType) {
        String values = shortName(valueType);
        String landmarks = shortName(landmarkType);
        String coefficients = shortName(coefficientType);
        String first = values.isEmpty() ? landmarks.isEmpty() ? "" : " landmarks " + landmarks
                : " " + values + (landmarks.isEmpty() ? "" : "/" + landmarks);
        return first + (coefficients.isEmpty() ? "" : ", coefficients " + coefficients);
    }

    private static String shortName(String type) {
        return switch (type) {
            // What was measured before there was a choice lacks the parameter.
            case "default", "" -> "";
            case "F8_E4M3" -> "fp8";
            case "F12_E4M7" -> "fp12";
            case "F6_E2M3" -> "fp6";
            default -> type.toLowerCase(Locale.ROOT);
        };
    }

    private static String types(Measured one) {
        return types(one.parameter("valueType"), one.parameter("landmarkType"), one.parameter("coefficientType"));
    }

    /** Of the coefficients, where they are not as everything else is stored. */
    private static String coefficients(Measured one) {
        String type = stored(one, "coefficientType");
        return type.isEmpty() ? "" : "coefficients " + type;
    }

    private static String joined(String first, String second) {
        return first.isEmpty() || second.isEmpty() ? first + second : first + ", " + second;
    }

    private static String stored(Measured one, String key) {
        return one.parameter(key).equals("default") ? "" : one.parameter(key);
    }

    private static String time(Measured one) {
        return number(one.microseconds()) + (Double.isNaN(one.error()) ? "" : " ± " + number(one.error()));
    }

    private static String percent(double share) {
        return Double.isNaN(share) ? "" : String.format(Locale.ROOT, "%.0f %%", 100 * share);
    }

    private static String number(double value) {
        if (Double.isNaN(value)) {
            return "";
        }
        return value >= 100 ? String.format(Locale.ROOT, "%.0f", value) : value >= 1 ? String.format(Locale.ROOT, "%.1f", value)
                : String.format(Locale.ROOT, "%.3f", value);
    }
}
