package dev.shadowkv.llm.internal.json;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import com.google.gson.Strictness;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import com.google.gson.stream.MalformedJsonException;
import java.io.IOException;
import java.io.Reader;
import java.io.StringReader;
import java.math.BigDecimal;

/**
 * Strict JSON reading. The library's own tree parser takes comments, single quotes and duplicate keys; a checkpoint
 * whose header names a tensor twice must be refused, so the tree is built here from the token stream.
 */
public final class Json {
    private static final int MAXIMUM_DEPTH = 200;

    private Json() {}

    /**
     * Parses one JSON value with nothing but white space after it.
     *
     * @throws JsonParseException when the text is not strictly JSON, names a key twice in one object, or nests too deep
     */
    public static JsonElement parse(String text) {
        return parse(new StringReader(text));
    }

    /** As {@link #parse(String)}, from a reader; the caller closes it. */
    public static JsonElement parse(Reader input) {
        JsonReader reader = new JsonReader(input);
        reader.setStrictness(Strictness.STRICT);
        try {
            JsonElement value = read(reader, 0);
            if (reader.peek() != JsonToken.END_DOCUMENT) {
                throw new JsonParseException("text follows the JSON value");
            }
            return value;
        } catch (MalformedJsonException | java.io.EOFException | NumberFormatException e) {
            throw new JsonParseException(firstLine(e), e);
        } catch (IOException e) {
            throw new JsonParseException("cannot read: " + firstLine(e), e);
        }
    }

    /** As {@link #parse(String)}, and the value must be an object. */
    public static JsonObject parseObject(String text) {
        if (parse(text) instanceof JsonObject object) {
            return object;
        }
        throw new JsonParseException("a JSON object is expected");
    }

    private static JsonElement read(JsonReader reader, int depth) throws IOException {
        if (depth > MAXIMUM_DEPTH) {
            throw new JsonParseException("nested deeper than " + MAXIMUM_DEPTH);
        }
        return switch (reader.peek()) {
            case BEGIN_OBJECT -> readObject(reader, depth);
            case BEGIN_ARRAY -> {
                JsonArray array = new JsonArray();
                reader.beginArray();
                while (reader.hasNext()) {
                    array.add(read(reader, depth + 1));
                }
                reader.endArray();
                yield array;
            }
            case STRING -> new JsonPrimitive(reader.nextString());
            case NUMBER -> new JsonPrimitive(new BigDecimal(reader.nextString()));
            case BOOLEAN -> new JsonPrimitive(reader.nextBoolean());
            case NULL -> {
                reader.nextNull();
                yield JsonNull.INSTANCE;
            }
            default -> throw new JsonParseException("unexpected " + reader.peek());
        };
    }

    private static JsonObject readObject(JsonReader reader, int depth) throws IOException {
        JsonObject object = new JsonObject();
        reader.beginObject();
        while (reader.hasNext()) {
            String key = reader.nextName();
            if (object.has(key)) {
                throw new JsonParseException("the key \"" + key + "\" occurs twice");
            }
            object.add(key, read(reader, depth + 1));
        }
        reader.endObject();
        return object;
    }

    private static String firstLine(Exception e) {
        String message = e.getMessage() == null ? e.getClass().getSimpleName() : e.getMessage();
        int end = message.indexOf('\n');
        return end < 0 ? message : message.substring(0, end);
    }
}
