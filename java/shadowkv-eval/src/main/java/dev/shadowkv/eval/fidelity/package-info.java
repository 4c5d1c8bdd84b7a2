/** How well an approximate cache keeps attention, without labels. */
package dev.shadowkv.eval.fidelity;
