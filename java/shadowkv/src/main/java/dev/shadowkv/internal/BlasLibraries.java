package dev.shadowkv.internal;

import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.net.URL;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.jar.JarFile;

/**
 * The BLAS libraries that Java knows about: what the system property names, then redistributables packed in jars. The
 * native library searches these first and the system after them.
 */
public final class BlasLibraries {

    /** Names a file, a folder, or several separated by ':'. */
    public static final String PROPERTY = "dev.shadowkv.blas";

    /** As a path: no library. */
    private static final String NONE = "none";
    private static final String OPENBLAS = "org/bytedeco/openblas/linux-x86_64/";
    private static final String CUDA = "org/bytedeco/cuda/linux-x86_64/";

    private BlasLibraries() {
    }

    /** The search path for a backend; null when there is nothing to add to the system's. */
    public static String path(boolean cuda, String explicit) {
        String property = System.getProperty(PROPERTY);
        if (NONE.equals(explicit != null ? explicit : property)) {
            return NONE;
        }
        List<String> entries = new ArrayList<>();
        if (explicit != null) {
            entries.add(explicit);
        }
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
     * Class path and resolved modules are seen by the loaders; folder names with '-' are no packages, so not hidden.
     * A module that nobody requires is not resolved, and redistributables have no other use than this: its jar is
     * looked into where it lies.
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
        String modulePath = System.getProperty("jdk.module.path");
        if (modulePath != null) {
            for (String entry : modulePath.split(File.pathSeparator)) {
                URL found = entry.isEmpty() ? null : onModulePath(Path.of(entry), name);
                if (found != null) {
                    return found;
                }
            }
        }
        return null;
    }

    /** In a jar, or in the jars of a folder, of those that are named after what they may contain. */
    private static URL onModulePath(Path path, String name) {
        try {
            if (Files.isDirectory(path)) {
                try (DirectoryStream<Path> jars = Files.newDirectoryStream(path, "*.jar")) {
                    for (Path jar : jars) {
                        URL found = inJar(jar, name);
                        if (found != null) {
                            return found;
                        }
                    }
                }
                return null;
            }
            return inJar(path, name);
        } catch (IOException e) {
            // No module path of ours: the virtual machine has its own opinion of it.
            return null;
        }
    }

    private static URL inJar(Path jar, String name) throws IOException {
        String file = jar.getFileName().toString();
        if (!file.endsWith(".jar") || !Files.isRegularFile(jar) || !(file.contains("cuda") || file.contains("openblas"))) {
            return null;
        }
        try (JarFile content = new JarFile(jar.toFile())) {
            return content.getEntry(name) == null ? null : URI.create("jar:" + jar.toUri() + "!/" + name).toURL();
        }
    }
}
