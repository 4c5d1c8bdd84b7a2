package dev.shadowkv.cli;

import dev.shadowkv.Device;
import dev.shadowkv.eval.Answer;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Charts;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.Result;
import dev.shadowkv.eval.ResultStore;
import dev.shadowkv.eval.fidelity.FidelityProbe;
import dev.shadowkv.eval.fidelity.StepByStep;
import dev.shadowkv.eval.longgen.Conversation;
import dev.shadowkv.eval.needle.NeedleConversation;
import dev.shadowkv.eval.needle.NeedleSuite;
import dev.shadowkv.eval.needle.NeedleTask;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.SideBySide;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.Set;
import java.util.SortedMap;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.function.Function;
import java.util.function.ToDoubleFunction;
import java.util.stream.Collectors;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv eval longgen}. */
@Command(
        name = "longgen",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = {
            "What becomes of a cache in a long session. agreement: exact attention generates, and every cache that reads the "
                    + "same text says what it would have chosen, step by step; the score is the share of equal choices.",
            "turns (models/needle-32k): many questions in turn in one session, each appended to all that was said before; beside "
                    + "it, as NAME/fresh, each in a session of its own."
        })
final class LongGenCommand implements Callable<Integer> {
    private static final List<String> TASKS = List.of("agreement", "turns");
    private static final String LAYER = "attention layer ";

    @Mixin
    private ModelArguments model;

    @Option(names = "--tasks", paramLabel = "TASK", split = ",", description = "agreement, turns. Default: both.")
    private List<String> tasks = TASKS;

    @Option(
            names = "--prompt-file",
            paramLabel = "F",
            description = "What agreement begins with. Default, for needle-32k: a context of passages, one of them to be copied.")
    private Path promptFile;

    @Option(
            names = "--length",
            paramLabel = "TOKENS",
            defaultValue = "4096",
            description = "Length of the context. Default: ${DEFAULT-VALUE}.")
    private int length;

    @Option(
            names = "--new-tokens",
            paramLabel = "N",
            defaultValue = "2000",
            description = "Tokens that agreement generates. Default: ${DEFAULT-VALUE}.")
    private int newTokens;

    @Option(names = "--turns", paramLabel = "N", defaultValue = "50", description = "Questions. Default: ${DEFAULT-VALUE}.")
    private int turns;

    @Option(
            names = "--window",
            paramLabel = "N",
            defaultValue = "100",
            description = "Tokens or turns that one number of a chart stands for. Default: ${DEFAULT-VALUE}.")
    private int window;

    @Option(
            names = "--attention-every",
            paramLabel = "N",
            defaultValue = "0",
            description = "Of every N-th generated token, also measure by layer how much of the exact attention mass the caches "
                    + "attend, and the share of the new keys' energy that the prompt's basis misses. Takes one more "
                    + "exact computation of the text; 0: not measured. Default: ${DEFAULT-VALUE}.")
    private int attentionEvery;

    @Option(names = "--seed", paramLabel = "N", defaultValue = "1", description = "Decides the prompts.")
    private long seed;

