/** Files of token ids and prompts. */
package dev.shadowkv.llm.input;
