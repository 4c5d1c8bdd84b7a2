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

    /** What logits miss of the reference, in standard deviations of the reference. */
    final class Errors {
        private double squares;
        private long count;
        private double worst;
        private String where = "nowhere";

        /** Counts rows of logits of one of the reference's sequences; NaN makes everything NaN. */
        void add(int row, long first, long rows, MemorySegment actual) {
            assertThat(actual.byteSize()).isEqualTo(4L * rows * vocabulary);
            for (long i = 0; i < rows * vocabulary; i++) {
                add(row, first + i / vocabulary, (int) (i % vocabulary), actual.getAtIndex(ValueLayout.JAVA_FLOAT, i));
            }
        }

        void add(int row, long position, int token, double actual) {
            double expected = logits[(int) (((long) row * ids[0].length + position) * vocabulary + token)];
            double error = Math.abs(actual - expected) / deviation;
            squares += error * error;
            count++;
            if (!(error <= worst)) {
                worst = error;
                where = "row " + row + ", position " + position + ", token " + token;
            }
        }

        long count() {
            return count;
        }

        double worst() {
            return worst;
        }

        double rootMeanSquare() {
            return Math.sqrt(squares / count);
        }

        @Override
        public String toString() {
            return String.format(
                    "root of mean square %.5f, worst %.5f standard deviations (%s)", rootMeanSquare(), worst, where);
        }
    }
}
