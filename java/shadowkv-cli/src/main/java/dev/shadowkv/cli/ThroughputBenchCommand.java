package dev.shadowkv.cli;

import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.llm.AdmissionException;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.throughput.ModelShapes;
import dev.shadowkv.llm.throughput.SessionCount;
import dev.shadowkv.llm.throughput.ThroughputBenchmark;
import dev.shadowkv.llm.throughput.ThroughputSettings;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.concurrent.Callable;
import java.util.function.BiFunction;
import java.util.function.Consumer;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code shadowkv bench throughput}. */
@Command(
        name = "throughput",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = {
            "Tokens a second of a model within a memory limit, exact and with ShadowKV.",
            "",
            "Weights of the real shape and contexts are random and made on the device, so no checkpoint is needed. The "
                    + "largest batch that fits next to the weights is filled and decodes; queries drift such that the "
                    + "wanted share of chunks is found on the device."
        })
final class ThroughputBenchCommand implements Callable<Integer> {
    private static final int FEW_STEPS_CPU = 16;
    private static final int FOLD_STEPS = 64;

    @Option(
            names = "--shape",
            paramLabel = "NAME",
            defaultValue = "llama-3.1-8b",
            description = "llama-3.1-8b, llama-3-8b-1m, glm-4-9b-1m, yi-9b-200k, phi-3-mini-128k, qwen2-7b-128k, or "
                    + "needle-32k, which is small. Default: ${DEFAULT-VALUE}.")
    private String shape;

    @Option(
            names = "--context",
            paramLabel = "TOKENS",
            defaultValue = "122k",
            split = ",",
            description = "Tokens of each session; k and m are binary. Several are measured one after the other. Default: "
                    + "${DEFAULT-VALUE}.")
    private List<String> contexts;

    @Option(
            names = "--gpu-memory-limit",
            paramLabel = "BYTES",
            description = "Device memory for weights, sessions and everything else, as 80g (binary). Default: what is free.")
    private String deviceLimit;

    @Option(
            names = "--host-memory-limit",
            paramLabel = "BYTES",
            description = "Pinned host memory for values, as 120g (binary). Default: three quarters of what is free.")
    private String hostLimit;

    @Option(
            names = "--cache",
            paramLabel = "CACHE",
            split = ",",
            defaultValue = "dense,shadow",
            description = "dense, shadow. Default: ${DEFAULT-VALUE}.")
    private List<CacheKind> caches;

    @Option(
            names = "--resident",
            paramLabel = "SHARE",
            defaultValue = "0.6",
            description = "Share of the selected chunks that a step shall find on the device. Default: ${DEFAULT-VALUE}.")
    private double resident;

    @Option(
            names = "--layers",
            paramLabel = "N",
            description = "Measure fewer layers, with the batch of the whole model as far as memory allows. Figures are "
                    + "of these layers and are not scaled. Default: all.")
    private Integer layers;

    @Option(names = "--batch", paramLabel = "N|max", defaultValue = "max", description = "Sessions. Default: the most that fit.")
    private String batch;

    @Option(
            names = "--steps",
            paramLabel = "N",
            description = "Steps that are timed. Default: 64, which is how often the recent window is folded; 16 on a CPU.")
    private Integer steps;

    @Option(
            names = "--slots",
            paramLabel = "N",
            description = "Chunks whose values are kept on the device, for each key-value head. Default: as many as a step "
                    + "selects; 0 on a CPU.")
    private Integer slots;

    @Option(names = "--seed", paramLabel = "N", defaultValue = "1", description = "Seed. Default: ${DEFAULT-VALUE}.")
    private long seed;

    @Option(names = "--plan-only", description = "Only tell how many sessions fit; makes nothing.")
    private boolean planOnly;

    @Option(names = "--prefill", description = "Time the computation of one prompt as long as the context instead of steps.")
    private boolean prefill;

