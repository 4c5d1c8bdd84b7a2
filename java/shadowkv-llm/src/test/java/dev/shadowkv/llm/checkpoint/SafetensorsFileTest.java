package dev.shadowkv.llm.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class SafetensorsFileTest {
    @TempDir
    private Path folder;

    private Path write(String header, byte[] data) throws IOException {
        byte[] json = header.getBytes(StandardCharsets.UTF_8);
        ByteBuffer bytes = ByteBuffer.allocate(8 + json.length + data.length).order(ByteOrder.LITTLE_ENDIAN);
        bytes.putLong(json.length).put(json).put(data);
        return Files.write(folder.resolve("a.safetensors"), bytes.array());
    }

    @Test
    void readsEveryFloatingTypeWithoutAlignment() throws IOException {
        ByteBuffer data = ByteBuffer.allocate(1 + 4 + 2 + 2 + 8).order(ByteOrder.LITTLE_ENDIAN);
        data.put((byte) -3).putFloat(1.5f).putShort((short) 0xC040).putShort(Float.floatToFloat16(0.25f)).putDouble(-7.5);
        Path path = write(
                """
                {"__metadata__":{"format":"pt"},
                 "byte":{"dtype":"I8","shape":[],"data_offsets":[0,1]},
                 "f32":{"dtype":"F32","shape":[1,1],"data_offsets":[1,5]},
                 "bf16":{"dtype":"BF16","shape":[1],"data_offsets":[5,7]},
                 "f16":{"dtype":"F16","shape":[1],"data_offsets":[7,9]},
                 "f64":{"dtype":"F64","shape":[1],"data_offsets":[9,17]},
                 "empty":{"dtype":"F32","shape":[0,4],"data_offsets":[17,17]}}""",
                data.array());
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            assertThat(file.metadata()).containsEntry("format", "pt");
            assertThat(file.names()).containsExactly("byte", "f32", "bf16", "f16", "f64", "empty");
            assertThat(file.tensor("byte").longAt(0)).isEqualTo(-3);
            assertThat(file.tensor("f32").floatAt(0)).isEqualTo(1.5f);
            assertThat(file.tensor("bf16").floatAt(0)).isEqualTo(-3f);
            assertThat(file.tensor("f16").floatAt(0)).isEqualTo(0.25f);
            assertThat(file.tensor("f64").floatAt(0)).isEqualTo(-7.5f);
            assertThat(file.tensor("empty").toFloats()).isEmpty();
            assertThatThrownBy(() -> file.tensor("other"))
                    .isInstanceOf(CheckpointException.class)
                    .hasMessageContaining("a.safetensors: there is no tensor other");
            assertThatThrownBy(() -> file.tensor("f32").longAt(0)).isInstanceOf(CheckpointException.class);
            assertThatThrownBy(() -> file.tensor("f32").floatAt(1)).isInstanceOf(IndexOutOfBoundsException.class);
        }
    }

    @Test
    void dataIsGoneAfterClose() throws IOException {
        Path path = write("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", new byte[4]);
        SafetensorsFile file = SafetensorsFile.open(path);
        Tensor tensor = file.tensor("a");
        file.close();
        file.close();
        assertThatThrownBy(() -> tensor.floatAt(0)).isInstanceOf(IllegalStateException.class);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}} | tensor a: truncated: its data ends at byte 12",
                "{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}} | tensor a: unknown dtype F31",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}} | F32[3] takes 12 bytes, data_offsets give 8",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}} | tensor a: shape has the negative number -2",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,8]}} | where a 64-bit integer is expected",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}} | where a 64-bit integer is expected",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}} | overflows 64 bits",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551618],\"data_offsets\":[0,8]}} | where a 64-bit integer",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}} | run backwards",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}} | has 1 numbers instead of 2",
                "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}} | tensor a: shape is missing",
                "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}} | tensor a: dtype is missing",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}} | tensor a: unknown field x",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} | 4 bytes after the last tensor",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}} | bytes 0 to 4 before it belong to no tensor",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[7,8]}} | tensor b: its data overlaps that of a",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}} | Duplicate field 'a'",
                "{\"a\":7} | tensor a: its entry is not an object",
                "[1,2] | a JSON object is expected",
                "{\"a\" | the header is not JSON",
                "{'a':1} | the header is not JSON",
                "{\"__metadata__\":{\"format\":1}} | __metadata__.format is not a string",
            })
    void refusesABrokenHeaderInOneLine(String header, String message) throws IOException {
        Path path = write(header, new byte[8]);
        assertThatThrownBy(() -> SafetensorsFile.open(path))
                .isInstanceOf(CheckpointException.class)
                .hasMessageStartingWith(path.toString())
                .hasMessageContaining(message)
                .message()
                .doesNotContain("\n");
    }

    @Test
    void refusesWhatIsNoSafetensorsFile() throws IOException {
        Path missing = folder.resolve("missing.safetensors");
        assertThatThrownBy(() -> SafetensorsFile.open(missing)).hasMessage(missing + ": no such file");
        Path empty = Files.write(folder.resolve("empty"), new byte[0]);
        assertThatThrownBy(() -> SafetensorsFile.open(empty)).hasMessageContaining("truncated");
        Path text = Files.writeString(folder.resolve("text"), "version https://example.org/spec/v1\n");
        assertThatThrownBy(() -> SafetensorsFile.open(text)).hasMessageContaining("not a safetensors file");
        Path cut = Files.write(folder.resolve("cut"), new byte[] {100, 0, 0, 0, 0, 0, 0, 0, '{'});
        assertThatThrownBy(() -> SafetensorsFile.open(cut))
                .hasMessageContaining("truncated: the header takes 100 bytes, the file has 1");
    }

    @Test
    void everyTruncationOfAFileIsRefused() throws IOException {
        byte[] whole = Files.readAllBytes(
                write("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]}}", new byte[12]));
        for (int length = 0; length < whole.length; length++) {
            Path cut = Files.write(folder.resolve("cut"), java.util.Arrays.copyOf(whole, length));
            assertThatThrownBy(() -> SafetensorsFile.open(cut)).isInstanceOf(CheckpointException.class);
        }
    }

    @Test
    void damagedBytesAreRefusedOrHarmless() throws IOException {
        byte[] whole = Files.readAllBytes(write(
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]},"
                        + "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[12,20]}}",
                new byte[20]));
        SplittableRandom random = new SplittableRandom(77);
        int refused = 0;
        for (int round = 0; round < 3000; round++) {
            byte[] damaged = whole.clone();
            for (int i = random.nextInt(1, 4); i > 0; i--) {
                damaged[random.nextInt(damaged.length)] = (byte) random.nextInt(256);
            }
            Path path = Files.write(folder.resolve("damaged"), damaged);
            try (SafetensorsFile file = SafetensorsFile.open(path)) {
                file.names().forEach(name -> file.tensor(name).data().toArray(java.lang.foreign.ValueLayout.JAVA_BYTE));
            } catch (CheckpointException e) {
                refused++;
                assertThat(e.getMessage()).startsWith(path.toString()).doesNotContain("\n");
            }
        }
        assertThat(refused).isBetween(1500, 2999);
    }

    @Test
    void writerMakesAFileThatReadsBack() {
        SplittableRandom random = new SplittableRandom(5);
        float[] logits = new float[3 * 7 * 11_003];
        for (int i = 0; i < logits.length; i++) {
            logits[i] = (float) random.nextDouble(-9, 9);
        }
        Map<String, SafetensorsWriter.Declaration> tensors = new LinkedHashMap<>();
        tensors.put("ids", new SafetensorsWriter.Declaration(TensorType.I64, List.of(2L)));
        tensors.put("logits", new SafetensorsWriter.Declaration(TensorType.F32, List.of(3L, 7L, 11_003L)));
        Path path = folder.resolve("out.safetensors");
        try (SafetensorsWriter writer = SafetensorsWriter.create(path, tensors)) {
            for (int row = 0; row < 21; row++) {
                writer.append("logits", java.util.Arrays.copyOfRange(logits, row * 11_003, (row + 1) * 11_003));
            }
            writer.append("ids", new long[] {1L << 40, -5});
            assertThat(Files.exists(path)).isFalse();
        }
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            assertThat(file.tensor("logits").shape()).containsExactly(3L, 7L, 11_003L);
            assertThat(file.tensor("logits").toFloats()).isEqualTo(logits);
            assertThat(file.tensor("ids").toLongs()).containsExactly(1L << 40, -5);
            assertThat(file.tensor("logits").data().address() % 8).isZero();
        }
    }

    @Test
    void writerLeavesNothingBehindWhenATensorIsIncomplete() {
        Path path = folder.resolve("out.safetensors");
        SafetensorsWriter writer = SafetensorsWriter.create(
                path, Map.of("a", new SafetensorsWriter.Declaration(TensorType.F32, List.of(4L))));
        writer.append("a", new float[3]);
        assertThatThrownBy(() -> writer.append("a", new float[2])).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> writer.append("b", new float[1])).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(writer::close).hasMessageContaining("tensor a was not written completely");
        assertThat(folder).isEmptyDirectory();
        writer.close();
        assertThatThrownBy(() -> writer.append("a", new float[1])).isInstanceOf(IllegalStateException.class);
    }

    @Test
    void rowsAreViews() {
        float[] values = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
        Tensor tensor = new Tensor("t", TensorType.F32, List.of(4L, 3L), MemorySegment.ofArray(values));
        assertThat(tensor.rows(1, 2).toFloats()).containsExactly(3, 4, 5, 6, 7, 8);
        assertThat(tensor.rows(1, 2).shape()).containsExactly(2L, 3L);
        assertThat(tensor.rows(4, 0).toFloats()).isEmpty();
        assertThatThrownBy(() -> tensor.rows(3, 2)).isInstanceOf(IndexOutOfBoundsException.class);
        assertThatThrownBy(() -> new Tensor("t", TensorType.F32, List.of(5L), MemorySegment.ofArray(values)))
                .isInstanceOf(IllegalArgumentException.class);
    }
}
