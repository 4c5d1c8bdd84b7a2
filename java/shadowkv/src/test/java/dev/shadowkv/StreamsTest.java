package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

import dev.shadowkv.kernels.TransformerKernels;

/** Recorded steps, several contexts on one device, another library's stream and pointers, huge pages. */
class StreamsTest {

    private static final int LAYERS = 2;
    private static final int ROWS = 3;
    private static final int WIDTH = CacheRunner.QUERY_HEADS * CacheRunner.HEAD_DIM;
    private static final int KEY_WIDTH = CacheRunner.KEY_VALUE_HEADS * CacheRunner.HEAD_DIM;
    private static final Random random = TestDevice.random(StreamsTest.class);
    private static final Tokens TOKENS = CacheRunner.tokens(random, 600, 24);

    private Device device;

    @BeforeEach
    void open() {
        device = TestDevice.open();
    }

    @AfterEach
    void close() {
        device.close();
    }

    /** Blocks come and go on a lane while others are doubled; wrong where a lane is ahead of its turn. */
    @Test
    void lanesMeetAndGoOnBesideEachOther() {
        int blocks = 30;
        int count = 200_003;
        long bytes = 4L * count;
        try (PinnedArena pinned = device.newPinnedArena(); DeviceArena arena = device.newArena()) {
            MemorySegment host = pinned.allocate(blocks * bytes, 64);
            float[] before = new float[blocks * count];
            for (int i = 0; i < before.length; i++) {
                before[i] = random.nextFloat();
            }
            MemorySegment.copy(before, 0, host, java.lang.foreign.ValueLayout.JAVA_FLOAT, 0, before.length);
            DeviceBuffer all = DeviceBuffer.ofAddress(device, host.address(), host.byteSize());
            DeviceBuffer[] two = {arena.allocate(bytes), arena.allocate(bytes)};
            TransformerKernels kernels = new TransformerKernels(device);
            device.copy(all.slice(0, bytes), two[0]);
            for (int block = 0; block <= blocks; block++) {
                int now = block;
                device.meet(DeviceLane.COPIES);
                if (now < blocks) {
                    kernels.add(two[now % 2], two[now % 2], two[now % 2], ElementType.F32, count);
                }
                device.on(DeviceLane.COPIES, () -> {
                    if (now > 0) {
                        device.copy(two[(now - 1) % 2], all.slice((now - 1) * bytes, bytes));
                    }
                    if (now + 1 < blocks) {
                        device.copy(all.slice((now + 1) * bytes, bytes), two[(now + 1) % 2]);
                    }
                });
            }
            device.synchronize();
            for (int i = 0; i < before.length; i++) {
                assertThat(host.getAtIndex(java.lang.foreign.ValueLayout.JAVA_FLOAT, i)).isEqualTo(2 * before[i]);
            }
            assertThatThrownBy(() -> device.on(DeviceLane.VALUES,
                    () -> kernels.add(two[0], two[0], two[1], ElementType.F32, count)))
                    .isInstanceOf(ShadowKvException.class).hasMessageContaining("takes copies, fills");
            // The device is itself again.
            kernels.add(two[0], two[0], two[1], ElementType.F32, count);
            assertThatThrownBy(() -> device.meet(DeviceLane.MAIN)).isInstanceOf(ShadowKvException.class);
        }
    }

    private static KvCache cache(Device device, boolean shadow) {
        return shadow
                ? CacheRunner.shape(ShadowKvCache.builder(device), LAYERS, 8, 600).rank(32).budget(64).outliers(2).build()
                : CacheRunner.shape(DenseKvCache.builder(device), LAYERS, 8, 600).build();
    }

    private static KvSession filled(KvCache cache, int tokens) {
        KvSession session = cache.open(600);
        CacheRunner.append(session, TOKENS, 0, tokens, null);
        session.seal();
        return session;
    }

