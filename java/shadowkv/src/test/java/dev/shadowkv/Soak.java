package dev.shadowkv;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;

import dev.shadowkv.kernels.TransformerKernels;

/**
 * A long life of a shadow cache: decode steps of a batch whose rows sessions take and leave, sessions opening, being
 * appended to, folding, forking, being rewound and closing at random. Now and then a row is compared, bit for bit, with
 * what a fork of its session answers alone.
 *
 * <p>A program, so that what it takes is this process's alone: {@code Soak cpu|cuda|cuda:N <steps> <seed>}; an even seed is
 * for coefficients of 8 bits. Prints what it has taken after every tenth of the steps: device bytes by the arenas and by the
 * driver, pinned bytes, resident memory and live heap.
 */
final class Soak {

    private static final int LAYERS = 2;
    private static final int ROWS = 4;
    private static final int SESSIONS = 8;
    private static final int CAPACITY = 768;
    private static final int TOKENS = 1024;
    private static final int QUERY_WIDTH = CacheRunner.QUERY_HEADS * CacheRunner.HEAD_DIM;
    private static final int KEY_WIDTH = CacheRunner.KEY_VALUE_HEADS * CacheRunner.HEAD_DIM;

    private final Device device;
    private final KvCache cache;
    private final Random random;
    private final DeviceBuffer queries;
    private final DeviceBuffer keys;
    private final DeviceBuffer values;
    private final DeviceBuffer output;
    private final DeviceBuffer outputAlone;
    private final List<KvSession> sessions = new ArrayList<>();
    private KvBatch batch;

    private long opened;
    private long forked;
    private long rewound;
    private long appended;
    private long closed;
    private long compared;

    private Soak(Device device, long seed) {
        this.device = device;
        random = new Random(seed);
        ElementType coefficients = seed % 2 == 0 ? ElementType.I8 : device.defaultType();
        cache = CacheRunner.shape(ShadowKvCache.builder(device), LAYERS, SESSIONS, CAPACITY).rank(32).budget(64)
                .outliers(2).rerank(2).coefficientType(coefficients)
                .memory(MemoryPlan.of(SESSIONS, CAPACITY).withStaging(CAPACITY, LAYERS)).build();
        Tokens tokens = CacheRunner.tokens(random, TOKENS, 24);
        queries = onDevice(tokens.queries);
        keys = onDevice(tokens.keys);
        values = onDevice(tokens.values);
        output = device.allocate((long) ROWS * QUERY_WIDTH * element());
        outputAlone = device.allocate((long) QUERY_WIDTH * element());
        batch = cache.batch(ROWS);
    }

    private int element() {
        return cache.inputType().bytes();
    }

    private DeviceBuffer onDevice(float[] numbers) {
        DeviceBuffer result = device.allocate((long) numbers.length * element());
        try (DeviceArena arena = device.newArena()) {
            DeviceBuffer floats = arena.allocate(4L * numbers.length);
            device.copy(MemorySegment.ofArray(numbers), floats);
            new TransformerKernels(device).convert(floats, ElementType.F32, result, cache.inputType(), numbers.length);
        }
        return result;
    }

    private DeviceBuffer tokens(DeviceBuffer of, int width, int first, int count) {
        long row = (long) width * element();
        return of.slice(first * row, count * row);
    }

    private void append(KvSession session, int count) {
        int first = random.nextInt(TOKENS - count + 1);
        for (int layer = 0; layer < LAYERS; layer++) {
            session.append(layer, count, tokens(keys, KEY_WIDTH, first, count), 0, tokens(values, KEY_WIDTH, first, count), 0);
        }
        appended += count;
    }

    /** One of the things that happen between steps. */
    private void event() {
        if (sessions.isEmpty()) {
            openOne();
            return;
        }
        KvSession one = sessions.get(random.nextInt(sessions.size()));
        switch (random.nextInt(10)) {
            case 0, 1, 2 -> openOne();
            case 3 -> {
                if (sessions.size() < SESSIONS - 1) {
                    sessions.add(one.fork());
                    forked++;
                }
            }
            case 4, 5 -> {
                one.truncate(random.nextInt((int) one.length() + 1));
                rewound++;
            }
            case 6 -> append(one, random.nextInt(1 + (int) Math.min(200, room(one))));
            case 7 -> close(one);
            case 8 -> {
                batch.close();
                batch = cache.batch(ROWS);
            }
            default -> {
                int row = random.nextInt(ROWS);
                batch.set(row, null);
            }
        }
    }

