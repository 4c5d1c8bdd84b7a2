package dev.shadowkv.cli;

import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.nio.file.Path;
import picocli.CommandLine.Option;

/** Which checkpoint. */
final class ModelArguments {
    @Option(
            names = "--model",
            paramLabel = "DIR",
            required = true,
            description = "Folder of a checkpoint: config.json, safetensors files, tokenizer.json for text.")
    Path model;

    /** Refuses a prompt that the model has no positions for. */
    static void requirePositions(ModelConfig config, long tokens, String what) {
        if (tokens > config.maxPositions()) {
            throw new IllegalArgumentException(what + " has " + tokens + " tokens, the model has positions for "
                    + config.maxPositions());
        }
    }
}
