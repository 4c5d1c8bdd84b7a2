package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What plans say against what is taken, and that decoding takes nothing. */
class MemoryTest {

    private static final Random random = TestDevice.random(MemoryTest.class);
    private static final Path STATISTICS = Path.of("/proc/self/statm");

    private static CacheBuilder<?> builder(Device device, boolean shadow) {
        return shadow
                ? CacheRunner.shape(ShadowKvCache.builder(device), 4, 3, 4000).rank(48).budget(256).rerank(2).tail(true)
                : CacheRunner.shape(DenseKvCache.builder(device), 4, 3, 4000);
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void plansAreExact(boolean shadow) {
        try (Device device = TestDevice.open()) {
            MemoryPlan plan = builder(device, shadow).plan();
            assertThat(device.allocatedBytes()).isZero();
            KvCache cache = builder(device, shadow).build();
            KvSession[] sessions = new KvSession[3];
            for (int i = 0; i < 3; i++) {
                sessions[i] = cache.open(4000);
            }
            cache.batch(List.of(sessions));
            assertThat(cache.memoryPlan()).isEqualTo(plan);
            assertThat(device.allocatedBytes()).isEqualTo(plan.deviceBytes() - plan.workspaceBytes());
            assertThat(device.pinnedBytes()).isEqualTo(plan.pinnedBytes());
            cache.close();
            assertThat(device.allocatedBytes()).isZero();
            assertThat(device.pinnedBytes()).isZero();
        }
    }

    /** Values as few bits as they have in host memory; in slots, and those of appended tokens, as they are there. */
    @ParameterizedTest
    @CsvSource({"F8_E4M3, 40", "F12_E4M7, 0", "F12_E4M7, 40", "F6_E2M3, 0", "F6_E2M3, 40"})
    void plansOfValuesOfFewerBitsAreExact(ElementType type, int slots) {
        try (Device device = TestDevice.open()) {
            Assumptions.assumeTrue(device.isCpu() || slots > 0, "packed values need slots on a GPU");
            ShadowKvCache.Builder builder = ((ShadowKvCache.Builder) builder(device, true)).storageType(ElementType.BF16).slots(slots);
            MemoryPlan whole = builder.plan();
            MemoryPlan plan = builder.valueType(type).plan();
            int bits = type == ElementType.F8_E4M3 ? 8 : type == ElementType.F12_E4M7 ? 12 : 6;
            assertThat(plan.sessionPinnedBytes()).isEqualTo(whole.sessionPinnedBytes() * bits / 16);
            // A scale a chunk and head.
            long scales = SlabPool.align(4L * CacheRunner.KEY_VALUE_HEADS * 500);
            long slotBytes = (long) CacheRunner.KEY_VALUE_HEADS * slots * 8 * CacheRunner.HEAD_DIM;
            long saved = type == ElementType.F12_E4M7 ? 0 : slotBytes;
            assertThat(plan.sessionDeviceBytes()).isEqualTo(whole.sessionDeviceBytes() + 4 * (scales - saved));
            try (ShadowKvCache cache = builder.build()) {
                cache.batch(List.of(cache.open(4000), cache.open(4000), cache.open(4000)));
                assertThat(device.allocatedBytes()).isEqualTo(plan.deviceBytes() - plan.workspaceBytes());
                assertThat(device.pinnedBytes()).isEqualTo(plan.pinnedBytes());
            }
        }
    }

    /** A byte a coefficient, and a scale a direction. */
    @Test
    void plansOfCoefficientsOfEightBitsAreExact() {
        try (Device device = TestDevice.open()) {
            ShadowKvCache.Builder builder = ((ShadowKvCache.Builder) builder(device, true)).storageType(ElementType.BF16);
            MemoryPlan whole = builder.plan();
            MemoryPlan plan = builder.coefficientType(ElementType.I8).plan();
            assertThat(plan.sessionPinnedBytes()).isEqualTo(whole.sessionPinnedBytes());
            try (ShadowKvCache cache = builder.build()) {
                long rank = cache.geometry().rank();
                long saved = SlabPool.align(4000 * rank * 2) - SlabPool.align(4000 * rank) - SlabPool.align(4 * rank);
                assertThat(saved).isPositive();
                assertThat(plan.sessionDeviceBytes()).isEqualTo(whole.sessionDeviceBytes() - 4 * saved);
                cache.batch(List.of(cache.open(4000), cache.open(4000), cache.open(4000)));
                assertThat(device.allocatedBytes()).isEqualTo(plan.deviceBytes() - plan.workspaceBytes());
                assertThat(device.pinnedBytes()).isEqualTo(plan.pinnedBytes());
            }
        }
    }

    /**
     * In a process of its own: this one's heap and what its allocator keeps would be counted too. Its optimizing compiler
     * is off, whose memory grows with the machine's processors.
     */
    @Test
    void theProcessGrowsByWhatThePlanSays() throws Exception {
        Assumptions.assumeTrue(!TestDevice.cuda() && Files.isReadable(STATISTICS));
        String path = location(Device.class) + java.io.File.pathSeparator + location(MemoryTest.class);
        Process process = new ProcessBuilder(Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xmx512m", "-Xms512m", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                "--enable-native-access=ALL-UNNAMED", "-cp", path,
                Growth.class.getName()).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes()).strip();
        assertThat(process.waitFor()).as(output).isZero();
        String[] numbers = output.substring(output.lastIndexOf('\n') + 1).split(" ");
        long grown = Long.parseLong(numbers[0]);
        long planned = Long.parseLong(numbers[1]);
        // Whole pages and code on one side; on the other what is planned and not touched: the exact copies'
        // temporaries,
        // rows behind the prompt, workspace.
        assertThat(grown).isBetween((long) (0.7 * planned), (long) (1.02 * planned) + (16L << 20));
    }

