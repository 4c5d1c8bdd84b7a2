/** Tokenizers and chat templates. */
package dev.shadowkv.llm.text;
