package dev.shadowkv.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.stream.Stream;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;

/**
 * Makes a page and a chart of the files that {@code shadowkv bench throughput --out} wrote, in a folder and those within.
 *
 * <pre>java dev.shadowkv.bench.ThroughputPage bench/results/h200/throughput docs/throughput-results.md</pre>
 */
public final class ThroughputPage {

    private static final double GIBI = 1024.0 * 1024 * 1024;
    private static final int USUAL_RANK = 160;

    private ThroughputPage() {
    }

    /** Folder of results, page to write. */
    public static void main(String[] arguments) throws IOException {
        write(Path.of(arguments[0]), Path.of(arguments[1]));
        System.out.println(arguments[1]);
    }

    static void write(Path results, Path page) throws IOException {
        List<JsonNode> all = new ArrayList<>();
        try (Stream<Path> files = Files.walk(results)) {
            for (Path file : files.filter(name -> name.toString().endsWith(".json")).sorted().toList()) {
                all.add(new ObjectMapper().readTree(file.toFile()));
            }
        }
        all.sort(Comparator.comparing((JsonNode one) -> one.path("shape").asText()).thenComparing(one -> one.path("context").asLong())
                .thenComparing(one -> one.path("measuredLayers").asInt()).thenComparing(one -> one.path("shadow").toString()));
        StringBuilder text = new StringBuilder("""
                # Throughput measured

                Made by `dev.shadowkv.bench.ThroughputPage` of `bench/results`; do not edit. What is measured, and how, is in
                [throughput.md](throughput.md). *Fit* is the number of sessions that the memory limit of the GPU holds, *run* the
                number that was measured: fewer where the host's memory is too small for the values of all. *Limit* is what exact
                attention could give at most in unlimited memory.
                """);
        List<JsonNode> decode = all.stream().filter(one -> one.path("caches").findValue("tokensPerSecond") != null
                && one.path("caches").findValue("prefillSeconds") == null).toList();
        List<JsonNode> largest = decode.stream().filter(one -> !one.has("wantedBatch")).toList();
        if (!largest.isEmpty()) {
            text.append("\n## Decode\n");
            steps(text, largest, page.toAbsolutePath().getParent().resolve("benchmarks/throughput.png"));
        }
        List<JsonNode> given = decode.stream().filter(one -> one.has("wantedBatch")).toList();
        if (!given.isEmpty()) {
            text.append("\n## Decode with a given number of sessions\n");
            steps(text, given, null);
        }
        List<JsonNode> prompts = all.stream().filter(one -> one.path("caches").findValue("prefillSeconds") != null).toList();
        if (!prompts.isEmpty()) {
            prompts(text, prompts);
        }
        Files.createDirectories(page.toAbsolutePath().getParent());
        Files.writeString(page, text);
    }

