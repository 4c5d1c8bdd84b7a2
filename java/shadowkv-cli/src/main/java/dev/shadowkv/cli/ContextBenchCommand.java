package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Charts;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.TextTable;
import dev.shadowkv.eval.needle.NeedleSuite;
import dev.shadowkv.eval.needle.NeedleTask;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.SideBySide;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.text.Tokenizer;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv bench context}. */
@Command(
        name = "context",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "Memory and decode time of models/needle-32k against the length of the context, exact and with "
                + "ShadowKV, as a table and as charts.")
final class ContextBenchCommand implements Callable<Integer> {
    private static final String EXACT = "exact";
    private static final String SHADOW = "ShadowKV";
    private static final int RANK = 40;
    private static final int STEPS = 64;
    private static final int LONGEST = 32768;

    @Option(
            names = "--contexts",
            paramLabel = "TOKENS",
            split = ",",
            defaultValue = "2048,4096,8192,16384,32768",
            description = "Lengths. Default: ${DEFAULT-VALUE}.")
    private List<Integer> contexts;

    @Option(
            names = "--charts",
            paramLabel = "PREFIX",
            description = "Also write PREFIX-memory.png and PREFIX-attention.png.")
    private String charts;

    @Mixin
    private CacheArguments cacheArguments;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    private final Map<String, SortedMap<Double, Double>> memory = new LinkedHashMap<>();
    private final Map<String, SortedMap<Double, Double>> attention = new LinkedHashMap<>();
    private final Map<String, SortedMap<Double, Double>> speed = new LinkedHashMap<>();

    @Override
    public Integer call() {
        for (int context : contexts) {
            if (context < STEPS || context > LONGEST) {
                throw new IllegalArgumentException("--contexts has " + context + ", it must be from " + STEPS + " to " + LONGEST);
            }
        }
        Path folder = DeviceArguments.home().resolve("models/needle-32k");
        String where;
        try (Checkpoint checkpoint = Checkpoint.open(folder);
                Tokenizer tokenizer = Tokenizer.open(folder);
                Device opened = device.open();
                Model loaded = Model.load(checkpoint, opened);
                Progress progress = report.progress("contexts", contexts.size())) {
            where = opened.toString();
            for (int i = 0; i < contexts.size(); i++) {
                measure(loaded, tokenizer, contexts.get(i));
                progress.to(i + 1, "");
            }
        }
        // The figures first: a chart that cannot be drawn must not lose them.
        report.print(() -> table(where), () -> json(where));
        draw(where);
        return 0;
    }

    private void measure(Model model, Tokenizer tokenizer, int context) {
        NeedleSuite suite = NeedleSuite.tasks(tokenizer, List.of(NeedleTask.NIAH_MULTIKEY), List.of(context), 1, 1);
        Prompt prompt = suite.prompt(Case.of(NeedleTask.NIAH_MULTIKEY.code(), context, 0, 1));
        int budget = Math.max(64, context / 64);
        Map<String, CacheOptions> caches = new LinkedHashMap<>();
        caches.put(EXACT, cacheArguments.options(CacheKind.DENSE, budget, RANK));
        caches.put(SHADOW, cacheArguments.options(CacheKind.SHADOW, budget, RANK));
        try (SideBySide sides = new SideBySide(model, caches, context + STEPS + 1L)) {
            // No token ends it: every cache takes the same number of steps.
            SideBySide.Answers answers =
                    sides.answer(tokenizer.encode(prompt.whole()), STEPS + 1, Set.of(), (done, total) -> {});
            answers.outcomes().forEach((name, outcome) -> {
                double mebibytes = sides.memoryPlan(name).sessionDeviceBytes() / (1024.0 * 1024);
                put(memory, name, context, mebibytes);
                put(attention, name, context, outcome.attentionMilliseconds());
                put(speed, name, context, outcome.steps() / outcome.decodeSeconds());
            });
        }
    }

    private static void put(Map<String, SortedMap<Double, Double>> lines, String name, int context, double value) {
        lines.computeIfAbsent(name, key -> new TreeMap<>()).put((double) context, value);
    }

    private ObjectNode json(String where) {
        ObjectNode node = Output.object();
        node.put("device", where);
        ArrayNode rows = node.putArray("results");
        memory.forEach((name, line) -> line.forEach((context, mebibytes) -> rows.addObject()
                .put("cache", name)
                .put("context", context.intValue())
                .put("deviceMebibytes", mebibytes)
                .put("attentionMilliseconds", attention.get(name).get(context))
                .put("tokensPerSecond", speed.get(name).get(context))));
        return node;
    }

    private String table(String where) {
        TextTable table = new TextTable(List.of("context", "cache", "device MiB", "attention ms/step", "tokens/s"));
        for (int context : contexts) {
            memory.forEach((name, line) -> table.add(List.of(
                    Integer.toString(context),
                    name,
                    Output.number("%.1f", line.get((double) context)),
                    Output.number("%.3f", attention.get(name).get((double) context)),
                    Output.number("%.1f", speed.get(name).get((double) context)))));
        }
        return where + System.lineSeparator() + table;
    }

    private void draw(String where) {
        if (charts == null) {
            return;
        }
        try {
            Charts.lines("Key-value memory on the device (MiB), " + where, "context (tokens)", "MiB", memory, Path.of(charts + "-memory.png"));
            Charts.lines(
                    "Attention of a decode step (ms), " + where, "context (tokens)", "ms", attention, Path.of(charts + "-attention.png"));
        } catch (LinkageError e) {
            throw new UnsupportedOperationException(
                    "no charts: this runtime lacks XChart or java.desktop, as the portable bundle does", e);
        }
    }
}
