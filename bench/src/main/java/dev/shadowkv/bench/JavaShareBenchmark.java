package dev.shadowkv.bench;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.reflect.Field;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
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

import dev.shadowkv.DenseKvCache;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.Rope;
import dev.shadowkv.ShadowKvCache;
import dev.shadowkv.internal.NativeContext;
import dev.shadowkv.internal.ffi.ShadowKv;
import dev.shadowkv.kernels.SessionStates;

/**
 * A decode step of the caches on the smallest of shapes, so that little is left but the way into native code. After each
 * step come as many native calls of the same kinds, with the very parameters of the last layer: one copy of as many
 * bytes as tell where the sessions stand, and for each layer the question for its workspace and the layer. What
 * {@link KvCache#attend} takes longer is Java's share of a layer's call. Both are the time until the calls return, not until a GPU is done: it finds
 * other memory in its caches when 32 layers take turns than when one layer's call is repeated.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 4, time = 500, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 5, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class JavaShareBenchmark extends DeviceState {

    private static final int LAYERS = 32;
    private static final int HEAD_DIM = 16;
    private static final int PROMPT = 256;
    /** Fewer than a recent window takes, so that nothing is folded. */
    private static final int STEPS = 24;

    /** dense or shadow. */
    @Param({"dense", "shadow"})
    public String kind;

    /** Sessions. */
    @Param({"1", "8"})
    public int batch;

    private final List<KvSession> sessions = new ArrayList<>();
    /** Microseconds a layer of the last steps, until their calls return; and of as many native calls after each. */
    private final double[] times = new double[1000];
    private final double[] nativeTimes = new double[times.length];
    private int steps;
    private KvCache kv;
    private KvBatch step;
    private DeviceBuffer queries;
    private DeviceBuffer keys;
    private DeviceBuffer values;
    private DeviceBuffer output;
    private DeviceBuffer states;
    private final MemorySegment hostStates = Arena.ofAuto().allocate(LAYERS * 8 * SessionStates.entryBytes(), 8);
    private final MemorySegment workspaceBytes = Arena.ofAuto().allocate(ValueLayout.JAVA_LONG);

    /** Fills the sessions and checks a step. */
    @Setup(Level.Trial)
    public void setUp() {
        try {
            openDevice();
            kv = build();
            ElementType type = kv.inputType();
            float[] constant = new float[HEAD_DIM];
            for (int i = 0; i < HEAD_DIM; i++) {
                constant[i] = (i - 5) / 4f;
            }
            float[] prompt = repeated(constant, PROMPT);
            for (int b = 0; b < batch; b++) {
                KvSession session = kv.open(PROMPT + STEPS + 8L);
                sessions.add(session);
                for (int layer = 0; layer < LAYERS; layer++) {
                    session.append(layer, PROMPT,
                            MemorySegment.ofArray(Numbers.gaussian(PROMPT * HEAD_DIM, 100 + b, 1)),
                            MemorySegment.ofArray(prompt));
                    session.seal(layer);
                }
            }
            step = kv.batch(sessions);
            queries = random(type, (long) batch * HEAD_DIM, 1, 1);
            keys = random(type, (long) batch * HEAD_DIM, 2, 1);
            values = upload(repeated(constant, batch), type);
            output = allocate(type, batch, HEAD_DIM);
            states = allocate(ElementType.I8, LAYERS * batch, (int) SessionStates.entryBytes());
            step();
            // All values are the same, so that whatever is selected, the softmax's weights must give it again.
            double[] result = download(output, type, 0, batch * HEAD_DIM);
            for (int i = 0; i < result.length; i++) {
                double expected = constant[i % HEAD_DIM];
                Tolerance.within("attention over equal values", result[i], expected,
                        4 * Numbers.epsilon(type) * Math.abs(expected) + 8 * 0x1p-24 * Math.sqrt(PROMPT));
            }
            define(Work.memory(0, 0), this::shares, () -> { });
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    private KvCache build() {
        MemoryPlan plan = MemoryPlan.of(batch, PROMPT + STEPS + 8L).withStaging(PROMPT, LAYERS);
        Rope rope = Rope.standard(HEAD_DIM, 10_000);
        return switch (kind) {
            case "dense" -> DenseKvCache.builder(open).layers(LAYERS).queryHeads(1).keyValueHeads(1).headDim(HEAD_DIM)
                    .rope(rope).memory(plan).build();
            case "shadow" -> ShadowKvCache.builder(open).layers(LAYERS).queryHeads(1).keyValueHeads(1).headDim(HEAD_DIM)
                    .rope(rope).memory(plan).rank(16).budget(32).outliers(1).build();
            default -> throw new IllegalArgumentException("kind must be dense or shadow: " + kind);
        };
    }

    private static float[] repeated(float[] row, int count) {
        float[] out = new float[row.length * count];
        for (int i = 0; i < out.length; i++) {
            out[i] = row[i % row.length];
        }
        return out;
    }

    /** Measures native calls and makes room for the next step, outside the time. */
    @Setup(Level.Invocation)
    public void rewind() {
        nativeTimes[(steps - 1) % times.length] = nativeStep();
        if (sessions.getFirst().length() >= PROMPT + STEPS) {
            sessions.forEach(session -> session.truncate(PROMPT));
        }
    }

    private void step() {
        long start = System.nanoTime();
        for (int layer = 0; layer < LAYERS; layer++) {
            kv.attend(layer, step, queries, keys, values, output);
        }
        times[steps++ % times.length] = (System.nanoTime() - start) / 1e3 / LAYERS;
        open.synchronize();
    }

    /** Medians, which other processes disturb less than means. */
    private Map<String, Double> shares() {
        double call = median(times);
        double nativeCall = median(nativeTimes);
        return Map.of(FloorProfiler.CALL, call, FloorProfiler.NATIVE, nativeCall, FloorProfiler.JAVA, call - nativeCall);
    }

    private double median(double[] of) {
        double[] last = Arrays.copyOf(of, Math.min(steps, of.length));
        Arrays.sort(last);
        return last[last.length / 2];
    }

    /** Time of a step's native calls, by layer. */
    private double nativeStep() {
        NativeContext context = NativeContext.of(open);
        MemorySegment params = parametersOfLastCall();
        boolean dense = kind.equals("dense");
        int number = dense ? ShadowKv.SKV_OP_DENSE_DECODE_LAYER() : ShadowKv.SKV_OP_DECODE_LAYER();
        NativeContext.Operation function = dense ? ShadowKv::skv_dense_decode_layer : ShadowKv::skv_decode_layer;
        MemorySegment target = MemorySegment.ofAddress(states.address());
        MemorySegment handle = context.enter();
        try {
            long start = System.nanoTime();
            context.check(ShadowKv.skv_copy(handle, target, hostStates, states.byteSize()), "copy");
            for (int layer = 0; layer < LAYERS; layer++) {
                context.check(ShadowKv.skv_workspace_bytes(handle, number, params, workspaceBytes), "workspace_bytes");
                context.check(function.invoke(handle, params), "decode_layer");
            }
            double time = (System.nanoTime() - start) / 1e3 / LAYERS;
            context.check(ShadowKv.skv_synchronize(handle), "synchronize");
            return time;
        } finally {
            context.exit();
        }
    }

    /** The struct that the cache's last call left behind; no public way leads to it, nor should one. */
    private MemorySegment parametersOfLastCall() {
        Object kernels = field(kv, "decodeKernels");
        return (MemorySegment) field(field(kernels, "params"), "segment");
    }

    private static Object field(Object owner, String name) {
        for (Class<?> type = owner.getClass(); type != null; type = type.getSuperclass()) {
            try {
                Field field = type.getDeclaredField(name);
                field.setAccessible(true);
                return field.get(owner);
            } catch (NoSuchFieldException e) {
                // Perhaps a superclass has it.
            } catch (IllegalAccessException e) {
                throw new IllegalStateException(e);
            }
        }
        throw new IllegalStateException(owner.getClass().getName() + " has no field " + name);
    }

    /** Closes the cache before the device. */
    @Override
    void close() {
        sessions.clear();
        if (kv != null) {
            kv.close();
            kv = null;
        }
        super.close();
    }

    /** A layer's call. */
    @Benchmark
    @OperationsPerInvocation(LAYERS)
    public void attend() {
        step();
    }
}
