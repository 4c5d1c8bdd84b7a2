package dev.shadowkv.bench;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.PinnedArena;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.TransformerKernels;

/**
 * What the machine can do, measured, each the best of several tries.
 *
 * @param copyBandwidth bytes a second, read and written, of a copy within the device's memory
 * @param readBandwidth bytes a second of reading alone; a GPU's is not measured and taken to be that of a copy
 * @param matrixRate operations a second of the library's own large matrix product: of BLAS where one was found
 * @param linkBandwidth bytes a second from pinned memory to the device, 0 on a CPU
 * @param matrixType what the matrices were made of
 */
record Ceilings(double copyBandwidth, double readBandwidth, double matrixRate, double linkBandwidth,
                ElementType matrixType) {

    /** Carries the ceilings of a run to its forks, so that all benchmarks are held against the same. */
    static final String PROPERTY = "dev.shadowkv.bench.ceilings";

    private static final int TRIES = 7;

    /** Those that the run handed down, or a new measurement. */
    static Ceilings of(Device device, int threads) {
        String text = System.getProperty(PROPERTY);
        return text == null ? measure(device, threads) : parse(text);
    }

    static Ceilings parse(String text) {
        String[] fields = text.split(",");
        return new Ceilings(Double.parseDouble(fields[0]), Double.parseDouble(fields[1]), Double.parseDouble(fields[2]),
                Double.parseDouble(fields[3]), ElementType.valueOf(fields[4]));
    }

    String text() {
        return String.format(Locale.ROOT, "%.6g,%.6g,%.6g,%.6g,%s", copyBandwidth, readBandwidth, matrixRate,
                linkBandwidth, matrixType);
    }

    static Ceilings measure(Device device, int threads) {
        ElementType type = device.isCpu() ? ElementType.F32 : ElementType.BF16;
        double matrix = matrixRate(device, type);
        if (device.isCpu()) {
            int count = threads > 0 ? threads : Runtime.getRuntime().availableProcessors();
            double[] memory = hostMemory(count);
            return new Ceilings(memory[0], memory[1], matrix, 0, type);
        }
        double copy = deviceCopy(device);
        return new Ceilings(copy, copy, matrix, link(device), type);
    }

    private static double deviceCopy(Device device) {
        long bytes = 1L << 30;
        try (var arena = device.newArena()) {
            DeviceBuffer from = arena.allocate(bytes);
            DeviceBuffer to = arena.allocate(bytes);
            device.fill(from, 1);
            return best(device, () -> device.copy(from, to), 2.0 * bytes);
        }
    }

    private static double link(Device device) {
        long bytes = 1L << 29;
        try (PinnedArena pinned = device.newPinnedArena(); var arena = device.newArena()) {
            MemorySegment from = pinned.allocate(bytes, 64);
            DeviceBuffer to = arena.allocate(bytes);
            return best(device, () -> device.copy(from, to), bytes);
        }
    }

    private static double matrixRate(Device device, ElementType type) {
        long size = device.isCpu() ? 1024 : 8192;
        long elements = size * size;
        TransformerKernels kernels = new TransformerKernels(device);
        try (var arena = device.newArena()) {
            DeviceBuffer a = arena.allocate(elements * type.bytes());
            DeviceBuffer b = arena.allocate(elements * type.bytes());
            DeviceBuffer c = arena.allocate(elements * type.bytes());
            kernels.randomFill(a, type, elements, 1, 0, 1);
            kernels.randomFill(b, type, elements, 2, 0, 1);
            return best(device, () -> kernels.matmul(Rows.of(a, type), Rows.of(b, type), null, Rows.of(c, type), size,
                    size, size, false), 2.0 * size * size * size);
        }
    }

    private static double best(Device device, Runnable work, double amount) {
        work.run();
        device.synchronize();
        double best = 0;
        for (int i = 0; i < TRIES; i++) {
            device.mark(0);
            work.run();
            device.mark(1);
            best = Math.max(best, amount / (device.elapsed(0, 1) / 1e3));
        }
        return best;
    }

    /** Copy and read bandwidth of the host's memory with a number of threads, each on its own part. */
    private static double[] hostMemory(int threads) {
        long bytes = 1L << 28;
        long part = bytes / threads & -64;
        try (Arena arena = Arena.ofShared(); ExecutorService pool = Executors.newFixedThreadPool(threads)) {
            MemorySegment from = arena.allocate(bytes, 64).fill((byte) 1);
            MemorySegment to = arena.allocate(bytes, 64).fill((byte) 2);
            double copy = 0;
            double read = 0;
            for (int i = 0; i < TRIES; i++) {
                copy = Math.max(copy, 2.0 * part * threads / seconds(pool, threads, thread -> {
                    MemorySegment.copy(from, thread * part, to, thread * part, part);
                    return 0L;
                }));
                read = Math.max(read, part * threads / seconds(pool, threads,
                        thread -> sum(from.asSlice(thread * part, part))));
            }
            return new double[] {copy, read};
        }
    }

    private interface Part {
        long run(int thread);
    }

    private static double seconds(ExecutorService pool, int threads, Part part) {
        long start = System.nanoTime();
        List<Future<Long>> running = new ArrayList<>();
        for (int i = 0; i < threads; i++) {
            int thread = i;
            running.add(pool.submit((Callable<Long>) () -> part.run(thread)));
        }
        long total = 0;
        for (Future<Long> one : running) {
            try {
                total += one.get();
            } catch (ExecutionException e) {
                throw new IllegalStateException(e.getCause());
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
                throw new IllegalStateException("interrupted while measuring memory", e);
            }
        }
        long time = System.nanoTime() - start;
        if (total == Long.MIN_VALUE) {
            throw new AssertionError("keeps the sum alive");
        }
        return time / 1e9;
    }

    /** Several sums keep more loads in flight than one. */
    private static long sum(MemorySegment segment) {
        long words = segment.byteSize() / 8;
        long a = 0;
        long b = 0;
        long c = 0;
        long d = 0;
        for (long i = 0; i + 8 <= words; i += 8) {
            a += segment.getAtIndex(ValueLayout.JAVA_LONG, i) ^ segment.getAtIndex(ValueLayout.JAVA_LONG, i + 4);
            b += segment.getAtIndex(ValueLayout.JAVA_LONG, i + 1) ^ segment.getAtIndex(ValueLayout.JAVA_LONG, i + 5);
            c += segment.getAtIndex(ValueLayout.JAVA_LONG, i + 2) ^ segment.getAtIndex(ValueLayout.JAVA_LONG, i + 6);
            d += segment.getAtIndex(ValueLayout.JAVA_LONG, i + 3) ^ segment.getAtIndex(ValueLayout.JAVA_LONG, i + 7);
        }
        return a + b + c + d;
    }
}