    @Option(
            names = "--types",
            paramLabel = "VALUES/LANDMARKS[/COEFFICIENTS]",
            split = ",",
            description = "Several combinations of value type, landmark type and coefficient type, as bf16/bf16,f12/bf16,f6/i8/i8: "
                    + "exact attention is measured once beside all. Default: --value-type, --landmark-type and "
                    + "--coefficient-type.")
    private List<String> types = List.of();

    @Option(
            names = "--out",
            paramLabel = "FOLDER",
            description = "Write a JSON file for each context and combination of types, as "
                    + "<shape>-<context>-<values>-<landmarks>.json, or ...-<landmarks>-<coefficients>.json where coefficients are "
                    + "not as stored.")
    private Path out;

    @Option(names = "--json", description = "Print JSON.")
    private boolean json;

    @Mixin
    private CacheArguments cacheArguments;

    @Mixin
    private DeviceArguments deviceArguments;

    @Spec
    private CommandSpec spec;

    /** One line of a table: exact attention beside a shadow cache of some types. */
    private record Cell(ThroughputSettings settings, String context, CacheArguments arguments) {
        CacheOptions options(CacheKind kind) {
            return arguments.options(kind);
        }
    }

    @Override
    public Integer call() throws IOException {
        if (caches.contains(CacheKind.AUTO)) {
            throw new IllegalArgumentException("--cache auto measures nothing of its own: give dense, shadow or both");
        }
        ModelConfig config = ModelShapes.of(shape);
        if (out != null) {
            Files.createDirectories(out);
        }
        try (Device device = deviceArguments.open()) {
            List<Cell> cells = cells(device, config);
            if (planOnly) {
                for (Cell cell : cells) {
                    write(device, cell, report -> report.plans(plans(device, cell)));
                }
            } else if (prefill) {
                measure(device, cells, ThroughputBenchmark::prompt, ThroughputReport::prompts);
            } else {
                measure(device, cells, ThroughputBenchmark::run, ThroughputReport::results);
            }
        }
        return 0;
    }

    private List<Cell> cells(Device device, ModelConfig config) {
        List<Cell> cells = new ArrayList<>();
        for (String context : contexts) {
            ThroughputSettings settings = settings(device, config, context);
            if (types.isEmpty()) {
                cells.add(new Cell(settings, context, cacheArguments));
            }
            for (String each : types) {
                cells.add(new Cell(settings, context, cacheArguments.withTypes("--types", each)));
            }
        }
        return cells;
    }

    private ThroughputSettings settings(Device device, ModelConfig config, String context) {
        Device.Memory memory = device.memory();
        long free = memory.free();
        // What is taken already, such as by the driver, has to fit into the limit too.
        long taken = device.isCpu() ? 0 : memory.total() - free;
        long limit = deviceLimit == null ? free : Quantity.of("--gpu-memory-limit", deviceLimit) - taken;
        long host = hostLimit == null ? HostMemory.availableBytes() / 4 * 3 : Quantity.of("--host-memory-limit", hostLimit);
        return new ThroughputSettings(
                config,
                layers == null ? config.layers() : layers,
                Quantity.of("--context", context),
                Math.clamp(limit, 1, planOnly ? Long.MAX_VALUE : free),
                host,
                batch.equalsIgnoreCase("max")
                        ? OptionalInt.empty()
                        : OptionalInt.of(Math.toIntExact(Quantity.of("--batch", batch))),
                steps == null ? device.isCpu() ? FEW_STEPS_CPU : FOLD_STEPS : steps,
                resident,
                slots == null ? OptionalInt.empty() : OptionalInt.of(slots),
                seed);
    }

    private Map<CacheKind, SessionCount> plans(Device device, Cell cell) {
        Map<CacheKind, SessionCount> counts = new EnumMap<>(CacheKind.class);
        for (CacheKind kind : caches) {
            counts.put(kind, ThroughputBenchmark.plan(device, cell.settings(), cell.options(kind)));
        }
        return counts;
    }

