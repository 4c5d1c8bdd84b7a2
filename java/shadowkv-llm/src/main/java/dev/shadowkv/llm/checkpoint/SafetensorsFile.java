package dev.shadowkv.llm.checkpoint;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collections;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/**
 * A memory-mapped safetensors file. Opening reads and checks the header alone: its length, every type, shape and
 * offset, that no two tensors overlap, that no byte is left out, and that the file ends where the header says. Tensors
 * are views of the mapping; pages are read when touched. Usable from any thread; tensors die with {@link #close}.
 */
public final class SafetensorsFile implements AutoCloseable {
    private final Path path;
    private final Arena arena;
    private final Map<String, Tensor> tensors;
    private final Map<String, String> metadata;

    private SafetensorsFile(Path path, Arena arena, Map<String, Tensor> tensors, Map<String, String> metadata) {
        this.path = path;
        this.arena = arena;
        this.tensors = tensors;
        this.metadata = metadata;
    }

    /**
     * Maps a file.
     *
     * @throws CheckpointException when there is no such file or it is not a whole, consistent safetensors file
     */
    public static SafetensorsFile open(Path path) {
        if (!Files.isRegularFile(path)) {
            throw new CheckpointException(path + ": no such file");
        }
        Arena arena = Arena.ofShared();
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            long size = channel.size();
            MemorySegment file = channel.map(FileChannel.MapMode.READ_ONLY, 0, size, arena);
            SafetensorsHeader header = SafetensorsHeader.read(path, file);
            return new SafetensorsFile(
                    path, arena, Collections.unmodifiableMap(header.tensors(file)), header.metadata());
        } catch (IOException e) {
            arena.close();
            throw new CheckpointException(path + ": cannot be read: " + e.getMessage(), e);
        } catch (RuntimeException e) {
            arena.close();
            throw e;
        }
    }

    public Path path() {
        return path;
    }

    /** Names of all tensors, in the order of their data. */
    public Set<String> names() {
        return tensors.keySet();
    }

    /** The header's free-form {@code __metadata__}; empty when there is none. */
    public Map<String, String> metadata() {
        return metadata;
    }

    public Optional<Tensor> find(String name) {
        return Optional.ofNullable(tensors.get(name));
    }

    /**
     * The tensor of that name.
     *
     * @throws CheckpointException when the file has none
     */
    public Tensor tensor(String name) {
        return find(name).orElseThrow(() -> new CheckpointException(path + ": there is no tensor " + name));
    }

    /** Unmaps the file. Further closing does nothing; using a tensor's data after it is an IllegalStateException. */
    @Override
    public void close() {
        if (arena.scope().isAlive()) {
            arena.close();
        }
    }
}
