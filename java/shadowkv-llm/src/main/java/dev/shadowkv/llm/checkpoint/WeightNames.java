package dev.shadowkv.llm.checkpoint;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * Where each weight of a model is: the tensor's name, the shape that the tensor must have, and which of its rows are
 * the weight. Families that fuse projections stack them along the rows (query, key, value; gate, up), so a weight is
 * always a whole tensor or a run of rows of one, and never has to be copied.
 */
public final class WeightNames {
    /**
     * A run of rows of a tensor.
     *
     * @param tensor its name in the checkpoint
     * @param tensorShape the shape that the whole tensor must have
     * @param firstRow the first row of the weight
     * @param rows its number of rows
     */
    public record Location(String tensor, List<Long> tensorShape, long firstRow, long rows) {
        public Location {
            tensorShape = List.copyOf(tensorShape);
            Objects.checkFromIndexSize(firstRow, rows, tensorShape.getFirst());
        }

        /** Whether the weight is only a part of the tensor. */
        public boolean fused() {
            return rows != tensorShape.getFirst();
        }
    }

    /** A weight and the layer that it is in; -1 for those that belong to none. */
    public record Place(Weight weight, int layer) {}

    private final ModelConfig config;
    private final long hidden;
    private final long intermediate;
    private final long queryWidth;
    private final long keyValueWidth;

    private WeightNames(ModelConfig config) {
        this.config = config;
        hidden = config.hiddenSize();
        intermediate = config.intermediateSize();
        queryWidth = config.queryWidth();
        keyValueWidth = config.keyValueWidth();
    }

    /** The names that a model of this configuration uses. */
    public static WeightNames of(ModelConfig config) {
        return new WeightNames(config);
    }

    /** Every weight that the model has, model-wide ones first. */
    public List<Place> places() {
        List<Place> places = new ArrayList<>();
        for (Weight weight : Weight.values()) {
            for (int layer = weight.perLayer() ? 0 : -1; layer < (weight.perLayer() ? config.layers() : 0); layer++) {
                if (locate(weight, layer).isPresent()) {
                    places.add(new Place(weight, layer));
                }
            }
        }
        return places;
    }

    /**
     * Finds a weight.
     *
     * @param layer its layer; ignored for weights that belong to none
     * @return empty for a bias that the model does not have
     */
    public Optional<Location> locate(Weight weight, int layer) {
        if (weight.perLayer()) {
            Objects.checkIndex(layer, config.layers());
        }
        boolean absent =
                switch (weight) {
                    case QUERY_BIAS, KEY_BIAS, VALUE_BIAS -> !config.attentionBias();
                    case ATTENTION_OUTPUT_BIAS -> !config.outputBias();
                    default -> false;
                };
        if (absent) {
            return Optional.empty();
        }
        return Optional.of(config.family() == ModelFamily.CHATGLM ? chatGlm(weight, layer) : huggingFace(weight, layer));
    }

    private Location huggingFace(Weight weight, int layer) {
        String block = "model.layers." + layer + ".";
        String attention = block + "self_attn.";
        String mlp = block + "mlp.";
        boolean fusedAttention = config.family() == ModelFamily.PHI3;
        boolean fusedMlp = config.family() == ModelFamily.PHI3 || config.family() == ModelFamily.GLM;
        return switch (weight) {
            case EMBEDDING -> whole("model.embed_tokens.weight", config.vocabularySize(), hidden);
            case FINAL_NORM -> whole("model.norm.weight", hidden);
            case OUTPUT_PROJECTION -> config.tieWordEmbeddings()
                    ? huggingFace(Weight.EMBEDDING, layer)
                    : whole("lm_head.weight", config.vocabularySize(), hidden);
            case ATTENTION_NORM -> whole(block + "input_layernorm.weight", hidden);
            case MLP_NORM -> whole(block + "post_attention_layernorm.weight", hidden);
            case QUERY, KEY, VALUE -> fusedAttention
                    ? attentionPart(attention + "qkv_proj.weight", weight)
                    : whole(attention + letter(weight) + "_proj.weight", width(weight), hidden);
            case QUERY_BIAS, KEY_BIAS, VALUE_BIAS -> whole(attention + letter(weight) + "_proj.bias", width(weight));
            case ATTENTION_OUTPUT -> whole(attention + "o_proj.weight", hidden, queryWidth);
            case ATTENTION_OUTPUT_BIAS -> whole(attention + "o_proj.bias", hidden);
            case GATE, UP -> fusedMlp
                    ? mlpPart(mlp + "gate_up_proj.weight", weight)
                    : whole(mlp + (weight == Weight.GATE ? "gate" : "up") + "_proj.weight", intermediate, hidden);
            case DOWN -> whole(mlp + "down_proj.weight", hidden, intermediate);
        };
    }

