package dev.shadowkv.cli;

import dev.shadowkv.Device;
import dev.shadowkv.eval.Answerer;
import dev.shadowkv.eval.Evaluation;
import dev.shadowkv.eval.PromptEncoder;
import dev.shadowkv.eval.ResultStore;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.text.ChatTemplate;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

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

    @Mixin
    private ComparisonArguments comparison;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    /** The prompts; checks its own options first. */
    abstract Suite suite(Tokenizer tokenizer, PromptEncoder encoder, ModelConfig config);

    /** What decides the prompts besides the tasks: a run that goes on must have the same. */
    abstract Map<String, String> identity();

    @Override
    public Integer call() {
        List<Variant> variants = comparison.variants();
        Quantity.requirePositive("--samples", samples);
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            PromptEncoder encoder = new PromptEncoder(tokenizer, ChatTemplate.read(model.model));
            Suite questions = suite(tokenizer, encoder, checkpoint.config());
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened);
                    PromptCaches caches = new PromptCaches(
                            loaded, variants, tokenizer, encoder, questions.name().equals("needle"))) {
                run(questions, caches, variants, opened);
            }
        }
        return 0;
    }

    private void run(Suite questions, PromptCaches caches, List<Variant> variants, Device opened) {
        Map<String, Answerer> answerers = new LinkedHashMap<>();
        variants.forEach(variant -> answerers.put(variant.name(), prompt -> caches.answer(prompt, variant.name())));
        Map<String, String> settings = new LinkedHashMap<>(
                Map.of("suite", questions.name(), "model", model.model.toString(), "device", opened.name()));
        settings.putAll(identity());
        try (ResultStore store = comparison.open(settings);
                Progress progress = report.progress("answers", (long) questions.cases().size() * variants.size())) {
            new Evaluation(questions, answerers, 1).run(store, (result, done, total) -> progress.to(
                    done, result.prompt().origin().task() + " " + result.prompt().origin().length()));
            comparison.print(report, settings, store);
            comparison.charts().ifPresent(folder -> EvalCharts.draw(store.results(), variants, folder)
                    .forEach(file -> report.note("drew " + file)));
        }
    }
}
