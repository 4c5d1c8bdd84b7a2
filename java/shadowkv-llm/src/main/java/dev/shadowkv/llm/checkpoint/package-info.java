/** Model checkpoints: configuration and weights of the supported families, read from their published files. */
package dev.shadowkv.llm.checkpoint;
