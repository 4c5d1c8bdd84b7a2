package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicReference;

import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Closed, foreign, too small, wrong type, wrong order, wrong thread: an exception that says so, for both caches. */
class MisuseTest {

    private static final Random random = TestDevice.random(MisuseTest.class);
    private static final Tokens TOKENS = CacheRunner.tokens(random, 300, 24);

    private Device device;

    @BeforeEach
    void open() {
        device = TestDevice.open();
    }

    @AfterEach
    void close() {
        device.close();
    }

    private KvCache cache(boolean shadow, int layers) {
        return shadow
                ? CacheRunner.shape(ShadowKvCache.builder(device), layers, 2,
                        256).rank(32).budget(64).outliers(2).tail(true).build()
                : CacheRunner.shape(DenseKvCache.builder(device), layers, 2, 256).build();
    }

    private static KvSession filled(KvCache cache, int tokens) {
        KvSession session = cache.open(256);
        CacheRunner.append(session, TOKENS, 0, tokens, random);
        session.seal();
        return session;
    }

    private static void closed(ThrowingCallable call) {
        assertThatThrownBy(call).isInstanceOf(IllegalStateException.class).hasMessageContaining("closed");
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void everyMethodOfAClosedObjectSaysSo(boolean shadow, @TempDir Path folder) {
        KvCache cache = cache(shadow, 1);
        KvSession session = filled(cache, 100);
        KvBatch batch = cache.batch(List.of(session));
        session.close();
        session.close();
        closed(() -> session.append(0, 1, TOKENS.keys(0, 1), TOKENS.values(0, 1)));
        closed(() -> session.prefill(0, 1, TOKENS.queries(0, 1), TOKENS.keys(0, 1), TOKENS.values(0, 1),
                MemorySegment.ofArray(new float[TOKENS.queryWidth])));
        closed(session::seal);
        closed(() -> session.seal(0));
        closed(() -> session.truncate(1));
        closed(session::fork);
        closed(() -> session.save(folder.resolve("x")));
        closed(() -> cache.batch(List.of(session)));
        closed(() -> CacheRunner.step(batch, TOKENS, 0));
        batch.close();
        batch.close();
        closed(batch::advance);
        closed(batch::statistics);
        cache.close();
        cache.close();
        closed(() -> cache.open(10));
        closed(() -> cache.load(folder.resolve("x")));
        closed(() -> cache.batch(List.of(session)));

        DeviceArena arena = device.newArena();
        DeviceBuffer buffer = arena.allocate(64);
        arena.close();
        arena.close();
        closed(() -> arena.allocate(1));
        closed(buffer::address);
        closed(() -> device.copy(buffer, MemorySegment.ofArray(new byte[64])));
        assertThat(buffer.isAlive()).isFalse();
        PinnedArena pinned = device.newPinnedArena();
        MemorySegment segment = pinned.allocate(64);
        assertThat(segment.byteSize()).isEqualTo(64);
        pinned.close();
        pinned.close();
        assertThatThrownBy(() -> segment.get(java.lang.foreign.ValueLayout.JAVA_BYTE, 0))
                .isInstanceOf(IllegalStateException.class);
        closed(() -> pinned.allocate(1));
        device.close();
        device.close();
        closed(device::newArena);
        closed(device::newPinnedArena);
        closed(() -> device.allocate(1));
        closed(device::synchronize);
        closed(device::memory);
        closed(device::describeBlas);
        closed(device::streamAddress);
    }

    @Test
    void closingADeviceClosesWhatWasMadeOnIt() {
        KvCache cache = cache(true, 1);
        KvSession session = filled(cache, 100);
        device.close();
        closed(() -> cache.open(1));
        closed(() -> session.truncate(0));
        session.close();
        cache.close();
        assertThat(device.allocatedBytes()).isZero();
        assertThat(device.pinnedBytes()).isZero();
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void foreignObjectsAreRefused(boolean shadow) {
        try (Device second = TestDevice.open(); KvCache cache = cache(shadow, 1); KvCache other = cache(shadow, 1)) {
            KvSession session = filled(cache, 50);
            assertThatThrownBy(() -> other.batch(List.of(session))).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("another cache");
            KvBatch batch = cache.batch(List.of(session));
            DeviceBuffer buffer = device.allocate(1 << 16);
            assertThatThrownBy(() -> other.attend(0, batch, buffer, buffer, buffer, buffer))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("another cache");
            DeviceBuffer foreign = second.allocate(1 << 16);
            assertThatThrownBy(() -> cache.attend(0, batch, foreign, buffer, buffer, buffer))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("another device");
            session.truncate(session.length() - 1);
            assertThatThrownBy(() -> session.append(0, 1, foreign, foreign))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("another device");
            assertThatThrownBy(() -> cache.batch(List.of(session, session)))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("also session 0");
            assertThatThrownBy(() -> device.copy(foreign, buffer)).isInstanceOf(IllegalArgumentException.class);
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void operandsThatAreTooSmallAreRefused(boolean shadow) {
        try (KvCache cache = cache(shadow, 1)) {
            KvSession session = filled(cache, 50);
            KvBatch batch = cache.batch(List.of(session));
            int e = cache.inputType().bytes();
            DeviceBuffer q = device.allocate((long) TOKENS.queryWidth * e);
            DeviceBuffer kv = device.allocate((long) TOKENS.keyWidth * e);
            DeviceBuffer small = kv.slice(0, kv.byteSize() - 1);
            assertThatThrownBy(() -> session.append(0, 1, small, kv)).isInstanceOf(IndexOutOfBoundsException.class)
                    .hasMessageContaining("keys");
            assertThatThrownBy(() -> session.append(0, 1, kv, small)).isInstanceOf(IndexOutOfBoundsException.class)
                    .hasMessageContaining("values");
            assertThatThrownBy(() -> session.append(0, 2, kv, kv)).isInstanceOf(IndexOutOfBoundsException.class);
            assertThatThrownBy(() -> session.append(0, 1, MemorySegment.ofArray(new float[3]), TOKENS.values(0, 1)))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("keys has 12 bytes");
            assertThatThrownBy(() -> session.append(0, -1, kv, kv)).isInstanceOf(IllegalArgumentException.class);
            assertThatThrownBy(() -> session.append(1, 1, kv, kv)).isInstanceOf(IndexOutOfBoundsException.class);
            assertThat(session.length()).isEqualTo(50);
            for (DeviceBuffer[] bad : new DeviceBuffer[][] {{kv.slice(0, 8), kv, kv, q}, {q, small, kv, q},
                {q, kv, small, q}, {q, kv, kv, q.slice(0, 8)}}) {
                assertThatThrownBy(() -> cache.attend(0, batch, bad[0], bad[1], bad[2], bad[3]))
                        .isInstanceOf(IndexOutOfBoundsException.class);
                // The step has begun: it is given up by rewinding, and then the session is as before.
                session.truncate(50);
            }
            cache.attend(0, batch, q, kv, kv, q);
            assertThatThrownBy(() -> cache.attend(0, batch, q, 1, kv, 0, kv, 0, q))
                    .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("stride");
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void layersComeInOrder(boolean shadow) {
        try (KvCache cache = cache(shadow, 3)) {
            KvSession session = filled(cache, 50);
            KvBatch batch = cache.batch(List.of(session));
            int e = cache.inputType().bytes();
            DeviceBuffer q = device.allocate((long) TOKENS.queryWidth * e);
            DeviceBuffer kv = device.allocate((long) TOKENS.keyWidth * e);
            device.fill(q, 0);
            device.fill(kv, 0);
            assertThatThrownBy(() -> cache.attend(1, batch, q, kv, kv, q)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("layer 0 is next");
            cache.attend(0, batch, q, kv, kv, q);
            assertThatThrownBy(() -> cache.attend(0, batch, q, kv, kv, q)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("layer 1 is next");
            assertThatThrownBy(() -> cache.attend(2, batch, q, kv, kv, q)).isInstanceOf(IllegalStateException.class);
            assertThatThrownBy(batch::advance).isInstanceOf(IllegalStateException.class);
            assertThatThrownBy(session::fork).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("not finished");
            KvBatch second = cache.batch(List.of(session));
            assertThatThrownBy(() -> cache.attend(0, second, q, kv, kv, q)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("another batch");
            session.truncate(50);
            cache.attend(0, batch, q, kv, kv, q);
            cache.attend(1, batch, q, kv, kv, q);
            cache.attend(2, batch, q, kv, kv, q);
            assertThat(session.length()).isEqualTo(51);
            batch.advance();
            cache.attend(0, batch, q, kv, kv, q);
            cache.attend(1, batch, q, kv, kv, q);
            cache.attend(2, batch, q, kv, kv, q);
            assertThat(session.length()).isEqualTo(52);
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void sessionsMustBeSealedEquallyFilledAndNotFull(boolean shadow) {
        try (KvCache cache = cache(shadow, 2)) {
            KvSession session = cache.open(60);
            session.append(0, 50, TOKENS.keys(0, 50), TOKENS.values(0, 50));
            KvBatch batch = cache.batch(List.of(session));
            assertThatThrownBy(() -> CacheRunner.step(batch, TOKENS, 50)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("sealed");
            assertThatThrownBy(session::seal).isInstanceOf(IllegalStateException.class).hasMessageContaining("layer 1");
            assertThatThrownBy(session::fork).isInstanceOf(IllegalStateException.class).hasMessageContaining("sealed");
            session.append(1, 50, TOKENS.keys(0, 50), TOKENS.values(0, 50));
            session.seal();
            session.seal();
            assertThatThrownBy(() -> session.append(0, 11, TOKENS.keys(0, 11), TOKENS.values(0, 11)))
                    .isInstanceOf(IllegalStateException.class).hasMessageContaining("50 of 60");
            CacheRunner.decode(session, TOKENS, 50, 60);
            assertThatThrownBy(() -> CacheRunner.step(batch, TOKENS, 60)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("full");
            assertThatThrownBy(() -> session.truncate(61)).isInstanceOf(IllegalArgumentException.class);
            assertThatThrownBy(() -> session.truncate(-1)).isInstanceOf(IllegalArgumentException.class);
            session.truncate(0);
            assertThat(session.length()).isZero();
            CacheRunner.decode(session, TOKENS, 0, 10);
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void poolsThatAreExhaustedSaySo(boolean shadow) {
        try (KvCache cache = cache(shadow, 1)) {
            KvSession a = cache.open(256);
            cache.open(256);
            assertThatThrownBy(() -> cache.open(256)).isInstanceOfSatisfying(ShadowKvException.class, e -> {
                assertThat(e.status()).isIn(Status.OUT_OF_HOST_MEMORY, Status.OUT_OF_DEVICE_MEMORY);
                assertThat(e).hasMessageContaining("256 tokens");
            });
            a.close();
            cache.open(256);
            assertThatThrownBy(() -> cache.open(257)).isInstanceOf(IllegalArgumentException.class);
            assertThatThrownBy(() -> cache.open(0)).isInstanceOf(IllegalArgumentException.class);
            assertThatThrownBy(() -> cache.batch(List.of())).isInstanceOf(IllegalArgumentException.class);
        }
    }

    @Test
    void aSecondThreadIsRefusedWhileACallRuns() throws Exception {
        try (KvCache cache = cache(true, 1)) {
            SessionBase session = (SessionBase) filled(cache, 50);
            CountDownLatch entered = new CountDownLatch(1);
            CountDownLatch done = new CountDownLatch(1);
            Thread other = new Thread(() -> {
                session.enter();
                entered.countDown();
                try {
                    done.await();
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                } finally {
                    session.exit();
                }
            }, "other caller");
            other.start();
            entered.await();
            assertThatThrownBy(() -> session.truncate(40)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("other caller").hasMessageContaining("one caller at a time");
            KvBatch batch = cache.batch(List.of(session));
            assertThatThrownBy(() -> CacheRunner.step(batch, TOKENS, 50)).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("other caller");
            done.countDown();
            other.join();
            session.truncate(40);
        }
    }

    @Test
    void differentSessionsMayBeUsedFromDifferentThreads() throws Exception {
        try (KvCache cache = cache(true, 1)) {
            KvSession[] sessions = {filled(cache, 100), filled(cache, 100)};
            float[][] expected;
            try (KvCache again = cache(true, 1)) {
                expected = CacheRunner.decode(filled(again, 100), TOKENS, 100, 250);
            }
            AtomicReference<Throwable> failure = new AtomicReference<>();
            Thread[] threads = new Thread[2];
            for (int i = 0; i < 2; i++) {
                KvSession session = sessions[i];
                threads[i] = Thread.ofVirtual().start(() -> {
                    try {
                        float[][] actual = CacheRunner.decode(session, TOKENS, 100, 250);
                        for (int t = 0; t < 150; t++) {
                            Compare.same(expected[t], actual[t], "token " + t);
                        }
                    } catch (RuntimeException | AssertionError e) {
                        failure.set(e);
                    }
                });
            }
            for (Thread thread : threads) {
                thread.join();
            }
            assertThat(failure.get()).isNull();
        }
    }

    @Test
    void unsupportedShapesAreRefusedWithTheirLimitsBeforeAnythingIsAllocated() {
        long before = device.allocatedBytes();
        unsupported("budget", b -> b.budget(7));
        unsupported("budget", b -> b.budget(8 * 1025));
        unsupported("rank", b -> b.rank(8));
        unsupported("rank", b -> b.rank(129));
        unsupported("basisReserve", b -> b.basisReserve(97));
        unsupported("basisReserve", b -> b.rank(16).basisReserve(65).coefficientType(ElementType.I8));
        unsupported("chunk", b -> b.chunk(12));
        unsupported("headDim", b -> b.headDim(258));
        unsupported("headDim", b -> b.headDim(65));
        unsupported("keyValueHeads", b -> b.keyValueHeads(33).queryHeads(33));
        unsupported("queryHeads", b -> b.queryHeads(34));
        unsupported("queryHeads", b -> b.queryHeads(3));
        unsupported("window", b -> b.window(36));
        unsupported("slots", b -> b.slots(3));
        unsupported("keepKeys", b -> b.keepKeys(true).slots(0));
        unsupported("keepKeys", b -> b.keepKeys(true).rerank(2).slots(127));
        if (!device.isCpu()) {
            unsupported("keepKeys", b -> b.keepKeys(true).slots(8));
        }
        unsupported("predictDropped", b -> b.predictDropped(true));
        unsupported("predictDropped", b -> b.tail(true).predictDropped(true));
        unsupported("predictDropped", b -> b.rerank(2).tail(false).predictDropped(true));
        unsupported("valueType", b -> b.valueType(ElementType.I8));
        for (ElementType packed : new ElementType[] {ElementType.F12_E4M7, ElementType.F6_E2M3}) {
            unsupported("landmarkType", b -> b.landmarkType(packed));
            unsupported("coefficientType", b -> b.coefficientType(packed));
            unsupported("storageType", b -> b.storageType(packed));
            unsupported("inputType", b -> b.inputType(packed));
            if (!device.isCpu()) {
                unsupported("slots", b -> b.valueType(packed).slots(0));
            }
        }
        unsupported("landmarkType", b -> b.landmarkType(ElementType.F8_E4M3));
        unsupported("coefficientType", b -> b.coefficientType(ElementType.F8_E4M3));
        unsupported("coefficientType", b -> b.coefficientType(ElementType.F16));
        unsupported("storageType", b -> b.storageType(ElementType.I8));
        unsupported("inputType", b -> b.inputType(ElementType.F8_E4M3));
        unsupported("radiusWeight", b -> b.radiusWeight(Float.NaN));
        unsupported("rope", b -> b.rope(Rope.standard(128, 1e4)));
        assertThat(device.allocatedBytes()).isEqualTo(before);
        assertThatThrownBy(() -> ShadowKvCache.builder(device).build()).isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("layers");
    }

    private void unsupported(String name, java.util.function.Consumer<ShadowKvCache.Builder> change) {
        ShadowKvCache.Builder builder = CacheRunner.shape(ShadowKvCache.builder(device), 1, 1, 256).rank(32).budget(64);
        change.accept(builder);
        assertThatThrownBy(builder::build).isInstanceOfSatisfying(ShadowKvException.class, e -> {
            assertThat(e.status()).isEqualTo(Status.UNSUPPORTED);
            assertThat(e).hasMessageContaining(name);
        });
    }

    @Test
    void aPlanThatDoesNotFitIsRefusedWithTheNumbers() {
        ShadowKvCache.Builder builder = CacheRunner.shape(ShadowKvCache.builder(device), 80, 1, 256).rank(32).budget(64)
                .memory(MemoryPlan.of(100_000, 1 << 20).withStaging(1024, 1));
        assertThatThrownBy(builder::build).isInstanceOf(ShadowKvException.class)
                .hasMessageContaining(Long.toString(builder.plan().deviceBytes()
                        + (device.isCpu() ? builder.plan().pinnedBytes() : 0)))
                .hasMessageContaining("100000 sessions of 1048576 tokens");
    }

    @Test
    void savedSessionsOfAnotherShapeOrDamagedAreRefused(@TempDir Path folder) throws Exception {
        Path file = folder.resolve("session");
        try (KvCache cache = cache(true, 1)) {
            filled(cache, 150).save(file);
        }
        try (KvCache other = CacheRunner.shape(ShadowKvCache.builder(device), 1, 2, 256).rank(48).budget(64).outliers(2)
                .tail(true).build()) {
            assertThatThrownBy(() -> other.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("rank 32").hasMessageContaining("48");
        }
        try (KvCache other = CacheRunner.shape(ShadowKvCache.builder(device), 1, 2, 256).rank(32).budget(64).outliers(2)
                .tail(false).build()) {
            assertThatThrownBy(() -> other.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("it was saved with tail true, this cache has false");
        }
        try (KvCache other = CacheRunner.shape(ShadowKvCache.builder(device), 1, 2, 256).rank(32).budget(64).outliers(2)
                .tail(true).coefficientType(ElementType.I8).build()) {
            assertThatThrownBy(() -> other.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("it was saved with coefficientType " + device.defaultType() + ", this cache has I8");
        }
        try (KvCache dense = cache(false, 1)) {
            assertThatThrownBy(() ->
                    dense.load(file)).isInstanceOf(ShadowKvException.class).hasMessageContaining("cache");
        }
        try (KvCache cache = cache(true, 1)) {
            byte[] content = Files.readAllBytes(file);
            long size = content.length;
            try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
                channel.write(ByteBuffer.wrap(new byte[] {(byte) (content[(int) size / 2] ^ 1)}), size / 2);
            }
            assertThatThrownBy(() -> cache.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("damaged");
            Files.write(file, java.util.Arrays.copyOf(content, (int) size - 100));
            assertThatThrownBy(() -> cache.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("truncated");
            byte[] older = content.clone();
            // The format follows the eight bytes that say what the file is.
            older[8]--;
            Files.write(file, older);
            assertThatThrownBy(() -> cache.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("it has format 4, this library reads format 5");
            Files.writeString(file, "something else entirely");
            assertThatThrownBy(() -> cache.load(file)).isInstanceOf(ShadowKvException.class)
                    .hasMessageContaining("not a saved session");
            // The refused ones have given their memory back.
            cache.open(256);
            cache.open(256);
        }
    }

    @Test
    void buffersKeepTheirBounds() {
        DeviceBuffer buffer = device.allocate(100);
        assertThatThrownBy(() -> buffer.slice(90, 11)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> buffer.slice(-1, 1)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> device.copy(MemorySegment.ofArray(new byte[101]), buffer))
                .isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> device.copy(buffer, MemorySegment.ofArray(new byte[101])))
                .isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> device.copy(buffer, MemorySegment.ofArray(new byte[10]).asReadOnly()))
                .isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> device.allocate(0)).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> DeviceBuffer.ofAddress(device, 0, 10)).isInstanceOf(IllegalArgumentException.class);
        if (device.isCpu()) {
            assertThat(buffer.asSegment().byteSize()).isEqualTo(100);
        } else {
            assertThatThrownBy(buffer::asSegment).isInstanceOf(UnsupportedOperationException.class);
        }
        byte[] bytes = new byte[100];
        random.nextBytes(bytes);
        device.copy(MemorySegment.ofArray(bytes), buffer);
        byte[] back = new byte[100];
        device.copy(buffer, MemorySegment.ofArray(back));
        assertThat(back).isEqualTo(bytes);
        device.fill(buffer.slice(10, 5), 7);
        device.copy(buffer, MemorySegment.ofArray(back));
        java.util.Arrays.fill(bytes, 10, 15, (byte) 7);
        assertThat(back).isEqualTo(bytes);
    }
}
