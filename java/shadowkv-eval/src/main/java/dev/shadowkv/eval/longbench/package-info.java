/** LongBench from its published data. */
package dev.shadowkv.eval.longbench;
