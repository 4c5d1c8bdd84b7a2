/** Long sessions: many questions in turn, thousands of generated tokens. */
package dev.shadowkv.eval.longgen;
