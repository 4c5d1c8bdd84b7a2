package dev.shadowkv.llm.checkpoint;

import java.nio.file.Path;
import java.util.List;
import java.util.Objects;
import java.util.OptionalInt;

/**
 * The shape of a model and every number that its mathematics needs, the same for the old and the new layout of {@code
 * config.json}.
 *
 * @param family decides the names of the weights
 * @param layers number of decoder layers
 * @param hiddenSize width of the residual stream
 * @param intermediateSize width of the gated MLP
 * @param queryHeads query heads a layer
 * @param keyValueHeads key and value heads a layer; divides {@code queryHeads}
 * @param headDim width of a head; not always {@code hiddenSize / queryHeads}
 * @param vocabularySize rows of the embedding
 * @param rmsNormEpsilon added to the mean square
 * @param tieWordEmbeddings whether the embedding is the output projection too
 * @param attentionBias whether query, key and value projections have biases
 * @param outputBias whether the attention's output projection has one
 * @param rope the rotary embedding
 * @param maxPositions positions that the model is made for
 * @param beginningId the token that begins a text, if there is one
 * @param endIds tokens that end an answer; may be empty
 */
public record ModelConfig(
        ModelFamily family,
        int layers,
        int hiddenSize,
        int intermediateSize,
        int queryHeads,
        int keyValueHeads,
        int headDim,
        int vocabularySize,
        double rmsNormEpsilon,
        boolean tieWordEmbeddings,
        boolean attentionBias,
        boolean outputBias,
        RopeDescription rope,
        int maxPositions,
        OptionalInt beginningId,
        List<Integer> endIds) {

    public ModelConfig {
        Objects.requireNonNull(family, "family");
        Objects.requireNonNull(rope, "rope");
        Objects.requireNonNull(beginningId, "beginningId");
        endIds = List.copyOf(endIds);
        requirePositive("layers", layers);
        requirePositive("hiddenSize", hiddenSize);
        requirePositive("intermediateSize", intermediateSize);
        requirePositive("queryHeads", queryHeads);
        requirePositive("keyValueHeads", keyValueHeads);
        requirePositive("headDim", headDim);
        requirePositive("vocabularySize", vocabularySize);
        requirePositive("maxPositions", maxPositions);
        if (queryHeads % keyValueHeads != 0) {
            throw new IllegalArgumentException(
                    queryHeads + " query heads are no multiple of " + keyValueHeads + " key-value heads");
        }
        if (headDim % 2 != 0) {
            throw new IllegalArgumentException("head dimension " + headDim + " is odd");
        }
        if (rope.rotaryDim() > headDim) {
            throw new IllegalArgumentException(
                    "rotary dimension " + rope.rotaryDim() + " exceeds the head dimension " + headDim);
        }
        if (!(rmsNormEpsilon >= 0) || Double.isInfinite(rmsNormEpsilon)) {
            throw new IllegalArgumentException("RMS norm epsilon " + rmsNormEpsilon + " is not a number >= 0");
        }
    }

    private static void requirePositive(String name, int value) {
        if (value <= 0) {
            throw new IllegalArgumentException(name + " is " + value + ", it must be positive");
        }
    }

    /**
     * Reads {@code config.json}, and {@code generation_config.json} beside it where there is one.
     *
     * @throws CheckpointException when a file is missing or broken, the architecture is not supported, or a field asks
     *     for mathematics that is not; the message names the field
     */
    public static ModelConfig read(Path directory) {
        return read(directory.resolve("config.json"), directory.resolve("generation_config.json"));
    }

    /** As {@link #read(Path)}, from files of other names; the second need not exist. */
    public static ModelConfig read(Path config, Path generationConfig) {
        return ModelConfigReader.read(config, generationConfig);
    }

    /** Query heads that share one key-value head. */
    public int groupSize() {
        return queryHeads / keyValueHeads;
    }

    /** Rows of the query projection. */
    public int queryWidth() {
        return Math.multiplyExact(queryHeads, headDim);
    }

    /** Rows of the key projection, and of the value projection. */
    public int keyValueWidth() {
        return Math.multiplyExact(keyValueHeads, headDim);
    }
}
