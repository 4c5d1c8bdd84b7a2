package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.checkpoint.SafetensorsFile;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.IntStream;

/** The reference outputs of a tiny checkpoint, computed in f32 by another implementation. */
final class GoldenLogits {
    final int[][] ids;
    final int[] greedy;
    private final float[] logits;
    private final int vocabulary;
    private final double deviation;

    GoldenLogits(String family) {
        Path folder = Golden.folder(family);
        try (SafetensorsFile golden = SafetensorsFile.open(folder.resolve("golden.safetensors"))) {
            long[] all = golden.tensor("input_ids").toLongs();
            int rows = (int) golden.tensor("input_ids").dimension(0);
            int positions = all.length / rows;
            ids = new int[rows][];
            for (int row = 0; row < rows; row++) {
                int start = row * positions;
                ids[row] = IntStream.range(0, positions).map(i -> (int) all[start + i]).toArray();
            }
            greedy = Arrays.stream(golden.tensor("greedy_ids").toLongs()).mapToInt(id -> (int) id).toArray();
            logits = golden.tensor("logits").toFloats();
        }
        vocabulary = logits.length / (ids.length * ids[0].length);
        double mean = IntStream.range(0, logits.length).mapToDouble(i -> logits[i]).average().orElseThrow();
        deviation = Math.sqrt(IntStream.range(0, logits.length)
                .mapToDouble(i -> (logits[i] - mean) * (logits[i] - mean))
                .average()
                .orElseThrow());
    }

    /** Rows of logits must be within a share of the reference's standard deviation. */
    void assertClose(int row, long first, long rows, MemorySegment actual, double tolerance) {
        assertThat(actual.byteSize()).isEqualTo(4L * rows * vocabulary);
        for (long i = 0; i < rows * vocabulary; i++) {
            double expected = logits[(int) (((long) row * ids[0].length + first) * vocabulary + i)];
            double error = Math.abs(actual.getAtIndex(ValueLayout.JAVA_FLOAT, i) - expected) / deviation;
            if (!(error < tolerance)) {
                throw new AssertionError("row " + row + ", position " + (first + i / vocabulary) + ", token " + i % vocabulary
                        + ": " + error + " standard deviations from the reference, allowed " + tolerance);
            }
        }
    }
}
