/**
 * JMH benchmarks of every operation and of a decode layer, on the CPU or a GPU.
 *
 * <p>A benchmark first checks its result on a sample of outputs against arithmetic in double precision, then is timed
 * with the wait for the device inside. {@link dev.shadowkv.bench.FloorProfiler} adds the bytes and operations that the
 * work must move at least, and how near to the machine's measured ceilings the time came.
 */
package dev.shadowkv.bench;
