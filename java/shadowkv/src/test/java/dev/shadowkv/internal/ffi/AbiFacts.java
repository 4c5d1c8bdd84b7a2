package dev.shadowkv.internal.ffi;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What the C compiler makes of the header: the list that the native build writes. */
record AbiFacts(Map<String, Long> constants, Map<String, String> types, Map<String, Struct> structs,
                Map<String, List<String>> functions) {

    /** A struct: its size and alignment in bytes, and its fields in order. */
    record Struct(long size, long alignment, List<Field> fields) {
    }

    /** A field: offset and size in bytes, and its type as {@code native/abi-facts/facts.h} names it. */
    record Field(String name, long offset, long size, String type) {
    }

    static AbiFacts read() {
        AbiFacts facts = new AbiFacts(new LinkedHashMap<>(), new LinkedHashMap<>(), new LinkedHashMap<>(),
                new LinkedHashMap<>());
        try (InputStream resource = AbiFacts.class.getResourceAsStream("abi-facts.txt")) {
            if (resource == null) {
                throw new IllegalStateException("abi-facts.txt is not among the test resources: was the native build skipped?");
            }
            new BufferedReader(new InputStreamReader(resource, StandardCharsets.UTF_8)).lines().forEach(facts::add);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        return facts;
    }

    private void add(String line) {
        String[] words = line.split(" ");
        switch (words[0]) {
            case "constant" -> constants.put(words[1], Long.parseLong(words[2]));
            case "type" -> types.put(words[1], words[2]);
            case "struct" -> structs.put(words[1],
                    new Struct(Long.parseLong(words[2]), Long.parseLong(words[3]), new ArrayList<>()));
            case "field" -> structs.get(words[1]).fields().add(
                    new Field(words[2], Long.parseLong(words[3]), Long.parseLong(words[4]), words[5]));
            case "function" -> functions.put(words[1], List.of(words).subList(2, words.length));
            default -> throw new IllegalStateException("unknown fact: " + line);
        }
    }
}
