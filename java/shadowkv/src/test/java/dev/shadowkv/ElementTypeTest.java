package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

import dev.shadowkv.internal.ffi.ShadowKv;

class ElementTypeTest {

    @Test
    void codesAreTheLibrarys() {
        assertThat(ElementType.F32.code()).isEqualTo(ShadowKv.SKV_F32());
        assertThat(ElementType.BF16.code()).isEqualTo(ShadowKv.SKV_BF16());
        assertThat(ElementType.F16.code()).isEqualTo(ShadowKv.SKV_F16());
        assertThat(ElementType.F8_E4M3.code()).isEqualTo(ShadowKv.SKV_F8_E4M3());
        assertThat(ElementType.I8.code()).isEqualTo(ShadowKv.SKV_I8());
        assertThat(ElementType.F12_E4M7.code()).isEqualTo(ShadowKv.SKV_F12_E4M7());
        assertThat(ElementType.F6_E2M3.code()).isEqualTo(ShadowKv.SKV_F6_E2M3());
    }

    @ParameterizedTest
    @CsvSource({"F32, 4096", "BF16, 2048", "F16, 2048", "F8_E4M3, 1024", "I8, 1024", "F12_E4M7, 1536", "F6_E2M3, 768"})
    void bytesOfAChunk(ElementType type, long bytes) {
        assertThat(type.bytes(8 * 128)).isEqualTo(bytes);
        assertThat(type.bytes(0)).isZero();
        if (!type.isPacked()) {
            assertThat(type.bytes()).isEqualTo((int) (bytes / 1024));
            assertThat(type.bytes(7)).isEqualTo(7L * type.bytes());
        }
    }

    @ParameterizedTest
    @CsvSource({"F12_E4M7, 12, 3", "F6_E2M3, 6, 2"})
    void elementsOfPackedTypesHaveNoBytes(ElementType type, int bits, long few) {
        assertThatThrownBy(type::bytes).isInstanceOf(UnsupportedOperationException.class)
                .hasMessageContaining(type.name()).hasMessageContaining(bits + " bits");
        assertThatThrownBy(() -> type.bytes(few)).isInstanceOf(IllegalArgumentException.class)
                .hasMessage(few + " elements of " + type + " do not fill whole bytes");
    }

    @ParameterizedTest
    @EnumSource(ElementType.class)
    void bytesThatNoLongHoldsAreRefused(ElementType type) {
        assertThatThrownBy(() -> type.bytes(-4)).isInstanceOf(IllegalArgumentException.class).hasMessageContaining("-4");
        if (type != ElementType.I8 && type != ElementType.F8_E4M3) {
            assertThatThrownBy(() -> type.bytes(Long.MAX_VALUE / 4 * 4)).isInstanceOf(ArithmeticException.class);
        }
    }

    /** Slots hold something that is not packed, and has a scale of its own only if it needs one. */
    @ParameterizedTest
    @CsvSource({"F32, F32, false", "BF16, BF16, false", "F16, F16, false", "F8_E4M3, F8_E4M3, true", "I8, I8, false",
        "F12_E4M7, BF16, true", "F6_E2M3, F8_E4M3, true"})
    void unpacked(ElementType type, ElementType slots, boolean scaled) {
        assertThat(type.unpacked()).isEqualTo(slots);
        assertThat(type.unpacked().isPacked()).isFalse();
        assertThat(type.isPacked()).isEqualTo(slots != type);
        assertThat(type.isScaled()).isEqualTo(scaled);
        assertThat(type.isFloat()).isEqualTo(type == ElementType.F32 || type == ElementType.BF16 || type == ElementType.F16);
    }
}