    @Mixin
    private ComparisonArguments comparison;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    @Override
    public Integer call() throws IOException {
        Quantity.requirePositive("--length, --new-tokens, --turns and --window", length, newTokens, turns, window);
        if (attentionEvery < 0) {
            throw new IllegalArgumentException("--attention-every is negative: " + attentionEvery);
        }
        if (!TASKS.containsAll(tasks)) {
            throw new IllegalArgumentException("--tasks is " + String.join(",", tasks) + "; there are " + TASKS);
        }
        Map<String, CacheOptions> caches = comparison.caches(length);
        if (caches.values().iterator().next().kind() != CacheKind.DENSE) {
            throw new IllegalArgumentException("the first --variant must be dense: it is what the others are compared with");
        }
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            int[] prompt = tasks.contains("agreement") ? prompt(tokenizer) : new int[0];
            ModelArguments.requirePositions(checkpoint.config(), (long) prompt.length + newTokens, "prompt and --new-tokens");
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened)) {
                run(loaded, tokenizer, caches, prompt, opened);
            }
        }
        return 0;
    }

    private int[] prompt(Tokenizer tokenizer) throws IOException {
        if (promptFile != null) {
            return tokenizer.encode(TextArguments.read(promptFile));
        }
        if (!NeedleSuite.fits(tokenizer)) {
            throw new IllegalArgumentException("--prompt-file is missing: only needle-32k has a prompt of its own");
        }
        NeedleSuite suite = NeedleSuite.tasks(tokenizer, List.of(NeedleTask.COPY), List.of(length), 1, seed);
        return tokenizer.encode(suite.prompt(suite.cases().getFirst()).whole());
    }

    private void run(Model loaded, Tokenizer tokenizer, Map<String, CacheOptions> caches, int[] prompt, Device opened) {
        Map<String, String> settings = new LinkedHashMap<>(Map.of(
                "suite", "longgen", "model", model.model.toString(), "device", opened.name(), "seed", Long.toString(seed),
                "newTokens", Integer.toString(newTokens), "turns", Integer.toString(turns), "length",
                Integer.toString(length), "window", Integer.toString(window), "prompt",
                promptFile == null ? "" : promptFile.toString()));
        settings.put("attentionEvery", Integer.toString(attentionEvery));
        try (ResultStore store = comparison.open(settings)) {
            if (tasks.contains("agreement")) {
                agreement(store, loaded, caches, prompt);
                if (attentionEvery > 0) {
                    attention(store, loaded, caches, prompt);
                }
            }
            if (tasks.contains("turns")) {
                turns(store, loaded, tokenizer, caches);
            }
            comparison.print(report, settings, store);
            comparison.charts().ifPresent(folder -> draw(store.results(), folder));
        }
    }

    private Case windowCase(int number) {
        return Case.of("agreement", length, number, seed);
    }

    private void agreement(ResultStore store, Model loaded, Map<String, CacheOptions> caches, int[] prompt) {
        int windows = Math.ceilDiv(newTokens, window);
        if (caches.keySet().stream().skip(1).allMatch(name -> store.contains(name, windowCase(windows - 1)))) {
            return;
        }
        try (StepByStep steps = new StepByStep(loaded, caches, (long) prompt.length + newTokens);
                Progress progress = report.progress("agreement", newTokens)) {
            StepByStep.Run run = steps.chosen(prompt, newTokens, false, (done, total) -> progress.to(done, "tokens"));
            run.steps().forEach((name, all) -> {
                for (int number = 0; number < windows; number++) {
                    List<StepByStep.Step> part = all.subList(number * window, Math.min(newTokens, (number + 1) * window));
                    if (!store.contains(name, windowCase(number))) {
                        store.append(windowResult(name, number, part, prompt.length));
                    }
                }
            });
        }
    }

    private Result windowResult(String name, int number, List<StepByStep.Step> part, int promptTokens) {
        long selected = part.stream().mapToLong(StepByStep.Step::selectedChunks).sum();
        long fetched = part.stream().mapToLong(StepByStep.Step::fetchedChunks).sum();
        Prompt prompt = new Prompt(windowCase(number), "", "", List.of("what exact attention chooses"), part.size(), false);
        Map<String, Double> measurements = Map.of(
                "divergence", mean(part, StepByStep.Step::divergence),
                "landmarkMass", mean(part, StepByStep.Step::landmarkMass),
                "residentShare", selected == 0 ? 1 : 1 - (double) fetched / selected);
        return new Result(
                name,
                prompt,
                new Answer("", promptTokens + number * window, part.size(), 0, 0, measurements),
                mean(part, step -> step.agrees() ? 1 : 0));
    }

    private Case layerCase(int layer, int number) {
        return Case.of(LAYER + layer, length, number, seed);
    }

    private void attention(ResultStore store, Model loaded, Map<String, CacheOptions> caches, int[] prompt) {
        int layers = loaded.config().layers();
        int windows = Math.ceilDiv(newTokens, window);
        Map<String, CacheOptions> missing = new LinkedHashMap<>(caches);
        missing.values().removeIf(options -> options.kind() == CacheKind.DENSE);
        missing.keySet().removeIf(name -> store.contains(name, layerCase(layers - 1, windows - 1)));
        if (missing.isEmpty()) {
            return;
        }
        int[] ids = Arrays.copyOf(prompt, prompt.length + newTokens);
        System.arraycopy(generated(loaded, caches, prompt), 0, ids, prompt.length, newTokens);
        try (Progress progress = report.progress("attention", (long) layers * missing.size())) {
            int[] done = {0};
            FidelityProbe.overTime(loaded, ids, prompt.length, attentionEvery, missing, (name, layer) -> {
                for (int number = 0; number < windows; number++) {
                    if (!store.contains(name, layerCase(layer.layer(), number))) {
                        layerResult(name, number, layer, prompt.length).ifPresent(store::append);
                    }
                }
                progress.to(++done[0], name);
            });
        }
    }

    /** What exact attention generates: the same each time. */
    private int[] generated(Model loaded, Map<String, CacheOptions> caches, int[] prompt) {
        Map.Entry<String, CacheOptions> exact = caches.entrySet().iterator().next();
        try (StepByStep steps = new StepByStep(
                        loaded, Map.of(exact.getKey(), exact.getValue()), (long) prompt.length + newTokens);
                Progress progress = report.progress("exact text", newTokens)) {
            return steps.chosen(prompt, newTokens, false, (done, total) -> progress.to(done, "tokens")).tokens();
        }
    }

    /** One window of a layer; nothing where no step of it was sampled. */
    private Optional<Result> layerResult(String name, int number, FidelityProbe.OverTime layer, int promptTokens) {
        int from = number * window;
        int to = Math.min(newTokens, from + window);
        OptionalDouble mass = layer.capturedMass().entrySet().stream()
                .filter(sample -> sample.getKey() >= from && sample.getKey() < to)
                .mapToDouble(Map.Entry::getValue)
                .average();
        if (mass.isEmpty()) {
            return Optional.empty();
        }
        double residual = 0;
        for (int step = from; step < to; step++) {
            residual += layer.residualEnergy()[step] / (to - from);
        }
        Prompt prompt = new Prompt(
                layerCase(layer.layer(), number), "", "", List.of("what exact attention attends"), to - from, false);
        // A sum of weights may round to more than all of them.
        return Optional.of(new Result(
                name,
                prompt,
                new Answer("", promptTokens + from, to - from, 0, 0, Map.of("residualEnergy", residual)),
                Math.min(1, mass.getAsDouble())));
    }

    private static double mean(List<StepByStep.Step> steps, ToDoubleFunction<StepByStep.Step> number) {
        return steps.stream().mapToDouble(number).average().orElse(Double.NaN);
    }

    private void turns(ResultStore store, Model loaded, Tokenizer tokenizer, Map<String, CacheOptions> caches) {
        NeedleConversation conversation = NeedleConversation.make(tokenizer, length, turns, 0, seed);
        int[] context = tokenizer.encode(conversation.context());
        int[][] questions = new int[turns][];
        long capacity = context.length;
        for (int turn = 0; turn < turns; turn++) {
            questions[turn] = tokenizer.encode(conversation.turns().get(turn).question(), false);
            capacity += questions[turn].length + conversation.turns().get(turn).answerTokens();
        }
        ModelArguments.requirePositions(loaded.config(), capacity, "the context with all turns");
        try (Progress progress = report.progress("turns", turns * (caches.size() + 1L))) {
            int done = 0;
            for (Map.Entry<String, CacheOptions> entry : caches.entrySet()) {
                inTurn(store, loaded, tokenizer, entry, conversation, context, questions, capacity);
                done += turns;
                progress.to(done, entry.getKey());
            }
            fresh(store, loaded, tokenizer, caches, conversation, context, questions, progress, done);
        }
    }

    private Case turnCase(int turn) {
        return Case.of("turns", length, turn, seed);
    }

    private void inTurn(
            ResultStore store,
            Model loaded,
            Tokenizer tokenizer,
            Map.Entry<String, CacheOptions> cache,
            NeedleConversation conversation,
            int[] context,
            int[][] questions,
            long capacity) {
        if (store.contains(cache.getKey(), turnCase(turns - 1))) {
            return;
        }
        try (Conversation session = new Conversation(loaded, cache.getValue(), context, capacity)) {
            for (int turn = 0; turn < turns; turn++) {
                NeedleConversation.Turn asked = conversation.turns().get(turn);
                int[] answer = session.ask(questions[turn], asked.answerTokens());
                if (!store.contains(cache.getKey(), turnCase(turn))) {
                    store.append(turnResult(cache.getKey(), turn, asked, tokenizer.decode(answer), (int) session.length()));
                }
            }
        }
    }

    private void fresh(
            ResultStore store,
            Model loaded,
            Tokenizer tokenizer,
            Map<String, CacheOptions> caches,
            NeedleConversation conversation,
            int[] context,
            int[][] questions,
            Progress progress,
            int before) {
        int longest = Arrays.stream(questions).mapToInt(question -> question.length).max().orElse(0);
        int answer = conversation.turns().stream().mapToInt(NeedleConversation.Turn::answerTokens).max().orElse(0);
        try (SideBySide sides = new SideBySide(loaded, caches, (long) context.length + longest + answer)) {
            for (int turn = 0; turn < turns; turn++) {
                NeedleConversation.Turn asked = conversation.turns().get(turn);
                int number = turn;
                if (!caches.keySet().stream().allMatch(name -> store.contains(name + "/fresh", turnCase(number)))) {
                    int[] ids = Arrays.copyOf(context, context.length + questions[turn].length);
                    System.arraycopy(questions[turn], 0, ids, context.length, questions[turn].length);
                    SideBySide.Answers all = sides.answer(ids, asked.answerTokens(), Set.of(), (done, total) -> {});
                    all.outcomes().forEach((name, outcome) -> {
                        if (!store.contains(name + "/fresh", turnCase(number))) {
                            store.append(turnResult(
                                    name + "/fresh", number, asked, tokenizer.decode(outcome.ids()), ids.length));
                        }
                    });
                }
                progress.to(before + turn + 1L, "fresh");
            }
        }
    }

    private Result turnResult(String name, int turn, NeedleConversation.Turn asked, String answer, int tokens) {
        Prompt prompt = new Prompt(turnCase(turn), "", "", List.of(asked.answer()), asked.answerTokens(), false);
        return new Result(
                name,
                prompt,
                new Answer(answer, tokens, asked.answerTokens(), 0, 0, Map.of()),
                NeedleSuite.tokenScore(asked.answer(), answer));
    }

    private void draw(List<Result> results, Path charts) {
        try {
            Files.createDirectories(charts);
            line(results, charts, "share of tokens that exact attention chooses too", "agreement", Result::score);
            line(results, charts, "divergence (nats)", "divergence", result -> measured(result, "divergence"));
            line(results, charts, "landmark weight that the selection holds", "landmark-mass", result -> measured(result, "landmarkMass"));
            line(results, charts, "share of chunks resident", "resident", result -> measured(result, "residentShare"));
            layers(results, charts, "exact attention mass that the cache attends", "mass", Result::score);
            layers(
                    results, charts, "share of new keys' energy that the prompt's basis misses", "residual-energy",
                    result -> measured(result, "residualEnergy"));
        } catch (IOException e) {
            throw new EvaluationException(charts + ": cannot be made: " + e.getMessage(), e);
        } catch (LinkageError e) {
            throw new EvaluationException("charts need the JDK's module java.desktop: " + e.getMessage(), e);
        }
    }

    private static double measured(Result result, String name) {
        return result.answer().measurements().getOrDefault(name, Double.NaN);
    }

    private void line(List<Result> results, Path charts, String title, String name, ToDoubleFunction<Result> number) {
        List<Result> agreement = results.stream()
                .filter(result -> result.prompt().origin().task().equals("agreement"))
                .toList();
        draw(agreement, Result::variant, title, number, charts.resolve(name + ".png"));
    }

    /** A chart a cache with a line a layer: {@code name-CACHE.png}. */
    private void layers(List<Result> results, Path charts, String title, String name, ToDoubleFunction<Result> number) {
        results.stream()
                .filter(result -> result.prompt().origin().task().startsWith(LAYER))
                .collect(Collectors.groupingBy(Result::variant))
                .forEach((variant, own) -> draw(
                        own,
                        result -> result.prompt().origin().task().substring(LAYER.length() - "layer ".length()),
                        title + ": " + variant,
                        number,
                        charts.resolve(name + "-" + variant + ".png")));
    }

    private void draw(
            List<Result> results, Function<Result, String> line, String title, ToDoubleFunction<Result> number, Path file) {
        Map<String, SortedMap<Double, Double>> lines = new LinkedHashMap<>();
        for (Result result : results) {
            lines.computeIfAbsent(line.apply(result), name -> new TreeMap<>())
                    .put((double) result.prompt().origin().index() * window, number.applyAsDouble(result));
        }
        if (!lines.isEmpty()) {
            Charts.lines("Over generated tokens", "generated tokens", title, lines, file);
        }
    }
}
