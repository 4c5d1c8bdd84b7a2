package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.eval.Case;
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
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv demo}. */
@Command(
        name = "demo",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "Asks a small checkpoint questions about a long context and shows exact attention and ShadowKV side "
                + "by side, from one computation of the prompt.")
final class DemoCommand implements Callable<Integer> {
    private static final String EXACT = "exact";
    private static final String SHADOW = "shadow";
    private static final int SHORTEST = 512;
    private static final int LONGEST = 32768;
    /** Of the checkpoint, whose keys have a joint width of 256. */
    private static final int RANK = 40;

    private static final int BUDGETS_A_CONTEXT = 64;
    private static final int SHOWN = 40;

    @Option(
            names = "--context",
            paramLabel = "TOKENS",
            defaultValue = "16384",
            description = "Length of the prompts, up to 32768. Default: ${DEFAULT-VALUE}.")
    private int context;

    @Option(
            names = "--tasks",
            paramLabel = "TASK",
            split = ",",
            description = "Of niah_single, niah_multikey, niah_multivalue, vt, copy. Default: all.")
    private List<String> tasks;

    @Option(
            names = "--samples",
            paramLabel = "N",
            defaultValue = "1",
            description = "Prompts a task. Default: ${DEFAULT-VALUE}.")
    private int samples;

    @Option(names = "--seed", paramLabel = "N", defaultValue = "1", description = "Decides the prompts.")
    private long seed;

    @Option(
            names = "--model",
            paramLabel = "DIR",
            description = "A checkpoint with the vocabulary of needle-32k. Default: models/needle-32k of the project.")
    private Path model;

    @Mixin
    private CacheArguments cacheArguments;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    /** A prompt and what came of it. */
    private record Line(Prompt prompt, SideBySide.Answers answers, Map<String, String> texts, Map<String, Double> scores) {}

