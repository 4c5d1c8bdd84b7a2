package dev.shadowkv.eval.internal;

import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.llm.internal.json.Json;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.function.Function;

/** JSON files that a user gives. */
public final class JsonFiles {
    private JsonFiles() {}

    /**
     * Reads an object.
     *
     * @throws EvaluationException that names the file, when it cannot be read or holds none
     */
    public static JsonNode object(Path path) {
        return read(path, Json::parseObject);
    }

    /**
     * Reads anything.
     *
     * @throws EvaluationException that names the file, when it cannot be read or is no JSON
     */
    public static JsonNode any(Path path) {
        return read(path, Json::parse);
    }

    private static JsonNode read(Path path, Function<Path, JsonNode> reader) {
        try {
            return reader.apply(path);
        } catch (UncheckedIOException e) {
            throw new EvaluationException(path + ": cannot be read: " + e.getCause().getMessage(), e);
        } catch (IllegalArgumentException e) {
            throw new EvaluationException(path + ": " + e.getMessage(), e);
        }
    }
}
