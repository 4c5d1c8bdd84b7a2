package dev.shadowkv.bench;

import java.util.Arrays;

import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.State;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.Rope;
import dev.shadowkv.RopeTable;
import dev.shadowkv.kernels.DenseLayer;
import dev.shadowkv.kernels.DenseLayers;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayers;

/**
 * Sessions in the middle of decoding: one layer of a batch, in as many copies as it takes that nothing stays in a cache
 * of the processor between two visits, and queries that drift from step to step.
 */
@State(Scope.Benchmark)
public abstract class DecodeState extends DeviceState {

    /** Steps of the drift; they are then walked back. */
    static final int STEPS = 64;
    /** Weight of the radius. */
    static final float RADIUS_WEIGHT = 0.5f;
    /** More than the processors' last cache, that of a GPU included. */
    static final long CACHE_BYTES = 64L << 20;
    private static final int MOST_COPIES = 8;
    private static final int CALIBRATION_STEPS = 9;

    /** Sessions. */
    @Param("1")
    public int batch;

    /** Tokens of each session. */
    @Param("8192")
    public int context;

    /** Tokens selected for each key/value head. */
    @Param("512")
    public int budget;

    /** Share of a step's chunks that the step before had selected, which the drift of the queries is made to reach. */
    @Param("0.6")
    public double resident;

    /** Of the values on the host: default (as stored), F8_E4M3, F12_E4M7, F6_E2M3. */
    @Param("default")
    public String valueType;

    /** Of the landmarks: default (as stored), I8. */
    @Param("default")
    public String landmarkType;

    /** Of the coefficients of the keys: default (as stored), I8. */
    @Param("default")
    public String coefficientType;

    /** Of keys and values on the device. */
    @Param("BF16")
    public String storageType;

    /** Value slots a head; -1: none on a CPU, the budget's chunks on a GPU. */
    @Param("-1")
    public int slots;

    /** Query heads. */
    @Param("32")
    public int queryHeads;

    /** Key/value heads. */
    @Param("8")
    public int keyValueHeads;

    /** Elements of a head. */
    @Param("128")
    public int headDim;

    /** Rank of the keys. */
    @Param("160")
    public int rank;

    /** Tokens a chunk. */
    @Param("8")
    public int chunk;

    Geometry geometry;
    RopeTable rope;
    int select;
    int copies;
    ShadowSession[] sessions;
    ShadowLayers shadowLayers;
    DenseLayers denseLayers;
    SessionStates states;
    /** {@code [STEPS][B][H][D]} of the input type. */
    DeviceBuffer queries;
    float[] queryNumbers;
    ElementType inputType;
    /** Share of chunks that two successive steps have in common, as reached. */
    double overlap;

    /** Makes the sessions. */
    final void prepare(boolean shadow, boolean dense, boolean needsSlots) {
        openDevice();
        inputType = activationType();
        ElementType storage = type(storageType, inputType);
        select = budget / chunk;
        int slotCount = slots >= 0 ? slots : open.isCpu() && !needsSlots ? 0 : select;
        geometry = new Geometry(queryHeads, keyValueHeads, headDim, chunk, rank, storage, type(valueType, storage),
                type(landmarkType, storage), type(coefficientType, storage), 16 * chunk, slotCount);
        rope = new RopeTable(open, Rope.standard(headDim, 500_000), context);
        long landmarkBytes = (long) keyValueHeads * context / chunk * headDim * geometry.landmarkType().bytes();
        long denseBytes = 2L * keyValueHeads * context * headDim * storage.bytes();
        copies = Math.clamp(-Math.floorDiv(-2 * CACHE_BYTES, batch * (shadow ? landmarkBytes : denseBytes)), 1,
                MOST_COPIES);
        sessions = new ShadowSession[batch];
        states = new SessionStates(open, (long) DecodeLayerBenchmark.CALLS * batch);
        for (int b = 0; b < batch; b++) {
            sessions[b] = new ShadowSession(this, geometry, copies, shadow, dense, 1000L * (b + 1));
        }
        for (int call = 0; call < DecodeLayerBenchmark.CALLS; call++) {
            setStates(call, 1);
        }
        states.upload();
        if (shadow) {
            shadowLayers = new ShadowLayers(open, geometry, (long) copies * batch);
            for (int copy = 0; copy < copies; copy++) {
                for (int b = 0; b < batch; b++) {
                    shadowLayers.set((long) copy * batch + b, sessions[b].layers[copy]);
                }
            }
            shadowLayers.upload();
        }
        if (dense) {
            denseLayers = new DenseLayers(open, geometry, (long) copies * batch);
            for (int copy = 0; copy < copies; copy++) {
                for (int b = 0; b < batch; b++) {
                    boolean first = copy == 0 || shadow;
                    denseLayers.set((long) copy * batch + b, new DenseLayer(first ? sessions[b].keys : copyOf(sessions[b].keys),
                            first ? sessions[b].values : copyOf(sessions[b].values), context));
                }
            }
            denseLayers.upload();
        }
        drift(shadow);
    }

