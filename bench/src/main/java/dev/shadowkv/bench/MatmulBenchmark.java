package dev.shadowkv.bench;

import java.util.concurrent.TimeUnit;

import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OperationsPerInvocation;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.Warmup;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Rows;

/** A projection of one token, a matrix-vector product, and of a prompt's tokens. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 1, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class MatmulBenchmark extends DeviceState {

    private static final int CALLS = 4;

    /** Tokens at once. */
    @Param({"1", "256"})
    public int rows;

    /** Outputs a token. */
    @Param("4096")
    public int columns;

    /** Inputs a token. */
    @Param("4096")
    public int inner;

    /** Of the weights; default: that of the activations. */
    @Param("default")
    public String weightType;

    /** Sets up and checks. */
    @Setup(Level.Trial)
    public void setUp() {
        try {
            openDevice();
            ElementType type = activationType();
            ElementType weights = type(weightType, type);
            DeviceBuffer input = random(type, (long) rows * inner, 1, 1);
            DeviceBuffer weight = random(weights, (long) columns * inner, 2, 1);
            DeviceBuffer output = allocate(type, rows, columns);
            double read = (double) rows * inner * type.bytes() + (double) columns * inner * weights.bytes();
            define(Work.memory(read, (double) rows * columns * type.bytes()).operations(2.0 * rows * columns * inner),
                    () -> transformer.matmul(Rows.of(input, type), Rows.of(weight, weights), null,
                            Rows.of(output, type), rows, columns, inner, false));
            once();
            for (int sample = 0; sample < 64; sample++) {
                int row = sample * 37 % rows;
                int column = (int) (sample * 7919L % columns);
                double[] x = download(input, type, (long) row * inner, inner);
                double[] w = download(weight, weights, (long) column * inner, inner);
                double expected = 0;
                double squares = 0;
                for (int i = 0; i < inner; i++) {
                    expected += x[i] * w[i];
                    squares += x[i] * x[i] * w[i] * w[i];
                }
                // Rounding errors of a sum of n products in fp32 grow like a random walk of n steps.
                double allowed = Numbers.epsilon(type) * Math.abs(expected)
                        + 8 * 0x1p-24 * Math.sqrt(inner) * Math.sqrt(squares);
                Tolerance.within("product", download(output, type, (long) row * columns + column, 1)[0], expected, allowed);
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    /** {@code output = input . weight^T}. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void matmul() {
        repeat(CALLS);
    }
}