    private Location chatGlm(Weight weight, int layer) {
        String encoder = "transformer.encoder.";
        String block = encoder + "layers." + layer + ".";
        return switch (weight) {
            case EMBEDDING -> whole("transformer.embedding.word_embeddings.weight", config.vocabularySize(), hidden);
            case FINAL_NORM -> whole(encoder + "final_layernorm.weight", hidden);
            case OUTPUT_PROJECTION -> config.tieWordEmbeddings()
                    ? chatGlm(Weight.EMBEDDING, layer)
                    : whole("transformer.output_layer.weight", config.vocabularySize(), hidden);
            case ATTENTION_NORM -> whole(block + "input_layernorm.weight", hidden);
            case MLP_NORM -> whole(block + "post_attention_layernorm.weight", hidden);
            case QUERY, KEY, VALUE -> attentionPart(block + "self_attention.query_key_value.weight", weight);
            case QUERY_BIAS, KEY_BIAS, VALUE_BIAS -> attentionPart(block + "self_attention.query_key_value.bias", weight);
            case ATTENTION_OUTPUT -> whole(block + "self_attention.dense.weight", hidden, queryWidth);
            case ATTENTION_OUTPUT_BIAS -> whole(block + "self_attention.dense.bias", hidden);
            case GATE, UP -> mlpPart(block + "mlp.dense_h_to_4h.weight", weight);
            case DOWN -> whole(block + "mlp.dense_4h_to_h.weight", hidden, intermediate);
        };
    }

    private static Location whole(String tensor, long rows) {
        return new Location(tensor, List.of(rows), 0, rows);
    }

    private static Location whole(String tensor, long rows, long columns) {
        return new Location(tensor, List.of(rows, columns), 0, rows);
    }

    /** Query rows, then key rows, then value rows. */
    private Location attentionPart(String tensor, Weight weight) {
        long rows = queryWidth + 2 * keyValueWidth;
        long first =
                switch (weight) {
                    case QUERY, QUERY_BIAS -> 0;
                    case KEY, KEY_BIAS -> queryWidth;
                    default -> queryWidth + keyValueWidth;
                };
        boolean vector = weight == Weight.QUERY_BIAS || weight == Weight.KEY_BIAS || weight == Weight.VALUE_BIAS;
        return new Location(tensor, vector ? List.of(rows) : List.of(rows, hidden), first, width(weight));
    }

    /** Gate rows, then up rows. */
    private Location mlpPart(String tensor, Weight weight) {
        long first = weight == Weight.GATE ? 0 : intermediate;
        return new Location(tensor, List.of(2 * intermediate, hidden), first, intermediate);
    }

    private long width(Weight weight) {
        return weight == Weight.QUERY || weight == Weight.QUERY_BIAS ? queryWidth : keyValueWidth;
    }

    private static char letter(Weight weight) {
        return switch (weight) {
            case QUERY, QUERY_BIAS -> 'q';
            case KEY, KEY_BIAS -> 'k';
            default -> 'v';
        };
    }
}
