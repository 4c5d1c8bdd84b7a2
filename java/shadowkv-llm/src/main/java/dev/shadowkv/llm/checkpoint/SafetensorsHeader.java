package dev.shadowkv.llm.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.internal.json.Json;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The header of a safetensors file: eight bytes of length, then that many of JSON, then the data. Offsets count from
 * the start of the data; together the tensors cover it exactly once.
 */
final class SafetensorsHeader {
    /** The format's own limit on the JSON, which keeps a garbage length from being taken for a huge header. */
    private static final long MAXIMUM_LENGTH = 100_000_000;

    private static final ValueLayout.OfLong LENGTH =
            ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final String METADATA = "__metadata__";

    private record Entry(String name, TensorType type, List<Long> shape, long begin, long end) {}

    private final Path path;
    private final long dataStart;
    private final long dataSize;
    private final List<Entry> entries = new ArrayList<>();
    private final Map<String, String> metadata = new LinkedHashMap<>();

    private SafetensorsHeader(Path path, long dataStart, long dataSize) {
        this.path = path;
        this.dataStart = dataStart;
        this.dataSize = dataSize;
    }

    static SafetensorsHeader read(Path path, MemorySegment file) {
        if (file.byteSize() < Long.BYTES) {
            throw new CheckpointException(path + ": truncated: " + file.byteSize() + " bytes hold no header length");
        }
        long length = file.get(LENGTH, 0);
        if (length < 2 || length > MAXIMUM_LENGTH) {
            throw new CheckpointException(path + ": not a safetensors file: header length "
                    + Long.toUnsignedString(length) + " is outside 2.." + MAXIMUM_LENGTH);
        }
        if (length > file.byteSize() - Long.BYTES) {
            throw new CheckpointException(path + ": truncated: the header takes " + length + " bytes, the file has "
                    + (file.byteSize() - Long.BYTES) + " after the length");
        }
        long dataStart = Long.BYTES + length;
        SafetensorsHeader header = new SafetensorsHeader(path, dataStart, file.byteSize() - dataStart);
        ObjectNode json;
        try {
            json = Json.parseObject(utf8(file.asSlice(Long.BYTES, length)));
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(path + ": the header is not JSON: " + e.getMessage(), e);
        } catch (CharacterCodingException e) {
            throw new CheckpointException(path + ": the header is not UTF-8", e);
        }
        for (Map.Entry<String, JsonNode> member : json.properties()) {
            if (member.getKey().equals(METADATA)) {
                header.readMetadata(member.getValue());
            } else {
                header.entries.add(header.readEntry(member.getKey(), member.getValue()));
            }
        }
        header.checkCoverage();
        return header;
    }

    private static String utf8(MemorySegment bytes) throws CharacterCodingException {
        return StandardCharsets.UTF_8
                .newDecoder()
                .decode(ByteBuffer.wrap(bytes.toArray(ValueLayout.JAVA_BYTE)))
                .toString();
    }

    Map<String, String> metadata() {
        return Map.copyOf(metadata);
    }

    Map<String, Tensor> tensors(MemorySegment file) {
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        for (Entry entry : entries) {
            MemorySegment data = file.asSlice(dataStart + entry.begin, entry.end - entry.begin);
            tensors.put(entry.name, new Tensor(entry.name, entry.type, entry.shape, data));
        }
        return tensors;
    }

    private void readMetadata(JsonNode value) {
        if (!value.isObject()) {
            throw new CheckpointException(path + ": " + METADATA + " is not an object of strings");
        }
        value.properties().forEach(entry -> {
            if (!entry.getValue().isTextual()) {
                throw new CheckpointException(path + ": " + METADATA + "." + entry.getKey() + " is not a string");
            }
            metadata.put(entry.getKey(), entry.getValue().textValue());
        });
    }

    private Entry readEntry(String name, JsonNode value) {
        if (!(value instanceof ObjectNode object)) {
            throw wrong(name, "its entry is not an object");
        }
        for (Map.Entry<String, JsonNode> field : object.properties()) {
            String key = field.getKey();
            if (!key.equals("dtype") && !key.equals("shape") && !key.equals("data_offsets")) {
                throw wrong(name, "unknown field " + key);
            }
        }
        String code = object.path("dtype").textValue();
        if (code == null) {
            throw wrong(name, "dtype is missing or not a string");
        }
        TensorType type = TensorType.ofCode(code).orElseThrow(() -> wrong(name, "unknown dtype " + code));
        List<Long> shape = longs(name, "shape", object.path("shape"));
        List<Long> offsets = longs(name, "data_offsets", object.path("data_offsets"));
        if (offsets.size() != 2) {
            throw wrong(name, "data_offsets has " + offsets.size() + " numbers instead of 2");
        }
        long begin = offsets.get(0);
        long end = offsets.get(1);
        if (begin > end) {
            throw wrong(name, "data_offsets [" + begin + ", " + end + "] run backwards");
        }
        if (end > dataSize) {
            throw wrong(name, "truncated: its data ends at byte " + end + ", the file has " + dataSize + " bytes of data");
        }
        long bytes = type.byteSize();
        try {
            for (long dimension : shape) {
                bytes = Math.multiplyExact(bytes, dimension);
            }
        } catch (ArithmeticException e) {
            throw wrong(name, "shape " + shape + " overflows 64 bits");
        }
        if (bytes != end - begin) {
            throw wrong(name, type.code() + shape + " takes " + bytes + " bytes, data_offsets give " + (end - begin));
        }
        return new Entry(name, type, shape, begin, end);
    }

    private List<Long> longs(String name, String field, JsonNode value) {
        if (!value.isArray()) {
            throw wrong(name, field + " is missing or not an array");
        }
        List<Long> numbers = new ArrayList<>(value.size());
        for (JsonNode element : value) {
            if (!element.isIntegralNumber() || !element.canConvertToLong()) {
                throw wrong(name, field + " has " + element + " where a 64-bit integer is expected");
            }
            long number = element.longValue();
            if (number < 0) {
                throw wrong(name, field + " has the negative number " + number);
            }
            numbers.add(number);
        }
        return numbers;
    }

    private void checkCoverage() {
        entries.sort(Comparator.comparingLong(Entry::begin).thenComparingLong(Entry::end));
        long position = 0;
        String previous = null;
        for (Entry entry : entries) {
            if (entry.begin < position) {
                throw wrong(entry.name, "its data overlaps that of " + previous);
            }
            if (entry.begin > position) {
                throw wrong(entry.name, "bytes " + position + " to " + entry.begin + " before it belong to no tensor");
            }
            position = entry.end;
            previous = entry.name;
        }
        if (position != dataSize) {
            throw new CheckpointException(
                    path + ": " + (dataSize - position) + " bytes after the last tensor belong to no tensor");
        }
    }

    private CheckpointException wrong(String name, String reason) {
        return new CheckpointException(path + ": tensor " + name + ": " + reason);
    }
}
