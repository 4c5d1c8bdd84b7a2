/** Long-context evaluations. */
package dev.shadowkv.eval;
