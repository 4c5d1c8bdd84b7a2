package dev.shadowkv.internal;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.file.Files;
import java.nio.file.Path;

/** Finds and loads {@code libshadowkv.so}, once for the life of the process. */
public final class NativeLibrary {

    private static final String RESOURCE = "/META-INF/native/linux-x86_64/libshadowkv.so";

    private NativeLibrary() {
    }

    /** The symbols of the native library. */
    public static SymbolLookup symbols() {
        return Loaded.SYMBOLS;
    }

    private static final class Loaded {
        static final SymbolLookup SYMBOLS = SymbolLookup.libraryLookup(locate(), Arena.global());

        private static Path locate() {
            String explicit = System.getProperty("shadowkv.library.path");
            if (explicit != null) {
                return Path.of(explicit);
            }
            try (InputStream resource = NativeLibrary.class.getResourceAsStream(RESOURCE)) {
                if (resource == null) {
                    throw new UnsatisfiedLinkError("no " + RESOURCE + " beside the classes of dev.shadowkv");
                }
                Path file = Files.createTempFile("libshadowkv", ".so");
                file.toFile().deleteOnExit();
                Files.write(file, resource.readAllBytes());
                return file;
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    }
}
