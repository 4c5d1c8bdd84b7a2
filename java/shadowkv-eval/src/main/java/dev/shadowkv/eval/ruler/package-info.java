/** RULER, all 13 tasks. */
package dev.shadowkv.eval.ruler;
