package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Random;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

import dev.shadowkv.kernels.CacheKernels;
import dev.shadowkv.kernels.DecodeKernels;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.SessionStates;
import dev.shadowkv.kernels.ShadowLayer;
import dev.shadowkv.kernels.ShadowLayers;

/** Packed values: every code, as Java reads them and as slots get them, and how far stored values are from what they were. */
class PackedChunkTest {

    private static final Random random = TestDevice.random(PackedChunkTest.class);

    /** Numbers in the order of the codes of positive ones: steps of a size that doubles when the mantissa is full. */
    private static double[] numbers(int exponentBits, int mantissaBits) {
        double[] result = new double[1 << exponentBits + mantissaBits];
        // Of subnormal numbers and of those of the first exponent; the bias is 7.
        double step = Math.scalb(1.0, -6 - mantissaBits);
        for (int code = 1; code < result.length; code++) {
            result[code] = result[code - 1] + step;
            if (code % (1 << mantissaBits) == 0 && code >> mantissaBits > 1) {
                step *= 2;
                result[code] = result[code - 1] + step / 2;
            }
        }
        return result;
    }

    private static double[] numbers(ElementType type) {
        return type == ElementType.F12_E4M7 ? numbers(4, 7) : numbers(2, 3);
    }

    private static int codes(ElementType type) {
        return 2 * numbers(type).length;
    }

    private static double number(ElementType type, int code) {
        double[] numbers = numbers(type);
        return code < numbers.length ? numbers[code] : -numbers[code - numbers.length];
    }

    /** As the comment on the element types in the library's header says it. */
    private static byte[] pack(ElementType type, int[] codes) {
        int n = codes.length;
        byte[] bytes = new byte[Math.toIntExact(type.bytes(n))];
        for (int i = 0; i < n; i++) {
            if (type == ElementType.F12_E4M7) {
                bytes[i] = (byte) codes[i];
                bytes[n + i % (n / 2)] |= (byte) (codes[i] >> 8 << (i < n / 2 ? 0 : 4));
            } else {
                bytes[i % (n / 2)] |= (byte) ((codes[i] & 15) << (i < n / 2 ? 0 : 4));
                bytes[n / 2 + i % (n / 4)] |= (byte) (codes[i] >> 4 << 2 * (i / (n / 4)));
            }
        }
        return bytes;
    }

    @Test
    void codesByHand() {
        assertThat(PackedChunk.f12(0x380)).isEqualTo(1f);
        assertThat(PackedChunk.f12(0xb80)).isEqualTo(-1f);
        assertThat(PackedChunk.f12(0x3c0)).isEqualTo(1.5f);
        assertThat(PackedChunk.f12(0x7ff)).isEqualTo(510f);
        assertThat(PackedChunk.f12(0x001)).isEqualTo(0x1p-13f);
        assertThat(PackedChunk.f12(0x07f)).isEqualTo(127 * 0x1p-13f);
        assertThat(PackedChunk.f12(0x080)).isEqualTo(0x1p-6f);
        assertThat(Float.floatToRawIntBits(PackedChunk.f12(0x800))).isEqualTo(0x80000000);
        assertThat(PackedChunk.f6(0x1f)).isEqualTo(7.5f / 64);
        assertThat(PackedChunk.f6(0x3f)).isEqualTo(-7.5f / 64);
        assertThat(PackedChunk.f6(0x01)).isEqualTo(0x1p-9f);
        assertThat(PackedChunk.f6(0x08)).isEqualTo(0x1p-6f);
        assertThat(PackedChunk.f6(0x2c)).isEqualTo(-1.5f * 0x1p-6f);
        assertThat(Float.floatToRawIntBits(PackedChunk.f6(0x20))).isEqualTo(0x80000000);
    }

