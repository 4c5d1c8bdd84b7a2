package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.File;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.spi.ToolProvider;
import java.util.stream.Stream;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

import dev.shadowkv.internal.NativeLibrary;
import dev.shadowkv.internal.ffi.ShadowKv;

/** How the library is found, in child processes; and that a module which sees only the public packages can use it. */
class LoadingTest {

    private static final Path CLASSES = location(Device.class);

    @TempDir
    private static Path folder;
    private static Path project;

    private record Result(int exit, String output) {
    }

    private static Path location(Class<?> type) {
        try {
            return Path.of(type.getProtectionDomain().getCodeSource().getLocation().toURI());
        } catch (java.net.URISyntaxException e) {
            throw new IllegalStateException(e);
        }
    }

    /** Compiles a consumer with a module descriptor of its own. */
    @BeforeAll
    static void compile() throws IOException {
        Path sources = folder.resolve("source");
        Path main = sources.resolve("consumer/Main.java");
        Files.createDirectories(main.getParent());
        Files.writeString(sources.resolve("module-info.java"), "module consumer { requires dev.shadowkv; }");
        Files.writeString(main, """
                package consumer;
                import dev.shadowkv.*;
                import dev.shadowkv.kernels.*;
                import java.lang.foreign.MemorySegment;
                import java.util.List;
                public final class Main {
                    public static void main(String[] arguments) {
                        try (Device device = Device.cpu(1)) {
                            if (arguments.length > 0) {
                                System.out.println("loaded " + Device.nativeLibraryOrigin());
                                System.out.println("blas " + device.describeBlas());
                                return;
                            }
                            try (KvCache cache = DenseKvCache.builder(device).layers(1).queryHeads(2).keyValueHeads(1)
                                    .headDim(64).rope(Rope.standard(64, 10000)).memory(MemoryPlan.of(1, 64)).build();
                                 KvSession session = cache.open(64)) {
                                float[] ones = new float[64];
                                java.util.Arrays.fill(ones, 1);
                                float[] out = new float[128];
                                session.append(0, 1, MemorySegment.ofArray(ones), MemorySegment.ofArray(ones));
                                session.seal();
                                try (KvBatch batch = cache.batch(List.of(session))) {
                                    cache.attend(0, batch, MemorySegment.ofArray(new float[128]),
                                            MemorySegment.ofArray(ones), MemorySegment.ofArray(ones),
                                            MemorySegment.ofArray(out));
                                }
                                System.out.println("attended " + out[0] + " " + out[127]);
                            }
                            TransformerKernels kernels = new TransformerKernels(device);
                            DeviceBuffer buffer = device.allocate(4000);
                            kernels.randomFill(buffer, ElementType.F32, 1000, 7, 0, 1);
                            System.out.println("module " + Main.class.getModule().getName());
                        } catch (ShadowKvException e) {
                            System.out.println(e.status() + ": " + e.getMessage());
                            System.exit(3);
                        }
                    }
                }
                """);
        project = folder.resolve("classes");
        ToolProvider compiler = ToolProvider.findFirst("javac").orElse(null);
        Assumptions.assumeTrue(compiler != null, "this Java runtime has no compiler");
        StringWriter messages = new StringWriter();
        PrintWriter printer = new PrintWriter(messages);
        int status = compiler.run(printer, printer, "-d", project.toString(), "-p", CLASSES.toString(),
                sources.resolve("module-info.java").toString(), main.toString());
        assertThat(status).as(messages.toString()).isZero();
    }

    private static Result run(List<String> options, String... arguments) throws Exception {
        return run(CLASSES, options, arguments);
    }

    private static Result run(Path classes, List<String> options, String... arguments) throws Exception {
        List<String> command = new ArrayList<>(List.of(Path.of(System.getProperty("java.home"), "bin",
                "java").toString(),
                "-Xmx256m", "--enable-native-access=dev.shadowkv",
                "-Ddev.shadowkv.cache=" + folder.resolve("cache")));
        command.addAll(options);
        if (options.stream().noneMatch(option -> option.startsWith("--module-path"))) {
            command.addAll(List.of("-p", project + File.pathSeparator + classes));
        }
        command.addAll(List.of("-m", "consumer/consumer.Main"));
        command.addAll(List.of(arguments));
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertThat(process.waitFor(60, TimeUnit.SECONDS)).isTrue();
        return new Result(process.exitValue(), output);
    }

    @Test
    void aModuleThatSeesOnlyPublicPackagesCanUseIt() throws Exception {
        Result result = run(List.of());
        assertThat(result.output()).contains("attended 1.0 1.0").contains("module consumer").doesNotContain("WARNING");
        assertThat(result.exit()).isZero();
    }

