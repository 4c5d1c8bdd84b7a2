package dev.shadowkv.eval.ruler;

import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.haystack.Draw;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import dev.shadowkv.eval.internal.JsonFiles;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.TreeSet;

/** Questions over documents from a published file. A unit of a prompt is a document. */
public final class QuestionFile {
    static final double UNIT_TOKENS = 180;

    /** A question; documents of its own, and others on the same subject. */
    private record Question(String text, List<String> answers, Set<Integer> own, List<Integer> related) {}

    private final List<String> documents;
    private final List<Question> questions;

    private QuestionFile(List<String> documents, List<Question> questions) {
        this.documents = documents;
        this.questions = questions;
    }

    /**
     * Reads a SQuAD file (1.1 or 2.0, {@code dev-v2.0.json}); questions without an answer are left out.
     *
     * @throws EvaluationException when it is not one
     */
    public static QuestionFile readSquad(Path path) {
        JsonNode data = JsonFiles.any(path).path("data");
        Set<String> texts = new TreeSet<>();
        data.forEach(article -> article.path("paragraphs")
                .forEach(paragraph -> texts.add(paragraph.path("context").asText())));
        List<String> documents = List.copyOf(texts);
        List<Question> questions = new ArrayList<>();
        for (JsonNode article : data) {
            Set<Integer> subject = new LinkedHashSet<>();
            article.path("paragraphs").forEach(paragraph -> subject.add(index(documents, paragraph.path("context").asText())));
            for (JsonNode paragraph : article.path("paragraphs")) {
                int own = index(documents, paragraph.path("context").asText());
                List<Integer> related = subject.stream().filter(other -> other != own).toList();
                for (JsonNode question : paragraph.path("qas")) {
                    List<String> answers = new ArrayList<>();
                    question.path("answers").forEach(answer -> answers.add(answer.path("text").asText()));
                    if (!question.path("is_impossible").asBoolean(false) && !answers.isEmpty()) {
                        questions.add(new Question(question.path("question").asText(), answers, Set.of(own), related));
                    }
                }
            }
        }
        return checked(path, "SQuAD", documents, questions);
    }

    /**
     * Reads a HotpotQA file ({@code hotpot_dev_distractor_v1.json}).
     *
     * @throws EvaluationException when it is not one
     */
    public static QuestionFile readHotpot(Path path) {
        JsonNode data = JsonFiles.any(path);
        Set<String> texts = new TreeSet<>();
        data.forEach(entry -> entry.path("context").forEach(document -> texts.add(hotpotDocument(document))));
        List<String> documents = List.copyOf(texts);
        List<Question> questions = new ArrayList<>();
        for (JsonNode entry : data) {
            Set<Integer> own = new LinkedHashSet<>();
            entry.path("context").forEach(document -> own.add(index(documents, hotpotDocument(document))));
            if (entry.hasNonNull("answer") && entry.hasNonNull("question")) {
                questions.add(new Question(
                        entry.path("question").asText(), List.of(entry.path("answer").asText()), own, List.of()));
            }
        }
        return checked(path, "HotpotQA", documents, questions);
    }

    private static String hotpotDocument(JsonNode document) {
        StringBuilder text = new StringBuilder(document.path(0).asText()).append('\n');
        document.path(1).forEach(sentence -> text.append(sentence.asText()));
        return text.toString();
    }

    private static QuestionFile checked(Path path, String kind, List<String> documents, List<Question> questions) {
        if (questions.isEmpty()) {
            throw new EvaluationException(path + ": has no questions in the layout of " + kind);
        }
        return new QuestionFile(documents, questions);
    }

    private static int index(List<String> sorted, String document) {
        return java.util.Collections.binarySearch(sorted, document);
    }

    /** The number of questions. */
    public int size() {
        return questions.size();
    }

    int minimum(int question) {
        return questions.get(question).own().size();
    }

    Draft draft(RulerTemplates templates, int question, int units, SplittableRandom random) {
        Question asked = questions.get(question);
        List<String> texts = new ArrayList<>();
        if (units < documents.size()) {
            for (int index : chosen(asked, units, random)) {
                texts.add(documents.get(index));
            }
        } else {
            for (int i = 0; i < units; i++) {
                texts.add(documents.get(i % documents.size()));
            }
        }
        Draw.shuffle(texts, random);
        List<String> numbered = new ArrayList<>();
        for (int i = 0; i < texts.size(); i++) {
            numbered.add("Document " + (i + 1) + ":\n" + texts.get(i));
        }
        RulerTemplates.Template filled = templates.get(RulerTemplates.Kind.QUESTION_ANSWERING)
                .fill(Map.of("context", String.join("\n\n", numbered), "query", asked.text()));
        return new Draft(filled.text(), filled.answerPrefix(), asked.answers());
    }

    /** The question's own documents, then others on its subject, then any. */
    private List<Integer> chosen(Question asked, int units, SplittableRandom random) {
        List<Integer> chosen = new ArrayList<>(asked.own());
        int more = Math.max(0, units - chosen.size());
        if (more <= asked.related().size()) {
            chosen.addAll(Draw.distinct(asked.related(), more, random));
            return chosen;
        }
        chosen.addAll(asked.related());
        Set<Integer> taken = new HashSet<>(chosen);
        List<Integer> others = new ArrayList<>();
        for (int i = 0; i < documents.size(); i++) {
            if (!taken.contains(i)) {
                others.add(i);
            }
        }
        chosen.addAll(Draw.distinct(others, Math.max(0, units - chosen.size()), random));
        return chosen;
    }
}