    @Test
    void bytesByHand() {
        // Codes 0x123, 0xabc, 0x7ff, 0x880: low bytes, then the upper halves of elements 0 and 2, 1 and 3.
        byte[] twelve = {0x23, (byte) 0xbc, (byte) 0xff, (byte) 0x80, 0x71, (byte) 0x8a};
        int[] codes = {0x123, 0xabc, 0x7ff, 0x880};
        for (int i = 0; i < 4; i++) {
            assertThat(PackedChunk.toFloat(MemorySegment.ofArray(twelve), ElementType.F12_E4M7, 0, 4, i))
                    .isEqualTo(PackedChunk.f12(codes[i]));
        }
        // Codes 0b01_0101, 0b10_0011, 0b11_1111, 0b00_1000: lower halves of elements 0 and 2, 1 and 3; then all upper bits.
        byte[] six = {(byte) 0xf5, (byte) 0x83, 0b00_11_10_01};
        int[] few = {0b01_0101, 0b10_0011, 0b11_1111, 0b00_1000};
        for (int i = 0; i < 4; i++) {
            assertThat(PackedChunk.toFloat(MemorySegment.ofArray(six), ElementType.F6_E2M3, 0, 4, i))
                    .isEqualTo(PackedChunk.f6(few[i]));
        }
        assertThatThrownBy(() -> PackedChunk.toFloat(MemorySegment.ofArray(six), ElementType.F8_E4M3, 0, 3, 0))
                .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("F8_E4M3");
        assertThatThrownBy(() -> Elements.toFloat(MemorySegment.ofArray(six), ElementType.F6_E2M3, 0))
                .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("packed");
    }

    /** A chunk of 4096 elements has all codes, in any order; behind one of other codes, at which nobody looks. */
    @ParameterizedTest
    @EnumSource(value = ElementType.class, names = {"F12_E4M7", "F6_E2M3"})
    void everyCodeIsRead(ElementType type) {
        int[] codes = allCodes(type, 4096);
        byte[] both = new byte[Math.toIntExact(type.bytes(2 * 4096))];
        random.nextBytes(both);
        System.arraycopy(pack(type, codes), 0, both, both.length / 2, both.length / 2);
        MemorySegment chunks = MemorySegment.ofArray(both);
        for (int i = 0; i < codes.length; i++) {
            float read = PackedChunk.toFloat(chunks, type, 1, codes.length, i);
            assertThat((double) read).as("code %s", codes[i]).isEqualTo(number(type, codes[i]));
        }
    }

    private static int[] allCodes(ElementType type, int count) {
        int[] codes = new int[count];
        for (int i = 0; i < count; i++) {
            codes[i] = i % codes(type);
            int other = random.nextInt(i + 1);
            int swapped = codes[other];
            codes[other] = codes[i];
            codes[i] = swapped;
        }
        return codes;
    }

    /** The kernels read what Java reads: all codes through a slot. */
    @ParameterizedTest
    @CsvSource({"F12_E4M7, 1", "F12_E4M7, 0x1p-37", "F12_E4M7, 0x1p60", "F6_E2M3, 3.7"})
    void everyCodeIsUnpackedIntoSlots(ElementType type, float scale) {
        int[] codes = allCodes(type, 16 * 256);
        Geometry g = new Geometry(1, 1, 256, 16, 16, ElementType.BF16, type, ElementType.BF16,
                ElementType.BF16, 16, 1);
        ElementType slotType = type.unpacked();
        try (Device device = TestDevice.open(); PinnedArena pinned = device.newPinnedArena();
             ShadowLayers layers = new ShadowLayers(device, g, 1); Arena arena = Arena.ofConfined()) {
            DeviceBuffer any = device.allocate(2L * 2 * 16 * 256);
            MemorySegment values = pinned.allocate(type.bytes(2 * codes.length), 64);
            MemorySegment.copy(MemorySegment.ofArray(pack(type, codes)), 0, values, values.byteSize() / 2, values.byteSize() / 2);
            DeviceBuffer scales = floats(device, Float.NaN, scale);
            DeviceBuffer slot = device.allocate(slotType.bytes(codes.length));
            layers.set(0, new ShadowLayer(any, any, any, null, any, null, null, any, any, values, scales, slot, integers(device, -1),
                    integers(device, 0), null, null, null, 2, 0));
            layers.upload();
            new DecodeKernels(device).valueGather(g, 1, layers, 0, 1, integers(device, 1), integers(device, 0), integers(device, 1), 0);
            MemorySegment host = arena.allocate(slot.byteSize(), 64);
            device.copy(slot, host);
            for (int i = 0; i < codes.length; i++) {
                double number = number(type, codes[i]);
                assertThat((double) Elements.toFloat(host, slotType, i)).as("code %s", codes[i])
                        .isEqualTo(type == ElementType.F12_E4M7 ? number * scale : number);
            }
        }
    }

