package dev.shadowkv.bench;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Pattern;

import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.results.format.ResultFormatFactory;
import org.openjdk.jmh.results.format.ResultFormatType;
import org.openjdk.jmh.runner.BenchmarkList;
import org.openjdk.jmh.runner.BenchmarkListEntry;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.format.OutputFormat;
import org.openjdk.jmh.runner.format.OutputFormatFactory;
import org.openjdk.jmh.runner.options.Options;
import org.openjdk.jmh.runner.options.VerboseMode;

import dev.shadowkv.Device;

/**
 * Runs a named set of benchmarks and writes its results with a description of the machine. Anything else than a set's
 * name is handed to JMH's own command line.
 */
public final class Bench {

    private static final String USAGE = """
            usage: shadowkv-bench <set> [--out FILE] [--only PATTERN] [--seconds N] [--note TEXT]
                                  [-p NAME=VALUE[,VALUE]]...
                   shadowkv-bench <options of JMH>

            sets: quick    every operation and a decode layer on the CPU, small
                  cpu-8b   one layer of an 8B Llama, 122880 tokens, on the CPU
                  gpu-8b   the same on a GPU, 8 sessions

            The file is written after every benchmark, so that one that is cut off has what was measured until then; after N
            seconds no further benchmark is begun.
            """;

    private String name;
    private Path out;
    private String only;
    private String note = "";
    private long seconds = Long.MAX_VALUE;
    private final List<String> parameters = new ArrayList<>();

    private Bench() {
    }

    /** The command line. */
    public static void main(String[] arguments) throws IOException, RunnerException {
        if (arguments.length == 0 || arguments[0].equals("--help")) {
            System.out.print(USAGE);
            return;
        }
        Optional<Profile> profile = Profile.all().stream().filter(one -> one.name().equals(arguments[0])).findFirst();
        if (profile.isEmpty()) {
            org.openjdk.jmh.Main.main(arguments);
            return;
        }
        Bench bench = new Bench();
        try {
            bench.parse(arguments);
        } catch (IllegalArgumentException e) {
            System.err.println("shadowkv-bench: " + e.getMessage());
            System.err.print(USAGE);
            System.exit(2);
        }
        System.exit(bench.run(profile.get()));
    }

    private void parse(String[] arguments) {
        name = arguments[0];
        for (int i = 1; i < arguments.length; i++) {
            String option = arguments[i];
            if (i + 1 == arguments.length) {
                throw new IllegalArgumentException(option + " needs a value, or is unknown");
            }
            String value = arguments[++i];
            switch (option) {
                case "--out" -> out = Path.of(value);
                case "--only" -> only = value;
                case "--note" -> note = value;
                case "--seconds" -> seconds = Long.parseLong(value);
                case "-p" -> parameters.add(value);
                default -> throw new IllegalArgumentException("unknown option " + option);
            }
        }
        if (out == null) {
            out = Path.of(name + "-" + LocalDate.now() + ".json");
        }
    }

    private int run(Profile profile) throws IOException, RunnerException {
        long start = System.nanoTime();
        int threads = parameters.stream().filter(p -> p.startsWith("threads=")).findFirst()
                .map(p -> Integer.parseInt(p.substring(8))).orElse(0);
        Map<String, String> machine;
        Ceilings ceilings;
        try (Device device = profile.device().equals("cpu") ? Device.cpu(threads) : Device.cuda(0)) {
            machine = Machine.describe(device, threads);
            ceilings = Ceilings.measure(device, threads);
        }
        System.setProperty(Ceilings.PROPERTY, ceilings.text());
        System.out.println(machine);
        System.out.println(ceilings);
        machine.put("command", "shadowkv-bench " + name + (parameters.isEmpty() ? "" : " -p " + String.join(" -p ", parameters)));
        machine.put("note", note);
        List<RunResult> results = new ArrayList<>();
        List<String> left = new ArrayList<>();
        int failed = 0;
        for (Profile.Run run : profile.runs()) {
            // One at a time, so that one that fails takes no results of others with it.
            for (BenchmarkListEntry entry : find(run)) {
                if (only != null && !Pattern.compile(only).matcher(entry.getUsername()).find()) {
                    continue;
                }
                if ((System.nanoTime() - start) / 1_000_000_000 >= seconds) {
                    left.add(entry.getUsername().replace("dev.shadowkv.bench.", "") + " " + String.join(" ", run.parameters()));
                    continue;
                }
                long begun = System.nanoTime();
                Options options = profile.options(run, ceilings, parameters)
                        .include("^" + Pattern.quote(entry.getUsername()) + "$").build();
                int missing = combinations(entry, options);
                try {
                    for (RunResult result : new Runner(options).run()) {
                        results.add(result);
                        missing--;
                        System.out.println(line(result));
                    }
                } catch (RuntimeException e) {
                    System.out.println(entry.getUsername() + " failed: " + e);
                }
                if (missing > 0) {
                    System.out.println(missing + " of " + entry.getUsername() + " failed; the reason is above");
                }
                failed += missing;
                System.out.printf("  in %.1f s%n", (System.nanoTime() - begun) / 1e9);
                machine.put("loadAverageAfter", Machine.loadAverage());
                write(machine, ceilings, results);
            }
        }
        if (!left.isEmpty()) {
            System.out.println("not begun within " + seconds + " s: " + String.join("; ", left));
            machine.put("left", String.join("; ", left));
        }
        write(machine, ceilings, results);
        System.out.printf("%d results in %s, %d benchmarks failed, %.0f s%n", results.size(), out, failed,
                (System.nanoTime() - start) / 1e9);
        return failed == 0 ? 0 : 1;
    }

