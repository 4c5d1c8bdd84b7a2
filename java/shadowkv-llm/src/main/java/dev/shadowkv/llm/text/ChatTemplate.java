package dev.shadowkv.llm.text;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.MissingNode;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.internal.jinja.JinjaException;
import dev.shadowkv.llm.internal.jinja.Template;
import dev.shadowkv.llm.internal.json.Json;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDateTime;
import java.time.format.DateTimeFormatter;
import java.time.format.TextStyle;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;

/**
 * A checkpoint's own chat template: how it wants a conversation written. The text that it renders holds the special
 * tokens already, so it is encoded with {@code addSpecialTokens = false}. Immutable, usable from any thread.
 *
 * <pre>{@code
 * ChatTemplate template = ChatTemplate.read(folder).orElseThrow();
 * int[] ids = tokenizer.encode(template.render(List.of(ChatMessage.user("Hello")), true), false);
 * }</pre>
 */
public final class ChatTemplate {
    private static final String[] SPECIAL_TOKENS = {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token"};

    private final Path origin;
    private final Template template;
    private final Map<String, Object> variables;

    private ChatTemplate(Path origin, Template template, Map<String, Object> variables) {
        this.origin = origin;
        this.template = template;
        this.variables = variables;
    }

    /**
     * Reads the template of a checkpoint: {@code chat_template.jinja}, or {@code chat_template} in {@code
     * tokenizer_config.json}; of several named ones that called {@code default}.
     *
     * @return empty when the checkpoint has none
     * @throws CheckpointException when a file is broken, or the template uses something that is not supported
     */
    public static Optional<ChatTemplate> read(Path directory) {
        Path config = directory.resolve("tokenizer_config.json");
        Path separate = directory.resolve("chat_template.jinja");
        try {
            JsonNode fields = Files.isRegularFile(config) ? Json.parseObject(config) : MissingNode.getInstance();
            Map<String, Object> specialTokens = specialTokens(fields);
            if (Files.isRegularFile(separate)) {
                return Optional.of(compile(separate, Files.readString(separate), specialTokens));
            }
            return source(fields).map(source -> compile(config, source, specialTokens));
        } catch (IOException e) {
            throw new CheckpointException(separate + ": cannot be read: " + e.getMessage(), e);
        } catch (UncheckedIOException e) {
            throw new CheckpointException(config + ": cannot be read: " + e.getCause().getMessage(), e);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(config + ": not valid JSON: " + e.getMessage(), e);
        }
    }

    /**
     * Compiles a template.
     *
     * @param specialTokens variables such as {@code bos_token}
     * @throws CheckpointException when it uses something that is not supported
     */
    public static ChatTemplate of(String source, Map<String, String> specialTokens) {
        return compile(Path.of("chat template"), source, new HashMap<>(specialTokens));
    }

    private static ChatTemplate compile(Path origin, String source, Map<String, Object> specialTokens) {
        try {
            return new ChatTemplate(origin, Template.compile(source), specialTokens);
        } catch (JinjaException e) {
            throw new CheckpointException(origin + ": chat template: " + e.getMessage(), e);
        }
    }

    private static Map<String, Object> specialTokens(JsonNode fields) {
        Map<String, Object> tokens = new HashMap<>();
        for (String name : SPECIAL_TOKENS) {
            JsonNode value = fields.path(name);
            JsonNode text = value.isObject() ? value.path("content") : value;
            if (text.isTextual()) {
                tokens.put(name, text.textValue());
            }
        }
        return tokens;
    }

    private static Optional<String> source(JsonNode fields) {
        JsonNode template = fields.path("chat_template");
        if (template.isArray()) {
            for (JsonNode named : template) {
                if (named.path("name").asText().equals("default")) {
                    return Optional.ofNullable(named.path("template").textValue());
                }
            }
        }
        return Optional.ofNullable(template.textValue());
    }

    /**
     * Writes a conversation as the model was trained to read it.
     *
     * @param addGenerationPrompt whether to begin the assistant's next turn
     * @throws CheckpointException when the template rejects the conversation, with its own message
     */
    public String render(List<ChatMessage> messages, boolean addGenerationPrompt) {
        Map<String, Object> values = new HashMap<>(variables);
        List<Object> turns = new ArrayList<>();
        for (ChatMessage message : messages) {
            Map<String, Object> turn = new HashMap<>();
            turn.put("role", message.role());
            turn.put("content", message.content());
            turns.add(turn);
        }
        values.put("messages", turns);
        values.put("add_generation_prompt", addGenerationPrompt);
        values.put("tools", null);
        values.put("documents", null);
        values.put("strftime_now", Template.function(arguments -> format(LocalDateTime.now(), arguments.getFirst().toString())));
        try {
            return template.render(values);
        } catch (JinjaException e) {
            throw new CheckpointException(origin + ": chat template: " + e.getMessage(), e);
        }
    }

    /** The directives of {@code strftime} that templates use. */
    private static String format(LocalDateTime time, String pattern) {
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < pattern.length(); i++) {
            if (pattern.charAt(i) != '%' || i + 1 == pattern.length()) {
                text.append(pattern.charAt(i));
                continue;
            }
            char directive = pattern.charAt(++i);
            text.append(
                    switch (directive) {
                        case 'Y' -> time.format(DateTimeFormatter.ofPattern("uuuu"));
                        case 'm' -> time.format(DateTimeFormatter.ofPattern("MM"));
                        case 'd' -> time.format(DateTimeFormatter.ofPattern("dd"));
                        case 'H' -> time.format(DateTimeFormatter.ofPattern("HH"));
                        case 'M' -> time.format(DateTimeFormatter.ofPattern("mm"));
                        case 'S' -> time.format(DateTimeFormatter.ofPattern("ss"));
                        case 'B' -> time.getMonth().getDisplayName(TextStyle.FULL, Locale.ENGLISH);
                        case 'b' -> time.getMonth().getDisplayName(TextStyle.SHORT, Locale.ENGLISH);
                        case 'A' -> time.getDayOfWeek().getDisplayName(TextStyle.FULL, Locale.ENGLISH);
                        case 'a' -> time.getDayOfWeek().getDisplayName(TextStyle.SHORT, Locale.ENGLISH);
                        case '%' -> "%";
                        default -> throw new JinjaException("strftime_now: %" + directive + " is not supported");
                    });
        }
        return text.toString();
    }
}
