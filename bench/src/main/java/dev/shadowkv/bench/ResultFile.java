package dev.shadowkv.bench;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;

/** What a run of {@link Bench} left. */
record ResultFile(String name, String set, Map<String, String> machine, Map<String, Double> ceilings, List<Measured> results) {

    /**
     * One benchmark with its parameters.
     *
     * @param benchmark such as {@code DecodeBenchmark.landmarkTopK}
     * @param microseconds of one operation
     * @param error half of the 99.9 % confidence interval, NaN where there are too few iterations
     * @param more what the profiler added
     */
    record Measured(String benchmark, Map<String, String> parameters, double microseconds, double error,
                    Map<String, Double> more) {

        String operation() {
            return benchmark.substring(benchmark.indexOf('.') + 1);
        }

        String group() {
            return benchmark.substring(0, benchmark.indexOf('.'));
        }

        double get(String key) {
            return more.getOrDefault(key, Double.NaN);
        }

        String parameter(String key) {
            return parameters.getOrDefault(key, "");
        }
    }

    static ResultFile read(Path file) throws IOException {
        JsonNode root = new ObjectMapper().readTree(file.toFile());
        Map<String, String> machine = new LinkedHashMap<>();
        root.path("machine").properties().forEach(entry -> machine.put(entry.getKey(), entry.getValue().asText()));
        Map<String, Double> ceilings = new LinkedHashMap<>();
        root.path("ceilings").properties().forEach(entry -> {
            if (entry.getValue().isNumber()) {
                ceilings.put(entry.getKey(), entry.getValue().asDouble());
            }
        });
        machine.put("matrixType", root.path("ceilings").path("matrixType").asText());
        List<Measured> results = new ArrayList<>();
        for (JsonNode one : root.path("results")) {
            if (!one.path("primaryMetric").path("scoreUnit").asText().equals("us/op")) {
                throw new IOException(file + " has a result in " + one.path("primaryMetric").path("scoreUnit"));
            }
            Map<String, String> parameters = new LinkedHashMap<>();
            one.path("params").properties().forEach(entry -> parameters.put(entry.getKey(), entry.getValue().asText()));
            Map<String, Double> more = new LinkedHashMap<>();
            one.path("secondaryMetrics").properties()
                    .forEach(entry -> more.put(entry.getKey(), entry.getValue().path("score").asDouble(Double.NaN)));
            results.add(new Measured(one.path("benchmark").asText().replace("dev.shadowkv.bench.", ""), parameters,
                    one.path("primaryMetric").path("score").asDouble(Double.NaN),
                    one.path("primaryMetric").path("scoreError").asDouble(Double.NaN), more));
        }
        String name = file.getFileName().toString().replaceFirst("\\.json$", "");
        return new ResultFile(name, root.path("set").asText(), machine, ceilings, results);
    }

    List<Measured> of(String group) {
        return results.stream().filter(result -> result.group().equals(group)).toList();
    }
}
