package dev.shadowkv.llm;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.Device;
import dev.shadowkv.ElementType;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import java.io.IOException;
import java.util.Optional;
import java.util.OptionalInt;
import org.junit.jupiter.api.Test;

class CacheOptionsTest {
    private static final int CAPACITY = 1024;

    private static CacheOptions withValues(Optional<ElementType> type) {
        return new CacheOptions(
                CacheKind.SHADOW, OptionalInt.of(32), 64, 8, OptionalInt.empty(), 0.5f, 4, Optional.empty(), Optional.empty(),
                Optional.empty(), type, Optional.empty(), Optional.empty());
    }

    private static long pinnedBytes(Device device, ModelConfig config, Optional<ElementType> type) {
        return withValues(type)
                .builder(device, config, MemoryPlan.of(1, CAPACITY), CAPACITY)
                .plan()
                .sessionPinnedBytes();
    }

    @Test
    void valuesOfACacheOnAGpuHaveTwelveBitsUnlessOthersAreWished() throws IOException {
        try (Device device = TestDevice.open();
                Checkpoint checkpoint = Checkpoint.open(Golden.folder("llama-3.1"))) {
            ModelConfig config = checkpoint.config();
            ElementType stored = device.defaultType();
            assertThat(withValues(Optional.empty()).valueTypeOn(device))
                    .isEqualTo(TestDevice.CUDA ? ElementType.F12_E4M7 : stored);
            assertThat(withValues(Optional.of(stored)).valueTypeOn(device)).isEqualTo(stored);

            long wished = pinnedBytes(device, config, Optional.of(stored));
            assertThat(pinnedBytes(device, config, Optional.empty())).isEqualTo(TestDevice.CUDA ? wished / 4 * 3 : wished);
        }
    }
}
