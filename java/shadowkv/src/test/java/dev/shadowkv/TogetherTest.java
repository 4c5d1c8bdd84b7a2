package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.util.Random;

import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

import dev.shadowkv.kernels.TransformerKernels;

/** Operations that a device keeps back and then does together. */
class TogetherTest {

    /** More than one launch takes. */
    private static final int CALLS = 37;
    private static final Random random = TestDevice.random(TogetherTest.class);

    private final float[][] left = new float[CALLS][], right = new float[CALLS][];
    private final DeviceBuffer[] a = new DeviceBuffer[CALLS], b = new DeviceBuffer[CALLS], sum = new DeviceBuffer[CALLS];
    private Device device;
    private TransformerKernels kernels;

    @BeforeEach
    void open() {
        device = TestDevice.open();
        kernels = new TransformerKernels(device);
        for (int i = 0; i < CALLS; i++) {
            int count = 1 + random.nextInt(500);
            left[i] = numbers(count);
            right[i] = numbers(count);
            a[i] = onDevice(left[i]);
            b[i] = onDevice(right[i]);
            sum[i] = onDevice(new float[count]);
        }
    }

    @AfterEach
    void close() {
        device.close();
    }

    private static float[] numbers(int count) {
        float[] numbers = new float[count];
        for (int i = 0; i < count; i++) {
            numbers[i] = random.nextFloat() - 0.5f;
        }
        return numbers;
    }

    private DeviceBuffer onDevice(float[] numbers) {
        DeviceBuffer buffer = device.allocate(4L * numbers.length);
        device.copy(MemorySegment.ofArray(numbers), buffer);
        return buffer;
    }

    private float[] sum(int call) {
        float[] result = new float[left[call].length];
        device.copy(sum[call], MemorySegment.ofArray(result));
        return result;
    }

    private void add(int call, DeviceBuffer to) {
        kernels.add(a[call], b[call], to, ElementType.F32, left[call].length);
    }

    /** Twice, since the device keeps the memory for what it keeps back. */
    @Test
    void doesWhatOneByOneDoes() {
        for (int round = 0; round < 2; round++) {
            int first = round;
            device.together(() -> {
                for (int call = first; call < CALLS; call += 2) {
                    add(call, sum[call]);
                }
            });
        }
        for (int call = 0; call < CALLS; call++) {
            float[] actual = sum(call);
            for (int i = 0; i < actual.length; i++) {
                assertThat(actual[i]).isEqualTo(left[call][i] + right[call][i]);
            }
        }
    }

    /** What is asked for call by call is done kind by kind: all sums are there before the first is rounded. */
    @Test
    void doesKindsInTheOrderOfTheirFirst() {
        DeviceBuffer[] rounded = new DeviceBuffer[CALLS], back = new DeviceBuffer[CALLS];
        device.together(() -> {
            for (int call = 0; call < CALLS; call++) {
                int count = left[call].length;
                rounded[call] = device.allocate(2L * count);
                add(call, sum[call]);
                kernels.convert(sum[call], ElementType.F32, rounded[call], ElementType.BF16, count);
            }
        });
        for (int call = 0; call < CALLS; call++) {
            int count = left[call].length;
            back[call] = device.allocate(4L * count);
            kernels.convert(rounded[call], ElementType.BF16, back[call], ElementType.F32, count);
            float[] actual = new float[count];
            device.copy(back[call], MemorySegment.ofArray(actual));
            for (int i = 0; i < count; i++) {
                float exact = left[call][i] + right[call][i];
                assertThat(actual[i]).isCloseTo(exact, within(Math.abs(exact) * 0x1p-8f));
            }
        }
    }

    @Test
    void doesNothingWhenTheWorkThrows() {
        assertThatThrownBy(() -> device.together(() -> {
            add(0, sum[0]);
            add(1, a[1].slice(0, 0));
        })).isInstanceOf(IndexOutOfBoundsException.class);
        assertThat(sum(0)).containsOnly(0f);
        add(0, sum[0]);
        assertThat(sum(0)[0]).isEqualTo(left[0][0] + right[0][0]);
    }

    @Test
    void isNotNested() {
        assertThatIllegalStateException().isThrownBy(() -> device.together(() -> device.together(() -> add(0, sum[0]))));
        add(0, sum[0]);
        assertThat(sum(0)[0]).isEqualTo(left[0][0] + right[0][0]);
    }
}
