package dev.shadowkv.cli;

import dev.shadowkv.eval.PromptEncoder;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.eval.haystack.Haystack;
import dev.shadowkv.eval.longbench.LongBenchPrompts;
import dev.shadowkv.eval.longbench.LongBenchSuite;
import dev.shadowkv.eval.longbench.LongBenchTask;
import dev.shadowkv.eval.needle.NeedleSuite;
import dev.shadowkv.eval.needle.NeedleTask;
import dev.shadowkv.eval.niah.NiahSuite;
import dev.shadowkv.eval.ruler.QuestionFile;
import dev.shadowkv.eval.ruler.RulerSuite;
import dev.shadowkv.eval.ruler.RulerTask;
import dev.shadowkv.eval.ruler.RulerTemplates;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.text.Tokenizer;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** The suites of {@code shadowkv eval}. */
final class EvalSuites {
    private EvalSuites() {}

    /** Options of suites that make their prompts. */
    static final class Made {
        @Option(
                names = "--lengths",
                paramLabel = "TOKENS",
                split = ",",
                defaultValue = "4096",
                description = "Lengths of the prompts. Default: ${DEFAULT-VALUE}.")
        private List<Integer> lengths;

        @Option(names = "--seed", paramLabel = "N", defaultValue = "1", description = "Decides the prompts.")
        private long seed;

        /** Refuses a length that the model has no positions for at once, not when its turn comes. */
        private List<Integer> lengths(ModelConfig config) {
            Quantity.requirePositive("--lengths", lengths.stream().mapToInt(Integer::intValue).toArray());
            lengths.forEach(length -> ModelArguments.requirePositions(config, length, "a prompt of --lengths"));
            return lengths;
        }

        private Map<String, String> identity() {
            return new LinkedHashMap<>(Map.of("seed", Long.toString(seed)));
        }
    }

    private static void note(Map<String, String> identity, String name, Path file) {
        Optional.ofNullable(file).ifPresent(path -> identity.put(name, path.toString()));
    }

    /** Within the vocabulary of needle-32k. */
    @Command(
            name = "needle",
            mixinStandardHelpOptions = true,
            sortOptions = false,
            description = "Retrieval, variable tracking and copying for models/needle-32k.")
    static final class Needle extends SuiteCommand {
        @Mixin
        private Made made;

        @Override
        Suite suite(Tokenizer tokenizer, PromptEncoder encoder, ModelConfig config) {
            List<NeedleTask> chosen =
                    tasks == null ? NeedleTask.all() : tasks.stream().map(NeedleTask::ofCode).toList();
            return NeedleSuite.tasks(tokenizer, chosen, made.lengths(config), samples, made.seed);
        }

        @Override
        Map<String, String> identity() {
            return made.identity();
        }
    }

    /** RULER. */
    @Command(
            name = "ruler",
            mixinStandardHelpOptions = true,
            sortOptions = false,
            description = "The 13 tasks of RULER, made for the checkpoint's tokenizer; qa_1 and qa_2 need the files of their "
                    + "questions.")
    static final class Ruler extends SuiteCommand {
        @Mixin
        private Made made;

        @Option(names = "--haystack", paramLabel = "F.txt", description = "Text that hides needles. Default: made-up sentences.")
        private Path haystack;

        @Option(names = "--squad", paramLabel = "F.json", description = "SQuAD's file, for qa_1.")
        private Path squad;

        @Option(names = "--hotpot", paramLabel = "F.json", description = "HotpotQA's file, for qa_2.")
        private Path hotpot;

        @Option(
                names = "--templates",
                paramLabel = "F.json",
                description = "Wording of the prompts by task; RULER's own is needed for scores beside published ones. Default: ours.")
        private Path templates;

        @Override
        Suite suite(Tokenizer tokenizer, PromptEncoder encoder, ModelConfig config) {
            RulerSuite.Builder builder = RulerSuite.builder(tokenizer)
                    .tasks(tasks == null ? RulerTask.selfContained() : tasks.stream().map(RulerTask::ofCode).toList())
                    .lengths(made.lengths(config))
                    .samples(samples)
                    .seed(made.seed)
                    .overheadTokens(encoder.overheadTokens());
            Optional.ofNullable(haystack).ifPresent(path -> builder.haystack(Haystack.read(path)));
            Optional.ofNullable(squad).ifPresent(path -> builder.squad(QuestionFile.readSquad(path)));
            Optional.ofNullable(hotpot).ifPresent(path -> builder.hotpot(QuestionFile.readHotpot(path)));
            Optional.ofNullable(templates).ifPresent(path -> builder.templates(RulerTemplates.read(path)));
            return builder.build();
        }

