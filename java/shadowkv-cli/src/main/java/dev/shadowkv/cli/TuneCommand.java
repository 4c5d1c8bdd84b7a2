package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.eval.Statistics;
import dev.shadowkv.eval.TextTable;
import dev.shadowkv.eval.fidelity.StepByStep;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.function.BiFunction;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv tune}. */
@Command(
        name = "tune",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "Finds the cheapest settings that keep the loss within a limit, on a text of yours. All caches read the text; "
                + "its last tokens are decode steps. The loss of a cache is the mean divergence of its next-token distribution "
                + "from that of exact attention, in nats (about the relative change of the perplexity, where it is small). "
                + "Cheapest is what takes the least accelerator memory; among equals, what reads the fewest values.")
final class TuneCommand implements Callable<Integer> {
    /** Caches that stand side by side; more would be faster and take more memory. */
    private static final int TOGETHER = 6;

    private static final String AS_STORED = "stored";

    @Mixin
    private ModelArguments model;

    @Mixin
    private TextArguments text;

    @Option(names = "--max-loss", paramLabel = "NATS", required = true, description = "The largest mean divergence that will do.")
    private double maxLoss;

    @Option(
            names = "--steps",
            paramLabel = "N",
            defaultValue = "64",
            description = "How many of the last tokens are decode steps. Default: ${DEFAULT-VALUE}.")
    private int steps;

    @Option(
            names = "--ranks",
            paramLabel = "N",
            split = ",",
            description = "Ranks to try. Default: 3, 5 and 8 of 32 parts of the width of the key-value heads.")
    private List<Integer> ranks;

    @Option(
            names = "--budgets",
            paramLabel = "TOKENS",
            split = ",",
            description = "Budgets to try. Default: the length by 128, 64, 32 and 16.")
    private List<Integer> budgets;

    @Option(names = "--reranks", paramLabel = "X", split = ",", description = "Rerank factors to try. Default: 0 and 4.")
    private List<Double> reranks = List.of(0.0, CacheOptions.USUAL_RERANK);

    @Option(names = "--radius-weights", paramLabel = "X", split = ",", description = "Radius weights to try. Default: 0.5.")
    private List<Float> radiusWeights = List.of(0.5f);

    @Option(
            names = "--landmark-types",
            paramLabel = "TYPE",
            split = ",",
            description = "Types of landmarks to try: " + AS_STORED + " (as keys are), i8. Default: " + AS_STORED + ".")
    private List<String> landmarkTypes = List.of(AS_STORED);

    @Option(
            names = "--coefficient-types",
            paramLabel = "TYPE",
            split = ",",
            description = "Types of the keys' coefficients to try: " + AS_STORED + " (as keys are), i8, which takes half of the memory. "
                    + "Default: " + AS_STORED + ".")
    private List<String> coefficientTypes = List.of(AS_STORED);

    @Option(
            names = "--tail",
            negatable = true,
            description = "Whether the tokens that a step does not select take part in it together. Default: with a rerank.")
    private Boolean tail;

    @Option(
            names = "--predict",
            negatable = true,
            description = "Whether values of the tokens that reranking drops are predicted. Default: with a rerank and a tail.")
    private Boolean predict;

    @Option(names = "--value-type", paramLabel = "TYPE", description = CacheArguments.VALUE_TYPES)
    private String valueType;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    /** What a setting costs and loses. */
    private record Row(
            CacheOptions options,
            String landmarkType,
            String coefficientType,
            MemoryPlan plan,
            Statistics loss,
            double agreement,
            double selectedBytes,
            double fetchedBytes,
            double milliseconds) {}

