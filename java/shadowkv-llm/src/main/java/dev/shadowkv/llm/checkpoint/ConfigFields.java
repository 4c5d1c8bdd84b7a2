package dev.shadowkv.llm.checkpoint;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import dev.shadowkv.llm.internal.json.Json;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/** Typed access to the fields of a JSON object in a file; every complaint names the file and the field. */
final class ConfigFields {
    private final Path path;
    private final String prefix;
    private final JsonObject object;

    private ConfigFields(Path path, String prefix, JsonObject object) {
        this.path = path;
        this.prefix = prefix;
        this.object = object;
    }

    static ConfigFields read(Path path) {
        if (!Files.isRegularFile(path)) {
            throw new CheckpointException(path + ": no such file");
        }
        try {
            return new ConfigFields(path, "", Json.parseObject(Files.readString(path)));
        } catch (IOException e) {
            throw new CheckpointException(path + ": cannot be read: " + e.getMessage(), e);
        } catch (JsonParseException e) {
            throw new CheckpointException(path + ": not valid JSON: " + e.getMessage(), e);
        }
    }

    Set<String> names() {
        return object.keySet();
    }

    /** True when the field is there and not null. */
    boolean has(String name) {
        return object.has(name) && !object.get(name).isJsonNull();
    }

    /** The raw value, or null when the field is absent or null. */
    JsonElement get(String name) {
        return has(name) ? object.get(name) : null;
    }

    Optional<ConfigFields> object(String name) {
        if (!has(name)) {
            return Optional.empty();
        }
        if (get(name) instanceof JsonObject nested) {
            return Optional.of(new ConfigFields(path, prefix + name + ".", nested));
        }
        throw wrongType(name, "an object");
    }

    int integer(String name) {
        if (!has(name)) {
            throw wrong(name, "is missing");
        }
        return integerOf(name, get(name));
    }

    int integer(String name, int absent) {
        return has(name) ? integer(name) : absent;
    }

    private int integerOf(String name, JsonElement value) {
        if (value instanceof JsonPrimitive primitive && primitive.isNumber()) {
            try {
                return primitive.getAsBigDecimal().intValueExact();
            } catch (ArithmeticException e) {
                throw wrongType(name, "a 32-bit integer");
            }
        }
        throw wrongType(name, "an integer");
    }

    double number(String name) {
        if (!has(name)) {
            throw wrong(name, "is missing");
        }
        return numberOf(name, get(name));
    }

    double number(String name, double absent) {
        return has(name) ? number(name) : absent;
    }

    private double numberOf(String name, JsonElement value) {
        if (value instanceof JsonPrimitive primitive && primitive.isNumber()) {
            double number = primitive.getAsDouble();
            if (Double.isFinite(number)) {
                return number;
            }
        }
        throw wrongType(name, "a finite number");
    }

    List<Double> numbers(String name) {
        if (!(get(name) instanceof JsonArray array)) {
            throw wrongType(name, "an array of numbers");
        }
        List<Double> numbers = new ArrayList<>(array.size());
        array.forEach(value -> numbers.add(numberOf(name, value)));
        return numbers;
    }

    /** One integer or an array of them; empty when absent. */
    List<Integer> integers(String name) {
        if (!has(name)) {
            return List.of();
        }
        if (get(name) instanceof JsonArray array) {
            List<Integer> integers = new ArrayList<>(array.size());
            array.forEach(value -> integers.add(integerOf(name, value)));
            return integers;
        }
        return List.of(integer(name));
    }

    boolean flag(String name, boolean absent) {
        if (!has(name)) {
            return absent;
        }
        if (get(name) instanceof JsonPrimitive primitive && primitive.isBoolean()) {
            return primitive.getAsBoolean();
        }
        throw wrongType(name, "true or false");
    }

    Optional<String> text(String name) {
        if (!has(name)) {
            return Optional.empty();
        }
        if (get(name) instanceof JsonPrimitive primitive && primitive.isString()) {
            return Optional.of(primitive.getAsString());
        }
        throw wrongType(name, "a string");
    }

    List<String> texts(String name) {
        if (!has(name)) {
            return List.of();
        }
        if (!(get(name) instanceof JsonArray array)) {
            throw wrongType(name, "an array of strings");
        }
        List<String> texts = new ArrayList<>(array.size());
        for (JsonElement value : array) {
            if (!(value instanceof JsonPrimitive primitive) || !primitive.isString()) {
                throw wrongType(name, "an array of strings");
            }
            texts.add(primitive.getAsString());
        }
        return texts;
    }

    CheckpointException wrong(String name, String reason) {
        return new CheckpointException(path + ": " + prefix + name + " " + reason);
    }

    CheckpointException unsupported(String name) {
        String value = String.valueOf(get(name));
        String shown = value.length() > 80 ? value.substring(0, 77) + "..." : value;
        return wrong(name, "= " + shown + " is not supported");
    }

    CheckpointException complaint(String reason) {
        return new CheckpointException(path + ": " + reason);
    }

    private CheckpointException wrongType(String name, String expected) {
        return wrong(name, has(name) ? "is " + get(name) + ", expected " + expected : "is missing");
    }
}
