package dev.shadowkv.internal;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

import dev.shadowkv.ShadowKvException;
import dev.shadowkv.Status;
import dev.shadowkv.internal.ffi.ShadowKv;

/**
 * Finds and loads {@code libshadowkv.so} once for the life of the process: the file that the system property
 * {@code dev.shadowkv.library} names, else the one in the jar, else the system's.
 */
public final class NativeLibrary {

    /** Names the file to load. */
    public static final String PROPERTY = "dev.shadowkv.library";
    /** The ABI that the classes were generated for. */
    public static final int ABI_VERSION = ShadowKvAbi.VERSION;

    private static final String NAME = "libshadowkv.so";
    private static final String RESOURCE = "/META-INF/native/linux-x86_64/" + NAME;

    private static Loaded loaded;
    private static ShadowKvException failure;

    /** What was loaded, and from where. */
    public record Loaded(SymbolLookup symbols, String origin) {
    }

    private NativeLibrary() {
    }

    /** The symbols of the native library. */
    public static SymbolLookup symbols() {
        return load().symbols();
    }

    /** Loads the library, or says again why it could not be. */
    public static synchronized Loaded load() {
        if (failure != null) {
            throw new ShadowKvException(failure.status(), failure.operation(), strip(failure), failure);
        }
        if (loaded == null) {
            try {
                loaded = find();
            } catch (ShadowKvException e) {
                failure = e;
                throw e;
            }
        }
        return loaded;
    }

    private static String strip(ShadowKvException e) {
        String message = e.getMessage();
        return message.substring(e.operation().length() + 2, message.lastIndexOf(" ("));
    }

    private static Loaded find() {
        String explicit = System.getProperty(PROPERTY);
        if (explicit != null) {
            // Somebody who names a file wants that file or an answer, not another one.
            Path file = Path.of(explicit);
            if (!Files.isRegularFile(file)) {
                throw unavailable("there is no file " + file.toAbsolutePath() + ", which -D" + PROPERTY + " names",
                        null);
            }
            return open(file.toAbsolutePath().toString(), file);
        }
        List<String> searched = new ArrayList<>();
        searched.add("-D" + PROPERTY + " (not set)");
        try (InputStream resource = NativeLibrary.class.getResourceAsStream(RESOURCE)) {
            if (resource != null) {
                Path file = ExtractedFiles.extract(NAME, resource);
                return open(file + " from " + RESOURCE, file);
            }
            searched.add(RESOURCE + " beside the classes (absent)");
        } catch (IOException | UncheckedIOException e) {
            throw unavailable("cannot extract " + RESOURCE + " to " + ExtractedFiles.folder() + ": " + e
                    + "; another folder is named by -D" + ExtractedFiles.PROPERTY, e);
        }
        try {
            SymbolLookup symbols = SymbolLookup.libraryLookup(NAME, Arena.global());
            return checked(new Loaded(symbols, NAME + " from the system's library path"));
        } catch (IllegalArgumentException e) {
            searched.add(NAME + " in the system's library path (LD_LIBRARY_PATH, ldconfig)");
            throw unavailable(NAME + " was found nowhere; looked at " + String.join(", ", searched), e);
        }
    }

    private static Loaded open(String origin, Path file) {
        try {
            return checked(new Loaded(SymbolLookup.libraryLookup(file, Arena.global()), origin));
        } catch (IllegalArgumentException e) {
            throw unavailable(file + " cannot be loaded: " + e.getMessage(), e);
        }
    }

    private static Loaded checked(Loaded library) {
        MemorySegment symbol = library.symbols().find("skv_abi_version")
                .orElseThrow(() -> unavailable(library.origin() + " has no skv_abi_version: it is another library",
                        null));
        MethodHandle handle = Linker.nativeLinker().downcallHandle(symbol, FunctionDescriptor.of(ValueLayout.JAVA_INT));
        int version;
        try {
            version = (int) handle.invokeExact();
        } catch (Error | RuntimeException e) {
            throw e;
        } catch (Throwable e) {
            throw new AssertionError(e);
        }
        if (version != ABI_VERSION) {
            throw unavailable(library.origin() + " has ABI version " + version + ", but these classes need version "
                    + ABI_VERSION + ": take the library and the jar from the same build", null);
        }
        return library;
    }

    private static ShadowKvException unavailable(String message, Throwable cause) {
        return new ShadowKvException(Status.NOT_AVAILABLE, "load library", message, cause);
    }

    /** Kept apart: the class of the bindings cannot be initialised before the library is loaded. */
    private static final class ShadowKvAbi {
        static final int VERSION = 7;
    }

    /** The library's own description of itself. */
    public static String buildInfo() {
        load();
        return ShadowKv.skv_build_info().reinterpret(1024).getString(0);
    }
}
