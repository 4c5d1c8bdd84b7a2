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
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** All families give the reference's logits and tokens, with either cache, in prompts and in steps. */
class TransformerTest {
    private static final boolean CUDA = "cuda".equals(System.getProperty("shadowkv.test.device"));
    /** In standard deviations of the logits: f32 on a CPU, bf16 on a GPU. */
    private static final double TOLERANCE = CUDA ? 2e-2 : 2e-3;

    private static final int PROMPT = 101;

    private static Device device() {
        return CUDA ? Device.cuda(0) : Device.cpu();
    }

    private static ModelConfig config(String family, String file) {
        Path folder = Golden.folder(family);
        return ModelConfig.read(folder.resolve(file), folder.resolve("none"));
    }

    /** A shadow that leaves nothing out. */
    private static CacheOptions options(String cache, ModelConfig config) {
        return cache.equals("dense")
                ? CacheOptions.dense()
                : CacheOptions.shadow(4096).withRank(Math.min(256, config.keyValueWidth()));
    }

    private static KvCache cache(Device device, ModelConfig config, String cache, int sessions, int length) {
        MemoryPlan memory = MemoryPlan.of(sessions, length).withStaging(length, 1);
        return options(cache, config).build(device, config, memory, length);
    }

    @ParameterizedTest
    @CsvSource({
        "llama-3.1,config.json,dense", "llama-3.1,config.v5.json,dense", "llama-3.1,config.json,shadow",
        "yi,config.json,dense", "yi,config.v5.json,dense", "yi,config.json,shadow",
        "qwen2,config.json,dense", "qwen2,config.v5.json,dense", "qwen2,config.json,shadow",
        "phi-3,config.json,dense", "phi-3,config.v5.json,dense", "phi-3,config.json,shadow",
        "glm-4,config.json,dense", "glm-4,config.v5.json,dense", "glm-4,config.json,shadow"
    })
    void givesTheReferenceLogits(String family, String file, String cacheKind) {
        GoldenLogits golden = new GoldenLogits(family);
        ModelConfig config = config(family, file);
        int length = golden.ids[0].length;
        try (Device device = device();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder(family), config);
                Model model = Model.load(checkpoint, device);
                KvCache cache = cache(device, config, cacheKind, 2, length);
                // Blocks that divide neither the prompt nor each other.
                Transformer transformer = new Transformer(model, 2, 37)) {
            List<KvSession> sessions = new ArrayList<>();
            int[] prompts = {PROMPT, PROMPT - 14};
            for (int row = 0; row < 2; row++) {
                int index = row;
                KvSession session = cache.open(length);
                transformer.prefill(
                        session,
                        Arrays.copyOf(golden.ids[row], prompts[row]),
                        0,
                        (first, rows, logits) -> golden.assertClose(index, first, rows, logits, TOLERANCE),
                        PrefillListener.NONE);
                sessions.add(session);
            }
            decodeRagged(golden, cache, transformer, sessions, prompts);
        }
    }

    /** The rest of both rows, step by step, at different positions; the longer one leaves when it is done. */
    private static void decodeRagged(
            GoldenLogits golden, KvCache cache, Transformer transformer, List<KvSession> sessions, int[] prompts) {
        int length = golden.ids[0].length;
        int steps = length - prompts[0];
        try (KvBatch batch = cache.batch(sessions)) {
            for (int step = 0; step < steps; step++) {
                int[] next = {golden.ids[0][prompts[0] + step], golden.ids[1][prompts[1] + step]};
                transformer.decode(batch, next, 2);
                MemorySegment logits = transformer.logits(2);
                long row = logits.byteSize() / 2;
                golden.assertClose(0, prompts[0] + step, 1, logits.asSlice(0, row), TOLERANCE);
                golden.assertClose(1, prompts[1] + step, 1, logits.asSlice(row, row), TOLERANCE);
            }
        }
        try (KvBatch batch = cache.batch(sessions.subList(1, 2))) {
            for (int position = prompts[1] + steps; position < length; position++) {
                transformer.decode(batch, new int[] {golden.ids[1][position]}, 1);
                golden.assertClose(1, position, 1, transformer.logits(1), TOLERANCE);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({
        "llama-3.1,dense", "llama-3.1,shadow", "yi,dense", "yi,shadow", "qwen2,dense", "qwen2,shadow",
        "phi-3,dense", "phi-3,shadow", "glm-4,dense", "glm-4,shadow"
    })
    void continuesAsTheReference(String family, String cacheKind) {
        GoldenLogits golden = new GoldenLogits(family);
        ModelConfig config = config(family, "config.json");
        try (Device device = device();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder(family), config);
                Model model = Model.load(checkpoint, device);
                Engine engine = Engine.builder(model)
                        .cache(options(cacheKind, config))
                        .capacity(golden.ids[0].length + golden.greedy.length)
                        .build()) {
            Completion completion = engine.submit(
                            GenerationRequest.of(golden.ids[0], golden.greedy.length), TokenListener.NONE)
                    .join();
            assertThat(completion.reason()).isEqualTo(Completion.Reason.LENGTH);
            if (!CUDA) {
                assertThat(completion.ids()).containsExactly(golden.greedy);
            }
        }
    }
}
