package dev.shadowkv.llm.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class CheckpointTest {
    @TempDir
    private Path folder;

    @ParameterizedTest
    @ValueSource(strings = {"llama-3.1", "yi", "qwen2", "phi-3", "glm-4"})
    void everyTensorOfAFamilyIsUsedExactlyOnce(String family) {
        try (Checkpoint checkpoint = Checkpoint.open(Golden.folder(family))) {
            Map<String, Long> rows = new LinkedHashMap<>();
            for (WeightNames.Place place : checkpoint.names().places()) {
                WeightNames.Location location =
                        checkpoint.names().locate(place.weight(), place.layer()).orElseThrow();
                boolean shared = place.weight() == Weight.OUTPUT_PROJECTION
                        && checkpoint.config().tieWordEmbeddings();
                rows.merge(location.tensor(), shared ? 0 : location.rows(), Long::sum);
            }
            assertThat(rows.keySet()).containsExactlyInAnyOrderElementsOf(checkpoint.tensorNames());
            rows.forEach((name, count) -> assertThat(checkpoint.find(name).orElseThrow().dimension(0))
                    .as(name)
                    .isEqualTo(count));
        }
    }

    @Test
    void opensTheCheckpointOfTheProject() {
        Path needle = Path.of(System.getProperty("shadowkv.root"), "models", "needle-32k");
        try (Checkpoint checkpoint = Checkpoint.open(needle)) {
            assertThat(checkpoint.config().headDim()).isEqualTo(64);
            assertThat(checkpoint.config().maxPositions()).isEqualTo(32_768);
            assertThat(checkpoint.weight(Weight.OUTPUT_PROJECTION).name()).isEqualTo("model.embed_tokens.weight");
            for (WeightNames.Place place : checkpoint.names().places()) {
                Tensor tensor = checkpoint.weight(place.weight(), place.layer());
                for (long i = 0; i < tensor.elementCount(); i += 97) {
                    assertThat(tensor.floatAt(i)).isFinite();
                }
            }
        }
    }

    @Test
    void fusedProjectionsAreCutInTheOrderOfTheFamily() {
        try (Checkpoint checkpoint = Checkpoint.open(Golden.folder("phi-3"))) {
            float[] fused = checkpoint.find("model.layers.1.self_attn.qkv_proj.weight").orElseThrow().toFloats();
            float[] key = checkpoint.weight(Weight.KEY, 1).toFloats();
            assertThat(key).hasSize(96 * 96).startsWith(fused[96 * 96], fused[96 * 96 + 1]);
            float[] mlp = checkpoint.find("model.layers.1.mlp.gate_up_proj.weight").orElseThrow().toFloats();
            assertThat(checkpoint.weight(Weight.UP, 1).toFloats()).startsWith(mlp[128 * 96]);
            assertThat(checkpoint.weight(Weight.GATE, 1).toFloats()).startsWith(mlp[0]);
            assertThat(checkpoint.find(Weight.KEY_BIAS, 0)).isEmpty();
        }
    }

    @Test
    void theOriginalGlmLayoutHasItsOwnNames() {
        ModelConfig config = new ModelConfig(
                ModelFamily.CHATGLM, 2, 24, 20, 6, 2, 8, 50, 1e-6, false, true, false,
                new RopeDescription(1e8, 4, true, 1, new RopeDescription.Default()), 64, OptionalInt.empty(), List.of());
        Map<String, List<Long>> expected = new LinkedHashMap<>();
        expected.put("transformer.embedding.word_embeddings.weight", List.of(50L, 24L));
        expected.put("transformer.encoder.final_layernorm.weight", List.of(24L));
        expected.put("transformer.output_layer.weight", List.of(50L, 24L));
        for (int layer = 0; layer < 2; layer++) {
            String block = "transformer.encoder.layers." + layer + ".";
            expected.put(block + "input_layernorm.weight", List.of(24L));
            expected.put(block + "self_attention.query_key_value.weight", List.of(80L, 24L));
            expected.put(block + "self_attention.query_key_value.bias", List.of(80L));
            expected.put(block + "self_attention.dense.weight", List.of(24L, 48L));
            expected.put(block + "post_attention_layernorm.weight", List.of(24L));
            expected.put(block + "mlp.dense_h_to_4h.weight", List.of(40L, 24L));
            expected.put(block + "mlp.dense_4h_to_h.weight", List.of(24L, 20L));
        }
        writeShard(folder.resolve("model.safetensors"), expected);
        try (Checkpoint checkpoint = Checkpoint.open(folder, config)) {
            Set<String> used = new HashSet<>();
            checkpoint.names().places().forEach(place -> used.add(
                    checkpoint.names().locate(place.weight(), place.layer()).orElseThrow().tensor()));
            assertThat(used).isEqualTo(expected.keySet());
            // Elements count up from zero, so the first one of a slice tells where it was cut.
            assertThat(checkpoint.weight(Weight.QUERY, 1).floatAt(0)).isZero();
            assertThat(checkpoint.weight(Weight.KEY, 1).floatAt(0)).isEqualTo(48 * 24);
            assertThat(checkpoint.weight(Weight.VALUE, 1).floatAt(0)).isEqualTo(64 * 24);
            assertThat(checkpoint.weight(Weight.VALUE_BIAS, 0).floatAt(0)).isEqualTo(64);
            assertThat(checkpoint.weight(Weight.UP, 0).floatAt(0)).isEqualTo(20 * 24);
        }
    }

    private static void writeShard(Path path, Map<String, List<Long>> tensors) {
        Map<String, SafetensorsWriter.Declaration> declarations = new LinkedHashMap<>();
        tensors.forEach((name, shape) -> declarations.put(name, new SafetensorsWriter.Declaration(TensorType.F32, shape)));
        try (SafetensorsWriter writer = SafetensorsWriter.create(path, declarations)) {
            tensors.forEach((name, shape) -> {
                float[] values = new float[(int) shape.stream().mapToLong(Long::longValue).reduce(1, Math::multiplyExact)];
                for (int i = 0; i < values.length; i++) {
                    values[i] = i;
                }
                writer.append(name, values);
            });
        }
    }

    /** Splits the golden Llama over two files, returns the index. */
    private ObjectNode shard() throws IOException {
        Path source = Golden.folder("llama-3.1");
        Files.copy(source.resolve("config.json"), folder.resolve("config.json"));
        ObjectNode index = JsonMapper.builder().build().createObjectNode();
        ObjectNode weightMap = index.putObject("weight_map");
        try (SafetensorsFile whole = SafetensorsFile.open(source.resolve("model.safetensors"))) {
            for (int part = 0; part < 2; part++) {
                Map<String, SafetensorsWriter.Declaration> declarations = new LinkedHashMap<>();
                String file = "model-0000" + (part + 1) + "-of-00002.safetensors";
                for (String name : whole.names()) {
                    if (name.contains("layers.1") == (part == 1)) {
                        Tensor tensor = whole.tensor(name);
                        declarations.put(name, new SafetensorsWriter.Declaration(tensor.type(), tensor.shape()));
                        weightMap.put(name, file);
                    }
                }
                try (SafetensorsWriter writer = SafetensorsWriter.create(folder.resolve(file), declarations)) {
                    declarations.keySet().forEach(name -> writer.append(name, whole.tensor(name).data()));
                }
            }
        }
        return index;
    }

    private void writeIndex(ObjectNode index) throws IOException {
        Files.writeString(folder.resolve("model.safetensors.index.json"), index.toString());
    }

    @Test
    void aShardedCheckpointIsTheSame() throws IOException {
        writeIndex(shard());
        try (Checkpoint sharded = Checkpoint.open(folder);
                Checkpoint whole = Checkpoint.open(Golden.folder("llama-3.1"))) {
            assertThat(sharded.tensorNames()).isEqualTo(whole.tensorNames());
            assertThat(sharded.byteSize()).isEqualTo(whole.byteSize());
            for (String name : whole.tensorNames()) {
                MemorySegment expected = whole.find(name).orElseThrow().data();
                assertThat(sharded.find(name).orElseThrow().data().mismatch(expected)).as(name).isEqualTo(-1);
            }
        }
    }

    @Test
    void aBrokenIndexIsRefused() throws IOException {
        ObjectNode index = shard();
        ObjectNode weightMap = (ObjectNode) index.get("weight_map");
        assertThatThrownBy(() -> Checkpoint.open(folder)).hasMessageContaining("has neither model.safetensors nor");
        weightMap.put("model.norm.weight", "model-00002-of-00002.safetensors");
        writeIndex(index);
        assertThatThrownBy(() -> Checkpoint.open(folder))
                .isInstanceOf(CheckpointException.class)
                .hasMessageContaining("model-00002-of-00002.safetensors: there is no tensor model.norm.weight");
        weightMap.put("model.norm.weight", "../model.safetensors");
        writeIndex(index);
        assertThatThrownBy(() -> Checkpoint.open(folder)).hasMessageContaining("points outside the folder");
        weightMap.remove("model.norm.weight");
        writeIndex(index);
        assertThatThrownBy(() -> Checkpoint.open(folder)).hasMessageContaining("there is no tensor model.norm.weight");
        index.remove("weight_map");
        writeIndex(index);
        assertThatThrownBy(() -> Checkpoint.open(folder)).hasMessageContaining("weight_map is missing");
    }

    @Test
    void aWrongShapeNamesTheTensorAndBothShapes() throws IOException {
        Path source = Golden.folder("yi");
        Files.copy(source.resolve("model.safetensors"), folder.resolve("model.safetensors"));
        Files.writeString(
                folder.resolve("config.json"),
                Files.readString(source.resolve("config.json")).replace("\"vocab_size\": 320", "\"vocab_size\": 321"));
        assertThatThrownBy(() -> Checkpoint.open(folder))
                .isInstanceOf(CheckpointException.class)
                .hasMessageContaining("model.embed_tokens.weight has shape [320, 96], the configuration asks for [321, 96]");
    }

    @Test
    void misuseIsAnException() {
        Checkpoint checkpoint = Checkpoint.open(Golden.folder("yi"));
        assertThatThrownBy(() -> checkpoint.weight(Weight.KEY)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> checkpoint.weight(Weight.KEY, 2)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> checkpoint.weight(Weight.KEY_BIAS, 0)).isInstanceOf(IllegalArgumentException.class);
        Tensor tensor = checkpoint.weight(Weight.FINAL_NORM);
        checkpoint.close();
        checkpoint.close();
        assertThatThrownBy(() -> tensor.floatAt(0)).isInstanceOf(IllegalStateException.class);
        assertThatThrownBy(() -> Checkpoint.open(folder.resolve("none"))).hasMessageContaining("no such folder");
    }
}
