package dev.shadowkv.internal;

import java.io.IOException;
import java.net.URL;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/**
 * The BLAS libraries that Java knows about: what the system property names, then redistributables packed in jars. The
 * native library searches these first and the system after them.
 */
public final class BlasLibraries {

    /** Names a file, a folder, or several separated by ':'. */
    public static final String PROPERTY = "dev.shadowkv.blas";

    private static final String OPENBLAS = "org/bytedeco/openblas/linux-x86_64/";
    private static final String CUDA = "org/bytedeco/cuda/linux-x86_64/";

    private BlasLibraries() {
    }

    /** The search path for a backend; null when there is nothing to add to the system's. */
    public static String path(boolean cuda, String explicit) {
        List<String> entries = new ArrayList<>();
        if (explicit != null) {
            entries.add(explicit);
        }
        String property = System.getProperty(PROPERTY);
        if (property != null) {
            entries.add(property);
        }
        if (cuda) {
            for (String version : new String[] {"13", "12"}) {
                String main = extract(CUDA, "libcublas.so." + version, "libcublasLt.so." + version);
                if (main != null) {
                    entries.add(main);
                }
            }
        } else {
            String main = extract(OPENBLAS, "libopenblas.so.0", "libgfortran.so.5", "libquadmath.so.0", "libgcc_s.so.1");
            if (main != null) {
                entries.add(main);
            }
        }
        return entries.isEmpty() ? null : String.join(":", entries);
    }

    /** Extracts a library and, into the same folder, those that it looks for beside itself. */
    private static String extract(String folder, String name, String... companions) {
        URL resource = resource(folder + name);
        if (resource == null) {
            return null;
        }
        try {
            Path library = ExtractedFiles.extract(name, resource);
            for (String companion : companions) {
                URL beside = resource(folder + companion);
                if (beside != null) {
                    ExtractedFiles.extractBeside(library, companion, beside);
                }
            }
            return library.toString();
        } catch (IOException e) {
            // The system's library may serve as well; describeBlas() says what was used.
            System.getLogger("dev.shadowkv").log(System.Logger.Level.WARNING, "cannot extract " + resource, e);
            return null;
        }
    }

    /**
     * Class path and automatic modules are seen by the loaders; folder names with '-' are no packages, so not hidden.
     */
    private static URL resource(String name) {
        ClassLoader[] loaders = {Thread.currentThread().getContextClassLoader(), BlasLibraries.class.getClassLoader(),
            ClassLoader.getSystemClassLoader()};
        for (ClassLoader loader : loaders) {
            URL found = loader == null ? null : loader.getResource(name);
            if (found != null) {
                return found;
            }
        }
        return null;
    }
}
