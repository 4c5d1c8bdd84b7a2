package dev.shadowkv.llm.throughput;

import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.checkpoint.ModelFamily;
import dev.shadowkv.llm.checkpoint.RopeDescription;
import dev.shadowkv.llm.checkpoint.RopeDescription.Default;
import dev.shadowkv.llm.checkpoint.RopeDescription.Llama3;
import dev.shadowkv.llm.checkpoint.RopeDescription.Scaling;
import dev.shadowkv.llm.checkpoint.RopeDescription.Yarn;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Set;

/**
 * The published shapes of some models, as their {@code config.json} files give them, for measurements with random
 * weights. Phi-3's frequencies are those without longrope's factors: which angle a pair turns by does not change what a
 * step costs.
 */
public final class ModelShapes {
    private static final Map<String, ModelConfig> SHAPES = shapes();

    private ModelShapes() {}

    /** The names. */
    public static Set<String> names() {
        return Collections.unmodifiableSet(SHAPES.keySet());
    }

    /**
     * The shape of a name.
     *
     * @throws IllegalArgumentException for another name; the message has those that there are
     */
    public static ModelConfig of(String name) {
        ModelConfig shape = SHAPES.get(name);
        if (shape == null) {
            throw new IllegalArgumentException(
                    "no shape is called " + name + "; there are " + String.join(", ", SHAPES.keySet()));
        }
        return shape;
    }

    /** The same shape with another number of layers. */
    public static ModelConfig withLayers(ModelConfig c, int layers) {
        return new ModelConfig(
                c.family(),
                layers,
                c.hiddenSize(),
                c.intermediateSize(),
                c.queryHeads(),
                c.keyValueHeads(),
                c.headDim(),
                c.vocabularySize(),
                c.rmsNormEpsilon(),
                c.tieWordEmbeddings(),
                c.attentionBias(),
                c.outputBias(),
                c.rope(),
                c.maxPositions(),
                c.beginningId(),
                c.endIds());
    }

    private static Map<String, ModelConfig> shapes() {
        Map<String, ModelConfig> all = new LinkedHashMap<>();
        all.put(
                "llama-3.1-8b",
                llama(32, 4096, 14336, 32, 8, 128, 128256, 1e-5, rope(5e5, 128, new Llama3(8, 1, 4, 8192)), 131072));
        all.put("llama-3-8b-1m", llama(32, 4096, 14336, 32, 8, 128, 128256, 1e-5, rope(3580165449.0, 128), 1048576));
        all.put(
                "glm-4-9b-1m",
                new ModelConfig(
                        ModelFamily.GLM,
                        40,
                        4096,
                        13696,
                        32,
                        4,
                        128,
                        151552,
                        1.5625e-7,
                        false,
                        true,
                        false,
                        new RopeDescription(1e8, 64, true, 1, new Default()),
                        1048576,
                        OptionalInt.empty(),
                        List.of()));
        all.put("yi-9b-200k", llama(48, 4096, 11008, 32, 4, 128, 64000, 1e-6, rope(1e7, 128), 262144));
        all.put(
                "phi-3-mini-128k",
                new ModelConfig(
                        ModelFamily.PHI3,
                        32,
                        3072,
                        8192,
                        32,
                        32,
                        96,
                        32064,
                        1e-5,
                        false,
                        false,
                        false,
                        rope(1e4, 96),
                        131072,
                        OptionalInt.empty(),
                        List.of()));
        all.put(
                "qwen2-7b-128k",
                new ModelConfig(
                        ModelFamily.QWEN2,
                        28,
                        3584,
                        18944,
                        28,
                        4,
                        128,
                        152064,
                        1e-6,
                        false,
                        true,
                        false,
                        new RopeDescription(
                                1e6, 128, false, 0.1 * Math.log(4) + 1, new Yarn(4, 32, 1, true, 32768)),
                        131072,
                        OptionalInt.empty(),
                        List.of()));
        all.put(
                "needle-32k",
                new ModelConfig(
                        ModelFamily.LLAMA,
                        4,
                        256,
                        704,
                        8,
                        4,
                        64,
                        2624,
                        1e-5,
                        true,
                        false,
                        false,
                        rope(5e5, 64),
                        32768,
                        OptionalInt.empty(),
                        List.of()));
        return all;
    }

    private static ModelConfig llama(
            int layers,
            int hidden,
            int intermediate,
            int queryHeads,
            int keyValueHeads,
            int headDim,
            int vocabulary,
            double epsilon,
            RopeDescription rope,
            int positions) {
        return new ModelConfig(
                ModelFamily.LLAMA,
                layers,
                hidden,
                intermediate,
                queryHeads,
                keyValueHeads,
                headDim,
                vocabulary,
                epsilon,
                false,
                false,
                false,
                rope,
                positions,
                OptionalInt.empty(),
                List.of());
    }

    private static RopeDescription rope(double theta, int dim) {
        return rope(theta, dim, new Default());
    }

    private static RopeDescription rope(double theta, int dim, Scaling scaling) {
        return new RopeDescription(theta, dim, false, 1, scaling);
    }
}
