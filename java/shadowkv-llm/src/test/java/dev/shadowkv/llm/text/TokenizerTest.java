package dev.shadowkv.llm.text;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.input.PromptFile;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TokenizerTest {
    private static final Path NEEDLE = Path.of(System.getProperty("shadowkv.root"), "models", "needle-32k");

    @TempDir
    private Path folder;

    @Test
    void everySampleComesBackAsItWas() {
        try (Tokenizer tokenizer = Tokenizer.open(NEEDLE)) {
            assertThat(tokenizer.vocabularySize()).isEqualTo(2594);
            List<PromptFile.Entry> samples = PromptFile.read(NEEDLE.resolve("samples.jsonl.gz"));
            assertThat(samples).hasSize(40);
            for (PromptFile.Entry sample : samples) {
                int[] ids = tokenizer.encode(sample.prompt());
                int length = Integer.parseInt(sample.json().replaceFirst(".*\"length\": ?(\\d+).*", "$1"));
                assertThat(ids).hasSize(length);
                assertThat(ids[0]).isEqualTo(1);
                assertThat(tokenizer.decode(ids)).isEqualTo(sample.prompt());
                assertThat(tokenizer.decode(ids, false)).startsWith("<bos> ");
            }
        }
    }

    @Test
    void specialTokensAreAddedOnlyWhenAskedFor() {
        try (Tokenizer tokenizer = Tokenizer.open(NEEDLE.resolve("tokenizer.json"))) {
            assertThat(tokenizer.encode("the number 007", true)).containsExactly(1, 4, 7, 65);
            assertThat(tokenizer.encode("the number 007", false)).containsExactly(4, 7, 65);
            assertThat(tokenizer.encode("", false)).isEmpty();
            assertThat(tokenizer.idOf("<eos>")).hasValue(2);
            assertThat(tokenizer.idOf("nowhere")).isEmpty();
            assertThat(tokenizer.tokenOf(65)).contains("007");
            assertThat(tokenizer.tokenOf(2600)).isEmpty();
        }
    }

    @Test
    void streamingGivesTheSameTextAsDecodingAtOnce() {
        try (Tokenizer tokenizer = Tokenizer.open(NEEDLE)) {
            int[] ids = tokenizer.encode("passage the sky is blue . the sun is yellow . here we go", true);
            StreamingDecoder decoder = tokenizer.streamingDecoder();
            StringBuilder text = new StringBuilder();
            for (int id : ids) {
                text.append(decoder.accept(id));
            }
            assertThat(text.append(decoder.finish())).hasToString(tokenizer.decode(ids));
        }
    }

    /** A tokenizer whose tokens are single bytes, as byte-level models fall back to. */
    private Tokenizer byteTokenizer() throws IOException {
        ObjectNode json = JsonMapper.builder().build().createObjectNode();
        json.put("version", "1.0");
        json.putArray("added_tokens");
        for (String part : List.of("pre_tokenizer", "decoder")) {
            json.putObject(part)
                    .put("type", "ByteLevel")
                    .put("add_prefix_space", false)
                    .put("trim_offsets", false)
                    .put("use_regex", false);
        }
        ObjectNode model = json.putObject("model");
        model.put("type", "BPE");
        model.putArray("merges");
        ObjectNode vocabulary = model.putObject("vocab");
        int spare = 256;
        for (int value = 0; value < 256; value++) {
            boolean printable = value >= '!' && value <= '~' || value >= 0xa1 && value <= 0xac || value >= 0xae;
            vocabulary.put(Character.toString(printable ? value : spare++), value);
        }
        return Tokenizer.open(Files.writeString(folder.resolve("tokenizer.json"), json.toString()));
    }

    @Test
    void streamingNeverSplitsACharacter() throws IOException {
        String text = "né 🙂 日本 x";
        try (Tokenizer tokenizer = byteTokenizer()) {
            int[] ids = tokenizer.encode(text);
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            assertThat(ids).hasSize(bytes.length);
            assertThat(ids[0]).isEqualTo('n');
            StreamingDecoder decoder = tokenizer.streamingDecoder();
            StringBuilder streamed = new StringBuilder();
            for (int id : ids) {
                String piece = decoder.accept(id);
                assertThat(piece).doesNotContain("\uFFFD");
                streamed.append(piece);
            }
            assertThat(streamed).hasToString(text);
            assertThat(decoder.finish()).isEmpty();

            // Half a character at the end comes out as the replacement character, and the decoder starts anew.
            assertThat(decoder.accept(0xF0)).isEmpty();
            assertThat(decoder.finish()).isEqualTo("\uFFFD");
            assertThat(decoder.accept('a')).isEqualTo("a");
        }
    }

    @Test
    void misuseIsAnException() throws IOException {
        assertThatThrownBy(() -> Tokenizer.open(folder)).hasMessage(folder.resolve("tokenizer.json") + ": no such file");
        Path broken = Files.writeString(folder.resolve("tokenizer.json"), "{\"model\":{}}");
        assertThatThrownBy(() -> Tokenizer.open(broken))
                .isInstanceOf(CheckpointException.class)
                .hasMessage(broken + ": not a tokenizer: it has no model.vocab");
        Files.writeString(broken, "{\"model\":{\"vocab\":{\"a\":0}}}");
        assertThatThrownBy(() -> Tokenizer.open(broken))
                .isInstanceOf(CheckpointException.class)
                .hasMessageStartingWith(broken + ": not a tokenizer: ")
                .message()
                .doesNotContain("\n");
        Tokenizer tokenizer = Tokenizer.open(NEEDLE);
        assertThatThrownBy(() -> tokenizer.decode(new int[] {-1})).isInstanceOf(IllegalArgumentException.class);
        tokenizer.close();
        tokenizer.close();
        assertThatThrownBy(() -> tokenizer.encode("the")).isInstanceOf(IllegalStateException.class);
        assertThatThrownBy(() -> tokenizer.decode(new int[] {4})).isInstanceOf(IllegalStateException.class);
    }
}
