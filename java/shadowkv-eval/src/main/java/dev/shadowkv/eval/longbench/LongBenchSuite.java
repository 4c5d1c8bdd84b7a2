package dev.shadowkv.eval.longbench;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.llm.input.PromptFile;
import dev.shadowkv.llm.internal.json.Json;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.BufferedReader;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;

/**
 * LongBench (Bai et al., 2023) from its published data: a folder of {@code TASK.jsonl} files. A prompt that is longer
 * than the model's context loses its middle, as published. One task's data is in memory at a time.
 */
public final class LongBenchSuite implements Suite {
    private final Path folder;
    private final LongBenchPrompts prompts;
    private final Tokenizer tokenizer;
    private final int maxTokens;
    private final List<Case> cases = new ArrayList<>();
    private LongBenchTask loaded;
    private List<ObjectNode> entries = List.of();

    private LongBenchSuite(Path folder, LongBenchPrompts prompts, Tokenizer tokenizer, int maxTokens) {
        this.folder = folder;
        this.prompts = Objects.requireNonNull(prompts, "prompts");
        this.tokenizer = Objects.requireNonNull(tokenizer, "tokenizer");
        this.maxTokens = maxTokens;
    }

    /**
     * Opens a folder.
     *
     * @param tasks those to run; empty for all that have a file
     * @param samples how many prompts a task, the first ones; all when there are fewer
     * @param maxTokens tokens of prompt and answer together that the model can take
     * @throws EvaluationException when a file is missing or broken, or there is none
     */
    public static LongBenchSuite open(
            Path folder,
            List<LongBenchTask> tasks,
            int samples,
            LongBenchPrompts prompts,
            Tokenizer tokenizer,
            int maxTokens) {
        LongBenchSuite suite = new LongBenchSuite(folder, prompts, tokenizer, maxTokens);
        List<LongBenchTask> chosen = tasks.isEmpty()
                ? Arrays.stream(LongBenchTask.values())
                        .filter(task -> Files.isRegularFile(suite.file(task)))
                        .toList()
                : tasks;
        if (chosen.isEmpty()) {
            throw new EvaluationException(folder + ": has no LongBench file such as narrativeqa.jsonl");
        }
        for (LongBenchTask task : chosen) {
            suite.load(task);
            for (int index = 0; index < Math.min(samples, suite.entries.size()); index++) {
                suite.cases.add(Case.of(task.code(), 0, index, 0));
            }
        }
        return suite;
    }

    private Path file(LongBenchTask task) {
        return folder.resolve(task.code() + ".jsonl");
    }

    private void load(LongBenchTask task) {
        if (task == loaded) {
            return;
        }
        Path path = file(task);
        if (!Files.isRegularFile(path)) {
            throw new EvaluationException(path + ": no such file");
        }
        List<ObjectNode> read = new ArrayList<>();
        try (BufferedReader reader = PromptFile.open(path)) {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                if (!line.isBlank()) {
                    read.add(entry(path, read.size() + 1, line));
                }
            }
        } catch (IOException e) {
            throw new EvaluationException(path + ": cannot be read: " + e.getMessage(), e);
        }
        entries = read;
        loaded = task;
    }

    private static ObjectNode entry(Path path, int number, String line) {
        ObjectNode entry;
        try {
            entry = Json.parseObject(line);
        } catch (IllegalArgumentException e) {
            throw new EvaluationException(path + ": entry " + number + ": " + e.getMessage(), e);
        }
        for (String field : List.of("input", "context")) {
            if (!entry.path(field).isTextual()) {
                throw new EvaluationException(path + ": entry " + number + ": the field " + field + " is missing");
            }
        }
        if (!entry.path("answers").isArray() || entry.path("answers").isEmpty()) {
            throw new EvaluationException(path + ": entry " + number + ": the field answers is missing or empty");
        }
        return entry;
    }

    private synchronized ObjectNode entry(Case origin) {
        load(LongBenchTask.ofCode(origin.task()));
        return entries.get(origin.index());
    }

    @Override
    public String name() {
        return "longbench";
    }

    @Override
    public List<Case> cases() {
        return List.copyOf(cases);
    }

    @Override
    public Prompt prompt(Case origin) {
        LongBenchTask task = LongBenchTask.ofCode(origin.task());
        ObjectNode entry = entry(origin);
        String text = prompts.fill(task, entry.get("context").asText(), entry.get("input").asText());
        return new Prompt(
                origin,
                withoutMiddle(text, maxTokens - task.newTokens()),
                "",
                texts(entry.get("answers")),
                task.newTokens(),
                !task.continuesExamples());
    }

    private String withoutMiddle(String text, int limit) {
        int[] ids = tokenizer.encode(text);
        if (ids.length <= limit) {
            return text;
        }
        // The halves may take other tokens once they are one text again, so what is kept shrinks until it fits.
        for (int kept = limit; kept >= 2; kept -= Math.max(2, limit / 200)) {
            int[] head = Arrays.copyOf(ids, kept / 2);
            int[] tail = Arrays.copyOfRange(ids, ids.length - kept / 2, ids.length);
            String shortened = tokenizer.decode(head) + tokenizer.decode(tail);
            if (tokenizer.encode(shortened).length <= limit) {
                return shortened;
            }
        }
        throw new EvaluationException("a prompt cannot be shortened to " + limit + " tokens");
    }

    private static List<String> texts(JsonNode array) {
        List<String> texts = new ArrayList<>();
        array.forEach(text -> texts.add(text.asText()));
        return texts;
    }

    @Override
    public double score(Prompt prompt, String answer) {
        LongBenchTask task = LongBenchTask.ofCode(prompt.origin().task());
        return task.score(answer, prompt.answers(), texts(entry(prompt.origin()).path("all_classes")));
    }
}
