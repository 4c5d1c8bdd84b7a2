package dev.shadowkv.eval;

import static org.assertj.core.api.Assertions.assertThat;

import dev.shadowkv.llm.text.ChatTemplate;
import dev.shadowkv.llm.text.Tokenizer;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;

class PromptEncoderTest {
    private static final Path NEEDLE = Path.of(System.getProperty("shadowkv.root"), "models", "needle-32k");

    private static Prompt prompt(boolean conversation) {
        return new Prompt(Case.of("t", 0, 0, 0), "what is it ?", " it is", List.of("blue"), 1, conversation);
    }

    @Test
    void aTemplateWrapsConversationsOnly() {
        ChatTemplate template = ChatTemplate.of(
                "{{ bos_token }} find {% for m in messages %}{{ m.content }}{% endfor %} repeat ", Map.of("bos_token", "<bos>"));
        try (Tokenizer tokenizer = Tokenizer.open(NEEDLE)) {
            PromptEncoder bare = new PromptEncoder(tokenizer, Optional.empty());
            PromptEncoder chat = new PromptEncoder(tokenizer, Optional.of(template));
            assertThat(tokenizer.decode(bare.encode(prompt(true)), false)).isEqualTo("<bos> what is it ? it is");
            assertThat(tokenizer.decode(chat.encode(prompt(true)), false)).isEqualTo("<bos> find what is it ? repeat it is");
            assertThat(chat.encode(prompt(false))).isEqualTo(bare.encode(prompt(false)));
            assertThat(bare.overheadTokens()).isZero();
            assertThat(chat.overheadTokens()).isEqualTo(2);
        }
    }
}
