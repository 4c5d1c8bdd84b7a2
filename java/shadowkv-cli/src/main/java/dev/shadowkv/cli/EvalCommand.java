package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.eval.Answer;
import dev.shadowkv.eval.Answerer;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Evaluation;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.PromptEncoder;
import dev.shadowkv.eval.ResultStore;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.eval.Summary;
import dev.shadowkv.eval.haystack.Haystack;
import dev.shadowkv.eval.needle.NeedleSuite;
import dev.shadowkv.eval.needle.NeedleTask;
import dev.shadowkv.eval.niah.NiahSuite;
import dev.shadowkv.eval.ruler.RulerSuite;
import dev.shadowkv.eval.ruler.RulerTask;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.SideBySide;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.text.ChatTemplate;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code shadowkv eval}. */
@Command(
        name = "eval",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "Puts the same prompts to several caches and compares the scores. A prompt is computed once for all of "
                + "them. A run that was stopped goes on when it is started again with the same --out.")
final class EvalCommand implements Callable<Integer> {
    @Parameters(
            paramLabel = "SUITE",
            description = "needle (for models/needle-32k), ruler, or niah (needles at all depths).")
    private String suite;

    @Mixin
    private ModelArguments model;

    @Option(names = "--tasks", paramLabel = "TASK", split = ",", description = "Tasks of the suite. Default: all.")
    private List<String> tasks;

    @Option(
            names = "--lengths",
            paramLabel = "TOKENS",
            split = ",",
            defaultValue = "4096",
            description = "Lengths of the prompts. Default: ${DEFAULT-VALUE}.")
    private List<Integer> lengths;

    @Option(
            names = "--samples",
            paramLabel = "N",
            defaultValue = "20",
            description = "Prompts a task and length. Default: ${DEFAULT-VALUE}.")
    private int samples;

    @Option(names = "--depths", paramLabel = "N", defaultValue = "11", description = "Depths of niah. Default: ${DEFAULT-VALUE}.")
    private int depths;

    @Option(names = "--seed", paramLabel = "N", defaultValue = "1", description = "Decides the prompts.")
    private long seed;

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

    @Option(names = "--json", description = "Print JSON.")
    private boolean json;

    @Mixin
    private DeviceArguments device;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() {
        List<String> texts = variants == null ? List.of("exact=dense", "shadow=shadow,budget=length/64") : variants;
        List<Variant> chosen = texts.stream().map(Variant::parse).toList();
        if (samples < 1 || depths < 1 || lengths.stream().anyMatch(length -> length < 1)) {
            throw new IllegalArgumentException("--samples, --depths and --lengths must be positive");
        }
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            PromptEncoder encoder = new PromptEncoder(tokenizer, ChatTemplate.read(model.model));
            Suite questions = suite(tokenizer, encoder);
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened);
                    Shared shared = new Shared(loaded, chosen, tokenizer, encoder, questions.name())) {
                run(questions, shared, chosen, opened, String.join(" ", texts));
            }
        }
        return 0;
    }

    private Suite suite(Tokenizer tokenizer, PromptEncoder encoder) {
        return switch (suite) {
            case "needle" -> NeedleSuite.tasks(
                    tokenizer,
                    tasks == null ? NeedleTask.all() : tasks.stream().map(NeedleTask::ofCode).toList(),
                    lengths,
                    samples,
                    seed);
            case "ruler" -> RulerSuite.builder(tokenizer)
                    .tasks(tasks == null ? RulerTask.selfContained() : tasks.stream().map(RulerTask::ofCode).toList())
                    .lengths(lengths)
                    .samples(samples)
                    .seed(seed)
                    .overheadTokens(encoder.overheadTokens())
                    .build();
            case "niah" -> new NiahSuite(
                    tokenizer, Haystack.generated(), lengths, NiahSuite.depths(depths), samples, seed, encoder.overheadTokens());
            default -> throw new IllegalArgumentException("there is no suite " + suite + "; there are needle, ruler, niah");
        };
    }

    private void run(Suite questions, Shared shared, List<Variant> chosen, Device opened, String texts) {
        Map<String, Answerer> answerers = new LinkedHashMap<>();
        chosen.forEach(variant -> answerers.put(variant.name(), prompt -> shared.answer(prompt, variant.name())));
        Map<String, String> settings = Map.of(
                "suite", questions.name(), "model", model.model.toString(), "seed", Long.toString(seed), "variants", texts,
                "device", opened.name());
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
        }
    }

    /** Answers of all variants to the newest prompt, from one computation of it. */
    private static final class Shared implements AutoCloseable {
        private final Model model;
        private final List<Variant> variants;
        private final Tokenizer tokenizer;
        private final PromptEncoder encoder;
        private final boolean exactLength;
        private SideBySide sides;
        private long capacity;
        private int length = -1;
        private Case newest;
        private final Map<String, Answer> answers = new HashMap<>();

        Shared(Model model, List<Variant> variants, Tokenizer tokenizer, PromptEncoder encoder, String suite) {
            this.model = model;
            this.variants = variants;
            this.tokenizer = tokenizer;
            this.encoder = encoder;
            exactLength = suite.equals("needle");
        }

        Answer answer(Prompt prompt, String variant) {
            if (!prompt.origin().equals(newest)) {
                compute(prompt);
                newest = prompt.origin();
            }
            return answers.get(variant);
        }

        private void compute(Prompt prompt) {
            int[] ids = encoder.encode(prompt);
            ModelArguments.requirePositions(model.config(), ids, "prompt " + prompt.origin().id());
            prepare(prompt.origin().length(), (long) ids.length + prompt.maxNewTokens());
            Set<Integer> ends = Set.copyOf(model.config().endIds());
            SideBySide.Answers all = sides.answer(ids, prompt.maxNewTokens(), ends, (done, total) -> {});
            answers.clear();
            all.outcomes().forEach((name, outcome) -> answers.put(
                    name,
                    new Answer(
                            tokenizer.decode(outcome.ids()),
                            ids.length,
                            outcome.ids().length,
                            all.prefillSeconds() + outcome.sealSeconds(),
                            outcome.decodeSeconds(),
                            Map.of(
                                    "residentShare", outcome.statistics().hitRate(),
                                    "landmarkMass", outcome.statistics().landmarkMass(),
                                    "attentionMilliseconds", outcome.attentionMilliseconds()))));
        }

        /** Caches for prompts of a length; made anew only where those that there are do not suit. */
        private void prepare(int promptLength, long needed) {
            if (sides != null && promptLength == length && needed <= capacity) {
                return;
            }
            close();
            length = promptLength;
            capacity = exactLength ? promptLength + 256L : Math.max(needed, promptLength);
            capacity = Math.max(capacity, needed);
            Map<String, CacheOptions> options = variants.stream()
                    .collect(Collectors.toMap(
                            Variant::name, variant -> variant.options(length), (a, b) -> b, LinkedHashMap::new));
            sides = new SideBySide(model, options, capacity);
        }

        @Override
        public void close() {
            Optional.ofNullable(sides).ifPresent(SideBySide::close);
            sides = null;
        }
    }
}