    /** Prints a report, or writes it where reports are to be written. */
    private void write(Device device, Cell cell, Consumer<ThroughputReport> report) throws IOException {
        PrintWriter console = spec.commandLine().getOut();
        report.accept(new ThroughputReport(console, json, device, shape, cell.settings(), cell.options(CacheKind.SHADOW)));
        console.flush();
        if (out != null) {
            StringWriter text = new StringWriter();
            report.accept(new ThroughputReport(
                    new PrintWriter(text, true), true, device, shape, cell.settings(), cell.options(CacheKind.SHADOW)));
            Files.writeString(out.resolve(fileName(device, cell)), text.toString());
        }
    }

    /** The types of values and landmarks, and of coefficients where they are not as stored. */
    private String fileName(Device device, Cell cell) {
        CacheOptions shadow = cell.options(CacheKind.SHADOW);
        List<String> parts = new ArrayList<>(List.of(shape, cell.context()));
        parts.add(CacheArguments.typeName(shadow.valueTypeOn(device)));
        parts.add(CacheArguments.typeName(shadow.landmarkTypeOn(device)));
        ElementType coefficients = shadow.coefficientTypeOn(device);
        if (coefficients != shadow.storageTypeOn(device)) {
            parts.add(CacheArguments.typeName(coefficients));
        }
        return String.join("-", parts) + ".json";
    }

    /** Writes what was measured of either cache. */
    @FunctionalInterface
    private interface Writer<R> {
        void write(ThroughputReport report, Map<CacheKind, R> results, Map<CacheKind, String> refused);
    }

    /** All cells with the same weights; of a context exact attention once. */
    private <R> void measure(
            Device device,
            List<Cell> cells,
            BiFunction<ThroughputBenchmark, CacheOptions, R> measurement,
            Writer<R> writer)
            throws IOException {
        Map<String, R> exact = new HashMap<>();
        try (Stages stages = new Stages(json);
                ThroughputBenchmark first = new ThroughputBenchmark(device, cells.getFirst().settings(), stages)) {
            for (Cell cell : cells) {
                Map<CacheKind, R> results = new EnumMap<>(CacheKind.class);
                Map<CacheKind, String> refused = new EnumMap<>(CacheKind.class);
                ThroughputBenchmark benchmark = first.with(cell.settings());
                AdmissionException last = null;
                for (CacheKind kind : caches) {
                    stages.cache(kind);
                    try {
                        R known = kind == CacheKind.DENSE ? exact.get(cell.context()) : null;
                        R result = known == null ? measurement.apply(benchmark, cell.options(kind)) : known;
                        results.put(kind, result);
                        if (kind == CacheKind.DENSE) {
                            exact.put(cell.context(), result);
                        }
                    } catch (AdmissionException e) {
                        // The other cache may fit all the same.
                        refused.put(kind, e.getMessage());
                        last = e;
                    }
                }
                stages.close();
                if (results.isEmpty() && cells.size() == 1) {
                    throw last;
                }
                write(device, cell, report -> writer.write(report, results, refused));
            }
        }
    }

    /** A progress bar for each stage of the measurement. */
    private static final class Stages implements ThroughputBenchmark.Listener, AutoCloseable {
        private final boolean quiet;
        private CacheKind cache;
        private String stage = "";
        private Progress progress;

        Stages(boolean quiet) {
            this.quiet = quiet;
        }

        void cache(CacheKind kind) {
            cache = kind;
            close();
        }

        @Override
        public void progress(String what, long done, long total) {
            if (!what.equals(stage)) {
                close();
                progress = Progress.of(cache.name().toLowerCase(java.util.Locale.ROOT) + ": " + what, total, quiet);
                stage = what;
            }
            progress.to(done, "");
        }

        @Override
        public void close() {
            if (progress != null) {
                progress.close();
                progress = null;
            }
            stage = "";
        }
    }
}
