package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.io.IOException;
import org.junit.jupiter.api.Test;

class CacheOptionsTest {
    private static final int CAPACITY = 1024;

    private static final CacheOptions USUAL = CacheOptions.shadow(64).toBuilder().rank(32).build();

    private static long pinnedBytes(Device device, ModelConfig config, CacheOptions options) {
        return options.builder(device, config, MemoryPlan.of(1, CAPACITY), CAPACITY)
                .plan()
                .sessionPinnedBytes();
    }

    @Test
    void valuesOfACacheOnAGpuHaveTwelveBitsUnlessOthersAreWished() throws IOException {
        try (Device device = TestDevice.open();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("llama-3.1"))) {
            ModelConfig config = checkpoint.config();
            ElementType stored = device.defaultType();
            CacheOptions asStored = USUAL.toBuilder().valueType(stored).build();
            assertThat(USUAL.valueTypeOn(device)).isEqualTo(TestDevice.CUDA ? ElementType.F12_E4M7 : stored);
            assertThat(asStored.valueTypeOn(device)).isEqualTo(stored);

            long wished = pinnedBytes(device, config, asStored);
            assertThat(pinnedBytes(device, config, USUAL)).isEqualTo(TestDevice.CUDA ? wished / 4 * 3 : wished);
        }
    }

    @Test
    void coefficientsAreAsStoredUnlessEightBitsAreWished() throws IOException {
        try (Device device = TestDevice.open();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("llama-3.1"))) {
            ModelConfig config = checkpoint.config();
            CacheOptions eight = USUAL.toBuilder().coefficientType(ElementType.I8).build();
            assertThat(USUAL.coefficientTypeOn(device)).isEqualTo(device.defaultType());
            assertThat(eight.coefficientTypeOn(device)).isEqualTo(ElementType.I8);
            assertThat(eight.toBuilder().build()).isEqualTo(eight);
            MemoryPlan memory = MemoryPlan.of(1, CAPACITY);
            long stored = USUAL.builder(device, config, memory, CAPACITY).plan().sessionDeviceBytes();
            long fewer = eight.builder(device, config, memory, CAPACITY).plan().sessionDeviceBytes();
            // The scales of a layer take 256 bytes, as everything that is allocated is rounded up to.
            long saved = (long) CAPACITY * 32 * (device.defaultType().bytes() - 1) - 256;
            assertThat(stored - fewer).isEqualTo(config.layers() * saved);
        }
    }
}
