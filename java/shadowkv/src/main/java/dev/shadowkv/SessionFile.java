package dev.shadowkv;

import java.io.EOFException;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.zip.CRC32C;

/**
 * Saved sessions: "SHADOWKV", a format version, a header of {@code name=value} lines that says for which cache the file
 * is, its checksum, the session's state and memory, and their checksum. Little-endian; CRC-32C. What is described once
 * in {@link SessionBase#transfer} is written and read in the same order.
 */
final class SessionFile {

    private static final byte[] MAGIC = "SHADOWKV".getBytes(StandardCharsets.US_ASCII);
    private static final int FORMAT = 5;
    private static final int MOST_HEADER = 1 << 16;

    private SessionFile() {
    }

    static void write(SessionBase session, Path file) throws IOException {
        Path target = file.toAbsolutePath();
        Path partial = Files.createTempFile(target.getParent(), target.getFileName().toString(), ".partial");
        try {
            try (FileChannel channel = FileChannel.open(partial, StandardOpenOption.WRITE);
                 Transfer transfer = new Transfer(channel, true, session.cache().device)) {
                byte[] header = header(session).getBytes(StandardCharsets.UTF_8);
                transfer.bytes(MAGIC.clone());
                transfer.number("format", FORMAT, FORMAT, FORMAT);
                transfer.number("header", header.length, 0, MOST_HEADER);
                transfer.bytes(header);
                transfer.checksum("header");
                session.transfer(transfer);
                transfer.checksum("session");
            }
            Files.move(partial, target, StandardCopyOption.REPLACE_EXISTING);
        } finally {
            Files.deleteIfExists(partial);
        }
    }

