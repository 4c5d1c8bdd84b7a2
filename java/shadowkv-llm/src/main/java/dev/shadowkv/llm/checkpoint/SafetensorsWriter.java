package dev.shadowkv.llm.checkpoint;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.internal.json.Json;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * Writes a safetensors file piece by piece, so that a tensor larger than memory can be written as it is computed:
 * declare every tensor, then write its elements in order. The file appears under its name when {@link #close} finds
 * every tensor complete; until then, and after a failure, there is only a temporary file beside it, which is removed.
 *
 * <pre>{@code
 * try (SafetensorsWriter writer = SafetensorsWriter.create(path,
 *         Map.of("logits", new SafetensorsWriter.Declaration(TensorType.F32, List.of(rows, positions, vocabulary))))) {
 *     writer.append("logits", oneRowOfLogits);      // as often as needed, in order
 * }
 * }</pre>
 *
 * <p>For one thread at a time.
 */
public final class SafetensorsWriter implements AutoCloseable {
    /** Type and shape of a tensor to be written. */
    public record Declaration(TensorType type, List<Long> shape) {
        public Declaration {
            Objects.requireNonNull(type, "type");
            shape = List.copyOf(shape);
        }

        long byteSize() {
            long bytes = type.byteSize();
            for (long dimension : shape) {
                bytes = Math.multiplyExact(bytes, Objects.checkIndex(dimension, Long.MAX_VALUE));
            }
            return bytes;
        }
    }

    private static final int BUFFER_BYTES = 1 << 16;

    private final Path path;
    private final Path temporary;
    private final FileChannel channel;
    private final Map<String, long[]> remaining = new LinkedHashMap<>();
    private final ByteBuffer buffer = ByteBuffer.allocateDirect(BUFFER_BYTES).order(ByteOrder.LITTLE_ENDIAN);
    private boolean failed;
    private boolean closed;

    private SafetensorsWriter(Path path, Path temporary, FileChannel channel) {
        this.path = path;
        this.temporary = temporary;
        this.channel = channel;
    }

    /**
     * Starts a file.
     *
     * @param tensors what the file will hold; the iteration order is the order of the data
     * @throws CheckpointException when the file cannot be created
     */
    public static SafetensorsWriter create(Path path, Map<String, Declaration> tensors) {
        ObjectNode header = Json.object();
        SafetensorsWriter writer;
        try {
            Path temporary = path.resolveSibling(path.getFileName() + ".part");
            writer = new SafetensorsWriter(
                    path,
                    temporary,
                    FileChannel.open(
                            temporary,
                            StandardOpenOption.WRITE,
                            StandardOpenOption.CREATE,
                            StandardOpenOption.TRUNCATE_EXISTING));
        } catch (IOException e) {
            throw new CheckpointException(path + ": cannot be written: " + e, e);
        }
        try {
            long offset = 0;
            for (Map.Entry<String, Declaration> tensor : tensors.entrySet()) {
                long end = Math.addExact(offset, tensor.getValue().byteSize());
                writer.remaining.put(tensor.getKey(), new long[] {offset, end});
                describe(tensor.getValue(), header.putObject(tensor.getKey()), offset, end);
                offset = end;
            }
            writer.writeHeader(header);
            return writer;
        } catch (RuntimeException e) {
            writer.failed = true;
            writer.close();
            throw e;
        }
    }

    private static void describe(Declaration tensor, ObjectNode entry, long begin, long end) {
        entry.put("dtype", tensor.type().code());
        tensor.shape().forEach(entry.putArray("shape")::add);
        entry.putArray("data_offsets").add(begin).add(end);
    }

    private void writeHeader(ObjectNode header) {
        byte[] json = header.toString().getBytes(StandardCharsets.UTF_8);
        // Padded with spaces so that the data starts at a multiple of eight, as other writers do.
        int padded = Math.ceilDiv(json.length, Long.BYTES) * Long.BYTES;
        ByteBuffer bytes = ByteBuffer.allocate(Long.BYTES + padded).order(ByteOrder.LITTLE_ENDIAN);
        bytes.putLong(padded).put(json);
        while (bytes.hasRemaining()) {
            bytes.put((byte) ' ');
        }
        long dataStart = bytes.capacity();
        remaining.values().forEach(range -> {
            range[0] += dataStart;
            range[1] += dataStart;
        });
        write(bytes.flip(), 0);
    }

    /** Appends elements to an F32 tensor. */
    public void append(String name, float[] values) {
        append(name, MemorySegment.ofArray(values), ValueLayout.JAVA_FLOAT.byteSize());
    }

    /** Appends elements to an I64 tensor. */
    public void append(String name, long[] values) {
        append(name, MemorySegment.ofArray(values), ValueLayout.JAVA_LONG.byteSize());
    }

    /** Appends little-endian bytes to a tensor of any type. */
    public void append(String name, MemorySegment data) {
        append(name, data, 1);
    }

    private void append(String name, MemorySegment data, long elementBytes) {
        if (closed) {
            throw new IllegalStateException(path + " is closed");
        }
        if (elementBytes > 1 && ByteOrder.nativeOrder() != ByteOrder.LITTLE_ENDIAN) {
            throw new IllegalStateException("arrays can be written on little-endian machines only");
        }
        long[] range = remaining.get(name);
        if (range == null) {
            throw new IllegalArgumentException(path + ": tensor " + name + " was not declared");
        }
        if (data.byteSize() > range[1] - range[0]) {
            throw new IllegalArgumentException(path + ": tensor " + name + " has room for " + (range[1] - range[0])
                    + " more bytes, given " + data.byteSize());
        }
        for (long done = 0; done < data.byteSize(); ) {
            long count = Math.min(BUFFER_BYTES, data.byteSize() - done);
            MemorySegment.copy(data, done, MemorySegment.ofBuffer(buffer.clear()), 0, count);
            write(buffer.limit((int) count), range[0]);
            range[0] += count;
            done += count;
        }
    }

    private void write(ByteBuffer bytes, long position) {
        try {
            for (long at = position; bytes.hasRemaining(); ) {
                at += channel.write(bytes, at);
            }
        } catch (IOException e) {
            failed = true;
            throw new CheckpointException(path + ": cannot be written: " + e.getMessage(), e);
        }
    }

    /**
     * Finishes the file.
     *
     * @throws CheckpointException when a tensor is incomplete or the file cannot be put in place
     */
    @Override
    public void close() {
        if (closed) {
            return;
        }
        closed = true;
        try (channel) {
            String incomplete = remaining.entrySet().stream()
                    .filter(entry -> entry.getValue()[0] < entry.getValue()[1])
                    .map(Map.Entry::getKey)
                    .findFirst()
                    .orElse(null);
            if (failed) {
                Files.deleteIfExists(temporary);
            } else if (incomplete != null) {
                Files.deleteIfExists(temporary);
                throw new CheckpointException(path + ": tensor " + incomplete + " was not written completely");
            } else {
                Files.move(temporary, path, StandardCopyOption.REPLACE_EXISTING);
            }
        } catch (IOException e) {
            throw new CheckpointException(path + ": cannot be written: " + e.getMessage(), e);
        }
    }
}