    private static DeviceBuffer floats(Device device, float... numbers) {
        DeviceBuffer buffer = device.allocate(4L * numbers.length);
        device.copy(MemorySegment.ofArray(numbers), buffer);
        return buffer;
    }

    private static DeviceBuffer integers(Device device, int... numbers) {
        DeviceBuffer buffer = device.allocate(4L * numbers.length);
        device.copy(MemorySegment.ofArray(numbers), buffer);
        return buffer;
    }

    /** Scales as they are defined, and numbers of which no other is nearer. */
    @ParameterizedTest
    @CsvSource({"F12_E4M7, 8, 64", "F12_E4M7, 16, 34", "F6_E2M3, 8, 64", "F6_E2M3, 16, 34"})
    void whatIsStoredIsNearest(ElementType type, int chunk, int headDim) {
        int heads = 2;
        int chunks = 9;
        int size = chunk * headDim;
        int tokens = chunks * chunk;
        try (Device device = TestDevice.open(); PinnedArena pinned = device.newPinnedArena(); Arena arena = Arena.ofConfined()) {
            MemorySegment source = arena.allocate(2L * heads * tokens * headDim, 64);
            for (int i = 0; i < heads * chunks * size; i++) {
                // Chunks of any size, in each of them some values that are much smaller than others; one of zeros.
                int at = i / size;
                float value = at == 3 ? 0 : (float) Math.scalb(random.nextGaussian(), at - 9 - 3 * random.nextInt(8));
                Elements.set(source, ElementType.BF16, i, value);
            }
            DeviceBuffer ring = device.allocate(source.byteSize());
            device.copy(source, ring);
            MemorySegment values = pinned.allocate(type.bytes((long) heads * chunks * size), 64);
            DeviceBuffer scales = device.allocate(4L * heads * chunks);
            new CacheKernels(device).valueStore(new Ring(ring, ElementType.BF16, tokens), heads, headDim, chunk, 0, chunks, values,
                    type, scales, chunks);
            device.synchronize();
            float[] scale = Scratch.floats(scales, heads * chunks);
            double[] numbers = numbers(type);
            for (int at = 0; at < heads * chunks; at++) {
                float largest = 0;
                for (int i = 0; i < size; i++) {
                    largest = Math.max(largest, Math.abs(Elements.toFloat(source, ElementType.BF16, (long) at * size + i)));
                }
                if (largest > 0) {
                    double expected = type == ElementType.F12_E4M7 ? Math.scalb(1.0, Math.getExponent(largest) - 8) : largest / (7.5 / 64);
                    assertThat(scale[at] / expected).as("scale of chunk %s", at).isBetween(1 - 0x1p-23, 1 + 0x1p-23);
                }
                for (int i = 0; i < size; i++) {
                    double value = Elements.toFloat(source, ElementType.BF16, (long) at * size + i);
                    double stored = (double) PackedChunk.toFloat(values, type, at, size, i) * scale[at];
                    // The quotient by a scale that is no power of two is rounded, which may decide near the middle of two numbers.
                    double slack = type == ElementType.F12_E4M7 ? 0 : 0x1p-22 * Math.abs(value);
                    assertThat(Math.abs(value - stored)).as("chunk %s, element %s: %s, %s", at, i, value, stored)
                            .isLessThanOrEqualTo(nearest(numbers, Math.abs(value), scale[at]) + slack);
                    if (type == ElementType.F12_E4M7 && Math.abs(value) >= Math.scalb(1.0, Math.getExponent(largest) - 14)) {
                        assertThat(stored).as("chunk %s, element %s", at, i).isEqualTo(value);
                    }
                }
            }
        }
    }