    static KvSession read(CacheBase cache, Path file) throws IOException {
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ);
             Transfer transfer = new Transfer(channel, false, cache.device)) {
            byte[] magic = transfer.bytes(new byte[MAGIC.length]);
            if (!java.util.Arrays.equals(magic, MAGIC)) {
                throw refused(file, "it is not a saved session");
            }
            long format = transfer.number("format", 0, 0, Long.MAX_VALUE);
            if (format != FORMAT) {
                throw refused(file, "it has format " + format + ", this library reads format " + FORMAT);
            }
            int length = (int) transfer.number("header", 0, 0, MOST_HEADER);
            String header = new String(transfer.bytes(new byte[length]), StandardCharsets.UTF_8);
            transfer.checksum("header");
            Map<String, String> saved = parse(header);
            Map<String, String> here = cache.identity();
            for (Map.Entry<String, String> field : here.entrySet()) {
                String value = saved.get(field.getKey());
                if (!field.getValue().equals(value)) {
                    throw refused(file, "it was saved with " + field.getKey() + " " + value + ", this cache has "
                            + field.getValue());
                }
            }
            SessionBase session = (SessionBase) cache.open(Long.parseLong(saved.get("capacity")));
            try {
                session.transfer(transfer);
                transfer.checksum("session");
                cache.device.synchronize();
                return session;
            } catch (IOException | RuntimeException e) {
                session.close();
                throw e;
            }
        } catch (EOFException e) {
            throw refused(file, "it is truncated");
        } catch (NumberFormatException e) {
            throw refused(file, "its header has no capacity");
        } catch (Damaged e) {
            throw refused(file, e.getMessage());
        }
    }

    /** The content is not what was written. */
    private static final class Damaged extends IOException {
        private static final long serialVersionUID = 1L;

        Damaged(String message) {
            super(message);
        }
    }

    private static ShadowKvException refused(Path file, String why) {
        return new ShadowKvException(Status.INVALID_ARGUMENT, "load session", file + ": " + why);
    }

    private static String header(SessionBase session) {
        Map<String, String> fields = new LinkedHashMap<>(session.cache().identity());
        fields.put("capacity", Long.toString(session.capacity));
        StringBuilder text = new StringBuilder();
        fields.forEach((name, value) -> text.append(name).append('=').append(value).append('\n'));
        return text.toString();
    }

    private static Map<String, String> parse(String header) {
        Map<String, String> fields = new LinkedHashMap<>();
        for (String line : header.split("\n")) {
            int equals = line.indexOf('=');
            if (equals > 0) {
                fields.put(line.substring(0, equals), line.substring(equals + 1));
            }
        }
        return fields;
    }

    /** Writes what it is given, or reads and returns what was given. */
    static final class Transfer implements AutoCloseable {

        private static final int PIECE = 8 << 20;

        private final FileChannel channel;
        private final boolean writing;
        private final Device device;
        private final Arena arena = Arena.ofShared();
        private final MemorySegment piece = arena.allocate(PIECE, 64);
        private final CRC32C crc = new CRC32C();

        private Transfer(FileChannel channel, boolean writing, Device device) {
            this.channel = channel;
            this.writing = writing;
            this.device = device;
        }

        boolean writing() {
            return writing;
        }

        long number(String name, long value, long least, long most) throws IOException {
            ByteBuffer buffer = ByteBuffer.allocate(Long.BYTES).order(ByteOrder.LITTLE_ENDIAN);
            buffer.putLong(0, value);
            move(buffer);
            long result = buffer.getLong(0);
            if (result < least || result > most) {
                throw new Damaged(name + " must be from " + least + " to " + most + ": " + result);
            }
            return result;
        }

        int[] integers(String name, int[] values, int count) throws IOException {
            int[] result = writing ? values : new int[count];
            for (int i = 0; i < count; i++) {
                result[i] = (int) number(name, result[i], 0, Integer.MAX_VALUE);
            }
            return result;
        }

        float[] floats(String name, float[] values, int count) throws IOException {
            float[] result = writing ? values : new float[count];
            for (int i = 0; i < count; i++) {
                long bits = Float.floatToRawIntBits(result[i]) & 0xffffffffL;
                result[i] = Float.intBitsToFloat((int) number(name, bits, 0, 0xffffffffL));
            }
            return result;
        }

        byte[] bytes(byte[] values) throws IOException {
            move(ByteBuffer.wrap(values));
            return values;
        }

        /** Rows in device memory, {@code pitch} bytes apart. */
        void rows(DeviceBuffer buffer, long pitch, long width, int rows) throws IOException {
            for (int row = 0; row < rows; row++) {
                for (long done = 0; done < width; done += PIECE) {
                    long n = Math.min(PIECE, width - done);
                    MemorySegment host = piece.asSlice(0, n);
                    DeviceBuffer part = buffer.slice(row * pitch + done, n);
                    if (writing) {
                        device.copy(part, host);
                        move(host.asByteBuffer());
                    } else {
                        move(host.asByteBuffer());
                        device.copy(host, part);
                        device.synchronize();
                    }
                }
            }
        }

        /** Rows in pinned host memory. */
        void hostRows(MemorySegment memory, long pitch, long width, int rows) throws IOException {
            device.synchronize();
            for (int row = 0; row < rows; row++) {
                for (long done = 0; done < width; done += PIECE) {
                    move(memory.asSlice(row * pitch + done, Math.min(PIECE, width - done)).asByteBuffer());
                }
            }
        }

        /** The checksum of everything since the last one. */
        void checksum(String what) throws IOException {
            long expected = crc.getValue();
            if (number("checksum", expected, 0, 0xffffffffL) != expected) {
                throw new Damaged("its " + what + " is damaged: the checksum differs");
            }
            crc.reset();
        }

        private void move(ByteBuffer buffer) throws IOException {
            if (writing) {
                crc.update(buffer.duplicate());
                while (buffer.hasRemaining()) {
                    channel.write(buffer);
                }
            } else {
                ByteBuffer again = buffer.duplicate();
                while (buffer.hasRemaining()) {
                    if (channel.read(buffer) < 0) {
                        throw new EOFException();
                    }
                }
                crc.update(again);
            }
        }

        @Override
        public void close() {
            arena.close();
        }
    }
}
