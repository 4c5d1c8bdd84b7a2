package dev.shadowkv.internal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.shadowkv.Device;
import dev.shadowkv.TestDevice;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** OpenBLAS and cuBLAS out of their jars: they need libraries that lie beside them there and on few systems. */
class BlasLibrariesTest {

    @Test
    void openBlasIsLoadedFromTheJar() {
        assumeTrue(ClassLoader.getSystemResource("org/bytedeco/openblas/linux-x86_64/libopenblas.so.0") != null,
                "org.bytedeco:openblas is not on the class path");
        try (Device device = Device.cpu(1)) {
            assertThat(device.describeBlas()).contains("OpenBLAS").contains(ExtractedFiles.folder().toString());
        }
    }

    @Test
    void noneIsDoneWithout() {
        try (Device device = Device.builder().threads(1).blasPath("none").build()) {
            assertThat(device.describeBlas()).contains("searched nothing, as asked");
        }
    }

    /** With -Pcuda-redist. Needs no GPU: the library tells its version without one. */
    @Test
    void cuBlasIsLoadedFromTheJar(@TempDir Path folder) throws Throwable {
        assumeTrue(ClassLoader.getSystemResource("org/bytedeco/cuda/linux-x86_64/libcublas.so.12") != null,
                "org.bytedeco:cuda with classifier linux-x86_64-redist is not on the class path");
        String before = System.getProperty(ExtractedFiles.PROPERTY);
        System.setProperty(ExtractedFiles.PROPERTY, folder.toString());
        try (Arena arena = Arena.ofConfined()) {
            Path library = Path.of(BlasLibraries.path(true, null));
            assertThat(library).startsWith(folder).hasFileName("libcublas.so.12");
            Path light = library.resolveSibling("libcublasLt.so.12");
            assertThat(light).isRegularFile();
            // As the native library does: what it needs first, since no search path leads there.
            SymbolLookup.libraryLookup(light, arena);
            SymbolLookup symbols = SymbolLookup.libraryLookup(library, arena);
            for (String name : new String[] {"cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2",
                "cublasSetMathMode", "cublasGemmEx", "cublasGemmStridedBatchedEx"}) {
                assertThat(symbols.find(name)).as(name).isPresent();
            }
            MethodHandle property = Linker.nativeLinker().downcallHandle(symbols.find("cublasGetProperty").orElseThrow(),
                    FunctionDescriptor.of(ValueLayout.JAVA_INT, ValueLayout.JAVA_INT, ValueLayout.ADDRESS));
            MemorySegment major = arena.allocate(ValueLayout.JAVA_INT);
            assertThat((int) property.invokeExact(0, major)).isZero();
            assertThat(major.get(ValueLayout.JAVA_INT, 0)).isEqualTo(12);
        } finally {
            if (before == null) {
                System.clearProperty(ExtractedFiles.PROPERTY);
            } else {
                System.setProperty(ExtractedFiles.PROPERTY, before);
            }
        }
        if (TestDevice.cuda()) {
            try (Device device = Device.cuda(0)) {
                assertThat(device.describeBlas()).startsWith("cuBLAS 12").contains(ExtractedFiles.folder().toString());
            }
        }
    }
}
