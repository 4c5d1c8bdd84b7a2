package dev.shadowkv.eval;

import dev.shadowkv.llm.text.ChatMessage;
import dev.shadowkv.llm.text.ChatTemplate;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * Turns prompts into tokens for a model. With a chat template, a prompt that is part of a conversation becomes the
 * user's turn, and the answer's prefix begins the assistant's; without one, and for other prompts, both are plain text.
 */
public final class PromptEncoder {
    private final Tokenizer tokenizer;
    private final Optional<ChatTemplate> template;

    /**
     * Makes an encoder.
     *
     * @param template the model's chat template, empty for a base model
     */
    public PromptEncoder(Tokenizer tokenizer, Optional<ChatTemplate> template) {
        this.tokenizer = Objects.requireNonNull(tokenizer, "tokenizer");
        this.template = Objects.requireNonNull(template, "template");
    }

    /** The tokens of a prompt. */
    public int[] encode(Prompt prompt) {
        if (template.isEmpty() || !prompt.conversation()) {
            return tokenizer.encode(prompt.whole());
        }
        String turn = template.get().render(List.of(ChatMessage.user(prompt.text())), true);
        // The template has ended its header; the space that joins the prefix to plain text has nothing to join.
        return tokenizer.encode(turn + prompt.answerPrefix().stripLeading(), false);
    }

    /** Tokens that the template takes around a short text, for suites that fill a length; 0 without a template. */
    public int overheadTokens() {
        String probe = "Which?";
        return template.map(chat -> tokenizer.encode(chat.render(List.of(ChatMessage.user(probe)), true), false).length
                        - tokenizer.encode(probe).length)
                .orElse(0);
    }
}
