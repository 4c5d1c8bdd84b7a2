package dev.shadowkv.cli;

import dev.shadowkv.ElementType;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.OptionalInt;

/**
 * A cache to be evaluated, written as {@code name=kind} or {@code name=kind,setting=value,...}.
 *
 * @param budget tokens, or what the length is divided by where {@code budgetIsShare}
 */
record Variant(String name, CacheOptions options, int budget, boolean budgetIsShare) {
    private static final String SHARE = "length/";

    static Variant parse(String text) {
        String[] parts = text.split(",");
        String[] head = parts[0].split("=", 2);
        if (head.length != 2 || head[0].isBlank()) {
            throw new IllegalArgumentException("--variant is " + text + "; it begins with NAME=dense or NAME=shadow");
        }
        CacheKind kind = kind(head[1]);
        OptionalInt rank = OptionalInt.empty();
        OptionalInt outliers = OptionalInt.empty();
        String budget = "2048";
        int chunk = 8;
        float radiusWeight = 0.5f;
        double rerank = CacheOptions.USUAL_RERANK;
        Optional<ElementType> valueType = Optional.empty();
        for (int i = 1; i < parts.length; i++) {
            String[] setting = parts[i].split("=", 2);
            String value = setting.length == 2 ? setting[1] : "";
            try {
                switch (setting[0]) {
                    case "rank" -> rank = OptionalInt.of(Integer.parseInt(value));
                    case "budget" -> budget = value;
                    case "chunk" -> chunk = Integer.parseInt(value);
                    case "outliers" -> outliers = OptionalInt.of(Integer.parseInt(value));
                    case "radius-weight" -> radiusWeight = Float.parseFloat(value);
                    case "rerank" -> rerank = Double.parseDouble(value);
                    case "value-type" -> valueType = Optional.of(elementType(value));
                    default -> throw new IllegalArgumentException("unknown setting");
                }
            } catch (IllegalArgumentException e) {
                throw new IllegalArgumentException("--variant " + text + ": " + parts[i] + " is not understood; settings are "
                        + "rank, budget, chunk, outliers, radius-weight, rerank, value-type", e);
            }
        }
        boolean share = budget.startsWith(SHARE);
        int number = number(text, share ? budget.substring(SHARE.length()) : budget);
        return new Variant(
                head[0],
                new CacheOptions(
                        kind, rank, share ? chunk : number, chunk, outliers, radiusWeight, rerank, valueType, Optional.empty(), Optional.empty()),
                number,
                share);
    }

    private static CacheKind kind(String name) {
        List<String> names = new ArrayList<>();
        for (CacheKind kind : CacheKind.values()) {
            if (kind.name().equalsIgnoreCase(name)) {
                return kind;
            }
            names.add(kind.name().toLowerCase(Locale.ROOT));
        }
        throw new IllegalArgumentException("there is no cache " + name + "; there are " + String.join(", ", names));
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

    /** The type of a name such as {@code bf16} or {@code f8}. */
    static ElementType elementType(String name) {
        return name.equals("f8") ? ElementType.F8_E4M3 : ElementType.valueOf(name.toUpperCase(Locale.ROOT));
    }

    boolean isShadow() {
        return options.kind() == CacheKind.SHADOW;
    }

    /** Its budget at a length, and everything else. */
    EvalCharts.Axis budgetAxis(int length) {
        CacheOptions o = options;
        return new EvalCharts.Axis(
                o.rank() + " " + o.chunk() + " " + o.outliers() + " " + o.radiusWeight() + " " + o.rerank() + " " + o.valueType(),
                options(length).budget());
    }

    /** Its rank, and everything else; without a rank of its own it is on no axis with others. */
    EvalCharts.Axis rankAxis(int length) {
        CacheOptions o = options;
        return new EvalCharts.Axis(
                (o.rank().isPresent() ? "" : name) + " " + options(length).budget() + " " + o.chunk() + " " + o.outliers() + " "
                        + o.radiusWeight() + " " + o.rerank() + " " + o.valueType(),
                o.rank().orElse(0));
    }

    /** The options for prompts of a length. */
    CacheOptions options(int length) {
        CacheOptions o = options;
        return new CacheOptions(
                o.kind(),
                o.rank(),
                budgetIsShare ? Math.max(o.chunk(), length / budget) : budget,
                o.chunk(),
                o.outliers(),
                o.radiusWeight(),
                o.rerank(),
                o.valueType(),
                o.landmarkType(),
                o.storageType());
    }
}
