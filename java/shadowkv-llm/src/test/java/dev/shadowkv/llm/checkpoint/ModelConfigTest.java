package dev.shadowkv.llm.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.checkpoint.RopeDescription.Default;
import dev.shadowkv.llm.checkpoint.RopeDescription.Linear;
import dev.shadowkv.llm.checkpoint.RopeDescription.Llama3;
import dev.shadowkv.llm.checkpoint.RopeDescription.LongRope;
import dev.shadowkv.llm.checkpoint.RopeDescription.Yarn;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class ModelConfigTest {
    private static final String LLAMA =
            """
            {"architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":14336,
             "num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,
             "rms_norm_eps":1e-05,"max_position_embeddings":131072,"hidden_act":"silu","rope_theta":500000.0,
             "bos_token_id":128000,"eos_token_id":[128001,128008,128009],"tie_word_embeddings":false}""";

    /** The original layout, with the values of the published 1M-token chat model. */
    private static final String CHATGLM =
            """
            {"architectures":["ChatGLMModel"],"model_type":"chatglm","add_bias_linear":false,"add_qkv_bias":true,
             "apply_query_key_layer_scaling":true,"apply_residual_connection_post_layernorm":false,
             "attention_dropout":0.0,"attention_softmax_in_fp32":true,"attn_implementation":"sdpa",
             "bias_dropout_fusion":true,"ffn_hidden_size":13696,"fp32_residual_connection":false,
             "hidden_dropout":0.0,"hidden_size":4096,"kv_channels":128,"layernorm_epsilon":1.5625e-07,
             "multi_query_attention":true,"multi_query_group_num":4,"num_attention_heads":32,
             "num_hidden_layers":40,"num_layers":40,"rope_ratio":10000,"original_rope":true,
             "padded_vocab_size":151552,"post_layer_norm":true,"rmsnorm":true,"seq_length":1048576,
             "use_cache":true,"tie_word_embeddings":false,"eos_token_id":[151329,151336,151338],
             "pad_token_id":151329}""";

    @TempDir
    private Path folder;

    private ModelConfig read(String base, String change) throws IOException {
        ObjectNode config = (ObjectNode) JsonMapper.builder().build().readTree(base);
        config.setAll((ObjectNode) JsonMapper.builder().build().readTree(change));
        Files.writeString(folder.resolve("config.json"), config.toString());
        return ModelConfig.read(folder);
    }

    @Test
    void readsTheGoldenFamilies() {
        ModelConfig llama = Golden.config("llama-3.1");
        assertThat(llama.family()).isEqualTo(ModelFamily.LLAMA);
        assertThat(llama.layers()).isEqualTo(3);
        assertThat(llama.keyValueWidth()).isEqualTo(32);
        assertThat(llama.rope()).isEqualTo(new RopeDescription(500_000, 16, false, 1, new Llama3(8, 1, 4, 128)));
        assertThat(Golden.config("yi").rope()).isEqualTo(new RopeDescription(1e7, 12, false, 1, new Default()));
        assertThat(Golden.config("yi").headDim()).isEqualTo(12);

        ModelConfig qwen = Golden.config("qwen2");
        assertThat(qwen.headDim()).isEqualTo(16);
        assertThat(qwen.groupSize()).isEqualTo(7);
        assertThat(qwen.attentionBias()).isTrue();
        assertThat(qwen.outputBias()).isFalse();
        assertThat(qwen.tieWordEmbeddings()).isTrue();
        assertThat(qwen.rope())
                .isEqualTo(new RopeDescription(
                        1e6, 16, false, 0.1 * Math.log(4) + 1, new Yarn(4, 32, 1, true, 96)));

        ModelConfig phi = Golden.config("phi-3");
        assertThat(phi.headDim()).isEqualTo(24);
        assertThat(phi.rope().attentionFactor()).isCloseTo(Math.sqrt(2), within(1e-15));
        LongRope longRope = (LongRope) phi.rope().scaling();
        assertThat(longRope.originalMaxPositions()).isEqualTo(64);
        assertThat(longRope.shortFactors()).hasSize(12).endsWith(1.55);
        assertThat(longRope.longFactors()).hasSize(12).endsWith(10.9);

        ModelConfig glm = Golden.config("glm-4");
        assertThat(glm.rope()).isEqualTo(new RopeDescription(1e8, 8, true, 1, new Default()));
        assertThat(glm.attentionBias()).isTrue();
        assertThat(glm.outputBias()).isFalse();
        assertThat(glm.rmsNormEpsilon()).isEqualTo(1.5625e-07);
        assertThat(glm.endIds()).containsExactly(2);
        assertThat(glm.beginningId()).hasValue(1);
    }

    @ParameterizedTest
    @CsvSource({"llama-3.1", "yi", "qwen2", "phi-3", "glm-4"})
    void theNewLayoutSaysTheSame(String family) {
        Path path = Golden.folder(family);
        assertThat(ModelConfig.read(path.resolve("config.v5.json"), path.resolve("none")))
                .isEqualTo(ModelConfig.read(path));
    }

    @Test
    void readsTheOriginalGlmLayout() throws IOException {
        ModelConfig config = read(CHATGLM, "{}");
        assertThat(config.family()).isEqualTo(ModelFamily.CHATGLM);
        assertThat(config.layers()).isEqualTo(40);
        assertThat(config.keyValueHeads()).isEqualTo(4);
        assertThat(config.headDim()).isEqualTo(128);
        assertThat(config.vocabularySize()).isEqualTo(151_552);
        assertThat(config.intermediateSize()).isEqualTo(13_696);
        assertThat(config.maxPositions()).isEqualTo(1_048_576);
        assertThat(config.rope()).isEqualTo(new RopeDescription(1e8, 64, true, 1, new Default()));
        assertThat(config.attentionBias()).isTrue();
        assertThat(config.beginningId()).isEmpty();
        assertThat(config.endIds()).containsExactly(151_329, 151_336, 151_338);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
        "{\"multi_query_attention\":false} | multi_query_attention = false is not supported",
        "{\"multi_query_attention\":null} | multi_query_attention is missing",
        "{\"add_bias_linear\":true} | add_bias_linear",
        "{\"rmsnorm\":false} | rmsnorm",
        "{\"post_layer_norm\":false} | post_layer_norm",
        "{\"apply_residual_connection_post_layernorm\":true} | apply_residual_connection_post_layernorm",
        "{\"original_rope\":false} | original_rope",
        "{\"num_hidden_layers\":39} | num_hidden_layers",
        "{\"quantization_bit\":4} | quantization_bit",
        "{\"prefix_projection\":true} | prefix_projection"
    })
    void refusesOtherGlmSwitches(String change, String message) {
        assertThatThrownBy(() -> read(CHATGLM, change))
                .isInstanceOf(CheckpointException.class)
                .hasMessageContaining(message);
    }

    @Test
    void headDimMayDifferFromTheHiddenSizeOverTheHeads() throws IOException {
        assertThat(read(LLAMA, "{}").headDim()).isEqualTo(128);
        assertThat(read(LLAMA, "{\"head_dim\":96}").headDim()).isEqualTo(96);
        assertThat(read(LLAMA, "{\"head_dim\":96}").queryWidth()).isEqualTo(3072);
        assertThat(read(LLAMA, "{\"head_dim\":null}").headDim()).isEqualTo(128);
        assertThat(read(LLAMA, "{\"num_key_value_heads\":null}").keyValueHeads()).isEqualTo(32);
    }

    @Test
    void readsScalingOfEveryKind() throws IOException {
        assertThat(read(LLAMA, "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}").rope().scaling())
                .isEqualTo(new Linear(4));
        assertThat(read(LLAMA, "{\"rope_scaling\":null}").rope().scaling()).isEqualTo(new Default());
        RopeDescription yarn = read(
                        LLAMA,
                        """
                        {"rope_scaling":{"type":"yarn","factor":8,"original_max_position_embeddings":16384,
                         "beta_fast":16,"beta_slow":2,"mscale":0.7,"mscale_all_dim":1.0,"truncate":false}}""")
                .rope();
        assertThat(yarn.scaling()).isEqualTo(new Yarn(8, 16, 2, false, 16_384));
        assertThat(yarn.attentionFactor())
                .isCloseTo((0.07 * Math.log(8) + 1) / (0.1 * Math.log(8) + 1), within(1e-15));
        assertThat(read(
                                LLAMA,
                                "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"attention_factor\":1.25}}")
                        .rope())
                .isEqualTo(new RopeDescription(500_000, 128, false, 1.25, new Yarn(4, 32, 1, true, 131_072)));
        assertThat(read(LLAMA, "{\"rope_theta\":null,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7}}")
                        .rope()
                        .theta())
                .isEqualTo(7);
        assertThat(read(LLAMA, "{\"rope_theta\":null}").rope().theta()).isEqualTo(10_000);
    }

    @Test
    void theGenerationConfigDecidesWhichTokensEnd() throws IOException {
        Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\":[5,6],\"temperature\":0.6}");
        ModelConfig config = read(LLAMA, "{}");
        assertThat(config.endIds()).containsExactly(5, 6);
        assertThat(config.beginningId()).hasValue(128_000);
        Files.writeString(folder.resolve("generation_config.json"), "{\"bos_token_id\":3}");
        assertThat(read(LLAMA, "{\"eos_token_id\":9}").endIds()).containsExactly(9);
        assertThat(read(LLAMA, "{\"eos_token_id\":null}").endIds()).isEmpty();
    }

    @Test
    void aWindowThatNothingUsesIsNoReasonToRefuse() throws IOException {
        String qwen =
                "{\"architectures\":[\"Qwen2ForCausalLM\"],\"sliding_window\":4096,\"use_sliding_window\":false,"
                        + "\"max_window_layers\":28}";
        assertThat(read(LLAMA, qwen).family()).isEqualTo(ModelFamily.QWEN2);
        assertThat(read(LLAMA, "{\"sliding_window\":131072}").maxPositions()).isEqualTo(131_072);
        assertThat(read(LLAMA, "{\"layer_types\":[\"full_attention\"]}").layers()).isEqualTo(32);
        assertThat(read(LLAMA, "{\"sliding_window\":4096,\"use_sliding_window\":true,\"max_window_layers\":32}")
                        .layers())
                .isEqualTo(32);
    }

    @Test
    void metadataAndSwitchedOffFeaturesAreIgnored() throws IOException {
        assertThat(read(
                                LLAMA,
                                """
                                {"torch_dtype":"bfloat16","dtype":"bfloat16","use_cache":true,"pretraining_tp":1,
                                 "_name_or_path":"x","transformers_version":"5.1","auto_map":{"a":"b"},
                                 "quantization_config":null,"final_logit_softcapping":null,"logits_scaling":1.0,
                                 "use_qk_norm":false,"attention_bias":false,"mlp_bias":false,"num_experts":0,
                                 "attention_dropout":0.0,"initializer_range":0.02,"use_mrope":false,"my_note":"hello"}""")
                        .layers())
                .isEqualTo(32);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
        "{\"architectures\":[\"MambaForCausalLM\"]} | the architecture MambaForCausalLM is not supported; supported: LlamaForCausalLM, Qwen2ForCausalLM, Phi3ForCausalLM, GlmForCausalLM, ChatGLMModel",
        "{\"architectures\":[]} | architectures names 0 architectures",
        "{\"sliding_window\":4096} | sliding_window = 4096 is not supported",
        "{\"layer_types\":[\"full_attention\",\"sliding_attention\"]} | layer_types with sliding_attention",
        "{\"final_logit_softcapping\":30.0} | final_logit_softcapping = 30.0 is not supported",
        "{\"attn_logit_softcapping\":50.0} | attn_logit_softcapping",
        "{\"hidden_act\":\"gelu\"} | hidden_act = \"gelu\" is not supported",
        "{\"mlp_bias\":true} | mlp_bias = true is not supported",
        "{\"partial_rotary_factor\":0.5} | partial_rotary_factor = 0.5 is not supported",
        "{\"quantization_config\":{\"bits\":4}} | quantization_config",
        "{\"embedding_multiplier\":12.0} | embedding_multiplier",
        "{\"attention_multiplier\":0.5} | attention_multiplier",
        "{\"num_local_experts\":8} | num_local_experts",
        "{\"qk_layernorm\":true} | qk_layernorm",
        "{\"dual_chunk_attention_config\":{\"chunk_size\":262144}} | dual_chunk_attention_config",
        "{\"alibi\":true} | alibi",
        "{\"is_encoder_decoder\":true} | is_encoder_decoder",
        "{\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2}} | rope_scaling.rope_type = \"dynamic\" is not supported",
        "{\"rope_scaling\":{\"type\":\"mrope\"}} | rope_scaling.type = \"mrope\" is not supported",
        "{\"rope_scaling\":{\"factor\":2}} | rope_scaling.rope_type is missing",
        "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}} | rope_scaling.factor = 0.5 is below 1",
        "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"alpha\":3}} | rope_scaling.alpha = 3 is not supported",
        "{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1,\"original_max_position_embeddings\":8192}} | high_freq_factor",
        "{\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1.0],\"long_factor\":[1.0]}} | short_factor has 1 numbers",
        "{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1.0}} | rope_theta = 500000.0 contradicts rope_parameters.rope_theta = 1.0",
        "{\"rope_scaling\":7} | rope_scaling is 7, expected an object",
        "{\"num_key_value_heads\":5} | 32 query heads are no multiple of 5 key-value heads",
        "{\"hidden_size\":null} | hidden_size is missing",
        "{\"hidden_size\":\"4096\"} | hidden_size is \"4096\", expected a 32-bit integer",
        "{\"hidden_size\":1e12} | hidden_size is 1.0E12, expected a 32-bit integer",
        "{\"head_dim\":127} | dimension 127 is",
        "{\"num_attention_heads\":0} | num_attention_heads 0",
        "{\"num_hidden_layers\":0} | layers is 0",
        "{\"rms_norm_eps\":-1} | RMS norm epsilon",
        "{\"eos_token_id\":128256} | eos_token_id 128256 is outside the vocabulary of 128256",
        "{\"bos_token_id\":-1} | bos_token_id -1 is outside the vocabulary"
    })
    void refusesByName(String change, String message) {
        assertThatThrownBy(() -> read(LLAMA, change))
                .isInstanceOf(CheckpointException.class)
                .hasMessageStartingWith(folder.resolve("config.json").toString())
                .hasMessageContaining(message)
                .message()
                .doesNotContain("\n");
    }

    @Test
    void phi3KnowsTheOlderNamesOfLongRope() throws IOException {
        String factors = List.of(1.0, 1.5, 2.0, 3.0).toString();
        ModelConfig config = read(
                LLAMA,
                "{\"architectures\":[\"Phi3ForCausalLM\"],\"num_attention_heads\":512,\"num_key_value_heads\":512,"
                        + "\"original_max_position_embeddings\":4096,\"sliding_window\":262144,"
                        + "\"rope_scaling\":{\"type\":\"su\",\"short_factor\":" + factors + ",\"long_factor\":" + factors
                        + "}}");
        assertThat(config.rope().scaling()).isInstanceOf(LongRope.class);
        assertThat(config.rope().attentionFactor())
                .isCloseTo(Math.sqrt(1 + Math.log(32) / Math.log(4096)), within(1e-15));
    }

    @Test
    void refusesAMissingOrBrokenFile() throws IOException {
        assertThatThrownBy(() -> ModelConfig.read(folder)).hasMessage(folder.resolve("config.json") + ": no such file");
        Files.writeString(folder.resolve("config.json"), "{\"a\":}");
        assertThatThrownBy(() -> ModelConfig.read(folder)).hasMessageContaining("not valid JSON");
    }
}
