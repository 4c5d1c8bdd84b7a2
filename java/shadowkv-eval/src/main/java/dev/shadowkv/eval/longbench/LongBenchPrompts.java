package dev.shadowkv.eval.longbench;

import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.internal.JsonFiles;
import java.nio.file.Path;
import java.util.EnumMap;
import java.util.Map;

/**
 * The wording of the prompts, task by task. The built-in wording is ours and asks the same; scores that are to be
 * compared with published ones need LongBench's own, the file {@code dataset2prompt.json} that is published with it.
 */
public final class LongBenchPrompts {
    private final String name;
    private final Map<LongBenchTask, String> templates;

    private LongBenchPrompts(String name, Map<LongBenchTask, String> templates) {
        this.name = name;
        this.templates = templates;
    }

    /** Our own wording. */
    public static LongBenchPrompts builtIn() {
        Map<LongBenchTask, String> templates = new EnumMap<>(LongBenchTask.class);
        for (LongBenchTask task : LongBenchTask.values()) {
            templates.put(task, template(task));
        }
        return new LongBenchPrompts("built-in", templates);
    }

    private static String template(LongBenchTask task) {
        return switch (task) {
            case NARRATIVEQA -> "Here is a book or a film script. Afterwards you are asked about it; answer in as few words"
                    + " as will do.\n\n{context}\n\nAnswer from the story in as few words as will do.\nQuestion:"
                    + " {input}\nAnswer:";
            case QASPER -> "Here is a scientific paper. Afterwards you are asked about it; answer in a phrase or one sentence,"
                    + " with \"yes\" or \"no\" where that is asked, and with \"unanswerable\" where the paper does not"
                    + " say.\n\n{context}\n\nAnswer from the paper as described above.\nQuestion: {input}\nAnswer:";
            case MULTIFIELDQA_EN -> "{context}\n\nAnswer a question about this text, briefly and with nothing but the"
                    + " answer.\nQuestion: {input}\nAnswer:";
            case MULTIFIELDQA_ZH -> "{context}\n\n根据以上内容用中文简要作答，除答案外不要写别的。\n问题：{input}\n回答：";
            case HOTPOTQA, WIKI2MQA, MUSIQUE -> "Some passages follow; a question after them may need several of"
                    + " them.\n\n{context}\n\nWrite the answer and nothing else.\nQuestion: {input}\nAnswer:";
            case DUREADER -> "下面是几篇文章。\n\n{context}\n\n根据这些文章回答。\n问题：{input}\n回答：";
            case GOV_REPORT -> "Here is a government report.\n\n{context}\n\nSummarize it on one page.\nSummary:";
            case QMSUM -> "Here is the transcript of a meeting.\n\n{context}\n\nDo what is asked about the meeting, in a few"
                    + " sentences.\nRequest: {input}\nAnswer:";
            case MULTI_NEWS -> "Here are news articles on one event.\n\n{context}\n\nSummarize all of them on one"
                    + " page.\nSummary:";
            case VCSUM -> "以下是会议记录：\n{context}\n\n请概括会议内容。\n总结：";
            case TREC -> "Say what type of answer each question asks for, as in these examples.\n\n{context}\n{input}";
            case TRIVIAQA -> "Answer each question from its passage with the answer alone, as in these"
                    + " examples.\n\n{context}\n\n{input}";
            case SAMSUM -> "Sum up each dialogue in a few short sentences, as in these examples.\n\n{context}\n\n{input}";
            case LSHT -> "判断每条新闻属于哪一类，示例如下。\n\n{context}\n{input}";
            case PASSAGE_COUNT -> "Below are numbered paragraphs, some of which occur more than once.\n\n{context}\n\nHow many"
                    + " different paragraphs are there? Write the number alone.\nNumber: ";
            case PASSAGE_RETRIEVAL_EN -> "Below are numbered paragraphs, and after them a summary of one of"
                    + " them.\n\n{context}\n\nSummary: {input}\n\nWhich paragraph is it a summary of? Answer in the form"
                    + " \"Paragraph 7\".\nAnswer: ";
            case PASSAGE_RETRIEVAL_ZH -> "下面是编了号的段落，随后是其中一段的摘要。\n\n{context}\n\n摘要：{input}\n\n"
                    + "这是哪一段的摘要？请按“段落7”的格式回答。\n回答：";
            case LCC -> "Write the line of code that comes next.\n{context}Next line:\n";
            case REPOBENCH_P -> "Write the line of code that comes next.\n{context}{input}Next line:\n";
        };
    }

    /**
     * The wording of a JSON file that maps names of tasks to prompts with {@code {context}} and {@code {input}}; tasks
     * that it lacks keep the built-in wording.
     *
     * @throws EvaluationException when it cannot be read or a prompt has no {@code {context}}
     */
    public static LongBenchPrompts read(Path path) {
        Map<LongBenchTask, String> templates = new EnumMap<>(builtIn().templates);
        JsonNode json = JsonFiles.object(path);
        for (LongBenchTask task : LongBenchTask.values()) {
            if (json.has(task.code())) {
                String template = json.get(task.code()).asText();
                if (!template.contains("{context}")) {
                    throw new EvaluationException(path + ": the prompt of " + task.code() + " has no {context}");
                }
                templates.put(task, template);
            }
        }
        return new LongBenchPrompts(path.getFileName().toString(), templates);
    }

    /** Where the wording is from; belongs into the settings of an evaluation. */
    public String name() {
        return name;
    }

    String fill(LongBenchTask task, String context, String input) {
        String template = templates.get(task);
        StringBuilder text = new StringBuilder();
        for (int at = 0; at < template.length(); ) {
            if (template.startsWith("{context}", at)) {
                text.append(context);
                at += "{context}".length();
            } else if (template.startsWith("{input}", at)) {
                text.append(input);
                at += "{input}".length();
            } else {
                text.append(template.charAt(at++));
            }
        }
        return text.toString();
    }
}
