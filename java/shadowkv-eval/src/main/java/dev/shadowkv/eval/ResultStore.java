package dev.shadowkv.eval;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.internal.json.Json;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Results in a file of JSON lines, one a result, each on disk before the next prompts are run. A run that was killed
 * continues with the same file: a last line that was torn is dropped, results that are there are not computed again.
 * The first line holds the settings of the evaluation; other settings cannot continue the file. One process at a time
 * may have it open; for one thread at a time.
 */
public final class ResultStore implements AutoCloseable {
    private static final String SETTINGS = "settings";

    private final Path path;
    /** Not a channel, which an interrupt would close with the answer unwritten. */
    private final RandomAccessFile file;

    private final List<Result> results = new ArrayList<>();
    private final Set<String> keys = new HashSet<>();

    private ResultStore(Path path, RandomAccessFile file) {
        this.path = path;
        this.file = file;
    }

    /**
     * Opens a file for adding results, and creates it when it is not there.
     *
     * @param settings whatever decides about the prompts and answers: suite, model, seed
     * @throws EvaluationException when it cannot be opened, is open elsewhere, was begun with other settings, or is
     *     broken before its last line
     */
    public static ResultStore open(Path path, Map<String, String> settings) {
        RandomAccessFile file = null;
        try {
            if (path.toAbsolutePath().getParent() != null) {
                Files.createDirectories(path.toAbsolutePath().getParent());
            }
            file = new RandomAccessFile(path.toFile(), "rw");
            lock(path, file);
            ResultStore store = new ResultStore(path, file);
            store.recover(settings);
            return store;
        } catch (IOException e) {
            close(file, e);
            throw new EvaluationException(path + ": cannot be opened: " + e.getMessage(), e);
        } catch (RuntimeException e) {
            close(file, e);
            throw e;
        }
    }

    /** Reads the results of a finished or running evaluation. */
    public static List<Result> read(Path path) {
        try {
            ResultStore store = new ResultStore(path, null);
            store.parse(Files.readAllBytes(path), null);
            return List.copyOf(store.results);
        } catch (IOException e) {
            throw new EvaluationException(path + ": cannot be read: " + e.getMessage(), e);
        }
    }

    private static void lock(Path path, RandomAccessFile file) throws IOException {
        FileLock lock;
        try {
            lock = file.getChannel().tryLock();
        } catch (OverlappingFileLockException e) {
            lock = null;
        }
        if (lock == null) {
            throw new EvaluationException(path + ": is open in another evaluation");
        }
    }

    private static void close(RandomAccessFile file, Exception failure) {
        if (file != null) {
            try {
                file.close();
            } catch (IOException e) {
                failure.addSuppressed(e);
            }
        }
    }

    private void recover(Map<String, String> settings) throws IOException {
        byte[] content = new byte[Math.toIntExact(file.length())];
        file.readFully(content);
        int whole = parse(content, settings);
        file.setLength(whole);
        file.seek(whole);
        if (whole == 0) {
            ObjectNode first = Json.object();
            settings.forEach(first.putObject(SETTINGS)::put);
            write(first + "\n");
        }
    }

    /** Takes in every whole line and returns the bytes that they take. */
    private int parse(byte[] content, Map<String, String> settings) {
        int start = 0;
        for (int line = 1; ; line++) {
            int end = start;
            while (end < content.length && content[end] != '\n') {
                end++;
            }
            if (end == content.length) {
                return start;
            }
            String text = new String(content, start, end - start, StandardCharsets.UTF_8);
            try {
                JsonNode object = Json.parseObject(text);
                if (line == 1) {
                    checkSettings(object, settings);
                } else {
                    add(result(object));
                }
            } catch (IllegalArgumentException e) {
                throw new EvaluationException(path + ": line " + line + ": " + e.getMessage(), e);
            }
            start = end + 1;
        }
    }

    private void checkSettings(JsonNode first, Map<String, String> settings) {
        if (!first.path(SETTINGS).isObject()) {
            throw new IllegalArgumentException("the first line holds no settings");
        }
        if (settings == null) {
            return;
        }
        Map<String, String> found = new HashMap<>();
        first.path(SETTINGS).properties().forEach(entry -> found.put(entry.getKey(), entry.getValue().asText()));
        Set<String> names = new HashSet<>(settings.keySet());
        names.addAll(found.keySet());
        for (String name : names.stream().sorted().toList()) {
            if (!java.util.Objects.equals(found.get(name), settings.get(name))) {
                throw new EvaluationException(path + ": was begun with " + name + " = " + found.get(name) + ", not "
                        + settings.get(name) + "; give another file");
            }
        }
    }

