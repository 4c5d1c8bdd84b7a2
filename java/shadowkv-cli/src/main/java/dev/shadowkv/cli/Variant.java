package dev.shadowkv.cli;

import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;
import picocli.CommandLine;
import picocli.CommandLine.ParameterException;

/**
 * A cache to be evaluated, written as {@code name=kind} or {@code name=kind,setting=value,...}. A setting is an option of
 * {@link CacheArguments} without its dashes.
 *
 * @param settings all but the budget
 * @param budget tokens, or what the length is divided by where {@code budgetIsShare}
 */
record Variant(String name, CacheKind kind, CacheArguments settings, int budget, boolean budgetIsShare) {
    private static final String BUDGET = "budget=";
    private static final String SHARE = "length/";

    static Variant parse(String text) {
        List<String> parts = List.of(text.split(","));
        String[] head = parts.getFirst().split("=", 2);
        if (head.length != 2 || head[0].isBlank()) {
            throw new IllegalArgumentException("--variant is " + text + "; it begins with NAME=dense or NAME=shadow");
        }
        String budget = Integer.toString(CacheOptions.USUAL_BUDGET);
        List<String> options = new ArrayList<>();
        for (String part : parts.subList(1, parts.size())) {
            if (part.startsWith(BUDGET)) {
                budget = part.substring(BUDGET.length());
            } else {
                options.add(option(part));
            }
        }
        boolean share = budget.startsWith(SHARE);
        int number = number(text, share ? budget.substring(SHARE.length()) : budget);
        Variant variant = new Variant(head[0], kind(head[1]), settings(text, options), number, share);
        // Refuses what cannot be for any length, before anything is computed.
        variant.options(Integer.MAX_VALUE);
        return variant;
    }

    /** What is on or off is an option without a value, and its negation. */
    private static String option(String setting) {
        if (setting.endsWith("=on")) {
            return "--" + setting.substring(0, setting.length() - "=on".length());
        }
        if (setting.endsWith("=off")) {
            return "--no-" + setting.substring(0, setting.length() - "=off".length());
        }
        return "--" + setting;
    }

    private static CacheArguments settings(String text, List<String> options) {
        CacheArguments settings = new CacheArguments();
        CommandLine parser = new CommandLine(settings);
        try {
            parser.parseArgs(options.toArray(String[]::new));
        } catch (ParameterException e) {
            throw new IllegalArgumentException(
                    "--variant " + text + " is not understood: " + e.getMessage() + "; settings are "
                            + parser.getCommandSpec().options().stream()
                                    .map(option -> option.longestName().substring("--".length()))
                                    .collect(Collectors.joining(", ")),
                    e);
        }
        return settings;
    }

    private static CacheKind kind(String name) {
        return Arrays.stream(CacheKind.values())
                .filter(kind -> kind.name().equalsIgnoreCase(name))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException("there is no cache " + name + "; there are "
                        + Arrays.stream(CacheKind.values())
                                .map(kind -> kind.name().toLowerCase(Locale.ROOT))
                                .collect(Collectors.joining(", "))));
    }

    private static int number(String text, String value) {
        try {
            int number = Integer.parseInt(value);
            if (number > 0) {
                return number;
            }
        } catch (NumberFormatException e) {
            // Said below.
        }
        throw new IllegalArgumentException("--variant " + text + ": budget " + value
                + " is neither a number of tokens nor length/N");
    }

    boolean isShadow() {
        return kind == CacheKind.SHADOW;
    }

    /** Its budget at a length, and everything else. */
    EvalCharts.Axis budgetAxis(int length) {
        return new EvalCharts.Axis(settings.options(kind).toString(), options(length).budget());
    }

    /** Its rank, and everything else; without a rank of its own it is on no axis with others. */
    EvalCharts.Axis rankAxis(int length) {
        CacheOptions options = options(length);
        return new EvalCharts.Axis(
                (options.rank().isPresent() ? "" : name) + options.toBuilder().rank(1).build(), options.rank().orElse(0));
    }

    /** The options for prompts of a length. */
    CacheOptions options(int length) {
        int tokens = budgetIsShare ? Math.max(settings.chunk(), length / budget) : budget;
        return settings.options(kind, tokens, null);
    }
}