    /** By what is touched: packed host memory, which has to be aligned, slots of what it is unpacked to, and scales. */
    @ParameterizedTest
    @EnumSource(value = ElementType.class, names = {"F12_E4M7", "F6_E2M3"})
    void whatIsTooSmallOrNotAlignedIsRefused(ElementType type) {
        int elements = 16 * 256;
        Geometry g = new Geometry(1, 1, 256, 16, 16, ElementType.BF16, type, ElementType.BF16,
                ElementType.BF16, 16, 1);
        try (Device device = TestDevice.open(); PinnedArena pinned = device.newPinnedArena();
             ShadowLayers layers = new ShadowLayers(device, g, 1)) {
            DeviceBuffer any = device.allocate(2L * 2 * elements);
            MemorySegment memory = pinned.allocate(type.bytes(2 * elements) + 16, 64);
            MemorySegment values = memory.asSlice(0, memory.byteSize() - 16);
            MemorySegment misaligned = memory.asSlice(8, values.byteSize());
            DeviceBuffer slot = device.allocate(type.unpacked().bytes(elements));
            layers.set(0, layer(any, values, any, slot));
            assertThatThrownBy(() -> layers.set(0, layer(any, values.asSlice(1), any, slot)))
                    .isInstanceOf(IndexOutOfBoundsException.class)
                    .hasMessage("values has " + (values.byteSize() - 1) + " bytes, but " + values.byteSize() + " will be touched");
            assertThatThrownBy(() -> layers.set(0, layer(any, misaligned, any, slot)))
                    .isInstanceOf(IllegalArgumentException.class).hasMessage("values must be aligned to 16 bytes");
            assertThatThrownBy(() -> layers.set(0, layer(any, values, any, slot.slice(1))))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("slotValues has");
            assertThatThrownBy(() -> layers.set(0, layer(any, values, null, slot))).isInstanceOf(NullPointerException.class)
                    .hasMessage("valueScales");
            CacheKernels kernels = new CacheKernels(device);
            Ring ring = new Ring(any, ElementType.BF16, 2 * 16);
            assertThatThrownBy(() -> kernels.valueStore(ring, 1, 256, 16, 0, 2, values.asSlice(1), type, any, 2))
                    .isInstanceOf(IndexOutOfBoundsException.class).hasMessageContaining("values has");
            assertThatThrownBy(() -> kernels.valueStore(ring, 1, 256, 16, 0, 2, misaligned, type, any, 2))
                    .isInstanceOf(IllegalArgumentException.class).hasMessage("values must be aligned to 16 bytes");
            assertThatThrownBy(() -> kernels.valueStore(ring, 1, 256, 16, 0, 2, values, type, null, 2))
                    .isInstanceOf(ShadowKvException.class).hasMessageContaining("value_scales");
            kernels.valueStore(ring, 1, 256, 16, 0, 2, values, type, any.slice(0, 8), 2);
        }
    }

    private static ShadowLayer layer(DeviceBuffer any, MemorySegment values, DeviceBuffer scales, DeviceBuffer slot) {
        return new ShadowLayer(any, any, any, null, any, null, null, any, any, values, scales, slot, any, any, null, null, null, 2,
                0);
    }

    private static double nearest(double[] numbers, double magnitude, double scale) {
        double least = Double.POSITIVE_INFINITY;
        for (double number : numbers) {
            least = Math.min(least, Math.abs(magnitude - number * scale));
        }
        return least;
    }
}