    private static Result result(JsonNode object) {
        Case origin = new Case(
                object.path("task").asText(),
                object.path("length").asInt(),
                object.path("depth").asDouble(Case.NO_DEPTH),
                object.path("index").asInt(),
                object.path("seed").asLong());
        List<String> expected = new ArrayList<>();
        object.path("expected").forEach(text -> expected.add(text.asText()));
        Map<String, Double> measurements = new HashMap<>();
        object.path("measurements")
                .properties()
                .forEach(entry -> measurements.put(entry.getKey(), entry.getValue().asDouble()));
        Answer answer = new Answer(
                object.path("answer").asText(),
                object.path("promptTokens").asInt(),
                object.path("newTokens").asInt(),
                object.path("prefillSeconds").asDouble(),
                object.path("decodeSeconds").asDouble(),
                measurements);
        Prompt prompt = new Prompt(origin, "", "", expected, object.path("maxNewTokens").asInt(), false);
        if (!object.path("score").isNumber()) {
            throw new IllegalArgumentException("the score is missing");
        }
        return new Result(object.path("variant").asText(), prompt, answer, object.path("score").asDouble());
    }

    private static ObjectNode json(Result result) {
        Case origin = result.prompt().origin();
        ObjectNode object = Json.object();
        object.put("variant", result.variant());
        object.put("task", origin.task());
        object.put("length", origin.length());
        if (origin.depth() != Case.NO_DEPTH) {
            object.put("depth", origin.depth());
        }
        object.put("index", origin.index());
        object.put("seed", origin.seed());
        object.put("score", result.score());
        object.put("answer", result.answer().text());
        result.prompt().answers().forEach(object.putArray("expected")::add);
        object.put("maxNewTokens", result.prompt().maxNewTokens());
        object.put("promptTokens", result.answer().promptTokens());
        object.put("newTokens", result.answer().newTokens());
        object.put("prefillSeconds", result.answer().prefillSeconds());
        object.put("decodeSeconds", result.answer().decodeSeconds());
        if (!result.answer().measurements().isEmpty()) {
            ObjectNode measurements = object.putObject("measurements");
            result.answer().measurements().entrySet().stream()
                    .sorted(Map.Entry.comparingByKey())
                    .forEach(entry -> measurements.put(entry.getKey(), entry.getValue()));
        }
        return object;
    }

    private static String key(String variant, Case origin) {
        return variant + " " + origin.id();
    }

    private void add(Result result) {
        if (keys.add(key(result.variant(), result.prompt().origin()))) {
            results.add(result);
        }
    }

    /** Whether a variant's answer to a case is there already. */
    public boolean contains(String variant, Case origin) {
        return keys.contains(key(variant, origin));
    }

    /** All results so far, in the order in which they were added. */
    public List<Result> results() {
        return List.copyOf(results);
    }

    /**
     * Adds a result and puts it on disk.
     *
     * @throws IllegalArgumentException when it is there already
     */
    public void append(Result result) {
        append(List.of(result));
    }

    /**
     * Adds results and puts them on disk at once, which takes hardly longer than one.
     *
     * @throws IllegalArgumentException when one is there already; then none is added
     */
    public void append(List<Result> added) {
        StringBuilder lines = new StringBuilder();
        Set<String> fresh = new HashSet<>();
        for (Result result : added) {
            String key = key(result.variant(), result.prompt().origin());
            if (keys.contains(key) || !fresh.add(key)) {
                throw new IllegalArgumentException(path + ": has a result of " + key + " already");
            }
            lines.append(json(result)).append('\n');
        }
        write(lines.toString());
        added.forEach(this::add);
    }

    private void write(String lines) {
        try {
            file.write(lines.getBytes(StandardCharsets.UTF_8));
            file.getFD().sync();
        } catch (IOException e) {
            throw new EvaluationException(path + ": cannot be written: " + e.getMessage(), e);
        }
    }

    @Override
    public void close() {
        try {
            file.close();
        } catch (IOException e) {
            throw new EvaluationException(path + ": cannot be closed: " + e.getMessage(), e);
        }
    }
}
