package dev.shadowkv.llm.input;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.checkpoint.Golden;
import dev.shadowkv.llm.checkpoint.SafetensorsWriter;
import dev.shadowkv.llm.checkpoint.TensorType;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.zip.GZIPOutputStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class InputFilesTest {
    @TempDir
    private Path folder;

    private Path text(String content) throws IOException {
        return Files.writeString(folder.resolve("ids.txt"), content);
    }

    @Test
    void readsIdsFromText() throws IOException {
        assertThat(TokenIds.read(text(" 1 2\t3 \n\n 4\r\n"), 5)).containsExactly(new int[] {1, 2, 3}, new int[] {4});
    }

    @Test
    void readsIdsFromSafetensors() {
        List<int[]> rows = TokenIds.read(Golden.folder("yi").resolve("golden.safetensors"), 320);
        assertThat(rows).hasSize(2).allSatisfy(row -> assertThat(row).hasSize(160));
        Path path = folder.resolve("one.safetensors");
        try (SafetensorsWriter writer = SafetensorsWriter.create(
                path, Map.of("input_ids", new SafetensorsWriter.Declaration(TensorType.I64, List.of(3L))))) {
            writer.append("input_ids", new long[] {7, 0, 9});
        }
        assertThat(TokenIds.read(path, 10)).containsExactly(new int[] {7, 0, 9});
        assertThatThrownBy(() -> TokenIds.read(path, 9))
                .isInstanceOf(CheckpointException.class)
                .hasMessage(path + ": row 0: token id 9 is outside the vocabulary of 9");
        Path other = Golden.folder("yi").resolve("model.safetensors");
        assertThatThrownBy(() -> TokenIds.read(other, 10)).hasMessage(other + ": there is no tensor input_ids");
    }

    @Test
    void refusesBrokenIds() throws IOException {
        Path missing = folder.resolve("missing");
        assertThatThrownBy(() -> TokenIds.read(missing, 10)).hasMessage(missing + ": no such file");
        assertThatThrownBy(() -> TokenIds.read(text("1 2\n3 x"), 10)).hasMessageEndingWith("line 2: \"x\" is not a token id");
        assertThatThrownBy(() -> TokenIds.read(text("1 10"), 10)).hasMessageContaining("line 1: token id 10 is outside");
        assertThatThrownBy(() -> TokenIds.read(text("-1"), 10)).hasMessageContaining("token id -1 is outside");
        assertThatThrownBy(() -> TokenIds.read(text("99999999999999999999"), 10)).hasMessageContaining("is not a token id");
        assertThatThrownBy(() -> TokenIds.read(text(" \n"), 10)).hasMessageContaining("has no token ids");
        Path binary = Files.write(folder.resolve("binary"), new byte[] {(byte) 0xff, (byte) 0xfe, 0});
        assertThatThrownBy(() -> TokenIds.read(binary, 10)).hasMessageContaining("not a text file");
    }

    @Test
    void readsPromptsPlainOrCompressed() throws IOException {
        String lines = "{\"prompt\":\"a\",\"task\":\"x\"}\n\n{\"answer\":\"é\",\"prompt\":\"é b\"}\n";
        Path plain = text(lines);
        Path compressed = folder.resolve("prompts.any");
        try (OutputStream out = new GZIPOutputStream(Files.newOutputStream(compressed))) {
            out.write(lines.getBytes(StandardCharsets.UTF_8));
        }
        assertThat(PromptFile.read(plain)).isEqualTo(PromptFile.read(compressed)).hasSize(2);
        assertThat(PromptFile.read(plain).get(1))
                .isEqualTo(new PromptFile.Entry(3, "é b", "{\"answer\":\"é\",\"prompt\":\"é b\"}"));
    }

    @Test
    void refusesBrokenPrompts() throws IOException {
        assertThatThrownBy(() -> PromptFile.read(text("{\"prompt\":\"a\"}\n{\"prompt\":"))).hasMessageContaining("line 2: ");
        assertThatThrownBy(() -> PromptFile.read(text("{\"text\":\"a\"}")))
                .hasMessageEndingWith("line 1: the field prompt is missing or not a string");
        assertThatThrownBy(() -> PromptFile.read(text("[]"))).hasMessageContaining("a JSON object is expected");
        assertThatThrownBy(() -> PromptFile.read(text(""))).hasMessageContaining("has no prompts");
        assertThatThrownBy(() -> PromptFile.read(folder)).hasMessageContaining("no such file");
        Path cut = Files.write(folder.resolve("cut.gz"), new byte[] {0x1f, (byte) 0x8b, 8});
        assertThatThrownBy(() -> PromptFile.read(cut)).isInstanceOf(CheckpointException.class).hasMessageContaining("cannot be read");
    }
}
