package dev.shadowkv.llm.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.MissingNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.internal.json.Json;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/** Typed access to the fields of a JSON object in a file; every complaint names the file and the field. */
final class ConfigFields {
    private final Path path;
    private final String prefix;
    private final ObjectNode object;

    private ConfigFields(Path path, String prefix, ObjectNode object) {
        this.path = path;
        this.prefix = prefix;
        this.object = object;
    }

    static ConfigFields read(Path path) {
        if (!Files.isRegularFile(path)) {
            throw new CheckpointException(path + ": no such file");
        }
        try {
            return new ConfigFields(path, "", Json.parseObject(path));
        } catch (UncheckedIOException e) {
            throw new CheckpointException(path + ": cannot be read: " + e.getCause().getMessage(), e);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(path + ": not valid JSON: " + e.getMessage(), e);
        }
    }

    Set<String> names() {
        Set<String> names = new LinkedHashSet<>();
        object.properties().forEach(field -> names.add(field.getKey()));
        return names;
    }

    /** True when the field is there and not null. */
    boolean has(String name) {
        return object.hasNonNull(name);
    }

    /** The raw value, or a missing node when the field is absent or null. */
    JsonNode get(String name) {
        return has(name) ? object.get(name) : MissingNode.getInstance();
    }

    Optional<ConfigFields> object(String name) {
        if (!has(name)) {
            return Optional.empty();
        }
        if (get(name) instanceof ObjectNode nested) {
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

    private int integerOf(String name, JsonNode value) {
        // 8.0 is taken for 8: some writers print integers that way.
        if (value.isNumber() && value.canConvertToExactIntegral() && value.canConvertToInt()) {
            return value.intValue();
        }
        throw wrongType(name, "a 32-bit integer");
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

    private double numberOf(String name, JsonNode value) {
        if (value.isNumber() && Double.isFinite(value.doubleValue())) {
            return value.doubleValue();
        }
        throw wrongType(name, "a finite number");
    }

    List<Double> numbers(String name) {
        if (!get(name).isArray()) {
            throw wrongType(name, "an array of numbers");
        }
        List<Double> numbers = new ArrayList<>();
        get(name).forEach(value -> numbers.add(numberOf(name, value)));
        return numbers;
    }

    /** One integer or an array of them; empty when absent. */
    List<Integer> integers(String name) {
        if (!has(name)) {
            return List.of();
        }
        if (get(name).isArray()) {
            List<Integer> integers = new ArrayList<>();
            get(name).forEach(value -> integers.add(integerOf(name, value)));
            return integers;
        }
        return List.of(integer(name));
    }

    boolean flag(String name, boolean absent) {
        if (!has(name)) {
            return absent;
        }
        if (get(name).isBoolean()) {
            return get(name).booleanValue();
        }
        throw wrongType(name, "true or false");
    }

    Optional<String> text(String name) {
        if (!has(name)) {
            return Optional.empty();
        }
        if (get(name).isTextual()) {
            return Optional.of(get(name).textValue());
        }
        throw wrongType(name, "a string");
    }

    List<String> texts(String name) {
        if (!has(name)) {
            return List.of();
        }
        if (!get(name).isArray()) {
            throw wrongType(name, "an array of strings");
        }
        List<String> texts = new ArrayList<>();
        for (JsonNode value : get(name)) {
            if (!value.isTextual()) {
                throw wrongType(name, "an array of strings");
            }
            texts.add(value.textValue());
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
