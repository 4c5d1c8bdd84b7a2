package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Completion;
import dev.shadowkv.llm.Engine;
import dev.shadowkv.llm.Generation;
import dev.shadowkv.llm.GenerationRequest;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.TokenListener;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.input.PromptFile;
import dev.shadowkv.llm.input.TokenIds;
import dev.shadowkv.llm.sampling.SamplingOptions;
import dev.shadowkv.llm.text.ChatMessage;
import dev.shadowkv.llm.text.ChatTemplate;
import dev.shadowkv.llm.text.StreamingDecoder;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.Callable;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv generate}. */
@Command(
        name = "generate",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "Continues prompts. Prompts of different lengths are decoded together, as many as --batch says.")
final class GenerateCommand implements Callable<Integer> {
    @Mixin
    private ModelArguments model;

    @ArgGroup(multiplicity = "1")
    private Source source;

    /** Exactly one of these. */
    static final class Source {
        @Option(names = "--prompt", paramLabel = "TEXT", description = "The prompt.")
        private String prompt;

        @Option(names = "--prompt-file", paramLabel = "F", description = "A file that is the prompt.")
        private Path promptFile;

        @Option(
                names = "--ids",
                paramLabel = "F",
                description = "Token ids: a text file with one sequence a line, or a safetensors file with input_ids.")
        private Path ids;

        @Option(
                names = "--prompts",
                paramLabel = "F",
                description = "JSON lines, plain or gzipped, each an object with a prompt.")
        private Path prompts;
    }

    @Option(
            names = "--max-new-tokens",
            paramLabel = "N",
            defaultValue = "64",
            description = "Tokens that an answer has at most. Default: ${DEFAULT-VALUE}.")
    private int maxNewTokens;

    @Option(names = "--ignore-end", description = "Go on after a token that ends answers.")
    private boolean ignoreEnd;

    @Option(names = "--chat", description = "Take each prompt as a user's turn in the checkpoint's chat template.")
    private boolean chat;

    @Option(
            names = "--temperature",
            paramLabel = "X",
            defaultValue = "0",
            description = "0 always takes the likeliest token. Default: ${DEFAULT-VALUE}.")
    private double temperature;

    @Option(names = "--top-k", paramLabel = "N", defaultValue = "0", description = "Choose among the N likeliest; 0: all.")
    private int topK;

    @Option(
            names = "--top-p",
            paramLabel = "X",
            defaultValue = "1",
            description = "Choose among the likeliest whose probabilities reach X. Default: ${DEFAULT-VALUE}.")
    private double topP;

    @Option(
            names = "--seed",
            paramLabel = "N",
            defaultValue = "0",
            description = "Seed of the first prompt; each further one has the next. Default: ${DEFAULT-VALUE}.")
    private long seed;

    @Option(
            names = "--batch",
            paramLabel = "N",
            defaultValue = "4",
            description = "Prompts that are decoded together. Default: ${DEFAULT-VALUE}.")
    private int batch;

    @Option(
            names = "--capacity",
            paramLabel = "TOKENS",
            description = "Tokens that a session has room for. Default: what the longest prompt and answer need.")
    private Long capacity;

    @Option(names = "--out", paramLabel = "F", description = "Write the results as JSON lines, in the prompts' order.")
    private Path out;

    @Mixin
    private CacheChoice cache;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    /** A prompt and what its line of the file held beside it. */
    private record Input(int[] ids, ObjectNode origin) {}

