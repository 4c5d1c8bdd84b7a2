package dev.shadowkv.eval.fidelity;

import dev.shadowkv.Device;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.Rope;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.Rotation;
import dev.shadowkv.llm.Transformer;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.BiConsumer;
import java.util.function.Consumer;

/**
 * What shadow caches keep of a model's attention on a text, layer by layer and head by head. The model
 * computes the text exactly; then each layer's keys before the last tokens are indexed, and the queries of those last
 * tokens attend by the index and exactly (on the host, in double precision).
 */
public final class FidelityProbe {
    /** Takes what was measured, layer by layer. */
    public interface Sink {
        /** Whether a cache is to be measured in a layer; asked before each. */
        default boolean wants(String cache, int layer) {
            return true;
        }

        /** Takes the heads of a layer that was wanted. */
        void accept(String cache, List<HeadFidelity> heads);

        /** Told that a layer is done with. */
        default void layer(int layer) {}
    }

    private FidelityProbe() {}

    /**
     * Runs a text through a model; one layer is in host memory at a time.
     *
     * @param steps how many of the last tokens attend
     * @param caches by name
     * @throws IllegalArgumentException when the text is too short for the steps or covered by a budget
     */
    public static void measure(Model model, int[] ids, int steps, Map<String, CacheOptions> caches, Sink sink) {
        if (steps < 1 || steps >= ids.length) {
            throw new IllegalArgumentException(steps + " steps of a text of " + ids.length + " tokens");
        }
        Rope rope = Rotation.of(model.config().rope(), ids.length);
        capture(model, ids, steps, capture -> {
            caches.forEach((name, options) -> {
                if (sink.wants(name, capture.layer())) {
                    sink.accept(name, measure(model.device(), rope, capture, options));
                }
            });
            sink.layer(capture.layer());
        });
    }

    /** Measures one layer. */
    static List<HeadFidelity> measure(Device device, Rope rope, LayerCapture capture, CacheOptions options) {
        int group = capture.queryHeads() / capture.keyValueHeads();
        int dim = capture.headDim();
        FidelityReport report = new FidelityReport(capture.layer());
        try (IndexedLayer layer = new IndexedLayer(device, rope, capture, options)) {
            for (int step = 0; step < capture.steps(); step++) {
                IndexedLayer.Attended attended = layer.attend(step);
                for (int head = 0; head < capture.queryHeads(); head++) {
                    int keyHead = head / group;
                    float[] logits = logits(layer, capture, step, head, keyHead);
                    float[] exact = output(logits, capture, keyHead);
                    float[] approximate = Arrays.copyOfRange(attended.output(), head * dim, (head + 1) * dim);
                    report.add(
                            head,
                            AttentionFidelity.of(logits, attended.tokens()[keyHead]),
                            AttentionFidelity.outputError(exact, approximate));
                }
            }
        }
        return report.heads();
    }

    /**
     * What a cache keeps of a layer's attention while tokens are generated and folded.
     *
     * @param capturedMass by sampled step, the exact weight of the attended tokens, mean over the query heads
     * @param residualEnergy by step, the share of the energy of that token's keys that the prompt's basis misses
     */
    public record OverTime(int layer, Map<Integer, Double> capturedMass, float[] residualEnergy) {}

    /**
     * Follows caches through a session that was sealed behind a prompt and went on. The text is computed exactly and once;
     * its queries attend by an index that is built of the prompt and into which what follows was folded.
     *
     * @param ids the prompt and what followed
     * @param prompt tokens of the prompt
     * @param every which steps to sample: the last of so many
     * @param caches by name
     * @param sink takes the layers of each cache, in order
     */
    public static void overTime(
            Model model, int[] ids, int prompt, int every, Map<String, CacheOptions> caches, BiConsumer<String, OverTime> sink) {
        if (prompt < 1 || prompt >= ids.length || every < 1) {
            throw new IllegalArgumentException(
                    "every " + every + " steps behind " + prompt + " tokens of a text of " + ids.length);
        }
        Rope rope = Rotation.of(model.config().rope(), ids.length);
        capture(model, ids, ids.length - prompt, capture -> caches.forEach(
                (name, options) -> sink.accept(name, overTime(model.device(), rope, capture, options, every))));
    }

    static OverTime overTime(Device device, Rope rope, LayerCapture capture, CacheOptions options, int every) {
        int group = capture.queryHeads() / capture.keyValueHeads();
        Map<Integer, Double> masses = new TreeMap<>();
        float[] residual = new float[capture.steps()];
        try (IndexedLayer layer = new IndexedLayer(device, rope, capture, options, true)) {
            for (int step = 0; step < residual.length; step++) {
                residual[step] = layer.residual(step);
            }
            for (int step = every - 1; step < capture.steps(); step += every) {
                BitSet[] attended = layer.attend(step).tokens();
                double sum = 0;
                for (int head = 0; head < capture.queryHeads(); head++) {
                    int keyHead = head / group;
                    sum += AttentionFidelity.capturedMass(logits(layer, capture, step, head, keyHead), attended[keyHead]);
                }
                masses.put(step, sum / capture.queryHeads());
            }
        }
        return new OverTime(capture.layer(), masses, residual);
    }

    private static void capture(Model model, int[] ids, int steps, Consumer<LayerCapture> sink) {
        try (KvCache cache =
                        CacheOptions.dense().build(model.device(), model.config(), MemoryPlan.of(1, ids.length), ids.length);
                Transformer transformer = new Transformer(model, 1);
                KvSession session = new CapturingSession(cache.open(ids.length), ids.length, ids.length - steps, sink)) {
            transformer.prefill(
                    List.of(session), ids, ids.length - steps, (first, rows, logits) -> {}, (done, total) -> {});
        }
    }

    private static float[] logits(IndexedLayer layer, LayerCapture capture, int step, int head, int keyHead) {
        int dim = capture.headDim();
        int query = (step * capture.queryHeads() + head) * dim;
        float[] logits = new float[layer.length(step)];
        double scale = 1 / Math.sqrt(dim);
        for (int token = 0; token < logits.length; token++) {
            int key = (token * capture.keyValueHeads() + keyHead) * dim;
            double sum = 0;
            for (int i = 0; i < dim; i++) {
                sum += (double) layer.rotatedQueries[query + i] * layer.rotatedKeys[key + i];
            }
            logits[token] = (float) (sum * scale);
        }
        return logits;
    }

    private static float[] output(float[] logits, LayerCapture capture, int keyHead) {
        int dim = capture.headDim();
        double largest = Double.NEGATIVE_INFINITY;
        for (float logit : logits) {
            largest = Math.max(largest, logit);
        }
        double total = 0;
        double[] sums = new double[dim];
        for (int token = 0; token < logits.length; token++) {
            double weight = Math.exp(logits[token] - largest);
            total += weight;
            int value = (token * capture.keyValueHeads() + keyHead) * dim;
            for (int i = 0; i < dim; i++) {
                sums[i] += weight * capture.values()[value + i];
            }
        }
        float[] output = new float[dim];
        for (int i = 0; i < dim; i++) {
            output[i] = (float) (sums[i] / total);
        }
        return output;
    }
}
