package dev.shadowkv.eval.ruler;

import dev.shadowkv.eval.haystack.Draw;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;

/** One chain of five variables in lines of noise, after a short solved example. A unit is a line. */
final class VariableTracking {
    static final double UNIT_TOKENS = 25;
    static final int HOPS = 4;
    private static final int EXAMPLE_LINES = 5;
    private static final int EXAMPLE_LETTERS = 3;
    private static final int LETTERS = 5;
    private static final int DIGITS = 5;

    private VariableTracking() {}

    static Draft draft(RulerTemplates templates, int lines, SplittableRandom random) {
        Draft example = one(templates, EXAMPLE_LINES, EXAMPLE_LETTERS, random);
        Draft asked = one(templates, lines, LETTERS, random);
        String solved = example.text() + example.answerPrefix() + " " + String.join(" ", example.answers());
        return new Draft(solved + "\n\n" + asked.text(), asked.answerPrefix(), asked.answers());
    }

    private static Draft one(RulerTemplates templates, int lines, int letters, SplittableRandom random) {
        List<String> names = names(letters, random);
        String value = Draw.number(DIGITS, random);
        List<String> text = new ArrayList<>();
        for (int i = 0; i < lines; i++) {
            text.add(Niah.NOISE);
        }
        int[] places = Draw.indexes(lines, HOPS + 1, random);
        Arrays.sort(places);
        for (int i = HOPS; i >= 0; i--) {
            text.add(places[i], "VAR " + names.get(i) + " = " + (i == 0 ? value : "VAR " + names.get(i - 1)));
        }
        RulerTemplates.Template filled = templates.get(RulerTemplates.Kind.VARIABLE_TRACKING)
                .fill(Map.of(
                        "context", String.join("\n", text), "query", value, "num_v", Integer.toString(HOPS + 1)));
        return new Draft(filled.text(), filled.answerPrefix(), names);
    }

    private static List<String> names(int letters, SplittableRandom random) {
        Set<String> names = new LinkedHashSet<>();
        while (names.size() <= HOPS) {
            StringBuilder name = new StringBuilder();
            for (int i = 0; i < letters; i++) {
                name.append((char) ('A' + random.nextInt(26)));
            }
            names.add(name.toString());
        }
        return List.copyOf(names);
    }
}
