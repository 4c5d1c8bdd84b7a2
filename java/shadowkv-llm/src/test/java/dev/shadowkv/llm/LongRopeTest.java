package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.Device;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.checkpoint.ReferenceModel;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A longrope sequence that outgrows the original context gets the long factors for all of its tokens. */
class LongRopeTest {
    /** The original context of the checkpoint is 64. */
    @ParameterizedTest
    @ValueSource(ints = {40, 63, 64, 65})
    void changesItsRotationOnTheWay(int promptTokens) {
        int[] prompt = Arrays.copyOf(new GoldenLogits("phi-3").ids[0], promptTokens);
        int newTokens = 40;
        try (Device device = Device.cpu(1);
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("phi-3"));
                Model model = Model.load(checkpoint, device);
                Engine engine = Engine.builder(model).sessions(2).capacity(200).build()) {
            int[] answer = engine.submit(GenerationRequest.of(prompt, newTokens), TokenListener.NONE)
                    .join()
                    .ids();
            int[] sequence = Arrays.copyOf(prompt, promptTokens + newTokens);
            System.arraycopy(answer, 0, sequence, promptTokens, newTokens);
            ReferenceModel reference = new ReferenceModel(checkpoint);
            for (int i = 0; i < newTokens; i++) {
                double[][] logits = reference.run(Arrays.copyOf(sequence, promptTokens + i)).logits();
                double[] last = logits[promptTokens + i - 1];
                int best = IntStream.range(0, last.length).reduce((a, b) -> last[b] > last[a] ? b : a).orElseThrow();
                assertThat(answer[i]).as("token " + i).isEqualTo(best);
            }
        }
    }
}
