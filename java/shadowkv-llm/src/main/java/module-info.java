/** Inference on Llama-like checkpoints with any KV cache of {@code dev.shadowkv}. */
@SuppressWarnings("module") // The evaluations, which share the JSON reader, are compiled after this module.
module dev.shadowkv.llm {
    requires transitive dev.shadowkv;
    requires ai.djl.api;
    requires ai.djl.tokenizers;
    requires com.fasterxml.jackson.databind;

    exports dev.shadowkv.llm;
    exports dev.shadowkv.llm.checkpoint;
    exports dev.shadowkv.llm.input;
    exports dev.shadowkv.llm.sampling;
    exports dev.shadowkv.llm.text;
    exports dev.shadowkv.llm.throughput;
    exports dev.shadowkv.llm.internal.json to
            dev.shadowkv.eval;
}
