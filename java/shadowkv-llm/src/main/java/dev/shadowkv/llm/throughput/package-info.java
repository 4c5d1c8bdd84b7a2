/** How many tokens a second a model of a shape gives within a memory limit, with either cache and without a checkpoint. */
package dev.shadowkv.llm.throughput;
