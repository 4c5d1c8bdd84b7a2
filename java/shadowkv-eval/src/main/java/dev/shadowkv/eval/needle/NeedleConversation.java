package dev.shadowkv.eval.needle;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.haystack.Draw;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.SplittableRandom;

/**
 * Many questions about one context, for sessions that are asked in turn: each turn's question and answer are appended
 * to what is there, and must be answered as well as the same question in a session of its own ({@link #fresh}). The
 * context is that of {@link NeedleTask#NIAH_MULTIKEY}.
 *
 * @param origin names the conversation
 * @param context everything before the first question
 * @param turns the questions in order
 */
public record NeedleConversation(Case origin, String context, List<Turn> turns) {
    /**
     * A question about the context.
     *
     * @param question to be appended, with a space before
     * @param answer what should be answered; score it by {@link NeedleSuite#tokenScore}
     * @param answerTokens the tokens of the answer
     */
    public record Turn(String question, String answer, int answerTokens) {}

    private static final String QUESTION = "what is the special magic number for ";

    public NeedleConversation {
        Objects.requireNonNull(origin, "origin");
        turns = List.copyOf(turns);
    }

    /**
     * Makes a conversation.
     *
     * @param length tokens of the context and the first question, as in {@link NeedleSuite}
     * @param turns questions; when there are more than names in the context, names are asked for again
     * @throws dev.shadowkv.eval.EvaluationException when the tokenizer is another checkpoint's or the length too short
     */
    public static NeedleConversation make(Tokenizer tokenizer, int length, int turns, int index, long seed) {
        Case origin = Case.of(NeedleTask.NIAH_MULTIKEY.code(), length, index, seed);
        Prompt prompt = new NeedlePrompts(NeedleVocabulary.of(tokenizer)).prompt(origin, NeedleTask.NIAH_MULTIKEY);
        String context = prompt.text().substring(0, prompt.text().lastIndexOf(" " + QUESTION));
        List<Turn> all = new ArrayList<>();
        for (String statement : context.split("the special magic number for ")) {
            String[] words = statement.split(" ");
            // NAME is : 123 456 . and then filler; the first part is filler alone.
            if (words.length > 5 && words[1].equals("is") && words[2].equals(":")) {
                String name = words[0];
                all.add(new Turn(
                        QUESTION + name + " ? the special magic number for " + name + " is :",
                        words[3] + " " + words[4] + " .",
                        3));
            }
        }
        List<Turn> asked = new ArrayList<>();
        SplittableRandom random = new SplittableRandom(seed * 31 + index);
        while (asked.size() < turns) {
            Draw.shuffle(all, random);
            asked.addAll(all.subList(0, Math.min(all.size(), turns - asked.size())));
        }
        return new NeedleConversation(origin, context, asked);
    }

    /** The prompt that asks one question of this conversation alone. */
    public Prompt fresh(int turn) {
        Turn asked = turns.get(turn);
        return new Prompt(
                origin, context + " " + asked.question(), "", List.of(asked.answer()), asked.answerTokens(), false);
    }
}
