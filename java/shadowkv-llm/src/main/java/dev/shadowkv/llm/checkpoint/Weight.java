package dev.shadowkv.llm.checkpoint;

/** The weights of a decoder by what they do, whatever a family calls them. Matrices are {@code [out, in]}. */
public enum Weight {
    /** {@code [vocabularySize, hiddenSize]}. */
    EMBEDDING(false),
    /** {@code [hiddenSize]}, before the output projection. */
    FINAL_NORM(false),
    /** {@code [vocabularySize, hiddenSize]}; the embedding itself where the two are tied. */
    OUTPUT_PROJECTION(false),
    /** {@code [hiddenSize]}, before attention. */
    ATTENTION_NORM(true),
    /** {@code [queryHeads * headDim, hiddenSize]}. */
    QUERY(true),
    /** {@code [queryHeads * headDim]}, where {@link ModelConfig#attentionBias}. */
    QUERY_BIAS(true),
    /** {@code [keyValueHeads * headDim, hiddenSize]}. */
    KEY(true),
    /** {@code [keyValueHeads * headDim]}, where {@link ModelConfig#attentionBias}. */
    KEY_BIAS(true),
    /** {@code [keyValueHeads * headDim, hiddenSize]}. */
    VALUE(true),
    /** {@code [keyValueHeads * headDim]}, where {@link ModelConfig#attentionBias}. */
    VALUE_BIAS(true),
    /** {@code [hiddenSize, queryHeads * headDim]}. */
    ATTENTION_OUTPUT(true),
    /** {@code [hiddenSize]}, where {@link ModelConfig#outputBias}. */
    ATTENTION_OUTPUT_BIAS(true),
    /** {@code [hiddenSize]}, before the MLP. */
    MLP_NORM(true),
    /** {@code [intermediateSize, hiddenSize]}; goes through SiLU. */
    GATE(true),
    /** {@code [intermediateSize, hiddenSize]}; multiplies the gate. */
    UP(true),
    /** {@code [hiddenSize, intermediateSize]}. */
    DOWN(true);

    private final boolean perLayer;

    Weight(boolean perLayer) {
        this.perLayer = perLayer;
    }

    /** Whether every layer has its own. */
    public boolean perLayer() {
        return perLayer;
    }
}