    /** A table, and a chart unless that is null. */
    private static void steps(StringBuilder text, List<JsonNode> all, Path chart) throws IOException {
        text.append("\n| shape | context | layers | cache | fit | run | device GiB | host GiB | resident | ms a step | tokens/s"
                + " | over dense | over limit | HBM GB/s | link GB/s | device, commit, date |\n"
                + "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n");
        // Exact attention is measured once beside several types of shadow and is in the files of all.
        Set<JsonNode> written = new HashSet<>();
        List<String> labels = new ArrayList<>();
        List<Double> gains = new ArrayList<>();
        for (JsonNode one : all) {
            JsonNode caches = one.path("caches");
            double dense = caches.path("dense").path("tokensPerSecond").asDouble(Double.NaN);
            double limit = caches.path("dense").path("exactLimitTokensPerSecond").asDouble(Double.NaN);
            for (String cache : List.of("dense", "shadow")) {
                JsonNode r = caches.path(cache);
                if (!r.has("tokensPerSecond") || cache.equals("dense") && !written.add(r)) {
                    continue;
                }
                boolean shadow = cache.equals("shadow");
                double speed = r.path("tokensPerSecond").asDouble();
                text.append(String.format(Locale.ROOT,
                        "| %s | %d | %s | %s | %d | %d | %.1f | %.1f | %s | %.2f | %.1f | %s | %s | %.0f | %.1f | %s |%n",
                        one.path("shape").asText(), one.path("context").asLong(), layers(one),
                        shadow ? name(one.path("shadow")) : "dense", r.path("planned").path("sessions").asInt(),
                        r.path("run").path("sessions").asInt(), r.path("deviceBytes").asDouble() / GIBI,
                        r.path("hostBytes").asDouble() / GIBI, number("%.2f", r.path("resident").asDouble(Double.NaN)),
                        r.path("stepMilliseconds").asDouble(), speed, shadow ? number("%.2f", speed / dense) : "",
                        number("%.2f", speed / limit), r.path("deviceGigabytesPerSecond").asDouble(),
                        r.path("linkGigabytesPerSecond").asDouble(), origin(one)));
                if (shadow && !Double.isNaN(dense)) {
                    JsonNode types = one.path("shadow");
                    labels.add(one.path("shape").asText() + " " + one.path("context").asLong() / 1024 + "K " + types.path("valueType").asText()
                            + "/" + types.path("landmarkType").asText() + coefficients(types)
                            + (types.path("rerank").asDouble() > 1 ? " rerank" : "") + ", "
                            + r.path("run").path("sessions").asInt() + " sessions" + (layers(one).contains("of") ? " (" + layers(one) + ")" : ""));
                    gains.add(speed / dense);
                }
            }
        }
        if (labels.size() > 1 && chart != null) {
            Files.createDirectories(chart.getParent());
            ResultCharts.bars("Tokens a second within the memory limit (values/landmarks)", "times dense", labels, gains, chart);
            text.append("\n![tokens a second of shadow over dense](benchmarks/throughput.png)\n");
        }
    }

    private static void prompts(StringBuilder text, List<JsonNode> all) {
        text.append("\n## Prompts\n\n| shape | context | layers | values | dense s | shadow s | of which sealing s | shadow over dense |"
                + " device, commit, date |\n|---|---:|---:|---|---:|---:|---:|---:|---|\n");
        for (JsonNode one : all) {
            JsonNode dense = one.path("caches").path("dense");
            JsonNode shadow = one.path("caches").path("shadow");
            text.append(String.format(Locale.ROOT, "| %s | %d | %s | %s | %s | %s | %s | %s | %s |%n", one.path("shape").asText(),
                    one.path("context").asLong(), layers(one), one.path("shadow").path("valueType").asText() + coefficients(one.path("shadow")),
                    number("%.3f", dense.path("prefillSeconds").asDouble(Double.NaN)),
                    number("%.3f", shadow.path("prefillSeconds").asDouble(Double.NaN)),
                    number("%.3f", shadow.path("sealSeconds").asDouble(Double.NaN)),
                    number("%.3f", one.path("shadowOverDense").asDouble(Double.NaN)), origin(one)));
        }
    }

    /** What was measured of what the model has. */
    private static String layers(JsonNode one) {
        int measured = one.path("measuredLayers").asInt();
        int model = one.path("modelLayers").asInt();
        return measured == model ? Integer.toString(model) : measured + " of " + model;
    }

    private static String name(JsonNode shadow) {
        double rerank = shadow.path("rerank").asDouble();
        return "shadow, values " + shadow.path("valueType").asText() + ", landmarks " + shadow.path("landmarkType").asText()
                + coefficients(shadow)
                + (rerank > 1 ? String.format(Locale.ROOT, ", rerank %.3g", rerank) : ", no rerank");
    }

    /** Where they are of 8 bits, not as everything else is stored, and of another rank; older files say nothing of them. */
    private static String coefficients(JsonNode shadow) {
        String type = shadow.path("coefficientType").asText();
        int rank = shadow.path("rank").asInt(USUAL_RANK);
        return (type.equals("i8") ? ", coefficients " + type : "") + (rank == USUAL_RANK ? "" : ", rank " + rank);
    }

    private static String origin(JsonNode one) {
        return one.path("device").asText() + ", " + one.path("commit").asText("unknown") + ", " + one.path("date").asText();
    }

    private static String number(String format, double value) {
        return Double.isNaN(value) ? "" : String.format(Locale.ROOT, format, value);
    }
}
