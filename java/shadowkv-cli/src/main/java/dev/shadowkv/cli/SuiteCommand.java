package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.eval.Answerer;
import dev.shadowkv.eval.Evaluation;
import dev.shadowkv.eval.PromptEncoder;
import dev.shadowkv.eval.ResultStore;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.eval.Summary;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.text.ChatTemplate;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** What all suites of {@code shadowkv eval} share. */
abstract class SuiteCommand implements Callable<Integer> {
    @Mixin
    private ModelArguments model;

    @Option(names = "--tasks", paramLabel = "TASK", split = ",", description = "Tasks of the suite. Default: all.")
    List<String> tasks;

    @Option(
            names = "--samples",
            paramLabel = "N",
            defaultValue = "20",
            description = "Prompts a task and length. Default: ${DEFAULT-VALUE}.")
    int samples;

    @Option(
            names = "--variant",
            paramLabel = "NAME=KIND[,SETTING=VALUE...]",
            description = "A cache to compare; the first is the baseline. Settings: rank, budget (tokens, or length/N), "
                    + "chunk, outliers, radius-weight, rerank, value-type. Default: exact=dense and "
                    + "shadow=shadow,budget=length/64.")
    private List<String> variants;

    @Option(
            names = "--out",
            paramLabel = "F.jsonl",
            required = true,
            description = "File for the results; what it has already is not computed again.")
    private Path out;

    @Option(
            names = "--charts",
            paramLabel = "DIR",
            description = "Folder for charts: heat maps where there are depths, scores against length, and against budget or "
                    + "rank where variants differ in one of these alone.")
    private Path charts;

    @Option(names = "--json", description = "Print JSON.")
    private boolean json;

    @Mixin
    private DeviceArguments device;

    @Spec
    private CommandSpec spec;

    /** The prompts; checks its own options first. */
    abstract Suite suite(Tokenizer tokenizer, PromptEncoder encoder, ModelConfig config);

    /** What decides the prompts besides the tasks: a run that goes on must have the same. */
    abstract Map<String, String> identity();

    @Override
    public Integer call() {
        List<String> texts = variants == null ? List.of("exact=dense", "shadow=shadow,budget=length/64") : variants;
        List<Variant> chosen = texts.stream().map(Variant::parse).toList();
        require("--samples", samples);
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            PromptEncoder encoder = new PromptEncoder(tokenizer, ChatTemplate.read(model.model));
            Suite questions = suite(tokenizer, encoder, checkpoint.config());
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened);
                    PromptCaches caches = new PromptCaches(
                            loaded, chosen, tokenizer, encoder, questions.name().equals("needle"))) {
                run(questions, caches, chosen, opened, String.join(" ", texts));
            }
        }
        return 0;
    }

    private void run(Suite questions, PromptCaches caches, List<Variant> chosen, Device opened, String texts) {
        Map<String, Answerer> answerers = new LinkedHashMap<>();
        chosen.forEach(variant -> answerers.put(variant.name(), prompt -> caches.answer(prompt, variant.name())));
        Map<String, String> settings = new LinkedHashMap<>(Map.of(
                "suite", questions.name(), "model", model.model.toString(), "variants", texts, "device", opened.name()));
        settings.putAll(identity());
        PrintWriter terminal = spec.commandLine().getOut();
        try (ResultStore store = ResultStore.open(out, settings);
                Progress progress = Progress.of("answers", (long) questions.cases().size() * chosen.size(), json)) {
            new Evaluation(questions, answerers, 1).run(store, (result, done, total) -> progress.to(
                    done, result.prompt().origin().task() + " " + result.prompt().origin().length()));
            Summary summary = new Summary(store.results());
            if (json) {
                ObjectNode report = Output.object();
                settings.forEach(report::put);
                report.set("scores", Output.tree(summary.json()));
                terminal.println(Output.pretty(report));
            } else {
                terminal.println(summary.table());
            }
            terminal.flush();
            if (charts != null) {
                EvalCharts.draw(store.results(), chosen, charts)
                        .forEach(file -> spec.commandLine().getErr().println("drew " + file));
            }
        }
    }

    static void require(String option, int... values) {
        for (int value : values) {
            if (value < 1) {
                throw new IllegalArgumentException(option + " must be positive: " + value);
            }
        }
    }
}