    @Override
    public Integer call() throws IOException {
        CacheOptions options = cache.options();
        SamplingOptions sampling = new SamplingOptions(temperature, topK, topP, seed);
        Quantity.requirePositive("--max-new-tokens and --batch", maxNewTokens, batch);
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = tokenizer()) {
            List<Input> inputs = inputs(checkpoint.config(), tokenizer);
            for (int i = 0; i < inputs.size(); i++) {
                ModelArguments.requirePositions(checkpoint.config(), inputs.get(i).ids().length, "prompt " + (i + 1));
            }
            long needed = inputs.stream().mapToLong(input -> input.ids().length).max().orElseThrow() + maxNewTokens;
            long room = capacity == null ? needed : capacity;
            if (needed > room) {
                throw new IllegalArgumentException("the longest prompt and its answer take " + needed
                        + " tokens, the capacity is " + room);
            }
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened);
                    Engine engine = Engine.builder(loaded)
                            .cache(options)
                            .sessions(Math.min(batch, inputs.size()))
                            .capacity(room)
                            .build()) {
                run(engine, checkpoint.config(), tokenizer, inputs, sampling, options.decided(room).kind());
            }
        }
        return 0;
    }

    /** Null when ids come and go and the checkpoint has no tokenizer. */
    private Tokenizer tokenizer() {
        boolean needed = source.ids == null;
        return needed || Files.exists(model.model.resolve("tokenizer.json")) ? Tokenizer.open(model.model) : null;
    }

    private List<Input> inputs(ModelConfig config, Tokenizer tokenizer) throws IOException {
        List<Input> inputs = new ArrayList<>();
        if (source.ids != null) {
            TokenIds.read(source.ids, config.vocabularySize()).forEach(ids -> inputs.add(new Input(ids, Output.object())));
        } else if (source.prompts != null) {
            for (PromptFile.Entry entry : PromptFile.read(source.prompts)) {
                ObjectNode origin = Output.object(entry.json());
                origin.remove("prompt");
                inputs.add(new Input(encode(tokenizer, entry.prompt()), origin));
            }
        } else {
            String text = source.prompt != null ? source.prompt : TextArguments.read(source.promptFile);
            inputs.add(new Input(encode(tokenizer, text), Output.object()));
        }
        for (Input input : inputs) {
            if (input.ids().length == 0) {
                throw new IllegalArgumentException("the prompt has no tokens");
            }
            for (int id : input.ids()) {
                if (id >= config.vocabularySize()) {
                    throw new IllegalArgumentException("the tokenizer gives token id " + id
                            + ", which is outside the model's vocabulary of " + config.vocabularySize());
                }
            }
        }
        return inputs;
    }

    private int[] encode(Tokenizer tokenizer, String text) {
        if (!chat) {
            return tokenizer.encode(text);
        }
        ChatTemplate template = ChatTemplate.read(model.model)
                .orElseThrow(() -> new CheckpointException(model.model + ": the checkpoint has no chat template"));
        return tokenizer.encode(template.render(List.of(ChatMessage.user(text)), true), false);
    }

    private void run(
            Engine engine,
            ModelConfig config,
            Tokenizer tokenizer,
            List<Input> inputs,
            SamplingOptions sampling,
            CacheKind kind)
            throws IOException {
        Set<Integer> ends = ignoreEnd ? Set.of() : Set.copyOf(config.endIds());
        boolean streaming = inputs.size() == 1 && !report.json() && tokenizer != null && out == null;
        List<Generation> running = new ArrayList<>();
        try (Progress progress = Progress.of("prompts", Math.max(1, inputs.size()), report.json() || streaming)) {
            for (int i = 0; i < inputs.size(); i++) {
                SamplingOptions own =
                        new SamplingOptions(sampling.temperature(), sampling.topK(), sampling.topP(), sampling.seed() + i);
                GenerationRequest request = new GenerationRequest(inputs.get(i).ids(), maxNewTokens, ends, own);
                running.add(engine.submit(request, streaming ? new Printer(tokenizer) : TokenListener.NONE));
            }
            finish(engine, tokenizer, inputs, running, progress, streaming, kind);
        }
    }

    private void finish(
            Engine engine,
            Tokenizer tokenizer,
            List<Input> inputs,
            List<Generation> running,
            Progress progress,
            boolean streaming,
            CacheKind kind)
            throws IOException {
        PrintWriter terminal = report.terminal();
        ObjectNode all = Output.object();
        ArrayNode results = all.putArray("results");
        try (BufferedWriter lines = out == null ? null : Files.newBufferedWriter(out)) {
            for (int i = 0; i < running.size(); i++) {
                Completion completion = running.get(i).join();
                progress.to(i + 1, "");
                ObjectNode result = result(i, inputs.get(i), completion, tokenizer);
                results.add(result);
                if (lines != null) {
                    lines.write(result.toString());
                    lines.newLine();
                    lines.flush();
                }
                if (!report.json() && !streaming && out == null) {
                    print(terminal, running.size(), i, completion, tokenizer);
                }
            }
        }
        all.put("cache", kind.name().toLowerCase(java.util.Locale.ROOT));
        all.set("memory", Output.plan(engine.memoryPlan()));
        all.set("decode", Output.statistics(engine.statistics()));
        if (report.json()) {
            terminal.println(Output.pretty(all));
        } else if (streaming) {
            terminal.println();
        }
        terminal.flush();
    }

    private static void print(PrintWriter terminal, int count, int index, Completion completion, Tokenizer tokenizer) {
        if (count > 1) {
            terminal.println("--- prompt " + (index + 1));
        }
        if (tokenizer != null) {
            terminal.println(tokenizer.decode(completion.ids()));
        } else {
            StringBuilder text = new StringBuilder();
            for (int id : completion.ids()) {
                text.append(text.isEmpty() ? "" : " ").append(id);
            }
            terminal.println(text);
        }
    }

    private static ObjectNode result(int index, Input input, Completion completion, Tokenizer tokenizer) {
        ObjectNode node = input.origin().deepCopy();
        node.put("index", index);
        if (tokenizer != null) {
            node.put("text", tokenizer.decode(completion.ids()));
        }
        ArrayNode ids = node.putArray("ids");
        for (int id : completion.ids()) {
            ids.add(id);
        }
        node.put("finishReason", completion.reason().name().toLowerCase(java.util.Locale.ROOT));
        node.put("promptTokens", completion.promptTokens());
        node.put("newTokens", completion.ids().length);
        node.put("prefillSeconds", completion.prefillSeconds());
        node.put("decodeSeconds", completion.decodeSeconds());
        if (completion.ids().length > 1) {
            node.put("tokensPerSecond", (completion.ids().length - 1) / completion.decodeSeconds());
        }
        return node;
    }

    /** Prints an answer as it comes. */
    private final class Printer implements TokenListener {
        private final StreamingDecoder decoder;

        Printer(Tokenizer tokenizer) {
            decoder = tokenizer.streamingDecoder();
        }

        @Override
        public void onToken(int index, int id) {
            PrintWriter terminal = report.terminal();
            terminal.print(decoder.accept(id));
            if (index == maxNewTokens - 1) {
                terminal.print(decoder.finish());
            }
            terminal.flush();
        }
    }
}
