package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.eval.Charts;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.ResultStore;
import dev.shadowkv.eval.fidelity.FidelityProbe;
import dev.shadowkv.eval.fidelity.FidelitySummary;
import dev.shadowkv.eval.fidelity.HeadFidelity;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv eval fidelity}. */
@Command(
        name = "fidelity",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "What shadow caches keep of attention on texts of yours, by layer and head and without labels: the exact "
                + "weight of the tokens that a cache attends (mass), the most that as many tokens could hold, how many of them "
                + "are those, and the relative error of the output. An exact cache keeps everything and is passed over.")
final class FidelityCommand implements Callable<Integer> {
    @Mixin
    private ModelArguments model;

    @Option(
            names = "--prompt-file",
            paramLabel = "F",
            required = true,
            description = "A text; give the option again for more texts.")
    private List<Path> promptFiles;

    @Option(
            names = "--steps",
            paramLabel = "N",
            defaultValue = "16",
            description = "How many of the last tokens attend; those before are indexed. Default: ${DEFAULT-VALUE}.")
    private int steps;

    @Option(names = "--heads", description = "A row a head, not a layer.")
    private boolean heads;

    @Mixin
    private ComparisonArguments comparison;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    @Override
    public Integer call() throws IOException {
        Quantity.requirePositive("--steps", steps);
        List<Variant> shadows = comparison.variants().stream().filter(Variant::isShadow).toList();
        if (shadows.isEmpty()) {
            throw new IllegalArgumentException("no --variant is a shadow cache, and an exact one keeps everything");
        }
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            List<int[]> prompts = new ArrayList<>();
            for (Path file : promptFiles) {
                prompts.add(TextArguments.ids(file, tokenizer, checkpoint.config()));
            }
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened)) {
                run(loaded, prompts, shadows);
            }
        }
        return 0;
    }

    private void run(Model loaded, List<int[]> prompts, List<Variant> shadows) {
        Map<String, String> settings = Map.of(
                "suite", "fidelity", "model", model.model.toString(), "device", loaded.device().name(), "steps",
                Integer.toString(steps), "prompts", promptFiles.stream().map(Path::toString).collect(Collectors.joining(" ")));
        int layers = loaded.config().layers();
        try (ResultStore store = comparison.open(settings);
                Progress progress = report.progress("layers", (long) layers * prompts.size())) {
            for (int i = 0; i < prompts.size(); i++) {
                measure(loaded, i, prompts.get(i), shadows, store, progress);
            }
            FidelitySummary summary = new FidelitySummary(store.results());
            report.print(() -> heads ? summary.heads() : summary.layers(), () -> json(summary));
            comparison.charts().ifPresent(folder -> draw(summary, folder));
        }
    }

    private void measure(
            Model loaded, int prompt, int[] ids, List<Variant> shadows, ResultStore store, Progress progress) {
        ModelConfig config = loaded.config();
        Map<String, CacheOptions> caches = new LinkedHashMap<>();
        for (Variant shadow : shadows) {
            if (!IntStream.range(0, config.layers()).allMatch(layer -> done(store, shadow.name(), config, layer, prompt, ids))) {
                caches.put(shadow.name(), shadow.options(ids.length));
            }
        }
        long before = (long) prompt * config.layers();
        if (caches.isEmpty()) {
            progress.to(before + config.layers(), "");
            return;
        }
        FidelityProbe.measure(loaded, ids, steps, caches, new FidelityProbe.Sink() {
            @Override
            public boolean wants(String cache, int layer) {
                return !done(store, cache, config, layer, prompt, ids);
            }

            @Override
            public void accept(String cache, List<HeadFidelity> all) {
                for (HeadFidelity head : all) {
                    // A run that was killed may have stored some heads of a layer.
                    if (!store.contains(cache, HeadFidelity.origin(head.layer(), head.head(), prompt, ids.length))) {
                        store.append(head.result(cache, prompt, ids.length, steps));
                    }
                }
            }

            @Override
            public void layer(int layer) {
                progress.to(before + layer + 1, "of " + promptFiles.get(prompt));
            }
        });
    }

    private static boolean done(ResultStore store, String cache, ModelConfig config, int layer, int prompt, int[] ids) {
        return IntStream.range(0, config.queryHeads())
                .allMatch(head -> store.contains(cache, HeadFidelity.origin(layer, head, prompt, ids.length)));
    }

    private static ObjectNode json(FidelitySummary summary) {
        ObjectNode node = Output.object();
        ArrayNode all = node.putArray("heads");
        for (String variant : summary.variants()) {
            summary.heads(variant).forEach(head -> all.addObject()
                    .put("variant", variant)
                    .put("layer", head.layer())
                    .put("head", head.head())
                    .put("capturedMass", head.capturedMass())
                    .put("bestMass", head.bestMass())
                    .put("overlap", head.overlap())
                    .put("outputError", head.outputError()));
        }
        return node;
    }

    private void draw(FidelitySummary summary, Path folder) {
        try {
            Files.createDirectories(folder);
            for (String variant : summary.variants()) {
                Path file = folder.resolve("mass-" + variant + ".png");
                draw(variant, percent(summary.capturedMass(variant)), file);
                report.note("drew " + file);
            }
        } catch (IOException e) {
            throw new EvaluationException(folder + ": cannot be made: " + e.getMessage(), e);
        } catch (LinkageError e) {
            throw new EvaluationException("charts need the JDK's module java.desktop: " + e.getMessage(), e);
        }
    }

    private static void draw(String variant, double[][] mass, Path file) {
        Charts.grid(
                "Attention mass that the cache keeps (%): " + variant,
                "query head",
                IntStream.range(0, mass[0].length).mapToObj(Integer::toString).toList(),
                "layer",
                IntStream.range(0, mass.length).mapToObj(Integer::toString).toList(),
                mass,
                file);
    }

    private static double[][] percent(double[][] shares) {
        for (double[] row : shares) {
            for (int i = 0; i < row.length; i++) {
                row[i] *= 100;
            }
        }
        return shares;
    }
}
