package dev.shadowkv.internal;

import java.io.IOException;
import java.io.InputStream;
import java.net.JarURLConnection;
import java.net.URL;
import java.net.URLConnection;
import java.nio.file.AtomicMoveNotSupportedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.DigestInputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;

/**
 * Native libraries out of jars, each in a folder named by its content: written once, moved into place in one piece, so
 * that processes starting together and versions side by side do not disturb one another.
 */
public final class ExtractedFiles {

    /** Names the folder to extract to. */
    public static final String PROPERTY = "dev.shadowkv.cache";

    private ExtractedFiles() {
    }

    /** Where files go: the property's folder, else the user's cache folder. */
    public static Path folder() {
        String explicit = System.getProperty(PROPERTY);
        if (explicit != null) {
            return Path.of(explicit);
        }
        String cache = System.getenv("XDG_CACHE_HOME");
        Path base = cache != null && !cache.isBlank() ? Path.of(cache) : Path.of(System.getProperty("user.home"),
                ".cache");
        return base.resolve("shadowkv");
    }

    /** Returns the file of that name with the resource's content. */
    public static Path extract(String name, InputStream resource) throws IOException {
        Path folder = folder();
        Files.createDirectories(folder);
        Path partial = Files.createTempFile(folder, name, ".partial");
        try {
            Path target = folder.resolve(copy(resource, partial)).resolve(name);
            if (!Files.isRegularFile(target) || Files.size(target) != Files.size(partial)) {
                move(partial, target);
            }
            return target;
        } finally {
            Files.deleteIfExists(partial);
        }
    }

    /**
     * Returns the file of that name with the content of an entry of a jar. The entry's own checksum names the folder,
     * so that libraries of hundreds of megabytes are not read at every start.
     */
    public static Path extract(String name, URL entry) throws IOException {
        URLConnection connection = entry.openConnection();
        if (!(connection instanceof JarURLConnection jar)) {
            try (InputStream in = connection.getInputStream()) {
                return extract(name, in);
            }
        }
        jar.setUseCaches(false);
        try (InputStream in = jar.getInputStream()) {
            long size = jar.getJarEntry().getSize();
            String key = Long.toHexString(size) + "-" + Long.toHexString(jar.getJarEntry().getCrc());
            Path target = folder().resolve(key).resolve(name);
            if (Files.isRegularFile(target) && Files.size(target) == size) {
                return target;
            }
            Files.createDirectories(folder());
            Path partial = Files.createTempFile(folder(), name, ".partial");
            try {
                Files.copy(in, partial, StandardCopyOption.REPLACE_EXISTING);
                move(partial, target);
                return target;
            } finally {
                Files.deleteIfExists(partial);
            }
        }
    }

    /** Puts an entry of a jar into the folder of a file that was extracted before and looks there for what it needs. */
    public static void extractBeside(Path neighbour, String name, URL entry) throws IOException {
        URLConnection connection = entry.openConnection();
        connection.setUseCaches(false);
        try (InputStream in = connection.getInputStream()) {
            long size = connection instanceof JarURLConnection jar ? jar.getJarEntry().getSize() : connection.getContentLengthLong();
            Path target = neighbour.resolveSibling(name);
            if (Files.isRegularFile(target) && Files.size(target) == size) {
                return;
            }
            Path partial = Files.createTempFile(folder(), name, ".partial");
            try {
                Files.copy(in, partial, StandardCopyOption.REPLACE_EXISTING);
                move(partial, target);
            } finally {
                Files.deleteIfExists(partial);
            }
        }
    }

    private static void move(Path partial, Path target) throws IOException {
        Files.createDirectories(target.getParent());
        try {
            Files.move(partial, target, StandardCopyOption.ATOMIC_MOVE);
        } catch (AtomicMoveNotSupportedException e) {
            try {
                Files.move(partial, target);
            } catch (FileAlreadyExistsException other) {
                // Another process was faster, with the same content.
            }
        }
    }

    private static String copy(InputStream resource, Path target) throws IOException {
        try {
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            try (DigestInputStream in = new DigestInputStream(resource, digest)) {
                Files.copy(in, target, StandardCopyOption.REPLACE_EXISTING);
            }
            return HexFormat.of().formatHex(digest.digest(), 0, 12);
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("SHA-256 is part of every JDK", e);
        }
    }
}
