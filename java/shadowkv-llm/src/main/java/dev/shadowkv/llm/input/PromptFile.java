package dev.shadowkv.llm.input;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.internal.json.Json;
import java.io.BufferedInputStream;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.zip.GZIPInputStream;

/** Reads JSON lines, plain or compressed by gzip whatever the file's name. Empty lines are skipped. */
public final class PromptFile {
    private static final int GZIP_MAGIC = 0x8b1f;

    /**
     * One line.
     *
     * @param line its number in the file, from 1
     * @param prompt the field {@code prompt}
     * @param json the whole object as JSON text, with whatever else it holds
     */
    public record Entry(int line, String prompt, String json) {}

    private PromptFile() {}

    /**
     * Reads a file of objects that have a {@code prompt}.
     *
     * @throws CheckpointException when the file is missing, a line is no such object, or there is none; the message
     *     names the line
     */
    public static List<Entry> read(Path path) {
        List<Entry> entries = new ArrayList<>();
        try (BufferedReader reader = open(path)) {
            int number = 0;
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                number++;
                if (!line.isBlank()) {
                    entries.add(entry(path, number, line));
                }
            }
        } catch (IOException e) {
            throw new CheckpointException(path + ": cannot be read: " + e.getMessage(), e);
        }
        if (entries.isEmpty()) {
            throw new CheckpointException(path + ": has no prompts");
        }
        return entries;
    }

    /**
     * Opens a text file in UTF-8 that may be compressed.
     *
     * @throws CheckpointException when there is no such file
     */
    public static BufferedReader open(Path path) throws IOException {
        if (!Files.isRegularFile(path)) {
            throw new CheckpointException(path + ": no such file");
        }
        InputStream file = new BufferedInputStream(Files.newInputStream(path));
        try {
            file.mark(2);
            int magic = file.read() | file.read() << Byte.SIZE;
            file.reset();
            return new BufferedReader(new InputStreamReader(
                    magic == GZIP_MAGIC ? new GZIPInputStream(file) : file, StandardCharsets.UTF_8));
        } catch (IOException e) {
            file.close();
            throw e;
        }
    }

    private static Entry entry(Path path, int number, String line) {
        ObjectNode object;
        try {
            object = Json.parseObject(line);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(path + ": line " + number + ": " + e.getMessage(), e);
        }
        JsonNode prompt = object.path("prompt");
        if (!prompt.isTextual()) {
            throw new CheckpointException(path + ": line " + number + ": the field prompt is missing or not a string");
        }
        return new Entry(number, prompt.textValue(), line);
    }
}
