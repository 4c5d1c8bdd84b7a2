package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.util.Random;

import org.junit.jupiter.api.Test;

import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.TransformerKernels;

/** Frequencies against the published formulas, written down once more here, and tables against cosines and sines. */
class RopeTest {

    private static final Random random = TestDevice.random(RopeTest.class);

    @Test
    void standardFrequenciesArePowersOfTheta() {
        double[] f = Rope.standard(128, 500_000).inverseFrequencies();
        assertThat(f).hasSize(64);
        for (int i = 0; i < 64; i++) {
            assertThat(f[i]).isCloseTo(1 / Math.pow(500_000, 2.0 * i / 128), within(1e-15));
        }
    }

    @Test
    void linearDividesByTheFactor() {
        double[] f = Rope.linear(64, 10_000, 4).inverseFrequencies();
        for (int i = 0; i < 32; i++) {
            assertThat(f[i]).isCloseTo(Math.pow(10_000, -i / 32.0) / 4, within(1e-15));
        }
    }

    @Test
    void llama3KeepsShortBlendsMiddleDividesLongWavelengths() {
        double factor = 8;
        double low = 1;
        double high = 4;
        double context = 8192;
        double[] f = Rope.llama3(128, 500_000, factor, low, high, context).inverseFrequencies();
        int kept = 0;
        int divided = 0;
        for (int i = 0; i < 64; i++) {
            double base = Math.pow(500_000, -i / 64.0);
            double wavelength = 2 * Math.PI / base;
            double expected;
            if (wavelength < context / high) {
                expected = base;
                kept++;
            } else if (wavelength > context / low) {
                expected = base / factor;
                divided++;
            } else {
                double smooth = (context / wavelength - low) / (high - low);
                expected = (1 - smooth) * base / factor + smooth * base;
            }
            assertThat(f[i]).isCloseTo(expected, within(1e-14 * expected));
        }
        assertThat(kept).isPositive();
        assertThat(divided).isPositive();
        assertThat(kept + divided).isLessThan(64);
    }

    @Test
    void yarnRampsBetweenItsBounds() {
        double theta = 10_000;
        double factor = 16;
        double context = 4096;
        int dim = 128;
        Rope rope = Rope.yarn(dim, theta, factor, context);
        double low = Math.floor(dim * Math.log(context / (32 * 2 * Math.PI)) / (2 * Math.log(theta)));
        double high = Math.ceil(dim * Math.log(context / (1 * 2 * Math.PI)) / (2 * Math.log(theta)));
        double[] f = rope.inverseFrequencies();
        for (int i = 0; i < dim / 2; i++) {
            double base = Math.pow(theta, -2.0 * i / dim);
            double ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
            double expected = base / factor * ramp + base * (1 - ramp);
            assertThat(f[i]).isCloseTo(expected, within(1e-14 * expected));
        }
        assertThat(rope.scale()).isCloseTo(0.1 * Math.log(16) + 1, within(1e-15));
    }

    @Test
    void longropeDividesEachFrequencyAndScales() {
        double[] factors = random.doubles(48, 1, 60).toArray();
        double scale = Rope.longRopeScale(131_072, 4096);
        assertThat(scale).isCloseTo(Math.sqrt(1 + Math.log(32) / Math.log(4096)), within(1e-15));
        Rope rope = Rope.longrope(96, 10_000, factors, scale);
        double[] f = rope.inverseFrequencies();
        for (int i = 0; i < 48; i++) {
            double expected = 1 / (factors[i] * Math.pow(10_000, 2.0 * i / 96));
            assertThat(f[i]).isCloseTo(expected, within(1e-14 * expected));
        }
        assertThat(rope.scale()).isEqualTo(scale);
        assertThat(Rope.longRopeScale(4096, 4096)).isEqualTo(1);
    }

    @Test
    void tablesRotateLikeTheDefinitionUpToAMillionPositions() {
        double[] factors = random.doubles(24, 1, 8).toArray();
        Rope[] ropes = {Rope.standard(64, 500_000), Rope.standard(64, 10_000).interleaved(), Rope.standard(32, 10_000),
            Rope.llama3(64, 500_000, 8, 1, 4, 8192), Rope.yarn(64, 10_000, 16, 4096),
            Rope.longrope(48, 10_000, factors, Rope.longRopeScale(131_072, 4096)).interleaved()};
        try (Device device = TestDevice.open()) {
            TransformerKernels kernels = new TransformerKernels(device);
            for (Rope rope : ropes) {
                try (RopeTable table = new RopeTable(device, rope, 1 << 20); DeviceArena arena = device.newArena()) {
                    int heads = 3;
                    int headDim = 64;
                    float[] input = new float[5 * heads * headDim];
                    for (int i = 0; i < input.length; i++) {
                        input[i] = (float) random.nextGaussian();
                    }
                    long first = 1_000_000 + random.nextInt(40_000);
                    DeviceBuffer buffer = arena.allocate(4L * input.length);
                    device.copy(MemorySegment.ofArray(input), buffer);
                    Rows rows = Rows.of(buffer, ElementType.F32);
                    kernels.rope(rows, rows, 5, heads, headDim, first, null, 0, table, false);
                    float[] output = new float[input.length];
                    device.copy(buffer, MemorySegment.ofArray(output));
                    compare(rope, input, output, heads, headDim, first);

                    kernels.rope(rows, rows, 5, heads, headDim, first, null, 0, table, true);
                    float[] back = new float[input.length];
                    device.copy(buffer, MemorySegment.ofArray(back));
                    for (int i = 0; i < input.length; i++) {
                        assertThat(back[i]).isCloseTo(input[i], within(16f * 0x1p-24f * (1 + Math.abs(input[i]) * 8)));
                    }
                }
            }
        }
    }