    @Override
    public Integer call() {
        if (context < SHORTEST || context > LONGEST) {
            throw new IllegalArgumentException(
                    "--context is " + context + ", it must be from " + SHORTEST + " to " + LONGEST);
        }
        Path folder = model == null ? DeviceArguments.home().resolve("models/needle-32k") : model;
        int budget = Math.max(64, context / BUDGETS_A_CONTEXT);
        Map<String, CacheOptions> caches = new LinkedHashMap<>();
        caches.put(EXACT, cacheArguments.options(CacheKind.DENSE, budget, RANK));
        caches.put(SHADOW, cacheArguments.options(CacheKind.SHADOW, budget, RANK));
        try (Checkpoint checkpoint = Checkpoint.open(folder);
                Tokenizer tokenizer = Tokenizer.open(folder)) {
            NeedleSuite suite = NeedleSuite.tasks(tokenizer, chosen(), List.of(context), samples, seed);
            List<Prompt> prompts = suite.cases().stream().map(suite::prompt).toList();
            int longest = prompts.stream().mapToInt(Prompt::maxNewTokens).max().orElseThrow();
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened);
                    SideBySide sides = new SideBySide(loaded, caches, (long) context + longest)) {
                List<Line> lines = run(sides, suite, prompts, tokenizer, Set.copyOf(checkpoint.config().endIds()));
                CacheOptions shadow = caches.get(SHADOW);
                report.print(() -> text(opened, shadow, sides, lines), () -> json(opened, shadow, sides, lines));
            }
        }
        return 0;
    }

    private List<NeedleTask> chosen() {
        return tasks == null ? NeedleTask.all() : tasks.stream().map(NeedleTask::ofCode).toList();
    }

    private List<Line> run(
            SideBySide sides, NeedleSuite suite, List<Prompt> prompts, Tokenizer tokenizer, Set<Integer> ends) {
        List<Line> lines = new ArrayList<>();
        for (Prompt prompt : prompts) {
            int[] ids = tokenizer.encode(prompt.whole());
            SideBySide.Answers answers;
            String task = prompt.origin().task();
            try (Progress progress = report.progress(String.format("%-16s", task), 100)) {
                answers = sides.answer(ids, prompt.maxNewTokens(), ends, (done, total) ->
                        progress.to(100 * done / total, done == total ? "decoding" : "prefill"));
            }
            Map<String, String> texts = new LinkedHashMap<>();
            Map<String, Double> scores = new LinkedHashMap<>();
            answers.outcomes().forEach((name, outcome) -> {
                texts.put(name, tokenizer.decode(outcome.ids()));
                scores.put(name, suite.score(prompt, texts.get(name)));
            });
            lines.add(new Line(prompt, answers, texts, scores));
            if (!report.json()) {
                print(report.terminal(), lines.getLast());
            }
        }
        return lines;
    }

    private static void print(PrintWriter terminal, Line line) {
        String question = line.prompt().whole();
        terminal.println(line.prompt().origin().task() + ": ... "
                + question.substring(Math.max(0, question.length() - 2 * SHOWN)));
        terminal.println("  expected  " + shown(line.prompt().answers().getFirst()));
        line.texts().forEach((name, text) -> terminal.println(String.format(
                Locale.ROOT, "  %-8s  %s  %s", name, shown(text), verdict(line.scores().get(name)))));
        terminal.println();
        terminal.flush();
    }

    private static String shown(String text) {
        return text.length() <= 2 * SHOWN ? text : text.substring(0, 2 * SHOWN) + " ...";
    }

    private static String verdict(double score) {
        return score == 1 ? "right" : score == 0 ? "wrong" : String.format(Locale.ROOT, "%.0f %% right", 100 * score);
    }

    private String text(Device opened, CacheOptions shadow, SideBySide sides, List<Line> lines) {
        TextTable table = new TextTable(List.of(
                "task", "cache", "answer", "prefill s", "seal s", "tokens/s", "attention ms/step", "resident"));
        for (Line line : lines) {
            line.answers().outcomes().forEach((name, outcome) -> table.add(List.of(
                    line.prompt().origin().task(),
                    name,
                    verdict(line.scores().get(name)),
                    Output.number("%.2f", line.answers().prefillSeconds()),
                    Output.number("%.2f", outcome.sealSeconds()),
                    speed(outcome),
                    Output.number("%.3f", outcome.attentionMilliseconds()),
                    name.equals(EXACT) ? "-" : Output.number("%.0f %%", 100 * outcome.statistics().hitRate()))));
        }
        TextTable memory = new TextTable(List.of("cache", "KV device", "bytes/token", "KV host", "bytes/token"));
        for (String name : List.of(EXACT, SHADOW)) {
            MemoryPlan plan = sides.memoryPlan(name);
            memory.add(List.of(
                    name,
                    Output.bytes(plan.sessionDeviceBytes()),
                    Output.number("%.0f", plan.deviceBytesPerToken()),
                    Output.bytes(plan.sessionPinnedBytes()),
                    Output.number("%.0f", (double) plan.sessionPinnedBytes() / plan.tokens())));
        }
        MemoryPlan exact = sides.memoryPlan(EXACT);
        MemoryPlan small = sides.memoryPlan(SHADOW);
        String conclusion = String.format(
                Locale.ROOT,
                "%s, context %d, budget %d tokens, rank %d: ShadowKV keeps %.1f times less on the device.",
                opened,
                context,
                shadow.budget(),
                shadow.rank().orElse(0),
                exact.deviceBytesPerToken() / small.deviceBytesPerToken());
        return String.join(System.lineSeparator(), table.toString(), memory.toString(), conclusion);
    }

    private static String speed(SideBySide.Outcome outcome) {
        return outcome.steps() == 0 ? "-" : Output.number("%.1f", outcome.steps() / outcome.decodeSeconds());
    }

    private ObjectNode json(Device opened, CacheOptions shadow, SideBySide sides, List<Line> lines) {
        ObjectNode node = Output.object();
        node.put("device", opened.toString());
        node.put("context", context);
        node.put("budget", shadow.budget());
        node.put("rank", shadow.rank().orElse(0));
        node.put("radiusWeight", shadow.radiusWeight());
        node.put("rerank", shadow.rerank());
        node.put("tail", shadow.tailTakesPart());
        node.put("predict", shadow.predictsDropped());
        node.put("balance", shadow.balancesHeads());
        ObjectNode memory = node.putObject("memory");
        memory.set(EXACT, Output.plan(sides.memoryPlan(EXACT)));
        memory.set(SHADOW, Output.plan(sides.memoryPlan(SHADOW)));
        ArrayNode results = node.putArray("results");
        for (Line line : lines) {
            Case origin = line.prompt().origin();
            ObjectNode result = results.addObject();
            result.put("task", origin.task());
            result.put("index", origin.index());
            result.put("expected", line.prompt().answers().getFirst());
            result.put("prefillSeconds", line.answers().prefillSeconds());
            ObjectNode sidesNode = result.putObject("caches");
            line.answers().outcomes().forEach((name, outcome) -> {
                ObjectNode side = sidesNode.putObject(name);
                side.put("answer", line.texts().get(name));
                side.put("score", line.scores().get(name));
                side.put("right", line.scores().get(name) == 1);
                side.put("sealSeconds", outcome.sealSeconds());
                if (outcome.steps() > 0) {
                    side.put("tokensPerSecond", outcome.steps() / outcome.decodeSeconds());
                }
                side.put("attentionMilliseconds", outcome.attentionMilliseconds());
                side.set("decode", Output.statistics(outcome.statistics()));
            });
        }
        return node;
    }
}
