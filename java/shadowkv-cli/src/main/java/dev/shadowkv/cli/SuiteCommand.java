package dev.shadowkv.cli;

import dev.shadowkv.Device;
import dev.shadowkv.eval.Answer;
import dev.shadowkv.eval.Answerer;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Evaluation;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.PromptEncoder;
import dev.shadowkv.eval.PromptsAhead;
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
    /** Small models decode sixteen prompts in hardly more time than one. */
    private static final int GPU_BATCH = 16;

    /** Threads that make prompts: some 150 ms for one of 32768 tokens, several times what a GPU needs to read it. */
    private static final int ENCODERS = 8;

    @Mixin
    private ModelArguments model;

    @Option(names = "--tasks", paramLabel = "TASK", split = ",", description = "Tasks of the suite. Default: all.")
    List<String> tasks;

    @Option(
            names = "--samples",
            paramLabel = "N",
            defaultValue = "20",
            description = "Prompts a task and length, of niah also a depth. Default: ${DEFAULT-VALUE}.")
    int samples;

    @Option(
            names = "--batch",
            paramLabel = "N",
            description = "Prompts that are decoded together. Default: 1 on a CPU, up to 16 on a GPU as far as half of the free "
                    + "memory has room for.")
    private Integer batch;

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
        if (batch != null) {
            Quantity.requirePositive("--batch", batch);
        }
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            PromptEncoder encoder = new PromptEncoder(tokenizer, ChatTemplate.read(model.model));
            Suite questions = suite(tokenizer, encoder, checkpoint.config());
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened)) {
                run(questions, encoder, loaded, tokenizer, variants);
            }
        }
        return 0;
    }

    private void run(Suite questions, PromptEncoder encoder, Model loaded, Tokenizer tokenizer, List<Variant> variants) {
        Device opened = loaded.device();
        Map<String, String> settings = new LinkedHashMap<>(
                Map.of("suite", questions.name(), "model", model.model.toString(), "device", opened.name()));
        settings.putAll(identity());
        int together = batch != null ? batch : opened.isCpu() ? 1 : GPU_BATCH;
        try (ResultStore store = comparison.open(settings);
                PromptsAhead prompts = new PromptsAhead(
                        questions, encoder, missing(questions, store, variants), 2 * together, opened.isCpu() ? 1 : ENCODERS);
                PromptCaches caches = new PromptCaches(
                        loaded, variants, tokenizer, prompts::take, together, batch != null, questions.name().equals("needle"));
                Progress progress = report.progress("answers", (long) questions.cases().size() * variants.size())) {
            Map<String, Answerer> answerers = new LinkedHashMap<>();
            variants.forEach(variant -> answerers.put(variant.name(), together(caches, variant.name())));
            new Evaluation(prompts, answerers, together).run(store, (result, done, total) -> progress.to(
                    done, result.prompt().origin().task() + " " + result.prompt().origin().length()));
            comparison.print(report, settings, store);
            comparison.charts().ifPresent(folder -> EvalCharts.draw(store.results(), variants, folder)
                    .forEach(file -> report.note("drew " + file)));
        }
    }

    private static List<Case> missing(Suite questions, ResultStore store, List<Variant> variants) {
        return questions.cases().stream()
                .filter(origin -> !variants.stream().allMatch(variant -> store.contains(variant.name(), origin)))
                .toList();
    }

    private static Answerer together(PromptCaches caches, String variant) {
        return new Answerer() {
            @Override
            public Answer answer(Prompt prompt) {
                return answerAll(List.of(prompt)).getFirst();
            }

            @Override
            public List<Answer> answerAll(List<Prompt> prompts) {
                return caches.answer(prompts, variant);
            }
        };
    }
}
