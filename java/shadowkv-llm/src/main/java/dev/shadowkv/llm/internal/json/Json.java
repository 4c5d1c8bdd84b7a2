package dev.shadowkv.llm.internal.json;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;

/**
 * Strict JSON reading: no comments, no second value, and no key twice in an object, since a checkpoint whose header
 * names a tensor twice must be refused.
 */
public final class Json {
    private static final JsonMapper MAPPER = JsonMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private Json() {}

    /** A new object that prints as JSON. */
    public static ObjectNode object() {
        return MAPPER.createObjectNode();
    }

    /** A new array that prints as JSON. */
    public static ArrayNode array() {
        return MAPPER.createArrayNode();
    }

    /**
     * Parses one JSON value.
     *
     * @throws IllegalArgumentException with one line that says what is wrong
     */
    public static JsonNode parse(String text) {
        try {
            return MAPPER.readTree(text);
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(describe(e), e);
        }
    }

    /**
     * Parses a file.
     *
     * @throws IllegalArgumentException with one line that says what is wrong
     * @throws UncheckedIOException when the file cannot be read
     */
    public static JsonNode parse(Path path) {
        try {
            return MAPPER.readTree(path.toFile());
        } catch (JsonProcessingException e) {
            throw new IllegalArgumentException(describe(e), e);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** As {@link #parse(String)}, and the value must be an object. */
    public static ObjectNode parseObject(String text) {
        return requireObject(parse(text));
    }

    /** As {@link #parse(Path)}, and the value must be an object. */
    public static ObjectNode parseObject(Path path) {
        return requireObject(parse(path));
    }

    private static ObjectNode requireObject(JsonNode value) {
        if (value instanceof ObjectNode object) {
            return object;
        }
        throw new IllegalArgumentException("a JSON object is expected");
    }

    private static String describe(JsonProcessingException e) {
        String message = String.valueOf(e.getOriginalMessage());
        int end = message.indexOf('\n');
        String line = end < 0 ? message : message.substring(0, end);
        return e.getLocation() == null
                ? line
                : line + " (line " + e.getLocation().getLineNr() + ", column "
                        + e.getLocation().getColumnNr() + ")";
    }
}
