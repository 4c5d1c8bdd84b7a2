package dev.shadowkv.llm.checkpoint;

import java.util.Arrays;
import java.util.Optional;
import java.util.stream.Collectors;

/** The model families that can be run, by the architecture name that their configuration gives. */
public enum ModelFamily {
    /** Llama 2 and 3, Yi, and others of that architecture. */
    LLAMA("LlamaForCausalLM"),
    /** Qwen2 and Qwen2.5. */
    QWEN2("Qwen2ForCausalLM"),
    /** Phi-3 and the models that share its layout: fused query-key-value and gate-up projections. */
    PHI3("Phi3ForCausalLM"),
    /** GLM-4 in the layout of the Hugging Face library. */
    GLM("GlmForCausalLM"),
    /** GLM-4 in the layout that its authors published. */
    CHATGLM("ChatGLMModel", "ChatGLMForConditionalGeneration");

    private final String[] architectures;

    ModelFamily(String... architectures) {
        this.architectures = architectures;
    }

    /** The family of an architecture name, if it is supported. */
    public static Optional<ModelFamily> ofArchitecture(String architecture) {
        return Arrays.stream(values())
                .filter(family -> Arrays.asList(family.architectures).contains(architecture))
                .findFirst();
    }

    static String supportedArchitectures() {
        return Arrays.stream(values())
                .flatMap(family -> Arrays.stream(family.architectures))
                .collect(Collectors.joining(", "));
    }
}
