package dev.shadowkv.llm.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.regex.Pattern;

/**
 * Decides about the fields of a configuration that the reader does not read. A configuration may carry any metadata,
 * so an unknown name alone is no reason to refuse a model; but a name that speaks of the mathematics is, unless its
 * value says that the feature is off. Running on would give fluent nonsense.
 */
final class FieldPolicy {
    /** Fields known to leave the forward pass as it is. */
    private static final Set<String> HARMLESS = Set.of(
            "architectures",
            "attention_dropout",
            "attention_softmax_in_fp32",
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "attn_pdrop",
            "bias_dropout_fusion",
            "embd_pdrop",
            "fp32_residual_connection",
            "hidden_dropout",
            "initializer_range",
            "pretraining_tp",
            "resid_pdrop",
            "apply_query_key_layer_scaling",
            "is_decoder",
            "is_encoder_decoder",
            "cross_attention_hidden_size",
            "chunk_size_feed_forward",
            "output_attentions",
            "use_flash_attn",
            "flash_attn_2_enabled");

    private static final Pattern MATHEMATICAL = Pattern.compile("scal(e|ing)|multiplier|soft_?cap|sliding|window|rope|"
            + "rotary|partial|norm|expert|moe|bias|attention|attn|alibi|quant|compress|chunk|sparse|parallel_residual|"
            + "logit_|dim_model_base|position_embedding|qk_|lora|prefix|mamba|hybrid|linear_num|act(ivation)?_fn|_act$");

    private FieldPolicy() {}

    /**
     * @param read the names that the reader has taken into account
     * @throws CheckpointException for the first field that may change the mathematics
     */
    static void refuseUnknown(ConfigFields fields, Set<String> read) {
        Set<String> known = new HashSet<>(HARMLESS);
        known.addAll(read);
        for (String name : fields.names()) {
            if (known.contains(name) || !MATHEMATICAL.matcher(name).find() || isOff(name, fields.get(name))) {
                continue;
            }
            throw fields.unsupported(name);
        }
        if (fields.flag("is_encoder_decoder", false)) {
            throw fields.unsupported("is_encoder_decoder");
        }
    }

    private static boolean isOff(String name, JsonNode value) {
        if (value.isMissingNode() || value.isContainerNode()) {
            return value.isEmpty();
        }
        if (value.isBoolean()) {
            return !value.booleanValue();
        }
        return value.isNumber() && value.doubleValue() == (isFactor(name) ? 1.0 : 0.0);
    }

    private static boolean isFactor(String name) {
        return List.of("multiplier", "scale", "scaling", "factor").stream().anyMatch(name::contains);
    }
}
