package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;

import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

import dev.shadowkv.kernels.TransformerKernels;

/** What the machine refuses is a status with its reason; the process lives, and so does everything else on it. */
class FailureTest {

    private static final long TOO_MUCH = 1L << 46;

    private Device device;

    @BeforeEach
    void open() {
        device = TestDevice.open();
    }

    @AfterEach
    void close() {
        device.close();
    }

    static void fails(ThrowingCallable call, Status status, String... words) {
        assertThatThrownBy(call).isInstanceOfSatisfying(ShadowKvException.class,
                e -> assertThat(e.status()).as(e.getMessage()).isEqualTo(status)).hasMessageContainingAll(words);
    }

    /** The device copies and computes. */
    static void works(Device device) {
        try (DeviceArena arena = device.newArena()) {
            float[] numbers = {1, 2, 3, 4};
            DeviceBuffer buffer = arena.allocate(16);
            device.copy(MemorySegment.ofArray(numbers), buffer);
            new TransformerKernels(device).add(buffer, buffer, buffer, ElementType.F32, 4);
            device.copy(buffer, MemorySegment.ofArray(numbers));
            assertThat(numbers).containsExactly(2, 4, 6, 8);
        }
    }

    @Test
    void moreDeviceMemoryThanThereIs() {
        try (DeviceArena arena = device.newArena()) {
            fails(() -> arena.allocate(TOO_MUCH), TestDevice.cuda() ? Status.OUT_OF_DEVICE_MEMORY : Status.OUT_OF_HOST_MEMORY,
                    Long.toString(TOO_MUCH));
            assertThat(device.allocatedBytes()).isZero();
            works(device);
        }
    }

    @Test
    void morePinnedMemoryThanThereIs() {
        try (PinnedArena arena = device.newPinnedArena()) {
            fails(() -> arena.allocate(TOO_MUCH), Status.OUT_OF_HOST_MEMORY, Long.toString(TOO_MUCH));
            assertThat(device.pinnedBytes()).isZero();
            MemorySegment segment = arena.allocate(1 << 20);
            assertThat(segment.get(java.lang.foreign.ValueLayout.JAVA_BYTE, 0)).isZero();
            works(device);
        }
    }

    /** A cache whose device part fits and whose values do not, and one of which neither does. */
    @Test
    void aCacheThatDoesNotFitLeavesNothingBehind() {
        Assumptions.assumeTrue(TestDevice.cuda(), "memory of a CPU is promised and not given");
        long free = device.memory().free();
        for (int sessions : new int[] {64, 1000}) {
            ShadowKvCache.Builder builder = ShadowKvCache.builder(device).layers(32).queryHeads(32).keyValueHeads(8)
                    .headDim(128).rope(Rope.standard(128, 10_000)).rank(160).budget(2048)
                    .memory(MemoryPlan.of(sessions, 1 << 20));
            MemoryPlan plan = builder.plan();
            assertThat(plan.deviceBytes()).isGreaterThan(free);
            assertThatThrownBy(builder::build).isInstanceOfSatisfying(ShadowKvException.class,
                    e -> assertThat(e.status()).isIn(Status.OUT_OF_DEVICE_MEMORY, Status.OUT_OF_HOST_MEMORY));
            assertThat(device.allocatedBytes()).isZero();
            assertThat(device.pinnedBytes()).isZero();
        }
        // A rotation's table, the workspace and what loading kernels takes are all that may have stayed.
        assertThat(device.memory().free()).isGreaterThan(free - (128L << 20));
        works(device);
    }

    /** Memory runs out while the workspace grows: what needs less goes on. */
    @Test
    void aWorkspaceThatCannotGrow() {
        Assumptions.assumeTrue(TestDevice.cuda(), "memory of a CPU is promised and not given");
        dev.shadowkv.kernels.Workspaces workspaces = new dev.shadowkv.kernels.Workspaces(device);
        workspaces.reserve(64 << 20);
        fails(() -> workspaces.reserve(TOO_MUCH), Status.OUT_OF_DEVICE_MEMORY, Long.toString(TOO_MUCH));
        Tokens tokens = CacheRunner.tokens(new java.util.Random(5), 300, 24);
        try (KvCache cache = CacheRunner.shape(ShadowKvCache.builder(device), 1, 1, 300).rank(32).budget(64).build();
                KvSession session = cache.open(300)) {
            CacheRunner.append(session, tokens, 0, 250, null);
            session.seal();
            for (float x : CacheRunner.decode(session, tokens, 250, 251)[0]) {
                assertThat(x).isFinite();
            }
        }
    }

    /** A driver that is no library, as where there is none. */
    @Test
    void withoutADriver(@TempDir Path folder) throws Exception {
        Files.writeString(folder.resolve("libcuda.so.1"), "no library");
        ChildJvm child = ChildJvm.run(NoDevice.class, List.of(), Map.of("LD_LIBRARY_PATH", folder.toString()));
        assertThat(child.exit()).as(child.output()).isZero();
        Assumptions.assumeFalse(child.output().contains("has no CUDA backend"), "the library has none");
        assertThat(child.output()).contains("NOT_AVAILABLE").contains("there is no NVIDIA driver", "libcuda.so.1")
                .contains("best: cpu").contains("attended");
    }

    @Test
    void withoutAGpu() throws Exception {
        Assumptions.assumeTrue(TestDevice.cuda(), "there is no driver");
        ChildJvm child = ChildJvm.run(NoDevice.class, List.of(), Map.of("CUDA_VISIBLE_DEVICES", "-1"));
        assertThat(child.exit()).as(child.output()).isZero();
        assertThat(child.output()).contains("NOT_AVAILABLE").contains("finds no GPU").contains("best: cpu")
                .contains("attended");
    }