    private static Collection<BenchmarkListEntry> find(Profile.Run run) {
        OutputFormat silent = OutputFormatFactory.createFormatInstance(new PrintStream(OutputStream.nullOutputStream()),
                VerboseMode.SILENT);
        Collection<BenchmarkListEntry> found = BenchmarkList.defaultList().find(silent,
                List.of("dev.shadowkv.bench." + run.include()), List.of());
        if (found.isEmpty()) {
            throw new IllegalStateException("no benchmark matches " + run.include());
        }
        return found;
    }

    /** How many results a benchmark should have; one that fails has none. */
    private static int combinations(BenchmarkListEntry entry, Options options) {
        int count = 1;
        for (Map.Entry<String, String[]> parameter : entry.getParams().orElse(Map.of()).entrySet()) {
            count *= options.getParameter(parameter.getKey()).orElse(List.of(parameter.getValue())).size();
        }
        return count;
    }

    private static String line(RunResult result) {
        StringBuilder text = new StringBuilder(String.format("%-46s %12.2f us", label(result), result.getPrimaryResult().getScore()));
        result.getSecondaryResults().forEach((key, value) -> {
            if (key.equals(FloorProfiler.SHARE) || key.equals(FloorProfiler.BANDWIDTH) || key.equals(FloorProfiler.RATE)
                    || key.equals("resident") || key.equals("overlap") || key.equals(FloorProfiler.JAVA)) {
                text.append(String.format("  %s %.3g", key, value.getScore()));
            }
        });
        return text.toString();
    }

    private static String label(RunResult result) {
        StringBuilder text = new StringBuilder(result.getParams().getBenchmark().replace("dev.shadowkv.bench.", ""));
        for (String key : List.of("batch", "context", "kind", "rows", "resident", "valueType")) {
            String value = result.getParams().getParamsKeys().contains(key) ? result.getParams().getParam(key) : "default";
            if (!value.equals("default")) {
                text.append(' ').append(key).append('=').append(value);
            }
        }
        return text.toString();
    }

    private void write(Map<String, String> machine, Ceilings ceilings, List<RunResult> results) throws IOException {
        ByteArrayOutputStream jmh = new ByteArrayOutputStream();
        ResultFormatFactory.getInstance(ResultFormatType.JSON, new PrintStream(jmh, true, StandardCharsets.UTF_8))
                .writeOut(results);
        StringBuilder text = new StringBuilder("{\n\"set\": ").append(quote(name)).append(",\n\"machine\": {\n");
        List<String> lines = new ArrayList<>();
        machine.forEach((key, value) -> lines.add("  " + quote(key) + ": " + quote(value)));
        text.append(String.join(",\n", lines)).append("\n},\n\"ceilings\": {\n");
        text.append("  \"copyBandwidth\": ").append(ceilings.copyBandwidth());
        text.append(",\n  \"readBandwidth\": ").append(ceilings.readBandwidth());
        text.append(",\n  \"linkBandwidth\": ").append(ceilings.linkBandwidth());
        text.append(",\n  \"matrixRate\": ").append(ceilings.matrixRate());
        text.append(",\n  \"matrixType\": ").append(quote(ceilings.matrixType().toString()));
        text.append("\n},\n\"results\": ").append(withoutPaths(jmh.toString(StandardCharsets.UTF_8))).append("\n}\n");
        if (out.toAbsolutePath().getParent() != null) {
            Files.createDirectories(out.toAbsolutePath().getParent());
        }
        Files.writeString(out, text);
    }

    /** Where the Java runtime and the classes lay says nothing about the results. */
    private static String withoutPaths(String results) {
        return results.strip().replaceAll("\"jvm\" : \"[^\"]*\",\\s*", "").replaceAll("\"jvmArgs\" : \\[[^]]*],\\s*", "");
    }

    private static String quote(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            switch (c) {
                case '"' -> quoted.append("\\\"");
                case '\\' -> quoted.append("\\\\");
                case '\n' -> quoted.append("\\n");
                default -> {
                    if (c >= ' ') {
                        quoted.append(c);
                    }
                }
            }
        }
        return quoted.append('"').toString();
    }
}
