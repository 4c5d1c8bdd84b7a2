/** Retrieval tasks for the needle-32k checkpoint. */
package dev.shadowkv.eval.needle;