    /** Enters the step of one call of an invocation; to be uploaded. */
    final void setStates(int call, int step) {
        for (int b = 0; b < batch; b++) {
            states.set((long) call * batch + b, context, sessions[b].recentBegin, sessions[b].chunks, sessions[b].outliers,
                    step);
        }
    }

    final int outlierChunks(int chunks) {
        return Math.min(24 * budget / 1024, chunks / 4);
    }

    /** The queries of a step of the drift, for all sessions. */
    final DeviceBuffer queriesOf(int step) {
        long bytes = (long) batch * queryHeads * headDim * inputType.bytes();
        return queries.slice(step * bytes, bytes);
    }

    /** The step that a walk forth and back is at. */
    static int walk(long count) {
        int at = (int) (count % (2 * STEPS - 2));
        return at < STEPS ? at : 2 * STEPS - 2 - at;
    }

    /** One query as the device has it. */
    final double[] query(int step, int session, int head) {
        return download(queries, inputType, (((long) step * batch + session) * queryHeads + head) * headDim, headDim);
    }

    final DeviceBuffer copyOf(DeviceBuffer buffer) {
        DeviceBuffer copy = arena.allocate(buffer.byteSize());
        open.copy(buffer, copy);
        return copy;
    }

    final DeviceBuffer filledInts(long count) {
        DeviceBuffer buffer = ints(count);
        open.fill(buffer, 0xFF);
        return buffer;
    }

    /** Fails unless an output is the exact attention of a rotated query over a session. */
    final void checkDense(int session, int head, double[] q, double[] output) {
        DenseOracle oracle = new DenseOracle(q, Math.max(Numbers.epsilon(inputType), Numbers.epsilon(geometry.storageType())));
        long first = (long) (head / (queryHeads / keyValueHeads)) * context;
        int block = 1024;
        for (int token = 0; token < context; token += block) {
            int count = Math.min(block, context - token);
            double[] k = download(sessions[session].keys, geometry.storageType(), (first + token) * headDim, count * headDim);
            double[] v = download(sessions[session].values, geometry.storageType(), (first + token) * headDim,
                    count * headDim);
            for (int i = 0; i < count; i++) {
                oracle.add(k, i * headDim, v, i * headDim);
            }
        }
        oracle.check(output, Numbers.epsilon(inputType), 0);
    }

    /** Selects for a step of the drift. */
    final void topK(int step, int copy, DeviceBuffer selected, DeviceBuffer counts, int count) {
        decode.landmarkTopK(geometry, batch, Rows.of(queriesOf(step), inputType), shadowLayers, (long) copy * batch, states, 0,
                RADIUS_WEIGHT, count, sessions[0].chunks, selected, counts, null, null);
    }

    final long heads() {
        return (long) batch * keyValueHeads;
    }

    /** Queries {@code q' = rho q + sqrt(1 - rho^2) noise}, with rho such that the share of common chunks is reached. */
    private void drift(boolean calibrate) {
        int row = batch * queryHeads * headDim;
        float[] noise = Numbers.gaussian(STEPS * row, 77, 1);
        if (!calibrate) {
            walkFrom(noise, row, 0.9);
            return;
        }
        DeviceBuffer selected = ints(heads() * select);
        DeviceBuffer counts = ints(heads());
        double low = 0;
        double high = 1;
        double rho = 0.9;
        for (int i = 0; i < 9; i++) {
            walkFrom(noise, row, rho);
            overlap = commonChunks(selected, counts);
            if (overlap < resident) {
                low = rho;
            } else {
                high = rho;
            }
            if (Math.abs(overlap - resident) < 0.005) {
                break;
            }
            rho = (low + high) / 2;
        }
    }

    private void walkFrom(float[] noise, int row, double rho) {
        queryNumbers = new float[STEPS * row];
        float fresh = (float) Math.sqrt(1 - rho * rho);
        for (int i = 0; i < queryNumbers.length; i++) {
            queryNumbers[i] = i < row ? noise[i] : (float) rho * queryNumbers[i - row] + fresh * noise[i];
        }
        if (queries == null) {
            queries = allocate(inputType, queryNumbers.length);
        }
        open.copy(Numbers.encode(queryNumbers, inputType), queries);
    }

    private double commonChunks(DeviceBuffer selected, DeviceBuffer counts) {
        int entries = Math.toIntExact(heads() * select);
        int[] before = null;
        long common = 0;
        long all = 0;
        for (int step = 0; step < CALIBRATION_STEPS; step++) {
            topK(step, 0, selected, counts, select);
            open.synchronize();
            int[] now = downloadInts(selected, 0, entries);
            int[] used = downloadInts(counts, 0, (int) heads());
            for (int head = 0; before != null && head < heads(); head++) {
                for (int i = 0; i < used[head]; i++) {
                    all++;
                    common += Arrays.binarySearch(before, head * select, head * select + used[head],
                            now[head * select + i]) >= 0 ? 1 : 0;
                }
            }
            before = now;
        }
        return all == 0 ? 0 : (double) common / all;
    }
}
