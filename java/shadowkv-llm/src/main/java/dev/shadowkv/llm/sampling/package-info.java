/** Choosing the next token. */
package dev.shadowkv.llm.sampling;
