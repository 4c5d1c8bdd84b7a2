package dev.shadowkv.eval.ruler;

import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.internal.JsonFiles;
import java.nio.file.Path;
import java.util.EnumMap;
import java.util.Map;
import java.util.Objects;

/**
 * The wording of the prompts. The built-in wording is ours and asks the same things; scores that are to be compared
 * with published ones need RULER's own, which its folder {@code scripts/data/synthetic} prints by
 *
 * <pre>{@code python -c 'import json, constants; print(json.dumps(constants.TASKS))' > templates.json}</pre>
 */
public final class RulerTemplates {
    enum Kind {
        NIAH("niah"),
        VARIABLE_TRACKING("variable_tracking"),
        COMMON_WORDS("common_words_extraction"),
        FREQUENT_WORDS("freq_words_extraction"),
        QUESTION_ANSWERING("qa");

        private final String key;

        Kind(String key) {
            this.key = key;
        }
    }

    /** A prompt and the beginning of its answer; names in braces are filled in. */
    record Template(String text, String answerPrefix) {
        Template {
            Objects.requireNonNull(text, "text");
            Objects.requireNonNull(answerPrefix, "answerPrefix");
        }

        Template map(java.util.function.UnaryOperator<String> change) {
            return new Template(change.apply(text), change.apply(answerPrefix));
        }

        /** Fills in every {@code {name}} of the map; what is filled in is not looked at again. */
        Template fill(Map<String, String> values) {
            return map(template -> fill(template, values));
        }

        private static String fill(String template, Map<String, String> values) {
            StringBuilder filled = new StringBuilder();
            int at = 0;
            while (at < template.length()) {
                int open = template.indexOf('{', at);
                int close = open < 0 ? -1 : template.indexOf('}', open);
                String value = close < 0 ? null : values.get(template.substring(open + 1, close));
                int end = value != null ? close + 1 : open < 0 ? template.length() : open + 1;
                filled.append(template, at, value != null ? open : end);
                if (value != null) {
                    filled.append(value);
                }
                at = end;
            }
            return filled.toString();
        }
    }

    private final Map<Kind, Template> templates;
    private final String name;

    private RulerTemplates(String name, Map<Kind, Template> templates) {
        this.name = name;
        this.templates = templates;
    }

    /** Our own wording. */
    public static RulerTemplates builtIn() {
        Map<Kind, Template> templates = new EnumMap<>(Kind.class);
        templates.put(
                Kind.NIAH,
                new Template(
                        "Some special magic {type_needle_v} are scattered over the text below. Keep in mind what it says"
                                + " about the {type_needle_v}: a question follows.\n{context}\nQuestion: what are all the"
                                + " special magic {type_needle_v} that the text gives for {query}?",
                        " Answer: the special magic {type_needle_v} that the text gives for {query} are"));
        templates.put(
                Kind.VARIABLE_TRACKING,
                new Template(
                        "The text below sets variables, some of them to the value of another one. Follow every"
                                + " chain.\n\n{context}\nQuestion: which variables have the value {query} in the end?",
                        " Answer: following the chains in the text, {num_v} variables have the value {query}. They are: "));
        templates.put(
                Kind.COMMON_WORDS,
                new Template(
                        "This is a list of words with numbers. A few of the words occur far more often than the"
                                + " rest.\n{context}\nQuestion: which 10 words occur most often in the list?",
                        " Answer: the 10 words that occur most often in the list are:"));
        templates.put(
                Kind.FREQUENT_WORDS,
                new Template(
                        "The text below is written in code words. Count how often each of them occurs. {context}\n"
                                + "Question: which three code words occur most often? Dots such as '...' are no code word."
                                + " Name the words only.",
                        " Answer: the three code words that occur most often in the text are:"));
        templates.put(
                Kind.QUESTION_ANSWERING,
                new Template(
                        "Some documents follow, and then a question about them. Answer it with the bare answer and nothing"
                                + " else.\n\n{context}\n\nNow answer with the bare answer and nothing else.\n\n"
                                + "Question: {query}",
                        " Answer:"));
        return new RulerTemplates("built-in", templates);
    }

    /**
     * The wording of a JSON file: an object for each kind of task ({@code niah}, {@code variable_tracking}, {@code
     * common_words_extraction}, {@code freq_words_extraction}, {@code qa}) with {@code template} and {@code
     * answer_prefix}. Kinds that it lacks keep the built-in wording.
     *
     * @throws EvaluationException when it cannot be read or a template lacks its {@code {context}}
     */
    public static RulerTemplates read(Path path) {
        Map<Kind, Template> templates = new EnumMap<>(builtIn().templates);
        JsonNode json = JsonFiles.object(path);
        for (Kind kind : Kind.values()) {
            JsonNode entry = json.path(kind.key);
            if (entry.isMissingNode()) {
                continue;
            }
            String text = entry.path("template").asText();
            if (!text.contains("{context}")) {
                throw new EvaluationException(path + ": " + kind.key + ".template has no {context}");
            }
            templates.put(kind, new Template(text, entry.path("answer_prefix").asText()));
        }
        return new RulerTemplates(path.getFileName().toString(), templates);
    }

    /** Where the wording is from; belongs into the settings of an evaluation. */
    public String name() {
        return name;
    }

    Template get(Kind kind) {
        return templates.get(kind);
    }
}