    /** Rows of 32-bit floats into device memory of the cache's input type. */
    private static void bring(KvCache cache, float[] numbers, int first, int count, DeviceBuffer to, int at) {
        Device device = cache.device();
        int e = cache.inputType().bytes();
        try (DeviceArena arena = device.newArena()) {
            DeviceBuffer floats = arena.allocate(4L * count);
            device.copy(MemorySegment.ofArray(Arrays.copyOfRange(numbers, first, first + count)), floats);
            new TransformerKernels(device).convert(floats, ElementType.F32, to.slice((long) at * e, (long) count * e),
                    cache.inputType(), count);
        }
    }

    private static float[] floats(KvCache cache, DeviceBuffer of, int count) {
        float[] numbers = new float[count];
        Device device = cache.device();
        try (DeviceArena arena = device.newArena()) {
            DeviceBuffer floats = arena.allocate(4L * count);
            new TransformerKernels(device).convert(of, cache.inputType(), floats, ElementType.F32, count);
            device.copy(floats, MemorySegment.ofArray(numbers));
        }
        return numbers;
    }

    /** One recording serves whoever has the rows: longer sessions, others, and rows without any. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aRecordedStepServesSessionsThatComeAndGo(boolean shadow) {
        Assumptions.assumeTrue(TestDevice.cuda(), "a CPU records nothing");
        try (KvCache cache = cache(device, shadow); KvBatch batch = cache.batch(ROWS)) {
            int e = cache.inputType().bytes();
            DeviceBuffer q = device.allocate((long) ROWS * WIDTH * e);
            DeviceBuffer k = device.allocate((long) ROWS * KEY_WIDTH * e);
            DeviceBuffer v = device.allocate((long) ROWS * KEY_WIDTH * e);
            DeviceBuffer out = device.allocate((long) ROWS * WIDTH * e);
            DeviceBuffer outAlone = device.allocate((long) WIDTH * e);
            KvSession[] sessions = new KvSession[4];
            KvBatch[] alone = new KvBatch[4];
            int[] at = new int[4];
            for (int i = 0; i < 4; i++) {
                at[i] = 50 + random.nextInt(250);
                sessions[i] = filled(cache, at[i]);
                alone[i] = cache.batch(List.of(sessions[i].fork()));
            }
            int[][] rows = {{0, -1, -1}, {0, 1, -1}, {2, 1, 0}, {2, -1, 0}, {3, -1, 2}, {-1, 1, 3}};
            DeviceGraph graph = null;
            for (int[] row : rows) {
                for (int i = 0; i < ROWS; i++) {
                    batch.set(i, null);
                }
                for (int i = 0; i < ROWS; i++) {
                    batch.set(i, row[i] < 0 ? null : sessions[row[i]]);
                }
                // More steps than a recent window has room for.
                for (int step = 0; step < 25; step++) {
                    for (int i = 0; i < ROWS; i++) {
                        int token = row[i] < 0 ? 0 : at[row[i]];
                        bring(cache, TOKENS.queries, token * WIDTH, WIDTH, q, i * WIDTH);
                        bring(cache, TOKENS.keys, token * KEY_WIDTH, KEY_WIDTH, k, i * KEY_WIDTH);
                        bring(cache, TOKENS.values, token * KEY_WIDTH, KEY_WIDTH, v, i * KEY_WIDTH);
                    }
                    batch.advance();
                    if (graph == null) {
                        graph = device.capture(() -> {
                            for (int layer = 0; layer < LAYERS; layer++) {
                                cache.attend(layer, batch, q, k, v, out);
                            }
                        });
                    }
                    graph.launch();
                    float[] together = floats(cache, out, ROWS * WIDTH);
                    for (int i = 0; i < ROWS; i++) {
                        float[] mine = Arrays.copyOfRange(together, i * WIDTH, (i + 1) * WIDTH);
                        if (row[i] < 0) {
                            assertThat(mine).as("idle row " + i).containsOnly(0);
                        } else {
                            int token = at[row[i]]++;
                            long width = (long) WIDTH * e;
                            long keyWidth = (long) KEY_WIDTH * e;
                            for (int layer = 0; layer < LAYERS; layer++) {
                                cache.attend(layer, alone[row[i]], q.slice(i * width, width), k.slice(i * keyWidth, keyWidth),
                                        v.slice(i * keyWidth, keyWidth), outAlone);
                            }
                            Compare.same(floats(cache, outAlone, WIDTH), mine,
                                    "session " + row[i] + " in row " + i + ", token " + token);
                        }
                    }
                }
            }
            graph.close();
        }
    }

    /** Two contexts on one device, and one on each other GPU, decode at the same time, each as if it were alone. */
    @Test
    void severalContextsAtOnce() throws Exception {
        float[][] expected;
        try (KvCache cache = cache(device, true)) {
            expected = CacheRunner.decode(filled(cache, 400), TOKENS, 400, 520);
        }
        int contexts = TestDevice.cuda() ? Device.cudaDevices() + 1 : 2;
        try (ExecutorService threads = Executors.newFixedThreadPool(contexts)) {
            List<Callable<float[][]>> work = new ArrayList<>();
            for (int i = 0; i < contexts; i++) {
                int behind = i;
                work.add(() -> {
                    try (Device own = TestDevice.open(behind); KvCache cache = cache(own, true)) {
                        return CacheRunner.decode(filled(cache, 400), TOKENS, 400, 520);
                    }
                });
            }
            for (Future<float[][]> result : threads.invokeAll(work)) {
                for (int i = 0; i < expected.length; i++) {
                    Compare.same(expected[i], result.get()[i], "token " + (400 + i));
                }
            }
        }
    }

