package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.Device;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.checkpoint.ModelFamily;
import dev.shadowkv.llm.checkpoint.SafetensorsFile;
import dev.shadowkv.llm.checkpoint.SafetensorsWriter;
import dev.shadowkv.llm.checkpoint.SafetensorsWriter.Declaration;
import dev.shadowkv.llm.checkpoint.Tensor;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * GLM-4 as its authors lay it out: the reference checkpoint under their names, with their fused tensors and their fields,
 * gives the reference's logits.
 */
class ChatGlmGoldenTest {
    private static final double F32_TOLERANCE = 2e-3;
    private static final int LAYERS = 2;

    private static final String CONFIG =
            """
            {"architectures": ["ChatGLMModel"], "model_type": "chatglm", "add_bias_linear": false, "add_qkv_bias": true,
             "apply_query_key_layer_scaling": true, "apply_residual_connection_post_layernorm": false,
             "attention_dropout": 0.0, "attention_softmax_in_fp32": true, "bias_dropout_fusion": true,
             "ffn_hidden_size": 176, "fp32_residual_connection": false, "hidden_dropout": 0.0, "hidden_size": 128,
             "kv_channels": 16, "layernorm_epsilon": 1.5625e-07, "multi_query_attention": true,
             "multi_query_group_num": 2, "num_attention_heads": 8, "num_hidden_layers": 2, "num_layers": 2,
             "rope_ratio": 10000, "original_rope": true, "padded_vocab_size": 320, "post_layer_norm": true,
             "rmsnorm": true, "seq_length": 131072, "use_cache": true, "torch_dtype": "bfloat16",
             "tie_word_embeddings": false, "eos_token_id": [2], "pad_token_id": 0}
            """;

    @TempDir
    private Path folder;

    @BeforeEach
    void write() throws IOException {
        Files.writeString(folder.resolve("config.json"), CONFIG);
        try (SafetensorsFile source = SafetensorsFile.open(Golden.folder("glm-4").resolve("model.safetensors"))) {
            Map<String, List<String>> parts = parts();
            Map<String, Declaration> declarations = new LinkedHashMap<>();
            parts.forEach((name, from) -> declarations.put(name, declaration(source, from)));
            try (SafetensorsWriter writer = SafetensorsWriter.create(folder.resolve("model.safetensors"), declarations)) {
                parts.forEach((name, from) -> {
                    for (String part : from) {
                        // A copy: the writer may want memory that is not read-only.
                        writer.append(name, MemorySegment.ofArray(
                                source.tensor(part).data().toArray(ValueLayout.JAVA_BYTE)));
                    }
                });
            }
        }
    }

    /** The authors' names, and which tensors of the other layout lie one behind the other in each. */
    private static Map<String, List<String>> parts() {
        Map<String, List<String>> parts = new LinkedHashMap<>();
        parts.put("transformer.embedding.word_embeddings.weight", List.of("model.embed_tokens.weight"));
        for (int layer = 0; layer < LAYERS; layer++) {
            String to = "transformer.encoder.layers." + layer + ".";
            String from = "model.layers." + layer + ".";
            String attention = from + "self_attn.";
            parts.put(to + "input_layernorm.weight", List.of(from + "input_layernorm.weight"));
            for (String kind : List.of("weight", "bias")) {
                parts.put(
                        to + "self_attention.query_key_value." + kind,
                        List.of(attention + "q_proj." + kind, attention + "k_proj." + kind, attention + "v_proj." + kind));
            }
            parts.put(to + "self_attention.dense.weight", List.of(attention + "o_proj.weight"));
            parts.put(to + "post_attention_layernorm.weight", List.of(from + "post_attention_layernorm.weight"));
            parts.put(to + "mlp.dense_h_to_4h.weight", List.of(from + "mlp.gate_up_proj.weight"));
            parts.put(to + "mlp.dense_4h_to_h.weight", List.of(from + "mlp.down_proj.weight"));
        }
        parts.put("transformer.encoder.final_layernorm.weight", List.of("model.norm.weight"));
        parts.put("transformer.output_layer.weight", List.of("lm_head.weight"));
        return parts;
    }

    private static Declaration declaration(SafetensorsFile source, List<String> parts) {
        Tensor first = source.tensor(parts.getFirst());
        long rows = parts.stream().mapToLong(part -> source.tensor(part).dimension(0)).sum();
        return new Declaration(
                first.type(), first.shape().size() == 1 ? List.of(rows) : List.of(rows, first.dimension(1)));
    }

    @Test
    void readsTheSameModel() {
        ModelConfig theirs = ModelConfig.read(folder);
        ModelConfig reference = Golden.config("glm-4");
        assertThat(theirs.family()).isEqualTo(ModelFamily.CHATGLM);
        assertThat(theirs.rope()).isEqualTo(reference.rope());
        assertThat(theirs.keyValueHeads()).isEqualTo(reference.keyValueHeads());
        assertThat(theirs.intermediateSize()).isEqualTo(reference.intermediateSize());
    }

    /** The very logits of the other layout, on a CPU within the reference's tolerance for F32. */
    @ParameterizedTest
    @ValueSource(strings = {"dense", "shadow"})
    void givesTheReferenceLogits(String kind) {
        GoldenLogits golden = new GoldenLogits("glm-4");
        GoldenLogits.Errors errors = golden.new Errors();
        try (Device device = TestDevice.open()) {
            List<float[]> theirs = logits(device, folder, kind, golden);
            List<float[]> others = logits(device, Golden.folder("glm-4"), kind, golden);
            assertThat(theirs).hasSameSizeAs(others).hasSize(golden.ids[0].length);
            for (int position = 0; position < theirs.size(); position++) {
                assertThat(theirs.get(position)).as("position " + position).containsExactly(others.get(position));
                errors.add(0, position, 1, MemorySegment.ofArray(theirs.get(position)));
            }
        }
        if (!TestDevice.CUDA) {
            assertThat(errors.worst()).as(errors.toString()).isLessThan(F32_TOLERANCE);
        }
    }

    /** Of the first sequence, a prompt and then step by step. */
    private static List<float[]> logits(Device device, Path folder, String kind, GoldenLogits golden) {
        int length = golden.ids[0].length;
        int prompt = 90;
        List<float[]> all = new ArrayList<>();
        try (Checkpoint checkpoint = Checkpoint.open(folder);
                Model model = Model.load(checkpoint, device);
                // A shadow that leaves nothing out.
                KvCache cache = (kind.equals("dense") ? CacheOptions.dense() : CacheOptions.shadow(4096).toBuilder().rank(32).build())
                        .build(device, model.config(), MemoryPlan.of(1, length).withStaging(length, 1), length);
                Transformer transformer = new Transformer(model, 1);
                KvSession session = cache.open(length)) {
            int vocabulary = model.config().vocabularySize();
            transformer.prefill(
                    session,
                    Arrays.copyOf(golden.ids[0], prompt),
                    0,
                    (first, rows, logits) -> {
                        for (long row = 0; row < rows; row++) {
                            all.add(logits.asSlice(4 * row * vocabulary, 4L * vocabulary).toArray(ValueLayout.JAVA_FLOAT));
                        }
                    },
                    PrefillListener.NONE);
            try (KvBatch batch = cache.batch(List.of(session))) {
                for (int position = prompt; position < length; position++) {
                    transformer.decode(batch, new int[] {golden.ids[0][position]}, 1);
                    all.add(transformer.logits(1).toArray(ValueLayout.JAVA_FLOAT));
                }
            }
        }
        return all;
    }
}
