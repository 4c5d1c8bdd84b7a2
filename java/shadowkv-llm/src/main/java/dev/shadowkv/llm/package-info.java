/** Inference on Llama-like checkpoints with any KV cache of {@code dev.shadowkv}. */
package dev.shadowkv.llm;