    /** Work on another library's stream and memory comes in the order in which it was given, with no waiting between. */
    @Test
    void aStreamAndMemoryOfOthers() {
        Assumptions.assumeTrue(TestDevice.cuda(), "a CPU has no streams");
        Device.Builder builder = Device.builder().cuda(0).stream(device.streamAddress());
        try (Device guest = builder.build()) {
            assertThat(guest.streamAddress()).isEqualTo(device.streamAddress());
            int count = 1 << 20;
            DeviceBuffer theirs = device.allocate(4L * count);
            DeviceBuffer mine = DeviceBuffer.ofAddress(guest, theirs.address(), theirs.byteSize());
            TransformerKernels first = new TransformerKernels(device);
            TransformerKernels second = new TransformerKernels(guest);
            first.randomFill(theirs, ElementType.F32, count, 1, 1, 0);
            for (int i = 0; i < 20; i++) {
                (i % 2 == 0 ? second : first).add(i % 2 == 0 ? mine : theirs, i % 2 == 0 ? mine : theirs,
                        i % 2 == 0 ? mine : theirs, ElementType.F32, count);
            }
            float[] back = new float[count];
            device.copy(theirs, MemorySegment.ofArray(back));
            assertThat(back).containsOnly(1 << 20);
        }
        // The guest has left the stream as it was.
        FailureTest.works(device);
    }

    @Test
    void pinnedMemoryIsOnHugePages() throws Exception {
        Path setting = Path.of("/sys/kernel/mm/transparent_hugepage/enabled");
        Assumptions.assumeTrue(Files.isReadable(setting) && !Files.readString(setting).contains("[never]"),
                "the system has no transparent huge pages");
        Assumptions.assumeTrue(TestDevice.cuda(), "a CPU's memory is ordinary");
        long bytes = 256L << 20;
        try (PinnedArena arena = device.newPinnedArena()) {
            MemorySegment segment = arena.allocate(bytes);
            // Of large pages some may be missing where memory is in pieces.
            assertThat(hugeBytes(segment.address())).isGreaterThan(bytes / 2);
        }
    }

    /** AnonHugePages of the mapping that an address lies in. */
    private static long hugeBytes(long address) throws java.io.IOException {
        boolean within = false;
        for (String line : Files.readAllLines(Path.of("/proc/self/smaps"))) {
            if (line.matches("[0-9a-f]+-[0-9a-f]+ .*")) {
                String[] range = line.substring(0, line.indexOf(' ')).split("-");
                within = Long.compareUnsigned(Long.parseUnsignedLong(range[0], 16), address) <= 0
                        && Long.compareUnsigned(address, Long.parseUnsignedLong(range[1], 16)) < 0;
            } else if (within && line.startsWith("AnonHugePages:")) {
                return Long.parseLong(line.replaceAll("\\D", "")) * 1024;
            }
        }
        return 0;
    }
}
