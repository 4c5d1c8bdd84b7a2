package dev.shadowkv.bench;

import java.util.Arrays;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;

import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OperationsPerInvocation;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.Warmup;
import org.openjdk.jmh.infra.BenchmarkParams;

import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.ShadowLayer;

/** The operations of a decode step one by one, for one layer of a batch. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 1, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class DecodeBenchmark extends DecodeState {

    private static final int CALLS = 8;
    /** Selections that the operations behind the selection go through; the chunks of one are cold at its next turn. */
    private static final int SELECTIONS = 16;

    private DeviceBuffer[] selected;
    private DeviceBuffer[] counts;
    private DeviceBuffer[] selectedSlot;
    private DeviceBuffer[] fetchChunk;
    private DeviceBuffer[] fetchSlot;
    private DeviceBuffer[] fetchCount;
    private DeviceBuffer output;
    private long calls;

    /** Sets up and checks one operation. */
    @Setup(Level.Trial)
    public void setUp(BenchmarkParams params) {
        String name = params.getBenchmark().substring(params.getBenchmark().lastIndexOf('.') + 1);
        try {
            boolean denseOnly = name.equals("denseAttention");
            prepare(!denseOnly, denseOnly, name.equals("cachePlan") || name.equals("valueGather"));
            output = allocate(inputType, batch, queryHeads, headDim);
            calls = 0;
            switch (name) {
                case "landmarkTopK" -> prepareTopK();
                case "rerank" -> prepareRerank();
                case "cachePlan" -> preparePlan();
                case "valueGather" -> prepareGather();
                case "sparseAttention" -> prepareSparse();
                case "denseAttention" -> prepareDense();
                default -> throw new IllegalArgumentException(name);
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    private void prepareTopK() {
        selected = lists(1, select);
        counts = lists(1, 1);
        double read = (double) heads() * sessions[0].chunks * (headDim * geometry.landmarkType().bytes() + 4
                + (geometry.landmarkType() == ElementType.I8 ? 4 : 0));
        Work work = Work.memory(read, 4.0 * heads() * select)
                .operations(2.0 * batch * queryHeads * (double) sessions[0].chunks * headDim);
        define(work, this::overlapOnly, () -> {
            long call = calls++;
            topK(walk(call / copies), (int) (call % copies), selected[0], counts[0], select);
        });
        once();
        int b = batch - 1;
        int k = keyValueHeads - 1;
        AttentionOracle oracle = new AttentionOracle(this, b, 0, k);
        double[][] q = group(0, b, k);
        oracle.checkSelection(selection(0, b, k), oracle.scores(q), oracle.scoreTolerance(q, false), select);
    }

    private void prepareRerank() {
        int shortlist = Math.min(2 * select, 1024);
        DeviceBuffer[] candidates = lists(SELECTIONS, shortlist);
        DeviceBuffer[] candidateCounts = lists(SELECTIONS, 1);
        selected = lists(1, select);
        counts = lists(1, 1);
        long tokens = 0;
        long distinct = 0;
        for (int i = 0; i < SELECTIONS; i++) {
            topK(i * STEPS / SELECTIONS, i % copies, candidates[i], candidateCounts[i], shortlist);
            open.synchronize();
            tokens += sum(candidateCounts[i]) * chunk;
            distinct += distinctChunks(candidates[i], candidateCounts[i], shortlist) * chunk;
        }
        int group = queryHeads / keyValueHeads;
        Work work = Work.memory((double) distinct / SELECTIONS * rank * geometry.coefficientType().bytes(), 4.0 * heads() * select)
                .operations((double) tokens / SELECTIONS * headDim * (2.0 * rank + 2 * group));
        define(work, this::overlapOnly, () -> {
            int i = (int) (calls++ % SELECTIONS);
            decode.rerank(geometry, batch, Rows.of(queriesOf(i * STEPS / SELECTIONS), inputType), shadowLayers,
                    (long) (i % copies) * batch, states, 0, rope, context, shortlist, candidates[i], candidateCounts[i],
                    select, selected[0], counts[0], null, null, null);
        });
        once();
        checkRerank(downloadInts(candidates[0], 0, shortlist), downloadInts(candidateCounts[0], 0, 1)[0]);
    }

    private void checkRerank(int[] shortlist, int used) {
        AttentionOracle oracle = new AttentionOracle(this, 0, 0, 0);
        double[][] q = group(0, 0, 0);
        double[] best = new double[used];
        Arrays.fill(best, Double.NEGATIVE_INFINITY);
        for (double[] one : q) {
            double[] mass = new double[used];
            double sum = 0;
            for (int i = 0; i < used; i++) {
                mass[i] = oracle.chunkMass(one, shortlist[i]);
                sum += Math.exp(mass[i]);
            }
            for (int i = 0; i < used; i++) {
                best[i] = Math.max(best[i], mass[i] - Math.log(sum));
            }
        }
        int[] result = selection(0, 0, 0);
        Set<Integer> kept = new HashSet<>();
        Arrays.stream(result).forEach(kept::add);
        Tolerance.within("chunks kept", kept.size(), Math.min(select, used), 0);
        double worst = Double.POSITIVE_INFINITY;
        for (int i = 0; i < used; i++) {
            worst = kept.contains(shortlist[i]) ? Math.min(worst, best[i]) : worst;
        }
        // Keys are rounded when they are rebuilt; of unit variance, their logits are off by about one epsilon.
        double tolerance = 8 * 2 * Math.max(Numbers.epsilon(geometry.storageType()), Numbers.epsilon(inputType));
        for (int i = 0; i < used; i++) {
            Tolerance.require(kept.contains(shortlist[i]) || best[i] <= worst + 2 * tolerance,
                    "chunk " + shortlist[i] + " was dropped with a larger mass than one that was kept");
        }
    }

    private void preparePlan() {
        selectAll(STEPS, 1);
        selectedSlot = lists(1, select);
        fetchChunk = lists(1, select);
        fetchSlot = lists(1, select);
        fetchCount = lists(1, 1);
        double slotBytes = 8.0 * heads() * geometry.slots();
        define(Work.memory(4.0 * heads() * select + slotBytes, slotBytes + 12.0 * heads() * select), this::overlapOnly, () -> {
            long call = calls++;
            int step = (int) (call / copies);
            plan(walk(step), (int) (call % copies), 0);
        });
        checkPlan();
    }

    private void checkPlan() {
        // The second step of the first copy has something to keep and something to fetch.
        plan(0, 0, 0);
        open.synchronize();
        Set<Integer> resident = new HashSet<>();
        for (int chunkId : slotsOf(0, 0)) {
            resident.add(chunkId);
        }
        setStates(0, 2);
        states.upload();
        plan(1, 0, 0);
        open.synchronize();
        int[] wanted = downloadInts(selected[1], 0, downloadInts(counts[1], 0, 1)[0]);
        int[] where = downloadInts(selectedSlot[0], 0, wanted.length);
        int[] now = slotsOf(0, 0);
        Set<Integer> used = new HashSet<>();
        Set<Integer> missing = new HashSet<>();
        for (int i = 0; i < wanted.length; i++) {
            Tolerance.require(used.add(where[i]), "slot " + where[i] + " was given twice");
            Tolerance.within("chunk in slot " + where[i], now[where[i]], wanted[i], 0);
            if (!resident.contains(wanted[i])) {
                missing.add(wanted[i]);
            }
        }
        int[] fetched = downloadInts(fetchChunk[0], 0, downloadInts(fetchCount[0], 0, 1)[0]);
        Set<Integer> asked = new HashSet<>();
        Arrays.stream(fetched).forEach(asked::add);
        Tolerance.require(asked.equals(missing), "what is fetched is not what was missing");
    }

    private void prepareGather() {
        int rounds = SELECTIONS;
        selectAll(rounds + 1, 1);
        selectedSlot = lists(1, select);
        fetchChunk = lists(rounds + 1, select);
        fetchSlot = lists(rounds + 1, select);
        fetchCount = lists(rounds + 1, 1);
        long fetched = 0;
        long wanted = 0;
        for (int i = 0; i <= rounds; i++) {
            setStates(0, i + 1);
            states.upload();
            plan(i, 0, i);
            open.synchronize();
            fetched += i == 0 ? 0 : sum(fetchCount[i]);
            wanted += i == 0 ? 0 : sum(counts[i]);
        }
        double chunksFetched = (double) fetched / rounds;
        double read = chunksFetched * geometry.hostChunkBytes();
        double written = chunksFetched * geometry.readChunkBytes();
        Work work = open.isCpu() ? Work.memory(read, written) : Work.memory(0, written).link(read);
        double share = 1 - (double) fetched / wanted;
        define(work, () -> Map.of("overlap", overlap, "resident", share), () -> {
            int i = 1 + (int) (calls++ % rounds);
            decode.valueGather(geometry, batch, shadowLayers, 0, select, fetchChunk[i], fetchSlot[i], fetchCount[i], 0);
        });
        once();
        int[] chunks = downloadInts(fetchChunk[1], 0, downloadInts(fetchCount[1], 0, 1)[0]);
        int[] slot = downloadInts(fetchSlot[1], 0, chunks.length);
        int size = chunk * headDim;
        ShadowLayer layer = sessions[0].layers[0];
        for (int i = 0; i < chunks.length; i += 7) {
            double[] now = download(layer.slotValues(), geometry.valueType().unpacked(), (long) slot[i] * size, size);
            // BF16 has no scale of its own; the other types keep that of the chunk.
            double scale = geometry.valueType() == ElementType.F12_E4M7
                    ? download(layer.valueScales(), ElementType.F32, chunks[i], 1)[0] : 1;
            for (int j = 0; j < size; j++) {
                Tolerance.within("value", now[j],
                        scale * Numbers.value(layer.values(), geometry.valueType(), chunks[i], size, j), 0);
            }
        }
    }

    private void prepareSparse() {
        selectAll(SELECTIONS, STEPS / SELECTIONS);
        selectedSlot = lists(SELECTIONS, select);
        fetchChunk = lists(1, select);
        fetchSlot = lists(1, select);
        fetchCount = lists(1, 1);
        long tokens = 0;
        long distinct = 0;
        for (int i = SELECTIONS - 1; i >= 0; i--) {
            setStates(0, SELECTIONS - i);
            states.upload();
            decode.cachePlan(geometry, batch, shadowLayers, 0, states, 0, select, selected[i], counts[i], selectedSlot[i],
                    fetchChunk[0], fetchSlot[0], fetchCount[0]);
            if (geometry.slots() > 0) {
                decode.valueGather(geometry, batch, shadowLayers, 0, select, fetchChunk[0], fetchSlot[0], fetchCount[0], 0);
            }
            open.synchronize();
            tokens += sum(counts[i]) * chunk;
            distinct += distinctChunks(selected[i], counts[i], select) * chunk;
        }
        Work work = sparseWork((double) distinct / SELECTIONS, (double) tokens / SELECTIONS);
        define(work, this::overlapOnly, () -> {
            int i = (int) (calls++ % SELECTIONS);
            decode.sparseAttention(geometry, batch, Rows.of(queriesOf(i * (STEPS / SELECTIONS)), inputType), shadowLayers, 0,
                    states, 0, rope, context, select, selected[i], selectedSlot[i], counts[i], null, null, null,
                    Rows.of(output, inputType), null);
        });
        once();
        int b = batch - 1;
        int h = queryHeads - 1;
        int k = h / (queryHeads / keyValueHeads);
        new AttentionOracle(this, b, 0, k).checkOutput(outputOf(b, h), query(0, b, h), selection(0, b, k), new int[0], null);
    }

    /** Coefficients of the selected tokens, values of all that is attended, outliers and recent tokens. */
    private Work sparseWork(double distinctTokens, double tokens) {
        double exact = heads() * (double) (sessions[0].outliers * chunk + context - sessions[0].recentBegin);
        double bytes = distinctTokens * rank * geometry.coefficientType().bytes()
                + tokens / chunk * geometry.readChunkBytes() + 2 * exact * headDim * geometry.storageType().bytes();
        int group = queryHeads / keyValueHeads;
        return Work.memory(bytes, (double) batch * queryHeads * headDim * inputType.bytes())
                .operations(tokens * headDim * (2.0 * rank + 4 * group) + exact * headDim * 4 * group);
    }

    private void prepareDense() {
        double read = 2.0 * heads() * context * headDim * geometry.storageType().bytes();
        Work work = Work.memory(read, (double) batch * queryHeads * headDim * inputType.bytes())
                .operations(4.0 * batch * queryHeads * (double) context * headDim);
        define(work, () -> {
            long call = calls++;
            decode.denseAttention(geometry, batch, Rows.of(queriesOf(walk(call / copies)), inputType), denseLayers,
                    call % copies * batch, states, 0, context, Rows.of(output, inputType), null);
        });
        once();
        int b = batch - 1;
        int h = queryHeads - 1;
        checkDense(b, h, query(0, b, h), outputOf(b, h));
    }

    private DeviceBuffer[] lists(int count, int entries) {
        DeviceBuffer[] out = new DeviceBuffer[count];
        for (int i = 0; i < count; i++) {
            out[i] = ints(heads() * entries);
        }
        return out;
    }

    private void selectAll(int count, int stride) {
        selected = lists(count, select);
        counts = lists(count, 1);
        for (int i = 0; i < count; i++) {
            topK(i * stride, 0, selected[i], counts[i], select);
        }
        open.synchronize();
    }

    private void plan(int step, int copy, int target) {
        decode.cachePlan(geometry, batch, shadowLayers, (long) copy * batch, states, 0, select, selected[step], counts[step],
                selectedSlot[0], fetchChunk[target], fetchSlot[target], fetchCount[target]);
    }

    private int[] slotsOf(int session, int copy) {
        return downloadInts(sessions[session].layers[copy].slotChunk(), 0, geometry.slots());
    }

    private double[][] group(int step, int session, int head) {
        int size = queryHeads / keyValueHeads;
        double[][] q = new double[size][];
        for (int i = 0; i < size; i++) {
            q[i] = query(step, session, head * size + i);
        }
        return q;
    }

    private int[] selection(int list, int session, int head) {
        long row = (long) session * keyValueHeads + head;
        return downloadInts(selected[list], row * select, downloadInts(counts[list], row, 1)[0]);
    }

    private double[] outputOf(int session, int head) {
        return download(output, inputType, ((long) session * queryHeads + head) * headDim, headDim);
    }

    private long sum(DeviceBuffer numbers) {
        return Arrays.stream(downloadInts(numbers, 0, (int) heads())).asLongStream().sum();
    }

    /** Chunks that at least one head of a session selected, over the sessions. */
    private long distinctChunks(DeviceBuffer lists, DeviceBuffer lengths, int stride) {
        int[] ids = downloadInts(lists, 0, Math.toIntExact(heads() * stride));
        int[] used = downloadInts(lengths, 0, (int) heads());
        Set<Long> seen = new HashSet<>();
        for (int row = 0; row < used.length; row++) {
            for (int i = 0; i < used[row]; i++) {
                seen.add((long) (row / keyValueHeads) << 32 | ids[row * stride + i]);
            }
        }
        return seen.size();
    }

    private Map<String, Double> overlapOnly() {
        return Map.of("overlap", overlap);
    }

    /** Scoring of landmarks and selection. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void landmarkTopK() {
        repeat(CALLS);
    }

    /** Exact scoring of a shortlist of twice the budget. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void rerank() {
        repeat(CALLS);
    }

    /** Which slot each chunk is in or goes to. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void cachePlan() {
        repeat(CALLS);
    }

    /** Fetching what is missing. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void valueGather() {
        repeat(CALLS);
    }

    /** Attention over selected, outlier and recent tokens. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void sparseAttention() {
        repeat(CALLS);
    }

    /** Exact attention. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void denseAttention() {
        repeat(CALLS);
    }
}
