package dev.shadowkv.cli;

import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.nio.charset.MalformedInputException;
import java.nio.file.Files;
import java.nio.file.Path;
import picocli.CommandLine.Option;

/** A text of the user's that a model reads. */
final class TextArguments {
    @Option(
            names = "--prompt-file",
            paramLabel = "F",
            required = true,
            description = "The text; best one like those that the model will get.")
    Path file;

    /** The text's tokens, of which the model has positions for all. */
    int[] ids(Tokenizer tokenizer, ModelConfig config) throws IOException {
        return ids(file, tokenizer, config);
    }

    /** The tokens of a text file, of which the model has positions for all. */
    static int[] ids(Path file, Tokenizer tokenizer, ModelConfig config) throws IOException {
        int[] ids = tokenizer.encode(read(file));
        ModelArguments.requirePositions(config, ids.length, file.toString());
        return ids;
    }

    /** Reads a text file; says which file is missing or no text. */
    static String read(Path file) throws IOException {
        if (!Files.isRegularFile(file)) {
            throw new CheckpointException(file + ": no such file");
        }
        try {
            return Files.readString(file);
        } catch (MalformedInputException e) {
            throw new CheckpointException(file + ": not a text file in UTF-8", e);
        }
    }
}