    private void openOne() {
        // One is kept free for comparisons.
        if (sessions.size() < SESSIONS - 1) {
            KvSession session = cache.open(CAPACITY);
            sessions.add(session);
            append(session, 1 + random.nextInt(random.nextBoolean() ? 60 : 500));
            session.seal();
            opened++;
        }
    }

    private void close(KvSession session) {
        int row = batch.sessions().indexOf(session);
        if (row >= 0) {
            batch.set(row, null);
        }
        sessions.remove(session);
        session.close();
        closed++;
    }

    private static long room(KvSession session) {
        return CAPACITY - session.length();
    }

    /** Fills idle rows and puts full sessions out, so that a step can follow. */
    private void seat() {
        for (KvSession session : List.copyOf(sessions)) {
            if (room(session) == 0) {
                close(session);
            }
        }
        while (sessions.isEmpty()) {
            openOne();
        }
        for (int row = 0; row < ROWS; row++) {
            if (batch.sessions().get(row) == null) {
                for (KvSession session : sessions) {
                    if (!batch.sessions().contains(session)) {
                        batch.set(row, session);
                        break;
                    }
                }
            }
        }
    }

    private void step(KvBatch of, int first, int count, DeviceBuffer to) {
        for (int layer = 0; layer < LAYERS; layer++) {
            cache.attend(layer, of, tokens(queries, QUERY_WIDTH, first, count), tokens(keys, KEY_WIDTH, first, count),
                    tokens(values, KEY_WIDTH, first, count), to);
        }
    }

    private void run(long steps) throws IOException {
        for (long step = 0; step < steps; step++) {
            if (step % 10 == 0) {
                event();
            }
            seat();
            int first = random.nextInt(TOKENS - ROWS);
            if (step % 100 == 0) {
                compare(first);
            } else {
                step(batch, first, ROWS, output);
            }
            if ((step + 1) % (steps / 10) == 0) {
                report(step + 1);
            }
        }
        System.out.printf("opened %d, forked %d, rewound %d, closed %d, appended %d tokens, compared %d rows%n", opened,
                forked, rewound, closed, appended, compared);
    }

    /** A step of all, and of a fork of one of them alone, which must answer the same. */
    private void compare(int first) {
        int row = batch.sessions().indexOf(batch.sessions().stream().filter(s -> s != null).findAny().orElseThrow());
        try (KvSession fork = batch.sessions().get(row).fork(); KvBatch alone = cache.batch(List.of(fork))) {
            step(batch, first, ROWS, output);
            step(alone, first + row, 1, outputAlone);
            short[] together = new short[ROWS * QUERY_WIDTH * element() / 2];
            short[] single = new short[QUERY_WIDTH * element() / 2];
            device.copy(output, MemorySegment.ofArray(together));
            device.copy(outputAlone, MemorySegment.ofArray(single));
            int begin = row * single.length;
            if (!java.util.Arrays.equals(together, begin, begin + single.length, single, 0, single.length)) {
                throw new IllegalStateException("a session answers otherwise in a batch than alone");
            }
            finite(MemorySegment.ofArray(single));
            compared++;
        }
    }

    private void finite(MemorySegment numbers) {
        boolean wide = cache.inputType() == ElementType.F32;
        for (int i = 0; i < QUERY_WIDTH; i++) {
            float x = wide ? numbers.getAtIndex(ValueLayout.JAVA_FLOAT_UNALIGNED, i)
                    : Float.intBitsToFloat(numbers.getAtIndex(ValueLayout.JAVA_SHORT_UNALIGNED, i) << 16);
            if (!Float.isFinite(x)) {
                throw new IllegalStateException("an output is " + x);
            }
        }
    }

    private void report(long step) throws IOException {
        device.synchronize();
        // The second collects what cleaners let go of after the first.
        System.gc();
        System.gc();
        Runtime heap = Runtime.getRuntime();
        Device.Memory memory = device.memory();
        long taken = device.isCpu() ? 0 : memory.total() - memory.free();
        System.out.printf("step %d device %d driver %d pinned %d resident %d heap %d%n", step, device.allocatedBytes(), taken,
                device.pinnedBytes(), resident(), heap.totalMemory() - heap.freeMemory());
    }

    private static long resident() throws IOException {
        return Long.parseLong(Files.readString(Path.of("/proc/self/statm")).split(" ")[1]) * 4096;
    }

    public static void main(String[] arguments) throws IOException {
        long steps = Long.parseLong(arguments[1]);
        long start = System.nanoTime();
        try (Device device = TestDevice.open(arguments[0])) {
            Soak soak = new Soak(device, Long.parseLong(arguments[2]));
            soak.run(steps);
            soak.cache.close();
        }
        System.out.printf("%d steps in %.1f s%n", steps, (System.nanoTime() - start) * 1e-9);
    }
}