    @Test
    void theLibraryIsExtractedOnceAmongProcesses() throws Exception {
        Path cache = folder.resolve("shared cache");
        List<Thread> threads = new ArrayList<>();
        List<Result> results = java.util.Collections.synchronizedList(new ArrayList<>());
        for (int i = 0; i < 4; i++) {
            threads.add(Thread.startVirtualThread(() -> {
                try {
                    results.add(run(List.of("-Ddev.shadowkv.cache=" + cache), "where"));
                } catch (Exception e) {
                    results.add(new Result(-1, e.toString()));
                }
            }));
        }
        for (Thread thread : threads) {
            thread.join();
        }
        assertThat(results).hasSize(4).allSatisfy(r -> assertThat(r.output()).contains("loaded " + cache));
        try (Stream<Path> files = Files.walk(cache)) {
            assertThat(files.filter(Files::isRegularFile).filter(f -> f.endsWith("libshadowkv.so"))).hasSize(1);
        }
        try (Stream<Path> files = Files.walk(cache)) {
            assertThat(files.filter(f -> f.toString().endsWith(".partial"))).isEmpty();
        }
    }

    @Test
    void anExplicitPathComesFirst() throws Exception {
        Path library = CLASSES.resolve("META-INF/native/linux-x86_64/libshadowkv.so");
        Result result = run(List.of("-Ddev.shadowkv.library=" + library), "where");
        assertThat(result.output()).contains("loaded " + library);
    }

    @Test
    void aMissingExplicitLibraryIsNamed() throws Exception {
        Result result = run(List.of("-Ddev.shadowkv.library=/nowhere/libshadowkv.so"));
        assertThat(result.exit()).isEqualTo(3);
        assertThat(result.output()).contains("NOT_AVAILABLE").contains("/nowhere/libshadowkv.so")
                .contains("dev.shadowkv.library").doesNotContain("\tat ");
    }

    @Test
    void withoutAnyLibraryTheMessageSaysWhereItLooked() throws Exception {
        Path bare = folder.resolve("bare");
        copyClasses(bare);
        Result result = run(bare, List.of());
        assertThat(result.exit()).isEqualTo(3);
        assertThat(result.output()).contains("-Ddev.shadowkv.library").contains("/META-INF/native/linux-x86_64/")
                .contains("LD_LIBRARY_PATH");
    }

    @Test
    void anotherVersionIsRefusedWithBoth() throws Exception {
        Path library = compileC("version", "unsigned skv_abi_version(void) { return 999; }");
        Result result = run(List.of("-Ddev.shadowkv.library=" + library));
        assertThat(result.exit()).isEqualTo(3);
        assertThat(result.output()).contains("version 999").contains("version " + NativeLibrary.ABI_VERSION);
        Path stranger = compileC("stranger", "int something_else(void) { return 1; }");
        assertThat(run(List.of("-Ddev.shadowkv.library=" + stranger)).output()).contains("another library");
    }

    @Test
    void theBindingsAndTheLoaderNameTheSameVersion() {
        assertThat(NativeLibrary.ABI_VERSION).isEqualTo(ShadowKv.SKV_ABI_VERSION());
    }

    @Test
    void blasIsTakenFromTheClassPath() {
        Assumptions.assumeTrue(getClass().getClassLoader().getResource(
                "org/bytedeco/openblas/linux-x86_64/libopenblas.so.0") != null);
        try (Device device = Device.cpu(1)) {
            assertThat(device.describeBlas()).contains("libopenblas.so.0");
        }
    }

    /** Nobody requires the module of a redistributable, so that its jar is on the module path and yet no module. */
    @Test
    void blasIsTakenFromTheModulePath() throws Exception {
        java.net.URL jar = ClassLoader.getSystemResource("org/bytedeco/openblas/linux-x86_64/libopenblas.so.0");
        Assumptions.assumeTrue(jar != null, "org.bytedeco:openblas is not on the class path");
        String file = jar.getPath().substring("file:".length(), jar.getPath().indexOf('!'));
        Path cache = folder.resolve("module path");
        Result result = run(List.of("-Ddev.shadowkv.cache=" + cache,
                "--module-path=" + String.join(File.pathSeparator, project.toString(), CLASSES.toString(), file)), "where");
        assertThat(result.output()).contains("OpenBLAS").contains(cache.toString());
    }

    private static Path compileC(String name, String source) throws Exception {
        Path c = folder.resolve(name + ".c");
        Path library = folder.resolve(name + ".so");
        Files.writeString(c, source);
        Process process;
        try {
            process = new ProcessBuilder("cc", "-shared", "-fPIC", "-o", library.toString(),
                    c.toString()).inheritIO().start();
        } catch (IOException e) {
            Assumptions.abort("no C compiler here");
            throw e;
        }
        assertThat(process.waitFor()).isZero();
        return library;
    }

    private static void copyClasses(Path target) throws IOException {
        try (Stream<Path> files = Files.walk(CLASSES)) {
            for (Path file : (Iterable<Path>) files::iterator) {
                Path to = target.resolve(CLASSES.relativize(file).toString());
                if (Files.isDirectory(file)) {
                    Files.createDirectories(to);
                } else if (!file.endsWith("libshadowkv.so")) {
                    Files.copy(file, to);
                }
            }
        }
    }
}