        @Override
        Map<String, String> identity() {
            Map<String, String> identity = made.identity();
            note(identity, "haystack", haystack);
            note(identity, "squad", squad);
            note(identity, "hotpot", hotpot);
            note(identity, "templates", templates);
            return identity;
        }
    }

    /** A needle at every depth. */
    @Command(
            name = "niah",
            mixinStandardHelpOptions = true,
            sortOptions = false,
            description = "One needle in a haystack, at every length and depth; --charts draws the heat map.")
    static final class Niah extends SuiteCommand {
        @Mixin
        private Made made;

        @Option(names = "--depths", paramLabel = "N", defaultValue = "11", description = "Depths. Default: ${DEFAULT-VALUE}.")
        private int depths;

        @Option(names = "--haystack", paramLabel = "F.txt", description = "Text that hides the needle. Default: made-up sentences.")
        private Path haystack;

        @Override
        Suite suite(Tokenizer tokenizer, PromptEncoder encoder, ModelConfig config) {
            Quantity.requirePositive("--depths", depths);
            if (tasks != null) {
                throw new IllegalArgumentException("niah is one task; leave --tasks out");
            }
            if (haystack == null && NeedleSuite.fits(tokenizer)) {
                // That model knows no words but those of its own haystack.
                return NeedleSuite.grid(
                        tokenizer, NeedleTask.NIAH_SINGLE, made.lengths(config), NiahSuite.depths(depths), samples, made.seed);
            }
            return new NiahSuite(
                    tokenizer,
                    haystack == null ? Haystack.generated() : Haystack.read(haystack),
                    made.lengths(config),
                    NiahSuite.depths(depths),
                    samples,
                    made.seed,
                    encoder.overheadTokens());
        }

        @Override
        Map<String, String> identity() {
            Map<String, String> identity = made.identity();
            note(identity, "haystack", haystack);
            return identity;
        }
    }

    /** LongBench. */
    @Command(
            name = "longbench",
            mixinStandardHelpOptions = true,
            sortOptions = false,
            description = "LongBench's 21 tasks from its published files, with its metrics; a prompt that is too long loses its "
                    + "middle.")
    static final class LongBench extends SuiteCommand {
        @Option(
                names = "--data",
                paramLabel = "DIR",
                required = true,
                description = "Folder with narrativeqa.jsonl and so on; tasks without a file are left out.")
        private Path data;

        @Option(
                names = "--templates",
                paramLabel = "F.json",
                description = "LongBench's dataset2prompt.json, for scores beside published ones. Default: our wording.")
        private Path templates;

        @Option(
                names = "--max-tokens",
                paramLabel = "N",
                description = "Tokens of prompt and answer together. Default: the positions of the model.")
        private Integer maxTokens;

        @Override
        Suite suite(Tokenizer tokenizer, PromptEncoder encoder, ModelConfig config) {
            long positions = config.maxPositions();
            int limit = maxTokens == null ? (int) Math.min(Integer.MAX_VALUE, positions) : maxTokens;
            Quantity.requirePositive("--max-tokens", limit);
            if (limit > positions) {
                throw new IllegalArgumentException(
                        "--max-tokens is " + limit + ", the model has positions for " + positions);
            }
            return LongBenchSuite.open(
                    data,
                    tasks == null ? List.of() : tasks.stream().map(LongBenchTask::ofCode).toList(),
                    samples,
                    wording(),
                    tokenizer,
                    limit - encoder.overheadTokens());
        }

        private LongBenchPrompts wording() {
            return templates == null ? LongBenchPrompts.builtIn() : LongBenchPrompts.read(templates);
        }

        @Override
        Map<String, String> identity() {
            Map<String, String> identity = new LinkedHashMap<>(Map.of("data", data.toString()));
            note(identity, "templates", templates);
            Optional.ofNullable(maxTokens).ifPresent(limit -> identity.put("maxTokens", Integer.toString(limit)));
            return identity;
        }
    }
}
