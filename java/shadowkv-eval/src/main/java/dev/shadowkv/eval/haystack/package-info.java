/** Text to hide things in, words, and prompts as long as will fit. */
package dev.shadowkv.eval.haystack;
