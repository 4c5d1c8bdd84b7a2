package dev.shadowkv.llm.input;

import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.checkpoint.SafetensorsFile;
import dev.shadowkv.llm.checkpoint.Tensor;
import java.io.BufferedReader;
import java.io.IOException;
import java.nio.charset.MalformedInputException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * Sequences of token ids from a file: text with ids separated by white space, one sequence a line (empty lines are
 * skipped); or, when its name ends in {@code .safetensors}, the tensor {@code input_ids} of one or two dimensions.
 */
public final class TokenIds {
    private static final String TENSOR = "input_ids";

    private TokenIds() {}

    /**
     * Reads a file.
     *
     * @param vocabularySize ids must be below it
     * @throws CheckpointException when the file is missing or broken, has no sequence, or an id is no id; the message
     *     names the line or row
     */
    public static List<int[]> read(Path path, int vocabularySize) {
        if (!Files.isRegularFile(path)) {
            throw new CheckpointException(path + ": no such file");
        }
        List<int[]> sequences = path.toString().endsWith(".safetensors")
                ? readTensor(path, vocabularySize)
                : readText(path, vocabularySize);
        if (sequences.isEmpty()) {
            throw new CheckpointException(path + ": has no token ids");
        }
        return sequences;
    }

    private static List<int[]> readText(Path path, int vocabularySize) {
        List<int[]> sequences = new ArrayList<>();
        try (BufferedReader reader = Files.newBufferedReader(path)) {
            int number = 0;
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                String place = path + ": line " + ++number;
                if (!line.isBlank()) {
                    sequences.add(readLine(line.strip(), place, vocabularySize));
                }
            }
            return sequences;
        } catch (MalformedInputException e) {
            throw new CheckpointException(path + ": not a text file", e);
        } catch (IOException e) {
            throw new CheckpointException(path + ": cannot be read: " + e.getMessage(), e);
        }
    }

    private static int[] readLine(String line, String place, int vocabularySize) {
        String[] words = line.split("\\s+");
        int[] ids = new int[words.length];
        for (int i = 0; i < words.length; i++) {
            try {
                ids[i] = checked(Long.parseLong(words[i]), place, vocabularySize);
            } catch (NumberFormatException e) {
                String shown = words[i].length() > 40 ? words[i].substring(0, 40) + "..." : words[i];
                throw new CheckpointException(place + ": \"" + shown + "\" is not a token id", e);
            }
        }
        return ids;
    }

    private static List<int[]> readTensor(Path path, int vocabularySize) {
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            Tensor tensor = file.tensor(TENSOR);
            int dimensions = tensor.shape().size();
            if (dimensions != 1 && dimensions != 2) {
                throw new CheckpointException(
                        path + ": tensor " + TENSOR + " has shape " + tensor.shape() + ", expected one or two dimensions");
            }
            long rows = dimensions == 1 ? 1 : tensor.dimension(0);
            long columns = tensor.dimension(dimensions - 1);
            List<int[]> sequences = new ArrayList<>();
            for (long row = 0; row < rows && columns > 0; row++) {
                int[] ids = new int[Math.toIntExact(columns)];
                for (int i = 0; i < ids.length; i++) {
                    ids[i] = checked(tensor.longAt(row * columns + i), path + ": row " + row, vocabularySize);
                }
                sequences.add(ids);
            }
            return sequences;
        }
    }

    private static int checked(long id, String place, int vocabularySize) {
        if (id < 0 || id >= vocabularySize) {
            throw new CheckpointException(
                    place + ": token id " + id + " is outside the vocabulary of " + vocabularySize);
        }
        return (int) id;
    }
}
