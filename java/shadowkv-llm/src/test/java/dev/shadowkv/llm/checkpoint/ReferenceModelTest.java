package dev.shadowkv.llm.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * What was read is what was meant: a plain decoder over {@link ModelConfig} and {@link WeightNames} gives the outputs of
 * the published implementation. Every trap of the layouts shows here: order of fused rows, rotation, scaling, biases.
 */
class ReferenceModelTest {
    /** The reference was computed in f32; sums there have up to a few hundred terms, over a few layers. */
    private static final double TOLERANCE = 512 * Math.ulp(1f);

    @ParameterizedTest
    @CsvSource({
        "llama-3.1,config.json",
        "llama-3.1,config.v5.json",
        "yi,config.json",
        "qwen2,config.v5.json",
        "phi-3,config.json",
        "phi-3,config.v5.json",
        "glm-4,config.json"
    })
    void givesTheReferenceOutputs(String family, String configFile) {
        Path folder = Golden.folder(family);
        ModelConfig config = ModelConfig.read(folder.resolve(configFile), folder.resolve("none"));
        try (Checkpoint checkpoint = Checkpoint.open(folder, config);
                SafetensorsFile golden = SafetensorsFile.open(folder.resolve("golden.safetensors"))) {
            ReferenceModel model = new ReferenceModel(checkpoint);
            long[] ids = golden.tensor("input_ids").toLongs();
            float[] hidden = golden.tensor("hidden.1").toFloats();
            float[] logits = golden.tensor("logits").toFloats();
            for (int row = 0; row < 2; row++) {
                int[] sequence = IntStream.range(160 * row, 160 * (row + 1)).map(i -> (int) ids[i]).toArray();
                ReferenceModel.Result result = model.run(sequence);
                assertClose(result.hidden()[0], hidden, row);
                assertClose(result.logits(), logits, row);
            }
            assertGreedy(model, ids, golden.tensor("greedy_ids").toLongs());
        }
    }

    private static void assertClose(double[][] actual, float[] expected, int row) {
        int width = actual[0].length;
        double mean = 0;
        double squares = 0;
        for (float value : expected) {
            mean += value / (double) expected.length;
        }
        for (float value : expected) {
            squares += (value - mean) * (value - mean) / expected.length;
        }
        for (int p = 0; p < actual.length; p++) {
            for (int i = 0; i < width; i++) {
                double error = Math.abs(actual[p][i] - expected[(row * actual.length + p) * width + i]);
                assertThat(error / Math.sqrt(squares)).as("position " + p + ", element " + i).isLessThanOrEqualTo(TOLERANCE);
            }
        }
    }

    private static void assertGreedy(ReferenceModel model, long[] ids, long[] greedy) {
        int[] sequence = IntStream.range(0, 160).map(i -> (int) ids[i]).toArray();
        int[] all = Arrays.copyOf(sequence, sequence.length + greedy.length);
        for (int i = 0; i < greedy.length; i++) {
            all[sequence.length + i] = (int) greedy[i];
        }
        double[][] logits = model.run(all).logits();
        for (int i = 0; i < greedy.length; i++) {
            double[] row = logits[sequence.length + i - 1];
            int best = IntStream.range(0, row.length).reduce((a, b) -> row[b] > row[a] ? b : a).orElseThrow();
            assertThat(best).as("greedy token " + i).isEqualTo((int) greedy[i]);
        }
    }
}
