package dev.shadowkv.llm.text;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Templates written here to the formats that the families publish. */
class ChatTemplateTest {
    private static final List<ChatMessage> CONVERSATION = List.of(
            ChatMessage.system(" Be brief. "),
            ChatMessage.user("Hi"),
            ChatMessage.assistant("Hello"),
            ChatMessage.user("2+2?"));

    @TempDir
    private Path folder;

    @Test
    void llama3Headers() {
        ChatTemplate template = ChatTemplate.of(
                """
                {% for message in messages %}
                    {%- set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
                    {%- if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}
                    {{- text }}
                {%- endfor %}
                {%- if add_generation_prompt %}
                    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
                {%- endif %}
                """,
                Map.of("bos_token", "<|begin_of_text|>"));
        assertThat(template.render(CONVERSATION, true))
                .isEqualTo("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                        + "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                        + "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
                        + "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
                        + "<|start_header_id|>assistant<|end_header_id|>\n\n");
    }

    @Test
    void llama31TakesTheSystemMessageApart() {
        ChatTemplate template = ChatTemplate.of(
                """
                {{- bos_token }}
                {%- if not date_string is defined %}
                    {%- set date_string = "26 Jul 2024" %}
                {%- endif %}
                {%- if not tools is defined %}
                    {%- set tools = none %}
                {%- endif %}
                {%- if messages[0]['role'] == 'system' %}
                    {%- set system_message = messages[0]['content']|trim %}
                    {%- set messages = messages[1:] %}
                {%- else %}
                    {%- set system_message = "" %}
                {%- endif %}
                {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
                {%- if tools is not none %}
                    {{- "Environment: ipython\\n" }}
                {%- endif %}
                {{- "Today Date: " + date_string + "\\n\\n" }}
                {{- system_message }}
                {{- "<|eot_id|>" }}
                {%- for message in messages %}
                    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
                        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
                    {%- elif 'tool_calls' in message %}
                        {{- raise_exception("This model only supports single tool-calls at once!") }}
                    {%- endif %}
                {%- endfor %}
                {%- if add_generation_prompt %}
                    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
                {%- endif %}
                """,
                Map.of("bos_token", "<B>"));
        assertThat(template.render(CONVERSATION.subList(0, 2), true))
                .isEqualTo("<B><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
                        + "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                        + "<|start_header_id|>assistant<|end_header_id|>\n\n");
        assertThat(template.render(List.of(ChatMessage.user("Hi")), false))
                .isEqualTo("<B><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
                        + "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>");
    }

    @Test
    void qwen2AddsASystemMessageOfItsOwn() {
        ChatTemplate template = ChatTemplate.of(
                "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
                        + "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
                        + "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                        + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
                Map.of());
        assertThat(template.render(List.of(ChatMessage.user("Hi")), true))
                .isEqualTo("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                        + "<|im_start|>assistant\n");
        assertThat(template.render(CONVERSATION, false))
                .isEqualTo("<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                        + "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n");
    }

    @Test
    void phi3EndsWithItsEndTokenWhenNothingFollows() {
        ChatTemplate template = ChatTemplate.of(
                "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
                        + "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
                        + "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
                        + "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
                        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
                Map.of("eos_token", "<|endoftext|>"));
        assertThat(template.render(CONVERSATION.subList(1, 2), true)).isEqualTo("<|user|>\nHi<|end|>\n<|assistant|>\n");
        assertThat(template.render(CONVERSATION.subList(1, 3), false))
                .isEqualTo("<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|endoftext|>");
    }

    @Test
    void glm4AndAlternatingRoles() {
        ChatTemplate glm = ChatTemplate.of(
                "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}{{ 'tools' }}{% endif %}"
                        + "{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}"
                        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
                Map.of());
        assertThat(glm.render(List.of(ChatMessage.user("Hi")), true))
                .isEqualTo("[gMASK]<sop><|user|>\nHi<|assistant|>");
        ChatTemplate strict = ChatTemplate.of(
                "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
                        + "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}x{% endfor %}",
                Map.of());
        assertThat(strict.render(CONVERSATION.subList(1, 4), false)).isEqualTo("xxx");
        assertThatThrownBy(() -> strict.render(CONVERSATION, false))
                .isInstanceOf(CheckpointException.class)
                .hasMessage("chat template: chat template: the template raised: "
                        + "Conversation roles must alternate user/assistant");
    }

    @Test
    void laterQwenHidesOldThoughts() {
        ChatTemplate template = ChatTemplate.of(
                """
                {%- set ns = namespace(last=messages|length - 1) %}
                {%- for message in messages[::-1] %}
                    {%- set index = (messages|length - 1) - loop.index0 %}
                    {%- if message.role == "user" and message.content is string and not message.content.startswith('<tool_response>') %}
                        {%- set ns.last = index %}
                        {%- break %}
                    {%- endif %}
                {%- endfor %}
                {%- for message in messages %}
                    {%- set content = message.content %}
                    {%- if '</think>' in content and loop.index0 < ns.last %}
                        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
                    {%- endif %}
                    {{- message.role + ': ' + content + '\\n' }}
                {%- endfor %}
                """,
                Map.of());
        assertThat(template.render(
                        List.of(
                                ChatMessage.user("a"),
                                ChatMessage.assistant("<think>hm</think>\n\nb"),
                                ChatMessage.user("c"),
                                ChatMessage.assistant("<think>hm</think>d")),
                        false))
                .isEqualTo("user: a\nassistant: b\nuser: c\nassistant: <think>hm</think>d\n");
    }

    @Test
    void isFoundWhereverACheckpointKeepsIt() throws IOException {
        assertThat(ChatTemplate.read(folder)).isEmpty();
        ObjectNode config = JsonMapper.builder().build().createObjectNode();
        config.putObject("bos_token").put("content", "<s>");
        config.put("eos_token", "</s>");
        Path file = folder.resolve("tokenizer_config.json");
        Files.writeString(file, config.toString());
        assertThat(ChatTemplate.read(folder)).isEmpty();

        config.put("chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}");
        Files.writeString(file, config.toString());
        assertThat(ChatTemplate.read(folder).orElseThrow().render(CONVERSATION.subList(1, 2), false))
                .isEqualTo("<s>Hi</s>");

        config.putArray("chat_template").addObject().put("name", "tool_use").put("template", "no");
        config.withArray("chat_template").addObject().put("name", "default").put("template", "{{ bos_token }}!");
        Files.writeString(file, config.toString());
        assertThat(ChatTemplate.read(folder).orElseThrow().render(List.of(), false)).isEqualTo("<s>!");

        Files.writeString(folder.resolve("chat_template.jinja"), "{{ strftime_now('%Y') }}{{ eos_token }}\n");
        assertThat(ChatTemplate.read(folder).orElseThrow().render(List.of(), false)).matches("\\d{4}</s>");

        Files.writeString(folder.resolve("chat_template.jinja"), "{% include 'x' %}");
        assertThatThrownBy(() -> ChatTemplate.read(folder))
                .isInstanceOf(CheckpointException.class)
                .hasMessageContaining("chat_template.jinja: chat template: line 1: the tag include is not supported");
        Files.writeString(file, "{");
        assertThatThrownBy(() -> ChatTemplate.read(folder)).hasMessageContaining("tokenizer_config.json: not valid JSON");
    }
}
