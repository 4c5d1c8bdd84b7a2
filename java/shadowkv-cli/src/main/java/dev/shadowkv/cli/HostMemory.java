package dev.shadowkv.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** What the system can still give, as Linux tells it; a container's limit counts. */
final class HostMemory {
    private static final Path SYSTEM = Path.of("/proc/meminfo");
    private static final Path CONTAINER_LIMIT = Path.of("/sys/fs/cgroup/memory.max");
    private static final Path CONTAINER_USE = Path.of("/sys/fs/cgroup/memory.current");

    private HostMemory() {}

    static long availableBytes() {
        long available = system();
        try {
            String limit = Files.readString(CONTAINER_LIMIT).strip();
            if (!limit.equals("max")) {
                long left = Long.parseLong(limit) - Long.parseLong(Files.readString(CONTAINER_USE).strip());
                available = Math.min(available, Math.max(1, left));
            }
        } catch (IOException | NumberFormatException e) {
            // No container, or one of another kind: the system's number stands.
            return available;
        }
        return available;
    }

    private static long system() {
        try {
            for (String line : Files.readAllLines(SYSTEM)) {
                if (line.startsWith("MemAvailable:")) {
                    return Long.parseLong(line.replaceAll("\\D", "")) << 10;
                }
            }
        } catch (IOException e) {
            throw new IllegalArgumentException("cannot tell the free memory; give --host-memory-limit", e);
        }
        throw new IllegalArgumentException("cannot tell the free memory; give --host-memory-limit");
    }
}
