package dev.shadowkv.bench;

import java.util.concurrent.TimeUnit;

import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.Warmup;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Rows;

/** Causal attention of a prompt's last tokens over the whole prompt. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 1, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class PrefillBenchmark extends DeviceState {

    /** Tokens of the prompt. */
    @Param("4096")
    public int context;

    /** Of which so many are queries. */
    @Param("128")
    public int tokens;

    /** Query heads. */
    @Param("32")
    public int queryHeads;

    /** Key/value heads. */
    @Param("8")
    public int keyValueHeads;

    /** Elements of a head. */
    @Param("128")
    public int headDim;

    /** Of keys and values. */
    @Param("BF16")
    public String storageType;

    /** Sets up and checks. */
    @Setup(Level.Trial)
    public void setUp() {
        try {
            openDevice();
            ElementType type = activationType();
            ElementType storage = type(storageType, type);
            int count = Math.min(tokens, context);
            int first = context - count;
            long keyElements = (long) keyValueHeads * context * headDim;
            DeviceBuffer keys = random(storage, keyElements, 1, 1);
            DeviceBuffer values = random(storage, keyElements, 2, 1);
            DeviceBuffer queries = random(type, (long) count * queryHeads * headDim, 3, 1);
            DeviceBuffer output = allocate(type, count, queryHeads, headDim);
            Geometry geometry = Geometry.dense(queryHeads, keyValueHeads, headDim, storage);
            double operations = 4.0 * queryHeads * headDim * count * (first + (count + 1) / 2.0);
            double bytes = (double) count * queryHeads * headDim * type.bytes();
            define(Work.memory(bytes + 2.0 * keyElements * storage.bytes(), bytes).operations(operations),
                    () -> transformer.prefillAttention(geometry, Rows.of(queries, type), count, first, keys, values,
                            context, Rows.of(output, type)));
            once();
            double epsilon = Math.max(Numbers.epsilon(type), Numbers.epsilon(storage));
            for (int token : new int[] {0, count / 3, count - 1}) {
                int head = (token * 7 + 3) % queryHeads;
                long row = ((long) token * queryHeads + head) * headDim;
                DenseOracle oracle = new DenseOracle(download(queries, type, row, headDim), epsilon);
                int visible = first + token + 1;
                long from = (long) (head / (queryHeads / keyValueHeads)) * context * headDim;
                double[] k = download(keys, storage, from, visible * headDim);
                double[] v = download(values, storage, from, visible * headDim);
                for (int i = 0; i < visible; i++) {
                    oracle.add(k, i * headDim, v, i * headDim);
                }
                oracle.check(download(output, type, row, headDim), Numbers.epsilon(type), 0);
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    /** Prefill attention. */
    @Benchmark
    public void prefillAttention() {
        repeat(1);
    }
}
