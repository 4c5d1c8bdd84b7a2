package dev.shadowkv.llm.checkpoint;

import java.util.List;
import java.util.OptionalInt;
import java.util.Set;

/**
 * Reads the configuration that the authors of GLM-4 published ({@code model_type} chatglm). Its switches describe a
 * range of models; one combination is GLM-4, and any other is refused by the switch's name.
 */
final class ChatGlmConfigReader {
    private static final double THETA = 10_000;
    private static final Set<String> READ = Set.of(
            "num_layers",
            "num_hidden_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "multi_query_attention",
            "multi_query_group_num",
            "kv_channels",
            "padded_vocab_size",
            "vocab_size",
            "layernorm_epsilon",
            "rope_ratio",
            "original_rope",
            "seq_length",
            "add_bias_linear",
            "add_qkv_bias",
            "rmsnorm",
            "post_layer_norm",
            "apply_residual_connection_post_layernorm",
            "tie_word_embeddings");

    private ChatGlmConfigReader() {}

    static ModelConfig read(ConfigFields fields, OptionalInt beginningId, List<Integer> endIds) {
        FieldPolicy.refuseUnknown(fields, READ);
        require(fields, "multi_query_attention", true, false);
        require(fields, "add_bias_linear", false, false);
        require(fields, "rmsnorm", true, true);
        require(fields, "post_layer_norm", true, true);
        require(fields, "apply_residual_connection_post_layernorm", false, false);
        require(fields, "original_rope", true, true);
        int headDim = fields.integer("kv_channels");
        double ratio = fields.number("rope_ratio", 1);
        int layers = fields.integer("num_layers");
        if (fields.integer("num_hidden_layers", layers) != layers) {
            throw fields.unsupported("num_hidden_layers");
        }
        return new ModelConfig(
                ModelFamily.CHATGLM,
                layers,
                fields.integer("hidden_size"),
                fields.integer("ffn_hidden_size"),
                fields.integer("num_attention_heads"),
                fields.integer("multi_query_group_num"),
                headDim,
                fields.integer(fields.has("padded_vocab_size") ? "padded_vocab_size" : "vocab_size"),
                fields.number("layernorm_epsilon"),
                fields.flag("tie_word_embeddings", false),
                fields.flag("add_qkv_bias", false),
                false,
                new RopeDescription(THETA * ratio, headDim / 2, true, 1, new RopeDescription.Default()),
                fields.integer("seq_length"),
                beginningId,
                endIds);
    }

    private static void require(ConfigFields fields, String name, boolean value, boolean absent) {
        if (fields.flag(name, absent) != value) {
            throw fields.has(name) ? fields.unsupported(name) : fields.wrong(name, "is missing");
        }
    }
}
