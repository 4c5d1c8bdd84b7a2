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
import org.openjdk.jmh.infra.BenchmarkParams;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.Rope;
import dev.shadowkv.RopeTable;
import dev.shadowkv.kernels.Rows;

/** What a transformer layer does around its cache, but for the products and the attention. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 1, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class TransformerBenchmark extends DeviceState {

    private static final int CALLS = 4;
    private static final int HEAD_DIM = 128;
    private static final int SAMPLES = 500;
    private static final float EPSILON = 1e-5f;

    /** Tokens at once; enough that nothing stays in a cache of the processor. */
    @Param("4096")
    public int tokens;

    /** Elements of a token; also the vocabulary's rows of the embedding. */
    @Param("4096")
    public int width;

    private ElementType type;
    private long count;
    private double eps;

    /** Sets up and checks one operation. */
    @Setup(Level.Trial)
    public void setUp(BenchmarkParams params) {
        String name = params.getBenchmark().substring(params.getBenchmark().lastIndexOf('.') + 1);
        try {
            openDevice();
            type = activationType();
            eps = Numbers.epsilon(type);
            count = (long) tokens * width;
            switch (name) {
                case "rope" -> prepareRope();
                case "rmsNorm" -> prepareRmsNorm();
                case "siluMultiply" -> prepareSiluMultiply();
                case "embed" -> prepareEmbed();
                case "add" -> prepareAdd();
                case "convert" -> prepareConvert();
                case "argmax" -> prepareArgmax();
                case "randomFill" -> prepareRandomFill();
                default -> throw new IllegalArgumentException(name);
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    private void prepareRope() {
        Rope rope = Rope.standard(HEAD_DIM, 500_000);
        long first = 100_000;
        RopeTable table = new RopeTable(open, rope, first + tokens);
        DeviceBuffer in = random(type, count, 1, 1);
        DeviceBuffer out = allocate(type, count);
        int heads = width / HEAD_DIM;
        define(Work.memory(bytes(count), bytes(count)), () -> transformer.rope(Rows.of(in, type), Rows.of(out, type),
                tokens, heads, HEAD_DIM, first, null, 0, table, false));
        once();
        double[] frequencies = rope.inverseFrequencies();
        for (int sample = 0; sample < SAMPLES; sample++) {
            int token = (int) (sample * 7919L % tokens);
            int pair = sample % (HEAD_DIM / 2);
            long at = (long) token * width + (long) (sample * 31 % heads) * HEAD_DIM + pair;
            double a = at(in, at);
            double b = at(in, at + HEAD_DIM / 2);
            double angle = (first + token) * frequencies[pair];
            // Tables are 32-bit, and two of their rows are multiplied.
            double allowed = eps * (Math.abs(a) + Math.abs(b)) + 8 * 0x1p-24 * (Math.abs(a) + Math.abs(b));
            Tolerance.within("rotated element", at(out, at), a * Math.cos(angle) - b * Math.sin(angle), allowed);
            Tolerance.within("rotated element", at(out, at + HEAD_DIM / 2), b * Math.cos(angle) + a * Math.sin(angle),
                    allowed);
        }
    }

    private void prepareRmsNorm() {
        DeviceBuffer in = random(type, count, 2, 1.5f);
        DeviceBuffer weight = random(type, width, 3, 1);
        DeviceBuffer out = allocate(type, count);
        define(Work.memory(bytes(count), bytes(count)), () -> transformer.rmsNorm(Rows.of(in, type), null,
                Rows.of(weight, type), Rows.of(out, type), tokens, width, EPSILON));
        once();
        double[] scale = download(weight, type, 0, width);
        for (int row : new int[] {0, tokens / 3, tokens - 1}) {
            double[] x = download(in, type, (long) row * width, width);
            double[] y = download(out, type, (long) row * width, width);
            double squares = 0;
            for (double value : x) {
                squares += value * value;
            }
            double factor = 1 / Math.sqrt(squares / width + EPSILON);
            for (int i = 0; i < width; i++) {
                double expected = x[i] * factor * scale[i];
                Tolerance.within("normed element", y[i], expected, (2 * eps + width * 0x1p-24 / 16) * Math.abs(expected));
            }
        }
    }

    private void prepareSiluMultiply() {
        DeviceBuffer gate = random(type, count, 4, 2);
        DeviceBuffer up = random(type, count, 5, 1);
        DeviceBuffer out = allocate(type, count);
        define(Work.memory(2 * bytes(count), bytes(count)), () -> transformer.siluMultiply(Rows.of(gate, type),
                Rows.of(up, type), out, tokens, width));
        once();
        for (int i = 0; i < SAMPLES; i++) {
            long at = i * 999_983L % count;
            double g = at(gate, at);
            double expected = g / (1 + Math.exp(-g)) * at(up, at);
            Tolerance.within("product", at(out, at), expected, (2 * eps + 8 * 0x1p-24) * Math.abs(expected) + 0x1p-60);
        }
    }

    private void prepareEmbed() {
        int vocabulary = Math.max(8, width);
        DeviceBuffer table = random(type, (long) vocabulary * width, 6, 1);
        int[] ids = new int[tokens];
        for (int i = 0; i < tokens; i++) {
            ids[i] = (int) ((i * 2_654_435_761L >>> 4) % vocabulary);
        }
        DeviceBuffer rows = upload(ids);
        DeviceBuffer out = allocate(type, count);
        define(Work.memory(bytes(count), bytes(count)), () -> transformer.embed(Rows.of(table, type), rows,
                Rows.of(out, type), tokens, width, vocabulary));
        once();
        for (int i = 0; i < SAMPLES; i++) {
            int row = i * 101 % tokens;
            int column = i * 17 % width;
            Tolerance.within("embedded element", at(out, (long) row * width + column),
                    at(table, (long) ids[row] * width + column), 0);
        }
    }

    private void prepareAdd() {
        DeviceBuffer a = random(type, count, 7, 1);
        DeviceBuffer b = random(type, count, 8, 1);
        DeviceBuffer out = allocate(type, count);
        define(Work.memory(2 * bytes(count), bytes(count)), () -> transformer.add(a, b, out, type, count));
        once();
        for (int i = 0; i < SAMPLES; i++) {
            long at = i * 999_983L % count;
            double expected = at(a, at) + at(b, at);
            Tolerance.within("sum", at(out, at), expected, eps * Math.abs(expected));
        }
    }

    private void prepareConvert() {
        ElementType target = type == ElementType.F32 ? ElementType.BF16 : ElementType.F32;
        DeviceBuffer in = random(type, count, 9, 1);
        DeviceBuffer out = allocate(target, count);
        define(Work.memory(bytes(count), count * target.bytes()), () -> transformer.convert(in, type, out, target, count));
        once();
        for (int i = 0; i < SAMPLES; i++) {
            long at = i * 999_983L % count;
            double expected = at(in, at);
            Tolerance.within("converted element", download(out, target, at, 1)[0], expected,
                    target == ElementType.F32 ? 0 : Numbers.epsilon(target) * Math.abs(expected));
        }
    }

    private void prepareArgmax() {
        DeviceBuffer in = random(type, count, 10, 1);
        DeviceBuffer ids = ints(tokens);
        define(Work.memory(bytes(count), 4.0 * tokens), () -> transformer.argmax(Rows.of(in, type), tokens, width, ids));
        once();
        for (int row : new int[] {0, tokens / 2, tokens - 1}) {
            double[] x = download(in, type, (long) row * width, width);
            int best = 0;
            for (int i = 1; i < width; i++) {
                best = x[i] > x[best] ? i : best;
            }
            Tolerance.within("index of the largest", downloadInts(ids, row, 1)[0], best, 0);
        }
    }

    private void prepareRandomFill() {
        DeviceBuffer out = allocate(type, count);
        float mean = 0.25f;
        float deviation = 2;
        define(Work.memory(0, bytes(count)), () -> transformer.randomFill(out, type, count, 11, mean, deviation));
        once();
        int sample = (int) Math.min(count, 1 << 20);
        double[] x = download(out, type, count - sample, sample);
        double sum = 0;
        double squares = 0;
        double lag = 0;
        for (int i = 0; i < sample; i++) {
            sum += x[i] - mean;
            squares += (x[i] - mean) * (x[i] - mean);
            lag += i == 0 ? 0 : (x[i] - mean) * (x[i - 1] - mean);
        }
        double root = Math.sqrt(sample);
        double variance = deviation * deviation;
        // Six standard errors of mean, variance and covariance of neighbours.
        Tolerance.within("mean", mean + sum / sample, mean, 6 * deviation / root);
        Tolerance.within("variance", squares / sample, variance, 6 * variance * Math.sqrt(2) / root);
        Tolerance.within("covariance of neighbours", lag / sample, 0, 6 * variance / root);
    }

    private double bytes(long elements) {
        return (double) elements * type.bytes();
    }

    private double at(DeviceBuffer buffer, long index) {
        return download(buffer, type, index, 1)[0];
    }

    /** Rotation of heads. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void rope() {
        repeat(CALLS);
    }

    /** Root mean square normalisation. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void rmsNorm() {
        repeat(CALLS);
    }

    /** The gate of the feed-forward part. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void siluMultiply() {
        repeat(CALLS);
    }

    /** Rows of a table. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void embed() {
        repeat(CALLS);
    }

    /** Sum of two tensors. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void add() {
        repeat(CALLS);
    }

    /** Change of the element type. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void convert() {
        repeat(CALLS);
    }

    /** The most likely token of each row. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void argmax() {
        repeat(CALLS);
    }

    /** Normally distributed numbers. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void randomFill() {
        repeat(CALLS);
    }
}