    /** Says why there is no GPU and goes on with the CPU. */
    static final class NoDevice {
        private NoDevice() {
        }

        public static void main(String[] arguments) {
            System.out.println("reason: " + Device.cudaUnavailableReason().orElse("none"));
            try {
                Device.cuda(0).close();
                System.exit(2);
            } catch (ShadowKvException e) {
                System.out.println(e.status() + ": " + e.getMessage());
            }
            try (Device device = Device.best()) {
                System.out.println("best: " + device.name());
                Fault.step(device);
            }
            System.out.println("attended");
        }
    }

    /** A kernel follows a wild pointer in another process; there every call says so, here nothing happens. */
    @Test
    void aFaultOfTheDevice() throws Exception {
        Assumptions.assumeTrue(TestDevice.cuda(), "a fault of a CPU is the end of the process");
        DeviceBuffer kept = device.allocate(16);
        device.copy(MemorySegment.ofArray(new int[] {1, 2, 3, 4}), kept);
        ChildJvm child = ChildJvm.run(Fault.class, List.of(), Map.of());
        System.out.println(child.output());
        assertThat(child.exit()).as(child.output()).isZero();
        assertThat(child.output()).contains("the process lives");
        int[] back = new int[4];
        device.copy(kept, MemorySegment.ofArray(back));
        assertThat(back).containsExactly(1, 2, 3, 4);
        works(device);
    }

    /** Breaks its GPU and looks what is left. */
    static final class Fault {
        private Fault() {
        }

        public static void main(String[] arguments) throws Exception {
            Device broken = Device.cuda(0);
            Device beside = Device.cuda(0);
            Device cpu = Device.cpu(2);
            Device other = Device.cudaDevices() > 1 ? Device.cuda(1) : null;
            KvCache cache = cache(broken);
            KvSession session = filled(cache);
            CacheRunner.decode(session, tokens(), 200, 201);
            step(beside);
            PinnedArena pinned = broken.newPinnedArena();
            pinned.allocate(256 << 20).fill((byte) 1);
            DeviceBuffer good = broken.allocate(4096);
            DeviceBuffer wild = DeviceBuffer.ofAddress(broken, 1L << 20, 4096);
            new TransformerKernels(broken).add(wild, wild, wild, ElementType.F32, 1024);
            says("synchronize", broken::synchronize);
            for (int i = 0; i < 2; i++) {
                says("allocate", () -> broken.allocate(64));
                says("copy", () -> broken.copy(good, MemorySegment.ofArray(new byte[4096])));
                says("decode", () -> CacheRunner.decode(session, tokens(), 201, 202));
                // The driver's context is one for all of a GPU's streams in a process.
                says("another stream of the GPU", beside::synchronize);
            }
            says("a new context", () -> Device.cuda(0).close());
            step(cpu);
            if (other != null) {
                // Drivers lose all GPUs of the process to a fault of one (580 does): every call says so.
                mayWork("another GPU", () -> step(other));
                mayWork("closing another GPU", other::close);
            }
            long before = resident();
            says("closing pinned memory", pinned::close);
            long returned = before - resident();
            System.out.println("pinned memory that came back: " + (returned >> 20) + " MiB");
            check(returned > 200L << 20 && !pinned.scope().isAlive());
            says("closing the session", session::close);
            says("closing the cache", cache::close);
            says("closing the device", broken::close);
            check(broken.pinnedBytes() == 0 && broken.allocatedBytes() == 0);
            broken.close();
            cache.close();
            says("closing the other", beside::close);
            step(cpu);
            cpu.close();
            System.out.println("the process lives");
        }

        private static Tokens tokens() {
            return CacheRunner.tokens(new java.util.Random(3), 300, 24);
        }

        private static KvCache cache(Device device) {
            return CacheRunner.shape(ShadowKvCache.builder(device), 1, 1, 300).rank(32).budget(64).build();
        }

        private static KvSession filled(KvCache cache) {
            KvSession session = cache.open(300);
            CacheRunner.append(session, tokens(), 0, 200, null);
            session.seal();
            return session;
        }

        static void step(Device device) {
            try (KvCache cache = cache(device)) {
                for (float x : CacheRunner.decode(filled(cache), tokens(), 200, 201)[0]) {
                    check(Float.isFinite(x));
                }
            }
        }

        /** The call fails with the device's fault, or, where it only gives back, may have nothing to say. */
        private static void says(String what, Runnable call) {
            try {
                call.run();
                System.out.println(what + ": nothing");
                check(what.startsWith("closing"));
            } catch (ShadowKvException e) {
                System.out.println(what + ": " + e.getMessage());
                check(e.status() == Status.DEVICE_ERROR);
            }
        }

        private static void mayWork(String what, Runnable call) {
            try {
                call.run();
                System.out.println(what + ": works");
            } catch (ShadowKvException e) {
                System.out.println(what + ": " + e.getMessage());
                check(e.status() == Status.DEVICE_ERROR);
            }
        }

        private static void check(boolean condition) {
            if (!condition) {
                throw new IllegalStateException("not as it must be");
            }
        }

        private static long resident() throws java.io.IOException {
            return Long.parseLong(Files.readString(Path.of("/proc/self/statm")).split(" ")[1]) * 4096;
        }
    }
}
