package dev.shadowkv.llm.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.OptionalInt;
import java.util.Set;

/** Reads the Hugging Face layouts of {@code config.json}; hands the GLM authors' own to {@link ChatGlmConfigReader}. */
final class ModelConfigReader {
    private static final Set<String> READ = Set.of(
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "rms_norm_eps",
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "hidden_act",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "partial_rotary_factor",
            "max_position_embeddings",
            "original_max_position_embeddings",
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
            "layer_types");

    private ModelConfigReader() {}

    static ModelConfig read(Path config, Path generationConfig) {
        ConfigFields fields = ConfigFields.read(config);
        ModelFamily family = family(fields);
        ConfigFields tokens =
                Files.isRegularFile(generationConfig) ? ConfigFields.read(generationConfig) : fields;
        try {
            ModelConfig model = family == ModelFamily.CHATGLM
                    ? ChatGlmConfigReader.read(fields, beginning(fields, tokens), ends(fields, tokens))
                    : readHuggingFace(family, fields, beginning(fields, tokens), ends(fields, tokens));
            checkTokens(fields, model);
            return model;
        } catch (IllegalArgumentException | ArithmeticException e) {
            throw new CheckpointException(config + ": " + e.getMessage(), e);
        }
    }

    private static ModelFamily family(ConfigFields fields) {
        List<String> architectures = fields.texts("architectures");
        if (architectures.size() != 1) {
            throw fields.wrong("architectures", "names " + architectures.size()
                    + " architectures instead of one; supported: " + ModelFamily.supportedArchitectures());
        }
        return ModelFamily.ofArchitecture(architectures.getFirst())
                .orElseThrow(() -> fields.complaint("the architecture " + architectures.getFirst()
                        + " is not supported; supported: " + ModelFamily.supportedArchitectures()));
    }

    private static OptionalInt beginning(ConfigFields fields, ConfigFields generation) {
        ConfigFields source = generation.has("bos_token_id") ? generation : fields;
        return source.has("bos_token_id") ? OptionalInt.of(source.integer("bos_token_id")) : OptionalInt.empty();
    }

    private static List<Integer> ends(ConfigFields fields, ConfigFields generation) {
        return (generation.has("eos_token_id") ? generation : fields).integers("eos_token_id");
    }

    private static void checkTokens(ConfigFields fields, ModelConfig model) {
        model.endIds().forEach(id -> {
            if (id < 0 || id >= model.vocabularySize()) {
                throw fields.complaint("eos_token_id " + id + " is outside the vocabulary of " + model.vocabularySize());
            }
        });
        model.beginningId().ifPresent(id -> {
            if (id < 0 || id >= model.vocabularySize()) {
                throw fields.complaint("bos_token_id " + id + " is outside the vocabulary of " + model.vocabularySize());
            }
        });
    }

    private static ModelConfig readHuggingFace(
            ModelFamily family, ConfigFields fields, OptionalInt beginningId, List<Integer> endIds) {
        FieldPolicy.refuseUnknown(fields, READ);
        int layers = fields.integer("num_hidden_layers");
        int hiddenSize = fields.integer("hidden_size");
        int queryHeads = fields.integer("num_attention_heads");
        int maxPositions = fields.integer("max_position_embeddings");
        int headDim = headDim(family, fields, hiddenSize, queryHeads);
        String activation = fields.text("hidden_act").orElse("silu");
        if (!activation.equals("silu") && !activation.equals("swish")) {
            throw fields.unsupported("hidden_act");
        }
        if (fields.flag("mlp_bias", false)) {
            throw fields.unsupported("mlp_bias");
        }
        refuseSlidingWindow(fields, layers, maxPositions);
        boolean bias = attentionBias(family, fields);
        return new ModelConfig(
                family,
                layers,
                hiddenSize,
                fields.integer("intermediate_size"),
                queryHeads,
                fields.integer("num_key_value_heads", queryHeads),
                headDim,
                fields.integer("vocab_size"),
                fields.number("rms_norm_eps"),
                fields.flag("tie_word_embeddings", false),
                bias,
                // Llama's switch covers all four projections; Qwen2 and GLM leave the output projection without.
                bias && family == ModelFamily.LLAMA,
                RopeReader.read(family, fields, headDim, maxPositions),
                maxPositions,
                beginningId,
                endIds);
    }

    private static int headDim(ModelFamily family, ConfigFields fields, int hiddenSize, int queryHeads) {
        if (fields.has("head_dim")) {
            return fields.integer("head_dim");
        }
        if (family == ModelFamily.GLM) {
            return 128;
        }
        if (queryHeads <= 0 || hiddenSize % queryHeads != 0) {
            throw fields.complaint("head_dim is missing and hidden_size " + hiddenSize
                    + " is no multiple of num_attention_heads " + queryHeads);
        }
        return hiddenSize / queryHeads;
    }

    private static boolean attentionBias(ModelFamily family, ConfigFields fields) {
        return switch (family) {
            case LLAMA, GLM -> fields.flag("attention_bias", false);
            case QWEN2 -> {
                if (!fields.flag("attention_bias", true)) {
                    throw fields.unsupported("attention_bias");
                }
                yield true;
            }
            default -> {
                if (fields.flag("attention_bias", false)) {
                    throw fields.unsupported("attention_bias");
                }
                yield false;
            }
        };
    }

    /** A window that no layer uses, or that is no shorter than the longest context, leaves the mathematics alone. */
    private static void refuseSlidingWindow(ConfigFields fields, int layers, int maxPositions) {
        Set<String> types = new HashSet<>(fields.texts("layer_types"));
        types.remove("full_attention");
        if (!types.isEmpty()) {
            throw fields.wrong("layer_types", "with " + types.iterator().next() + " is not supported");
        }
        boolean used = fields.flag("use_sliding_window", true)
                && fields.has("sliding_window")
                && fields.integer("sliding_window") < maxPositions
                && fields.integer("max_window_layers", 0) < layers;
        if (used) {
            throw fields.unsupported("sliding_window");
        }
    }
}
