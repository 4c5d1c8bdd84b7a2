package dev.shadowkv.bench;

import java.lang.foreign.MemorySegment;
import java.util.HashMap;
import java.util.Map;
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
import dev.shadowkv.DeviceGraph;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.DecodeKernels;

/**
 * One layer of a decode step: rotation and storing of the new tokens, then attention, exact or by shadow. An invocation
 * runs as many layers as a model has in half its depth before it waits for the device, as a decode step does.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 2, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 5, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class DecodeLayerBenchmark extends DecodeState {

    /** Layers of an invocation. */
    static final int CALLS = 16;

    /** Shortlist in budgets; 0: no rerank. */
    @Param("0")
    public double rerank;

    /** Whether tokens that are not selected take part. */
    @Param("false")
    public boolean tail;

    private DeviceBuffer keys;
    private DeviceBuffer values;
    private DeviceBuffer output;
    private DeviceBuffer stepQueries;
    private DeviceBuffer counters;
    private DeviceGraph graph;
    private long[] counted;
    private long invocations;
    private boolean shadow;

    /** Sets up and checks one of the layers. */
    @Setup(Level.Trial)
    public void setUp(BenchmarkParams params) {
        String name = params.getBenchmark().substring(params.getBenchmark().lastIndexOf('.') + 1);
        try {
            shadow = name.startsWith("shadow");
            prepare(shadow, !shadow, false);
            keys = random(inputType, heads() * headDim, 21, 1);
            values = random(inputType, heads() * headDim, 22, 1);
            output = allocate(inputType, batch, queryHeads, headDim);
            counters = arena.allocate((long) DecodeKernels.COUNTER_BYTES * batch);
            open.fill(counters, 0);
            counted = new long[2];
            invocations = 0;
            if (shadow) {
                define(shadowWork(0), this::observed, () -> { });
                checkShadow();
            } else {
                define(denseWork(), () -> { });
                checkDenseLayer();
            }
            if (name.endsWith("Graph")) {
                capture();
            }
            warm();
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    /** Walks once through the drift, so that the slots hold what they hold later, and measures how much is fetched. */
    private void warm() {
        int rounds = shadow ? Math.max(1, STEPS / CALLS) * copies : 1;
        for (int i = 0; i < rounds; i++) {
            step();
        }
        if (shadow) {
            counts();
            step();
            step();
            long[] before = counted.clone();
            counts();
            double fetched = counted[1] - before[1];
            shadowWork(fetched / (2.0 * CALLS)).publish(Work.ceilings(), this::observed);
        }
    }

    private void checkShadow() {
        layer(0, queriesOf(0));
        open.synchronize();
        int b = batch - 1;
        int h = queryHeads - 1;
        int size = queryHeads / keyValueHeads;
        int k = h / size;
        AttentionOracle oracle = new AttentionOracle(this, b, 0, k);
        double[][] q = new double[size][];
        for (int i = 0; i < size; i++) {
            q[i] = rotatedQuery(b, k * size + i);
        }
        double[] scores = oracle.scores(q);
        double tolerance = oracle.scoreTolerance(q, true);
        if (rerank > 0) {
            // The shortlist's boundary and the final one are both in doubt; the operations' own checks cover that.
            return;
        }
        int[][] best = oracle.best(scores, tolerance, select);
        double[] result = download(output, inputType, ((long) b * queryHeads + h) * headDim, headDim);
        double[] rotated = rotatedQuery(b, h);
        oracle.checkOutput(result, rotated, best[0], best[1], tail ? oracle.tail(rotated, best[0], tolerance) : null);
    }

    private void checkDenseLayer() {
        layer(0, queriesOf(0));
        open.synchronize();
        int b = batch - 1;
        int h = queryHeads - 1;
        double[] result = download(output, inputType, ((long) b * queryHeads + h) * headDim, headDim);
        checkDense(b, h, rotatedQuery(b, h), result);
    }

    private double[] rotatedQuery(int session, int head) {
        double[] q = query(0, session, head);
        AttentionOracle.rotate(q, rope.rope().inverseFrequencies(), context - 1);
        return q;
    }

    private void layer(int call, DeviceBuffer rows) {
        long first = (long) (call % copies) * batch;
        if (shadow) {
            decode.decodeLayer(geometry, batch, inputType, rows, 0, keys, 0, values, 0, shadowLayers, first, states,
                    (long) call * batch, rope, context, RADIUS_WEIGHT, select, (int) (rerank * select), sessions[0].chunks,
                    tail, output, counters);
        } else {
            decode.denseDecodeLayer(geometry, batch, inputType, rows, 0, keys, 0, values, 0, denseLayers, first, states,
                    (long) call * batch, rope, context, context, output);
        }
    }

    /** A step of a captured graph takes its queries from a fixed place. */
    private void capture() {
        stepQueries = arena.allocate(CALLS * queriesOf(0).byteSize());
        graph = open.capture(() -> {
            long row = queriesOf(0).byteSize();
            for (int call = 0; call < CALLS; call++) {
                layer(call, stepQueries.slice(call * row, row));
            }
        });
    }

    private void step() {
        long first = invocations++ * CALLS;
        if (shadow) {
            for (int call = 0; call < CALLS; call++) {
                setStates(call, (int) ((first + call) / copies) + 2);
            }
            states.upload();
        }
        for (int call = 0; call < CALLS; call++) {
            // Copies of the layer are at different places of the drift.
            DeviceBuffer rows = queriesOf(walk((first + call) / copies + (long) (call % copies) * STEPS / copies));
            if (graph == null) {
                layer(call, rows);
            } else {
                open.copy(rows, stepQueries.slice(call * rows.byteSize(), rows.byteSize()));
            }
        }
        if (graph != null) {
            graph.launch();
        }
        open.synchronize();
    }

    private Work denseWork() {
        double read = 2.0 * heads() * context * headDim * geometry.storageType().bytes();
        return Work.memory(read, (double) batch * queryHeads * headDim * inputType.bytes())
                .operations(4.0 * batch * queryHeads * (double) context * headDim);
    }

    /** @param fetched chunks that cross the link */
    private Work shadowWork(double fetched) {
        int group = queryHeads / keyValueHeads;
        double landmarks = (double) heads() * sessions[0].chunks * (headDim * geometry.landmarkType().bytes() + 4
                + (geometry.landmarkType() == ElementType.I8 ? 4 : 0));
        double selected = (double) heads() * Math.min(select, sessions[0].chunks) * chunk;
        double exact = heads() * (double) (sessions[0].outliers * chunk + context - sessions[0].recentBegin);
        // Heads share coefficients; at best all of them select the same chunks.
        double bytes = landmarks + selected / keyValueHeads * rank * geometry.coefficientType().bytes()
                + selected / chunk * geometry.readChunkBytes() + 2 * exact * headDim * geometry.storageType().bytes();
        double moments = tail ? 4.0 * batch * geometry.momentFloats() : 0;
        return Work.memory(bytes + moments, 0).link(fetched * geometry.hostChunkBytes())
                .operations(2.0 * batch * queryHeads * (double) sessions[0].chunks * headDim
                        + selected * headDim * (2.0 * rank + 4 * group) + exact * headDim * 4 * group);
    }

    private void counts() {
        MemorySegment host = download(counters);
        counted[0] = 0;
        counted[1] = 0;
        for (int b = 0; b < batch; b++) {
            counted[0] += host.get(java.lang.foreign.ValueLayout.JAVA_LONG, (long) b * DecodeKernels.COUNTER_BYTES);
            counted[1] += host.get(java.lang.foreign.ValueLayout.JAVA_LONG, (long) b * DecodeKernels.COUNTER_BYTES + 8);
        }
    }

    private Map<String, Double> observed() {
        Map<String, Double> out = new HashMap<>();
        out.put("overlap", overlap);
        if (geometry.slots() > 0) {
            long[] before = counted.clone();
            counts();
            out.put("resident", 1 - (double) (counted[1] - before[1]) / Math.max(1, counted[0] - before[0]));
        }
        return out;
    }

    /** Frees the graph before the device. */
    @Override
    void close() {
        if (graph != null) {
            graph.close();
            graph = null;
        }
        super.close();
    }

    /** By shadow, a call a layer. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void shadow() {
        step();
    }

    /** Exactly, a call a layer. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void dense() {
        step();
    }

    /** By shadow, all layers by one replay of a graph; only on a GPU. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void shadowGraph() {
        step();
    }

    /** Exactly, all layers by one replay of a graph; only on a GPU. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void denseGraph() {
        step();
    }
}
