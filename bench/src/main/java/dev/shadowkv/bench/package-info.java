/** JMH benchmarks. */
package dev.shadowkv.bench;
