package dev.shadowkv.eval.ruler;

import dev.shadowkv.eval.haystack.Draw;
import dev.shadowkv.eval.haystack.Haystack;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import dev.shadowkv.eval.haystack.Words;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;

/**
 * Needles in a haystack. A unit of the haystack is a word of text, a line of noise, or a line that is a needle itself.
 *
 * @param hay what the needles are hidden in
 * @param keyKind what keys are made of
 * @param valueKind what values are made of
 * @param keys names in needles, besides those of the haystack
 * @param values values a key
 * @param queries keys asked for
 */
record Niah(Hay hay, Kind keyKind, Kind valueKind, int keys, int values, int queries) {
    static final String NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

    /** Needles in running text go between sentences at some of this many evenly spaced depths. */
    private static final int DEPTHS = 40;

    private static final int DIGITS = 7;

    enum Hay {
        NOISE(25),
        TEXT(1.3),
        NEEDLES(30);

        private final double unitTokens;

        Hay(double unitTokens) {
            this.unitTokens = unitTokens;
        }
    }

    enum Kind {
        WORDS("words"),
        NUMBERS("numbers"),
        UUIDS("uuids");

        private final String plural;

        Kind(String plural) {
            this.plural = plural;
        }

        private String draw(Words words, SplittableRandom random) {
            return switch (this) {
                case WORDS -> words.key(random);
                case NUMBERS -> Draw.number(DIGITS, random);
                case UUIDS -> Draw.uuid(random);
            };
        }
    }

    static Niah of(RulerTask task) {
        return switch (task) {
            case NIAH_SINGLE_1 -> new Niah(Hay.NOISE, Kind.WORDS, Kind.NUMBERS, 1, 1, 1);
            case NIAH_SINGLE_2 -> new Niah(Hay.TEXT, Kind.WORDS, Kind.NUMBERS, 1, 1, 1);
            case NIAH_SINGLE_3 -> new Niah(Hay.TEXT, Kind.WORDS, Kind.UUIDS, 1, 1, 1);
            case NIAH_MULTIKEY_1 -> new Niah(Hay.TEXT, Kind.WORDS, Kind.NUMBERS, 4, 1, 1);
            case NIAH_MULTIKEY_2 -> new Niah(Hay.NEEDLES, Kind.WORDS, Kind.NUMBERS, 1, 1, 1);
            case NIAH_MULTIKEY_3 -> new Niah(Hay.NEEDLES, Kind.UUIDS, Kind.UUIDS, 1, 1, 1);
            case NIAH_MULTIVALUE -> new Niah(Hay.TEXT, Kind.WORDS, Kind.NUMBERS, 1, 4, 1);
            case NIAH_MULTIQUERY -> new Niah(Hay.TEXT, Kind.WORDS, Kind.NUMBERS, 4, 1, 4);
            default -> throw new IllegalArgumentException(task.code() + " has no needles");
        };
    }

    double unitTokens() {
        return hay.unitTokens;
    }

    int minimum() {
        return hay == Hay.TEXT ? 1 : keys * values;
    }

    Draft draft(RulerTemplates templates, Words words, Haystack haystack, int units, SplittableRandom random) {
        List<String> names = new ArrayList<>();
        List<List<String>> given = new ArrayList<>();
        List<String> needles = new ArrayList<>();
        for (int key = 0; key < keys; key++) {
            String name = keyKind.draw(words, random);
            List<String> ofKey = new ArrayList<>();
            for (int i = 0; i < values; i++) {
                ofKey.add(valueKind.draw(words, random));
                needles.add(needle(name, ofKey.getLast()));
            }
            names.add(name);
            given.add(ofKey);
        }
        Draw.shuffle(needles, random);
        List<String> asked = new ArrayList<>();
        List<String> answers = new ArrayList<>();
        for (int index : Draw.indexes(keys, queries, random)) {
            asked.add(names.get(index));
            answers.addAll(given.get(index));
        }
        String context = hay == Hay.TEXT
                ? inText(haystack.sentences(units), needles, random)
                : inLines(lines(words, units, random), needles, random);
        return prompt(templates, context, asked, answers);
    }

    private String needle(String key, String value) {
        return "One of the special magic " + valueKind.plural + " for " + key + " is: " + value + ".";
    }

    private List<String> lines(Words words, int units, SplittableRandom random) {
        List<String> lines = new ArrayList<>(units + keys * values);
        for (int i = 0; i < units; i++) {
            lines.add(hay == Hay.NOISE ? NOISE : needle(keyKind.draw(words, random), valueKind.draw(words, random)));
        }
        return lines;
    }

    private static String inLines(List<String> lines, List<String> needles, SplittableRandom random) {
        int[] places = Draw.indexes(lines.size(), needles.size(), random);
        Arrays.sort(places);
        for (int i = places.length - 1; i >= 0; i--) {
            lines.add(places[i], needles.get(i));
        }
        return String.join("\n", lines);
    }

    static String inText(List<String> sentences, List<String> needles, SplittableRandom random) {
        List<String> text = new ArrayList<>(sentences);
        int[] depths = Draw.indexes(DEPTHS, needles.size(), random);
        Arrays.sort(depths);
        for (int i = depths.length - 1; i >= 0; i--) {
            long percent = Math.round(100.0 * depths[i] / (DEPTHS - 1));
            text.add((int) (sentences.size() * percent / 100), needles.get(i));
        }
        return String.join(" ", text);
    }

    private Draft prompt(RulerTemplates templates, String context, List<String> asked, List<String> answers) {
        RulerTemplates.Template template = templates.get(RulerTemplates.Kind.NIAH);
        String kind = valueKind.plural;
        if (queries * values == 1) {
            // RULER's own way to the singular; the built-in wording is made for it.
            template = template.map(text -> text.replace("Some", "A")
                    .replace("are all", "is")
                    .replace("are", "is")
                    .replace("answers", "answer"));
            kind = kind.substring(0, kind.length() - 1);
        }
        String query = asked.size() == 1
                ? asked.getFirst()
                : String.join(", ", asked.subList(0, asked.size() - 1)) + ", and " + asked.getLast();
        RulerTemplates.Template filled =
                template.fill(Map.of("type_needle_v", kind, "context", context, "query", query));
        return new Draft(filled.text(), filled.answerPrefix(), Collections.unmodifiableList(answers));
    }
}