    @Override
    public Integer call() throws IOException {
        Quantity.requirePositive("--steps", steps);
        if (!(maxLoss >= 0)) {
            throw new IllegalArgumentException("--max-loss is " + maxLoss + ", it must not be negative");
        }
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            int[] ids = text.ids(tokenizer, checkpoint.config());
            if (ids.length < 2 * steps) {
                throw new IllegalArgumentException(
                        text.file + " has " + ids.length + " tokens, too few for " + steps + " steps behind a prompt");
            }
            int[] prompt = Arrays.copyOf(ids, ids.length - steps);
            int[] rest = Arrays.copyOfRange(ids, ids.length - steps, ids.length);
            List<CacheOptions> choices = choices(checkpoint.config(), ids.length);
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened)) {
                print(measure(loaded, choices, prompt, rest), ids.length, opened.name());
            }
        }
        return 0;
    }

    private List<CacheOptions> choices(ModelConfig config, int length) {
        int width = config.keyValueWidth();
        TreeSet<Integer> chosenRanks = new TreeSet<>(
                ranks != null
                        ? ranks
                        : List.of(within(width * 3 / 32, width), within(width * 5 / 32, width), within(width / 4, width)));
        TreeSet<Integer> chosenBudgets = new TreeSet<>(
                budgets != null ? budgets : List.of(whole(length / 128), whole(length / 64), whole(length / 32), whole(length / 16)));
        List<CacheOptions> all = chosenBudgets.stream().map(CacheOptions::shadow).toList();
        all = each(all, chosenRanks, CacheOptions.Builder::rank);
        all = each(all, radiusWeights, CacheOptions.Builder::radiusWeight);
        all = each(all, reranks, this::withRerank);
        all = each(all, types("--landmark-types", landmarkTypes), typed(CacheOptions.Builder::landmarkType));
        all = each(all, types("--coefficient-types", coefficientTypes), typed(CacheOptions.Builder::coefficientType));
        return each(all, List.of(CacheArguments.type("--value-type", valueType)), typed(CacheOptions.Builder::valueType));
    }

    /** Every setting with every value. */
    private static <T> List<CacheOptions> each(
            List<CacheOptions> settings, Collection<T> values, BiFunction<CacheOptions.Builder, T, CacheOptions.Builder> with) {
        return settings.stream()
                .flatMap(setting -> values.stream().map(value -> with.apply(setting.toBuilder(), value).build()))
                .toList();
    }

    /** Sets the type, if there is one. */
    private static BiFunction<CacheOptions.Builder, Optional<ElementType>, CacheOptions.Builder> typed(
            BiFunction<CacheOptions.Builder, ElementType, CacheOptions.Builder> with) {
        return (builder, type) -> type.map(value -> with.apply(builder, value)).orElse(builder);
    }

    /** Settings without a rerank drop nothing. */
    private CacheOptions.Builder withRerank(CacheOptions.Builder builder, double rerank) {
        builder.rerank(rerank);
        Optional.ofNullable(tail).ifPresent(builder::tail);
        if (rerank > 1) {
            Optional.ofNullable(predict).ifPresent(builder::predict);
        }
        return builder;
    }

    /** Empty: as stored. */
    private static List<Optional<ElementType>> types(String option, List<String> names) {
        return names.stream().map(name -> CacheArguments.type(option, name.equals(AS_STORED) ? null : name)).toList();
    }

    private static int within(int rank, int width) {
        return Math.min(width, Math.clamp(rank, 16, 256));
    }

    private static int whole(int budget) {
        return Math.max(8, budget / 8 * 8);
    }

    private List<Row> measure(Model loaded, List<CacheOptions> choices, int[] prompt, int[] rest) {
        List<Row> rows = new ArrayList<>();
        try (Progress progress = report.progress("settings", (long) choices.size() * rest.length)) {
            for (int from = 0; from < choices.size(); from += TOGETHER) {
                List<CacheOptions> part = choices.subList(from, Math.min(choices.size(), from + TOGETHER));
                Map<String, CacheOptions> caches = new LinkedHashMap<>();
                caches.put("exact", CacheOptions.dense());
                for (int i = 0; i < part.size(); i++) {
                    caches.put(Integer.toString(i), part.get(i));
                }
                long before = (long) from * rest.length;
                try (StepByStep side = new StepByStep(loaded, caches, (long) prompt.length + rest.length)) {
                    StepByStep.Run run = side.given(
                            prompt, rest, true, (done, total) -> progress.to(before + (long) done * part.size(), "steps"));
                    for (int i = 0; i < part.size(); i++) {
                        String name = Integer.toString(i);
                        rows.add(row(loaded, part.get(i), side.memoryPlan(name), run.steps().get(name)));
                    }
                }
            }
        }
        return rows;
    }

    private static Row row(Model loaded, CacheOptions options, MemoryPlan plan, List<StepByStep.Step> all) {
        ElementType type = options.valueTypeOn(loaded.device());
        double chunkBytes = type.bytes((long) options.chunk() * loaded.config().headDim());
        return new Row(
                options,
                CacheArguments.typeName(options.landmarkTypeOn(loaded.device())),
                CacheArguments.typeName(options.coefficientTypeOn(loaded.device())),
                plan,
                Statistics.of(all.stream().map(StepByStep.Step::divergence).toList()),
                all.stream().mapToDouble(step -> step.agrees() ? 1 : 0).average().orElse(Double.NaN),
                all.stream().mapToDouble(StepByStep.Step::selectedChunks).average().orElse(0) * chunkBytes,
                all.stream().mapToDouble(StepByStep.Step::fetchedChunks).average().orElse(0) * chunkBytes,
                all.stream().mapToDouble(StepByStep.Step::attentionMilliseconds).average().orElse(0));
    }

    private void print(List<Row> rows, int length, String where) {
        List<Row> sorted = rows.stream()
                .sorted(Comparator.comparingLong((Row row) -> row.plan().sessionDeviceBytes())
                        .thenComparingDouble(Row::selectedBytes)
                        .thenComparingDouble(Row::milliseconds))
                .toList();
        Optional<Row> cheapest = sorted.stream().filter(row -> row.loss().mean() <= maxLoss).findFirst();
        report.print(() -> text(sorted, cheapest), () -> json(sorted, cheapest, length, where));
    }

    private ObjectNode json(List<Row> sorted, Optional<Row> cheapest, int length, String where) {
        ObjectNode node = Output.object();
        node.put("device", where);
        node.put("tokens", length);
        node.put("maxLoss", maxLoss);
        ArrayNode all = node.putArray("settings");
        sorted.forEach(row -> all.add(node(row)));
        cheapest.ifPresent(row -> node.set("proposal", node(row)));
        return node;
    }

    private String text(List<Row> sorted, Optional<Row> cheapest) {
        TextTable table = new TextTable(List.of(
                "", "rank", "budget", "radius weight", "rerank", "landmarks", "coefficients", "loss (nats)", "same token",
                "device bytes", "bytes a token", "values a step", "attention ms"));
        sorted.forEach(row -> table.add(List.of(
                cheapest.filter(row::equals).isPresent() ? "->" : row.loss().mean() <= maxLoss ? " *" : "",
                Integer.toString(row.options().rank().orElseThrow()),
                Integer.toString(row.options().budget()),
                Output.number("%.2f", row.options().radiusWeight()),
                Output.number("%.0f", row.options().rerank()),
                row.landmarkType(),
                row.coefficientType(),
                Output.number("%.5f", row.loss().mean()) + " ± " + Output.number("%.5f", row.loss().standardError()),
                Output.number("%.1f %%", 100 * row.agreement()),
                Output.bytes(row.plan().sessionDeviceBytes()),
                Output.number("%.0f", row.plan().deviceBytesPerToken()),
                Output.bytes(row.selectedBytes()),
                Output.number("%.3f", row.milliseconds()))));
        String proposal = cheapest.map(row -> "Cheapest within " + maxLoss + " nats: --rank "
                        + row.options().rank().orElseThrow() + " --budget " + row.options().budget() + " --radius-weight "
                        + row.options().radiusWeight() + " --rerank " + Output.number("%.0f", row.options().rerank())
                        + row.options().landmarkType().map(type -> " --landmark-type " + row.landmarkType()).orElse("")
                        + row.options().coefficientType().map(type -> " --coefficient-type " + row.coefficientType()).orElse("")
                        + row.options().tail().map(chosen -> chosen ? " --tail" : " --no-tail").orElse("")
                        + row.options().predict().map(chosen -> chosen ? " --predict" : " --no-predict").orElse(""))
                .orElse("No setting of these keeps the loss within " + maxLoss + " nats.");
        return table + System.lineSeparator() + proposal;
    }

    private static ObjectNode node(Row row) {
        ObjectNode node = Output.object();
        node.put("rank", row.options().rank().orElseThrow());
        node.put("budget", row.options().budget());
        node.put("radiusWeight", row.options().radiusWeight());
        node.put("rerank", row.options().rerank());
        node.put("landmarkType", row.landmarkType());
        node.put("coefficientType", row.coefficientType());
        node.put("tail", row.options().tailTakesPart());
        node.put("predict", row.options().predictsDropped());
        node.put("balance", row.options().balancesHeads());
        node.put("loss", row.loss().mean());
        node.put("lossError", row.loss().standardError());
        node.put("agreement", row.agreement());
        node.set("memory", Output.plan(row.plan()));
        node.put("selectedBytesPerStep", row.selectedBytes());
        node.put("fetchedBytesPerStep", row.fetchedBytes());
        node.put("attentionMilliseconds", row.milliseconds());
        return node;
    }
}