    private static String location(Class<?> type) throws java.net.URISyntaxException {
        return Path.of(type.getProtectionDomain().getCodeSource().getLocation().toURI()).toString();
    }

    /** Prints by how much this process has grown, and by how much the plan says. */
    static final class Growth {
        private Growth() {
        }

        public static void main(String[] arguments) throws Exception {
            Tokens tokens = CacheRunner.tokens(new Random(1), 7900, 8);
            try (Device device = Device.cpu(2)) {
                long before = resident();
                KvCache cache = CacheRunner.shape(ShadowKvCache.builder(device), 4, 4, 8000).rank(48).budget(256).tail(true)
                        .memory(MemoryPlan.of(4, 8000).withStaging(8000, 4)).build();
                for (int i = 0; i < 4; i++) {
                    KvSession session = cache.open(8000);
                    CacheRunner.append(session, tokens, 0, 7900, null);
                    session.seal();
                }
                MemoryPlan plan = cache.memoryPlan();
                System.out.println(resident() - before + " " + (plan.deviceBytes() + plan.pinnedBytes()));
            }
        }

        private static long resident() throws java.io.IOException {
            return Long.parseLong(Files.readString(Path.of("/proc/self/statm")).split(" ")[1]) * 4096;
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void decodingAllocatesNothing(boolean shadow) throws Exception {
        Tokens tokens = CacheRunner.tokens(random, 600, 24);
        try (Device device = TestDevice.open(); KvCache cache = (shadow
                ? CacheRunner.shape(ShadowKvCache.builder(device), 2, 2, 16_000).rank(32).budget(64).tail(true).window(4032)
                : CacheRunner.shape(DenseKvCache.builder(device), 2, 2, 16_000)).build()) {
            KvSession[] sessions = {cache.open(16_000), cache.open(16_000)};
            for (KvSession session : sessions) {
                CacheRunner.append(session, tokens, 0, 600, null);
                session.seal();
            }
            KvBatch batch = cache.batch(List.of(sessions));
            int e = cache.inputType().bytes();
            DeviceBuffer q = device.allocate(2L * tokens.queryWidth * e);
            DeviceBuffer kv = device.allocate(2L * tokens.keyWidth * e);
            DeviceBuffer out = device.allocate(2L * tokens.queryWidth * e);
            device.fill(q, 0);
            device.fill(kv, 0);
            steps(cache, batch, q, kv, out, 2000);
            long own = allocated();
            own = allocated() - own;
            long fewest = Long.MAX_VALUE;
            for (int i = 0; i < 5; i++) {
                long before = allocated();
                steps(cache, batch, q, kv, out, 200);
                fewest = Math.min(fewest, allocated() - before - own);
            }
            // The compiler may still be at work in one round; what a step allocates would be in all of them.
            assertThat(fewest).as("bytes of 200 steps").isLessThan(200);
        }
    }

    /** By reflection: the module under test does not read the management modules. */
    private static long allocated() throws Exception {
        Object threads = Class.forName("java.lang.management.ManagementFactory").getMethod("getThreadMXBean")
                .invoke(null);
        return (long) Class.forName("com.sun.management.ThreadMXBean").getMethod("getCurrentThreadAllocatedBytes")
                .invoke(threads);
    }

    private static void steps(KvCache cache, KvBatch batch, DeviceBuffer q, DeviceBuffer kv, DeviceBuffer out,
            int count) {
        for (int i = 0; i < count; i++) {
            for (int layer = 0; layer < 2; layer++) {
                cache.attend(layer, batch, q, kv, kv, out);
            }
        }
    }

    @Test
    void openingAndClosingAsksNoDriverForMemory() {
        try (Device device = TestDevice.open(); KvCache cache = builder(device, true).build()) {
            long before = device.allocatedBytes();
            for (int i = 0; i < 200; i++) {
                try (KvSession a = cache.open(1 + random.nextInt(4000)); KvSession b = cache.open(1
                        + random.nextInt(4000))) {
                    assertThat(device.allocatedBytes()).isEqualTo(before);
                    assertThat(a.length() + b.length()).isZero();
                }
            }
            KvSession[] all = {cache.open(4000), cache.open(4000), cache.open(4000)};
            assertThat(all).hasSize(3);
        }
    }

    @Test
    void slabPoolsMergeWhatComesBack() {
        SlabPool pool = new SlabPool(SlabPool.align(100 * 256));
        long[] at = new long[100];
        for (int i = 0; i < 100; i++) {
            at[i] = pool.allocate(200);
            assertThat(at[i]).isEqualTo(i * 256L);
        }
        assertThat(pool.allocate(1)).isEqualTo(-1);
        List<Integer> order = new java.util.ArrayList<>(java.util.stream.IntStream.range(0, 100).boxed().toList());
        java.util.Collections.shuffle(order, random);
        for (int i : order) {
            pool.release(at[i], 200);
        }
        assertThat(pool.largest()).isEqualTo(100 * 256);
    }

    @Test
    void pinnedMemoryIsAnOrdinarySegment() {
        try (Device device = TestDevice.open(); PinnedArena arena = device.newPinnedArena()) {
            Arena contract = arena;
            MemorySegment segment = contract.allocate(1_000_003, 64);
            assertThat(segment.byteSize()).isEqualTo(1_000_003);
            assertThat(segment.address() % 64).isZero();
            assertThat(segment.get(java.lang.foreign.ValueLayout.JAVA_BYTE, 1_000_002)).isZero();
            assertThat(segment.scope()).isEqualTo(arena.scope());
            assertThat(device.pinnedBytes()).isEqualTo(1_000_003);
        }
    }
}
