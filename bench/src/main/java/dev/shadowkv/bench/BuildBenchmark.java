package dev.shadowkv.bench;

import java.lang.foreign.MemorySegment;
import java.util.Arrays;
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
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.MomentChange;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;

/** What sealing a prompt is made of: one layer of one session. */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Fork(1)
@Warmup(iterations = 1, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
public class BuildBenchmark extends DeviceState {

    private static final int CALLS = 4;
    /** New tokens that are projected onto a basis at once, as folding does. */
    private static final int FOLDED = 64;
    private static final float NOISE = 0.05f;
    /** Of sums of 32-bit floats that are not added one by one, against the sum of the magnitudes. */
    private static final double MOMENT_ERROR = 1e-5;
    /** What random coefficients of 8 bits are counted in, where their deviation is 1. */
    private static final float UNIT = 4f / Numbers.LARGEST_I8;

    /** Tokens of the prompt. */
    @Param("8192")
    public int context;

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

    /** Outlier chunks a head. */
    @Param("48")
    public int outliers;

    /** Of keys and values on the device. */
    @Param("BF16")
    public String storageType;

    /** Of the values on the host: default (as stored), F8_E4M3, F12_E4M7, F6_E2M3. */
    @Param("default")
    public String valueType;

    /** Of the landmarks: default (as stored), I8. */
    @Param("default")
    public String landmarkType;

    /** Of the coefficients of the keys: default (as stored), I8. */
    @Param("default")
    public String coefficientType;

    private ElementType type;
    private ElementType coefficient;
    /** What a coefficient is counted in: 1, but for random ones of 8 bits. */
    private float unit;
    private double eps;
    private int width;
    private int chunks;
    private RopeTable rope;

    /** Sets up and checks one operation. */
    @Setup(Level.Trial)
    public void setUp(BenchmarkParams params) {
        String name = params.getBenchmark().substring(params.getBenchmark().lastIndexOf('.') + 1);
        try {
            openDevice();
            type = type(storageType, activationType());
            coefficient = type(coefficientType, type);
            unit = coefficient == ElementType.I8 ? UNIT : 1;
            eps = Numbers.epsilon(type);
            width = keyValueHeads * headDim;
            chunks = context / chunk;
            rope = new RopeTable(open, Rope.standard(headDim, 500_000), context);
            switch (name) {
                case "storeTokens" -> prepareStoreTokens();
                case "lowRankFactor" -> prepareLowRankFactor();
                case "lowRankProject" -> prepareLowRankProject();
                case "rebuildKeys" -> prepareRebuildKeys();
                case "landmarkBuild" -> prepareLandmarkBuild();
                case "outlierSelect" -> prepareOutlierSelect();
                case "chunkGather" -> prepareChunkGather();
                case "valueStore" -> prepareValueStore();
                case "momentUpdate" -> prepareMomentUpdate();
                case "valueFit" -> prepareValueFit();
                default -> throw new IllegalArgumentException(name);
            }
        } catch (RuntimeException | Error e) {
            close();
            throw e;
        }
    }

    private void prepareStoreTokens() {
        ElementType input = activationType();
        DeviceBuffer keys = random(input, (long) context * width, 1, 1);
        DeviceBuffer values = random(input, (long) context * width, 2, 1);
        DeviceBuffer rotated = allocate(type, context, width);
        DeviceBuffer raw = allocate(type, context, width);
        DeviceBuffer stored = allocate(type, context, width);
        double in = (double) context * width * input.bytes();
        double out = (double) context * width * type.bytes();
        define(Work.memory(2 * in, 3 * out), () -> cache.storeTokens(Rows.of(keys, input), Rows.of(values, input), context, 0,
                keyValueHeads, headDim, new Ring(rotated, type, context), raw, new Ring(stored, type, context), type,
                context, rope));
        once();
        double[] frequencies = rope.rope().inverseFrequencies();
        for (int sample = 0; sample < 200; sample++) {
            int token = (int) (sample * 7919L % context);
            int head = sample % keyValueHeads;
            long from = (long) token * width + head * headDim;
            long to = ((long) head * context + token) * headDim;
            double[] key = download(keys, input, from, headDim);
            double[] value = download(values, input, from, headDim);
            double[] keptRaw = download(raw, type, from, headDim);
            double[] keptValue = download(stored, type, to, headDim);
            double[] keptKey = download(rotated, type, to, headDim);
            for (int i = 0; i < headDim; i++) {
                Tolerance.within("raw key", keptRaw[i], key[i], eps * Math.abs(key[i]));
                Tolerance.within("value", keptValue[i], value[i], eps * Math.abs(value[i]));
            }
            double[] expected = key.clone();
            AttentionOracle.rotate(expected, frequencies, token);
            for (int i = 0; i < headDim; i++) {
                double size = Math.abs(key[i]) + Math.abs(key[(i + headDim / 2) % headDim]);
                Tolerance.within("rotated key", keptKey[i], expected[i], eps * Math.abs(expected[i]) + 8 * 0x1p-24 * size);
            }
        }
    }

    private void prepareLowRankFactor() {
        float[] planted = plantedBasis();
        DeviceBuffer keys = plantedKeys(planted);
        DeviceBuffer coefficients = allocate(coefficient, context, rank);
        DeviceBuffer scales = coefficient == ElementType.I8 ? allocate(ElementType.F32, rank) : null;
        DeviceBuffer basis = allocate(type, width, rank);
        DeviceBuffer singularValues = arena.allocate(4L * rank);
        DeviceBuffer energy = arena.allocate(8);
        // The Gram matrix and the coefficients need at least this; iterations on the Gram matrix do not grow with n.
        double operations = 1.0 * context * width * width + 2.0 * context * width * rank;
        double bytes = (double) context * width * type.bytes();
        define(Work.memory(bytes, (double) context * rank * coefficient.bytes()).operations(operations),
                () -> cache.lowRankFactor(Rows.of(keys, type), context, keyValueHeads, headDim, rank, rank, 0, 0,
                        coefficients, coefficient, scales, basis, singularValues, energy, null));
        once();
        checkFactorization(keys, coefficients, scales, basis, planted);
    }

    /**
     * The found basis must catch as much of a sample of the keys as the planted one, of which the keys were made, and
     * the coefficients must be the projections.
     *
     * @param scales of coefficients of 8 bits, or null
     */
    private void checkFactorization(DeviceBuffer keys, DeviceBuffer coefficients, DeviceBuffer scales, DeviceBuffer basis,
                                    float[] planted) {
        double[] found = download(basis, type, 0, rank * width);
        double[] scale = scales == null ? null : download(scales, ElementType.F32, 0, rank);
        int sample = Math.min(context, 200);
        double missedByFound = 0;
        double missedByPlanted = 0;
        double energy = 0;
        double steps = 0;
        for (int i = 0; i < sample; i++) {
            int token = (int) ((long) i * context / sample);
            double[] x = download(keys, type, (long) token * width, width);
            double[] a = download(coefficients, coefficient, (long) token * rank, rank);
            double[] rest = x.clone();
            double norm = Math.sqrt(AttentionOracle.dot(x, 0, x, 0, width));
            for (int j = 0; j < rank; j++) {
                double projection = 0;
                for (int k = 0; k < keyValueHeads; k++) {
                    for (int d = 0; d < headDim; d++) {
                        double b = found[(k * rank + j) * headDim + d];
                        projection += x[k * headDim + d] * b;
                        rest[k * headDim + d] -= a[j] * b;
                    }
                }
                double step = scale == null ? 1 : scale[j];
                double rounding = scale == null ? eps * Math.abs(projection) : step / 2;
                double refined = isRefinement(j) ? a[j - 1] * scale[j - 1] : 0;
                // The basis was rounded after the projection.
                Tolerance.within("coefficient", refined + a[j] * step, projection / step, rounding + 4 * eps * norm / Math.sqrt(rank));
                steps += scale == null || isRefinement(j + 1) ? 0 : step * step;
            }
            missedByFound += AttentionOracle.dot(rest, 0, rest, 0, width);
            missedByPlanted += AttentionOracle.dot(x, 0, x, 0, width) - plantedEnergy(x, planted);
            energy += AttentionOracle.dot(x, 0, x, 0, width);
        }
        // Rounding of coefficients and basis adds its own error to what the optimal subspace of this rank misses.
        // Whole numbers miss a twelfth of the squared step on average; five deviations of the sample's average.
        double wholeNumbers = steps / 12 * (1 + 5 * Math.sqrt(0.8 / (sample * rank)));
        double allowed = 1.01 * 1.01 * missedByPlanted + 2 * eps * eps * energy + wholeNumbers;
        Tolerance.require(missedByFound <= allowed,
                "the factorization misses " + missedByFound + " of the energy, but the planted basis only " + missedByPlanted);
    }

    /** Of coefficients of 8 bits, whether a column has what rounding takes from the one before it; one of ten has. */
    private boolean isRefinement(int column) {
        return coefficient == ElementType.I8 && column % 2 == 1 && column < 2 * refinements();
    }

    private int refinements() {
        return rank / 10;
    }

    /** Of as many directions as are found. */
    private double plantedEnergy(double[] x, float[] planted) {
        double energy = 0;
        int directions = coefficient == ElementType.I8 ? rank - refinements() : rank;
        for (int j = 0; j < directions; j++) {
            double projection = 0;
            for (int i = 0; i < width; i++) {
                projection += x[i] * planted[i * rank + j];
            }
            energy += projection * projection;
        }
        return energy;
    }

    private void prepareLowRankProject() {
        DeviceBuffer keys = random(type, (long) FOLDED * width, 5, 1);
        DeviceBuffer basis = random(type, (long) rank * width, 6, (float) (unit / Math.sqrt(width)));
        DeviceBuffer coefficients = allocate(coefficient, FOLDED, rank);
        float[] units = new float[rank];
        Arrays.fill(units, unit);
        DeviceBuffer scales = upload(units, ElementType.F32);
        double read = (double) (FOLDED + rank) * width * type.bytes();
        define(Work.memory(read, (double) FOLDED * rank * coefficient.bytes()).operations(2.0 * FOLDED * width * rank),
                () -> cache.lowRankProject(Rows.of(keys, type), FOLDED, keyValueHeads, headDim, rank, basis, coefficients,
                        coefficient, scales, null, null));
        once();
        double[] b = download(basis, type, 0, rank * width);
        for (int token = 0; token < FOLDED; token += 7) {
            double[] x = download(keys, type, (long) token * width, width);
            double[] a = download(coefficients, coefficient, (long) token * rank, rank);
            for (int j = 0; j < rank; j++) {
                double expected = 0;
                double squares = 0;
                for (int i = 0; i < width; i++) {
                    // The basis has the unit once, as the rows of directions have their scales.
                    double product = x[i] * b[(i / headDim * rank + j) * headDim + i % headDim] / ((double) unit * unit);
                    expected += product;
                    squares += product * product;
                }
                // All columns have the same unit here.
                expected -= isRefinement(j) ? a[j - 1] : 0;
                double largest = coefficient == ElementType.I8 ? Numbers.LARGEST_I8 : Double.POSITIVE_INFINITY;
                double rounding = coefficient == ElementType.I8 ? 0.5 : eps * Math.abs(expected);
                Tolerance.within("coefficient", a[j], Math.clamp(expected, -largest, largest),
                        rounding + 8 * 0x1p-24 * Math.sqrt(width * squares));
            }
        }
    }

    private void prepareRebuildKeys() {
        DeviceBuffer coefficients = randomCoefficients(7);
        DeviceBuffer basis = random(type, (long) rank * width, 8, (float) (unit / Math.sqrt(rank)));
        DeviceBuffer rotated = allocate(type, context, width);
        double read = (double) context * rank * coefficient.bytes() + (double) rank * width * type.bytes();
        define(Work.memory(read, (double) context * width * type.bytes()).operations(2.0 * context * width * rank),
                () -> cache.rebuildKeys(coefficients, coefficient, basis, keyValueHeads, headDim, rank, 0, context,
                        new Ring(rotated, type, context), rope));
        once();
        for (int sample = 0; sample < 100; sample++) {
            int token = (int) (sample * 7919L % context);
            int head = sample % keyValueHeads;
            double[] a = download(coefficients, coefficient, (long) token * rank, rank);
            double[] b = download(basis, type, (long) head * rank * headDim, rank * headDim);
            double[] expected = new double[headDim];
            for (int j = 0; j < rank; j++) {
                for (int i = 0; i < headDim; i++) {
                    expected[i] += a[j] * b[j * headDim + i];
                }
            }
            double[] before = expected.clone();
            AttentionOracle.rotate(expected, rope.rope().inverseFrequencies(), token);
            double[] result = download(rotated, type, ((long) head * context + token) * headDim, headDim);
            for (int i = 0; i < headDim; i++) {
                // A kernel may round before and after the rotation.
                double size = Math.abs(before[i]) + Math.abs(before[(i + headDim / 2) % headDim]);
                Tolerance.within("rebuilt key", result[i], expected[i],
                        eps * (Math.abs(expected[i]) + size) + 8 * 0x1p-24 * (size + 1) * Math.sqrt(rank));
            }
        }
    }

    private void prepareLandmarkBuild() {
        ElementType landmark = type(landmarkType, type);
        DeviceBuffer keys = random(type, (long) context * width, 9, 1);
        DeviceBuffer landmarks = allocate(landmark, keyValueHeads, chunks, headDim);
        DeviceBuffer scales = landmark == ElementType.I8 ? allocate(ElementType.F32, keyValueHeads, chunks) : null;
        DeviceBuffer radius = allocate(ElementType.F32, keyValueHeads, chunks);
        DeviceBuffer cosine = allocate(ElementType.F32, keyValueHeads, chunks);
        double written = (double) keyValueHeads * chunks * (headDim * landmark.bytes() + 8);
        define(Work.memory((double) context * width * type.bytes(), written), () -> cache.landmarkBuild(
                new Ring(keys, type, context), keyValueHeads, headDim, chunk, 0, chunks, landmarks, landmark, scales,
                radius, cosine, chunks));
        once();
        for (int sample = 0; sample < 100; sample++) {
            int at = (int) (sample * 7919L % ((long) keyValueHeads * chunks));
            long token = (long) (at / chunks) * context + (long) (at % chunks) * chunk;
            double[] members = download(keys, type, token * headDim, chunk * headDim);
            double[] stored = download(landmarks, landmark, (long) at * headDim, headDim);
            double scale = scales == null ? 1 : download(scales, ElementType.F32, at, 1)[0];
            double[] mean = new double[headDim];
            double largest = 0;
            for (int i = 0; i < headDim; i++) {
                for (int j = 0; j < chunk; j++) {
                    mean[i] += members[j * headDim + i] / chunk;
                }
                largest = Math.max(largest, Math.abs(mean[i]));
            }
            for (int i = 0; i < headDim; i++) {
                double rounding = scales == null ? Numbers.epsilon(landmark) * Math.abs(mean[i]) : largest / 254;
                Tolerance.within("landmark", stored[i] * scale, mean[i], rounding + 8 * 0x1p-24 * (largest + 1));
            }
            double distance = 0;
            for (int j = 0; j < chunk; j++) {
                double squares = 0;
                for (int i = 0; i < headDim; i++) {
                    double difference = members[j * headDim + i] - stored[i] * scale;
                    squares += difference * difference;
                }
                distance = Math.max(distance, Math.sqrt(squares));
            }
            Tolerance.within("radius", download(radius, ElementType.F32, at, 1)[0], distance,
                    8 * 0x1p-24 * Math.sqrt(headDim) * distance);
        }
    }

    private void prepareOutlierSelect() {
        int count = Math.min(outliers, chunks);
        float[] cosines = new float[keyValueHeads * chunks];
        java.util.Random random = new java.util.Random(12);
        for (int i = 0; i < cosines.length; i++) {
            cosines[i] = random.nextFloat();
        }
        DeviceBuffer cosine = upload(cosines, ElementType.F32);
        DeviceBuffer ids = ints((long) keyValueHeads * count);
        define(Work.memory(4.0 * cosines.length, 4.0 * keyValueHeads * count),
                () -> cache.outlierSelect(cosine, keyValueHeads, chunks, chunks, count, ids, null));
        once();
        for (int head = 0; head < keyValueHeads; head++) {
            int first = head * chunks;
            Integer[] order = new Integer[chunks];
            Arrays.setAll(order, i -> i);
            Arrays.sort(order, (a, b) -> Float.compare(cosines[first + a], cosines[first + b]));
            int[] expected = Arrays.stream(order).limit(count).mapToInt(i -> i).sorted().toArray();
            Tolerance.require(Arrays.equals(expected, downloadInts(ids, (long) head * count, count)),
                    "the outliers of head " + head + " are not those of the smallest cosine");
        }
    }

    private void prepareChunkGather() {
        int count = Math.min(outliers, chunks);
        DeviceBuffer keys = random(type, (long) context * width, 13, 1);
        int[] numbers = new int[keyValueHeads * count];
        for (int i = 0; i < numbers.length; i++) {
            numbers[i] = (int) ((long) (i % count) * chunks / count + i / count % Math.max(1, chunks / count));
        }
        DeviceBuffer ids = upload(numbers);
        DeviceBuffer target = allocate(type, keyValueHeads, count, chunk, headDim);
        double bytes = (double) numbers.length * chunk * headDim * type.bytes();
        define(Work.memory(bytes, bytes), () -> cache.chunkGather(new Ring(keys, type, context), keyValueHeads, headDim,
                chunk, ids, count, target, 0, count));
        once();
        for (int i = 0; i < numbers.length; i += 5) {
            long token = (long) (i / count) * context + (long) numbers[i] * chunk;
            Tolerance.require(Arrays.equals(download(keys, type, token * headDim, chunk * headDim),
                    download(target, type, (long) i * chunk * headDim, chunk * headDim)), "chunk " + i + " is another");
        }
    }

    private void prepareValueStore() {
        ElementType value = type(valueType, type);
        DeviceBuffer values = random(type, (long) context * width, 14, 1);
        MemorySegment host = pinned.allocate(value.bytes((long) width * chunks * chunk), 64);
        DeviceBuffer scales = value.isScaled() ? allocate(ElementType.F32, keyValueHeads, chunks) : null;
        double read = (double) context * width * type.bytes();
        double written = value.bytes((long) width * chunks * chunk);
        Work work = open.isCpu() ? Work.memory(read, written) : Work.memory(read, 0).link(written);
        define(work, () -> cache.valueStore(new Ring(values, type, context), keyValueHeads, headDim, chunk, 0, chunks, host,
                value, scales, chunks));
        once();
        int size = chunk * headDim;
        for (int sample = 0; sample < 200; sample++) {
            int at = (int) (sample * 7919L % ((long) keyValueHeads * chunks));
            long token = (long) (at / chunks) * context + (long) (at % chunks) * chunk;
            double[] expected = download(values, type, token * headDim, size);
            double scale = scales == null ? 1 : download(scales, ElementType.F32, at, 1)[0];
            for (int i = 0; i < size; i++) {
                double result = scale * Numbers.value(host, value, at, size, i);
                double allowed = scales == null ? 0 : Numbers.epsilon(value) * Math.abs(expected[i]) + scale * Numbers.smallestError(value);
                Tolerance.within("value", result, expected[i], allowed);
            }
        }
    }

    private void prepareMomentUpdate() {
        DeviceBuffer keys = random(type, (long) context * width, 16, 1);
        DeviceBuffer values = random(type, (long) context * width, 17, 1);
        long floats = Geometry.momentFloats(keyValueHeads, headDim);
        DeviceBuffer moments = allocate(ElementType.F32, floats);
        double tokens = (double) chunks * chunk;
        define(Work.memory(2 * tokens * width * type.bytes(), 4.0 * floats).operations(2 * tokens * width * headDim),
                () -> cache.momentUpdate(new Ring(keys, type, context), new Ring(values, type, context), keyValueHeads,
                        headDim, chunk, 0, chunks, null, chunks, MomentChange.REPLACE, moments));
        once();
        int head = keyValueHeads - 1;
        double[] k = download(keys, type, (long) head * context * headDim, chunks * chunk * headDim);
        double[] v = download(values, type, (long) head * context * headDim, chunks * chunk * headDim);
        double[] result = download(moments, ElementType.F32, head * (floats / keyValueHeads), headDim * headDim);
        for (int sample = 0; sample < 100; sample++) {
            int i = sample * 31 % headDim;
            int j = sample * 17 % headDim;
            double sum = 0;
            double size = 0;
            for (int token = 0; token < chunks * chunk; token++) {
                double product = v[token * headDim + i] * k[token * headDim + j];
                sum += product;
                size += Math.abs(product);
            }
            Tolerance.within("moment " + i + ", " + j, result[i * headDim + j], sum, MOMENT_ERROR * size);
        }
    }

    private void prepareValueFit() {
        DeviceBuffer coefficients = randomCoefficients(18);
        DeviceBuffer values = random(type, (long) context * width, 19, 1);
        DeviceBuffer valueBasis = allocate(type, (long) rank * width);
        double read = (double) context * (rank * coefficient.bytes() + width * type.bytes());
        define(Work.memory(read, (double) rank * width * type.bytes()).operations(2.0 * context * rank * width),
                () -> cache.valueFit(coefficients, coefficient, new Ring(values, type, context), keyValueHeads, headDim, rank, 0, context,
                        valueBasis));
        once();
        int head = keyValueHeads - 1;
        double[] a = download(coefficients, coefficient, 0, context * rank);
        double[] v = download(values, type, (long) head * context * headDim, context * headDim);
        double[] result = download(valueBasis, type, (long) head * rank * headDim, rank * headDim);
        for (int sample = 0; sample < 100; sample++) {
            int j = sample * 31 % rank;
            int d = sample * 17 % headDim;
            double sum = 0;
            double size = 0;
            double squares = 0;
            for (int token = 0; token < context; token++) {
                double product = a[token * rank + j] * v[token * headDim + d];
                sum += product;
                size += Math.abs(product);
                squares += a[token * rank + j] * a[token * rank + j];
            }
            // What a refinement stands for is in the row of the column before.
            double expected = isRefinement(j) ? 0 : sum / squares;
            double allowed = 2 * MOMENT_ERROR * size / squares + Numbers.epsilon(type) * Math.abs(expected);
            Tolerance.within("row " + j + ", element " + d, result[j * headDim + d], expected, allowed);
        }
    }

    /** {@code [context][rank]}, normally distributed, in units. */
    private DeviceBuffer randomCoefficients(long seed) {
        return coefficient == ElementType.I8
                ? upload(Numbers.gaussian(Math.multiplyExact(context, rank), seed, 1 / unit), coefficient)
                : random(type, (long) context * rank, seed, 1);
    }

    /** {@code [width][rank]} with orthonormal columns. */
    private float[] plantedBasis() {
        float[] random = Numbers.gaussian(rank * width, 3, 1);
        double[][] columns = new double[rank][width];
        for (int j = 0; j < rank; j++) {
            for (int i = 0; i < width; i++) {
                columns[j][i] = random[j * width + i];
            }
            for (int pass = 0; pass < 2; pass++) {
                for (int k = 0; k < j; k++) {
                    double overlap = AttentionOracle.dot(columns[j], 0, columns[k], 0, width);
                    for (int i = 0; i < width; i++) {
                        columns[j][i] -= overlap * columns[k][i];
                    }
                }
            }
            double norm = Math.sqrt(AttentionOracle.dot(columns[j], 0, columns[j], 0, width));
            for (int i = 0; i < width; i++) {
                columns[j][i] /= norm;
            }
        }
        float[] out = new float[width * rank];
        for (int j = 0; j < rank; j++) {
            for (int i = 0; i < width; i++) {
                out[i * rank + j] = (float) columns[j][i];
            }
        }
        return out;
    }

    /** Keys of the planted basis with a falling spectrum, and noise. */
    private DeviceBuffer plantedKeys(float[] planted) {
        DeviceBuffer keys = random(type, (long) context * width, 15, NOISE);
        float[] z = Numbers.gaussian(Math.multiplyExact(context, rank), 4, 8);
        for (int i = 0; i < z.length; i++) {
            z[i] /= 1 + (i % rank) / 24f;
        }
        DeviceBuffer left = upload(z, type);
        DeviceBuffer right = upload(planted, type);
        transformer.matmul(Rows.of(left, type), Rows.of(right, type), null, Rows.of(keys, type), context, width, rank, true);
        open.synchronize();
        return keys;
    }

    /** Rotating and laying out a prompt's keys and values. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void storeTokens() {
        repeat(CALLS);
    }

    /** Low-rank factorization of the keys. */
    @Benchmark
    public void lowRankFactor() {
        repeat(1);
    }

    /** Projection of new keys onto a basis. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void lowRankProject() {
        repeat(CALLS);
    }

    /** Rebuilding of all keys. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void rebuildKeys() {
        repeat(CALLS);
    }

    /** Means, radii and cosines of all chunks. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void landmarkBuild() {
        repeat(CALLS);
    }

    /** The chunks that a landmark describes worst. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void outlierSelect() {
        repeat(CALLS);
    }

    /** Copying those to a place of their own. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void chunkGather() {
        repeat(CALLS);
    }

    /** Moving values to host memory. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void valueStore() {
        repeat(CALLS);
    }

    /** The sums by which tokens that are not selected take part. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void momentUpdate() {
        repeat(CALLS);
    }

    /** The map from coefficients to values. */
    @Benchmark
    @OperationsPerInvocation(CALLS)
    public void valueFit() {
        repeat(CALLS);
    }
}
