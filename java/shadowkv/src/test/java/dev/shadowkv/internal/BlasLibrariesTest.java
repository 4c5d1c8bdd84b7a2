package dev.shadowkv.internal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.shadowkv.Device;
import org.junit.jupiter.api.Test;

/** OpenBLAS out of its jar: it needs libraries that lie beside it there and on few systems. */
class BlasLibrariesTest {

    @Test
    void openBlasIsLoadedFromTheJar() {
        assumeTrue(ClassLoader.getSystemResource("org/bytedeco/openblas/linux-x86_64/libopenblas.so.0") != null,
                "org.bytedeco:openblas is not on the class path");
        try (Device device = Device.cpu(1)) {
            assertThat(device.describeBlas()).contains("OpenBLAS").contains(ExtractedFiles.folder().toString());
        }
    }
}
