package dev.shadowkv.eval.needle;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Prompt;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;

/**
 * Makes prompts as the samples of the needle-32k checkpoint are: filler with statements dropped in at random places,
 * then the question. Every word is one token, so lengths are exact.
 */
final class NeedlePrompts {
    /** The token that the tokenizer puts first. */
    private static final int BEGINNING = 1;

    private static final int VALUES = 3;
    private static final int CHAIN = 4;
    private static final int PASSAGE = 128;
    private static final double FULL_STOP = 1.0 / 12;
    /** Share of contexts that repeat the noise sentence; 12 of the checkpoint's 40 samples do. */
    private static final double NOISE = 0.3;

    private static final List<String> NOISE_WORDS =
            words("the grass is green . the sky is blue . the sun is yellow . here we go . there and back again .");

    private final NeedleVocabulary vocabulary;

    NeedlePrompts(NeedleVocabulary vocabulary) {
        this.vocabulary = vocabulary;
    }

    /** Statements in the order in which they appear, the question, and the answer. */
    private record Draft(List<List<String>> statements, String question, String answer, int asked) {}

    private static List<String> words(String text) {
        return Arrays.asList(text.split(" "));
    }

    Prompt prompt(Case origin, NeedleTask task) {
        SplittableRandom random = origin.random();
        Draft draft = draft(task, origin.length(), random);
        List<String> question = words(draft.question());
        int statementWords = draft.statements().stream().mapToInt(List::size).sum();
        int fill = origin.length() - BEGINNING - question.size() - statementWords;
        if (fill < draft.statements().size()) {
            throw new EvaluationException(
                    "a context of " + origin.length() + " tokens is too short for " + task.code());
        }
        List<String> filler = filler(fill, random);
        int[] places = random.ints(draft.statements().size(), 0, fill + 1).sorted().toArray();
        if (origin.depth() != Case.NO_DEPTH) {
            places[draft.asked()] = (int) Math.round(origin.depth() * fill);
        }
        List<String> text = new ArrayList<>(origin.length());
        int next = 0;
        for (int i = 0; i <= fill; i++) {
            while (next < places.length && places[next] == i) {
                text.addAll(draft.statements().get(next++));
            }
            if (i < fill) {
                text.add(filler.get(i));
            }
        }
        text.addAll(question);
        int answerTokens = words(draft.answer()).size();
        return new Prompt(origin, String.join(" ", text), "", List.of(draft.answer()), answerTokens, false);
    }

    private List<String> filler(int count, SplittableRandom random) {
        boolean noise = random.nextDouble() < NOISE;
        List<String> filler = new ArrayList<>(count);
        for (int i = 0; i < count; i++) {
            if (noise) {
                filler.add(NOISE_WORDS.get(i % NOISE_WORDS.size()));
            } else {
                filler.add(random.nextDouble() < FULL_STOP ? "." : vocabulary.fillerWord(random));
            }
        }
        return filler;
    }

    private Draft draft(NeedleTask task, int length, SplittableRandom random) {
        int count = task.names(length);
        return switch (task) {
            case NIAH_SINGLE, NIAH_MULTIKEY -> numbers(count, 1, random);
            case NIAH_MULTIVALUE -> numbers(count, VALUES, random);
            case VARIABLE_TRACKING -> chains(count, random);
            case COPY -> passages(count, random);
        };
    }

    private Draft numbers(int count, int values, SplittableRandom random) {
        List<String> names = vocabulary.distinctNames(count, random);
        List<String> order = new ArrayList<>();
        names.forEach(name -> {
            for (int i = 0; i < values; i++) {
                order.add(name);
            }
        });
        shuffle(order, random);
        String asked = names.get(random.nextInt(count));
        List<List<String>> statements = new ArrayList<>();
        List<String> answers = new ArrayList<>();
        int place = order.indexOf(asked);
        for (String name : order) {
            String value = vocabulary.value(random);
            statements.add(words("the special magic number for " + name + " is : " + value + " ."));
            if (name.equals(asked)) {
                answers.add(value);
            }
        }
        String question = values == 1
                ? "what is the special magic number for " + asked + " ? the special magic number for " + asked + " is :"
                : "what are all the special magic numbers for " + asked + " ? the special magic numbers for " + asked
                        + " are :";
        return new Draft(statements, question, String.join(" , ", answers) + " .", place);
    }

    private Draft chains(int count, SplittableRandom random) {
        List<String> names = vocabulary.distinctNames(count * CHAIN, random);
        List<Integer> order = new ArrayList<>();
        for (int i = 0; i < count * CHAIN; i++) {
            order.add(i / CHAIN);
        }
        shuffle(order, random);
        String[] values = new String[count];
        for (int chain = 0; chain < count; chain++) {
            values[chain] = vocabulary.value(random);
        }
        int[] reached = new int[count];
        List<List<String>> statements = new ArrayList<>();
        for (int chain : order) {
            int at = chain * CHAIN + reached[chain]++;
            String meaning = at % CHAIN == 0 ? values[chain] : "VAR " + names.get(at - 1);
            statements.add(words("VAR " + names.get(at) + " = " + meaning + " ."));
        }
        int asked = random.nextInt(count);
        String answer = String.join(" ", names.subList(asked * CHAIN, (asked + 1) * CHAIN)) + " .";
        return new Draft(
                statements, "find all variables assigned the value " + values[asked] + " :", answer, order.indexOf(asked));
    }

    private Draft passages(int count, SplittableRandom random) {
        List<String> names = vocabulary.distinctNames(count, random);
        List<List<String>> statements = new ArrayList<>();
        String answer = "";
        for (int passage = 0; passage < count; passage++) {
            List<String> body = new ArrayList<>();
            for (int i = 0; i < PASSAGE; i++) {
                body.add(vocabulary.name(random));
            }
            String text = String.join(" ", body) + " .";
            answer = passage == 0 ? text : answer;
            statements.add(words("passage " + names.get(passage) + " : " + text));
        }
        return new Draft(statements, "repeat passage " + names.getFirst() + " :", answer, 0);
    }

    private static <T> void shuffle(List<T> list, SplittableRandom random) {
        for (int i = list.size() - 1; i > 0; i--) {
            int other = random.nextInt(i + 1);
            T swap = list.get(i);
            list.set(i, list.get(other));
            list.set(other, swap);
        }
    }
}