    private static void compare(Rope rope, float[] input, float[] output, int heads, int headDim, long first) {
        boolean interleaved = rope.pairing() == Rope.Pairing.INTERLEAVED;
        for (int t = 0; t < 5; t++) {
            for (int h = 0; h < heads; h++) {
                double[] head = Oracle.head(input, heads * headDim, t, h, headDim);
                double[] expected = Oracle.rotate(head, rope.inverseFrequencies(), interleaved, rope.scale(),
                        first + t);
                double[] actual = Oracle.head(output, heads * headDim, t, h, headDim);
                for (int d = 0; d < headDim; d++) {
                    // Two roundings of the tables, their product, the rotation; times the pair's length and the scale.
                    assertThat(actual[d]).isCloseTo(expected[d], within(8 * 0x1p-24 * rope.scale() * 8));
                }
            }
        }
    }

    @Test
    void headsMayLieApart() {
        int heads = 3;
        int headDim = 64;
        int capacity = 9;
        float[] input = new float[heads * capacity * headDim];
        for (int i = 0; i < input.length; i++) {
            input[i] = (float) random.nextGaussian();
        }
        // The second to sixth token of every head.
        float[] together = new float[5 * heads * headDim];
        for (int t = 0; t < 5; t++) {
            for (int h = 0; h < heads; h++) {
                System.arraycopy(input, (h * capacity + 1 + t) * headDim, together, (t * heads + h) * headDim, headDim);
            }
        }
        Rope rope = Rope.standard(64, 10_000);
        try (Device device = TestDevice.open(); RopeTable table = new RopeTable(device, rope, 5000);
             DeviceArena arena = device.newArena()) {
            DeviceBuffer ring = arena.allocate(4L * input.length);
            DeviceBuffer out = arena.allocate(4L * together.length);
            device.copy(MemorySegment.ofArray(input), ring);
            TransformerKernels kernels = new TransformerKernels(device);
            Rows second = new Rows(ring.slice(4L * headDim), ElementType.F32, headDim);
            Rows rows = Rows.of(out, ElementType.F32);
            kernels.rope(second, (long) capacity * headDim, rows, 5, heads, headDim, 321, null, 0, table, false);
            float[] output = new float[together.length];
            device.copy(out, MemorySegment.ofArray(output));
            compare(rope, together, output, heads, headDim, 321);
            // One token more than the last head has.
            assertThatThrownBy(() -> kernels.rope(second, (long) capacity * headDim, rows, 9, heads, headDim, 0, null, 0,
                    table, false)).isInstanceOf(IndexOutOfBoundsException.class);
        }
    }

    @Test
    void positionsMayBeGivenAsData() {
        try (Device device = TestDevice.open(); RopeTable table = new RopeTable(device, Rope.standard(64, 1e4), 5000)) {
            DeviceBuffer buffer = device.allocate(4 * 64 * 3);
            DeviceBuffer positions = device.allocate(8 * 3);
            float[] input = new float[3 * 64];
            for (int i = 0; i < input.length; i++) {
                input[i] = (float) random.nextGaussian();
            }
            long[] at = {4999, 0, 17};
            device.copy(MemorySegment.ofArray(input), buffer);
            device.copy(MemorySegment.ofArray(at), positions);
            Rows rows = Rows.of(buffer, ElementType.F32);
            new TransformerKernels(device).rope(rows, rows, 3, 1, 64, 0, positions, 4999, table, false);
            float[] output = new float[input.length];
            device.copy(buffer, MemorySegment.ofArray(output));
            for (int t = 0; t < 3; t++) {
                double[] expected = Oracle.rotate(Oracle.head(input, 64, t, 0, 64), table.rope().inverseFrequencies(),
                        false, 1, at[t]);
                for (int d = 0; d < 64; d++) {
                    assertThat((double) output[t * 64 + d]).isCloseTo(expected[d], within(64 * 0x1p-24));
                }
            }
        }
    }

    @Test
    void badArgumentsAreNamed() {
        assertThatThrownBy(() -> Rope.standard(63, 1e4)).isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("rotaryDim").hasMessageContaining("63");
        assertThatThrownBy(() -> Rope.standard(64, 0)).isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("theta");
        assertThatThrownBy(() -> Rope.llama3(64, 1e4, 8, 4, 4, 8192)).hasMessageContaining("highFrequencyFactor");
        assertThatThrownBy(() -> Rope.longrope(64, 1e4, new double[31], 1)).hasMessageContaining("factors");
        assertThatThrownBy(() -> Rope.halfSplit(new double[] {Double.NaN})).hasMessageContaining("finite");
    }
}
