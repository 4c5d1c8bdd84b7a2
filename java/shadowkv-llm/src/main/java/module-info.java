/** Inference on Llama-like checkpoints with any KV cache of {@code dev.shadowkv}. */
module dev.shadowkv.llm {
    requires transitive dev.shadowkv;
    requires ai.djl.tokenizers;
    requires com.fasterxml.jackson.databind;
    requires jinjava;
}
