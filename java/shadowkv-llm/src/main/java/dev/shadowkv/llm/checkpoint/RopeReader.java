package dev.shadowkv.llm.checkpoint;

import dev.shadowkv.llm.checkpoint.RopeDescription.Default;
import dev.shadowkv.llm.checkpoint.RopeDescription.Linear;
import dev.shadowkv.llm.checkpoint.RopeDescription.Llama3;
import dev.shadowkv.llm.checkpoint.RopeDescription.LongRope;
import dev.shadowkv.llm.checkpoint.RopeDescription.Scaling;
import dev.shadowkv.llm.checkpoint.RopeDescription.Yarn;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/**
 * Reads the rotary embedding of a Hugging Face configuration. The old layout has {@code rope_theta} and {@code
 * rope_scaling} (null for none); the new one has {@code rope_parameters} with everything in it. A file may carry both
 * as long as they say the same.
 */
final class RopeReader {
    private static final double THETA = 10_000;
    private static final Set<String> COMMON = Set.of("rope_type", "type", "rope_theta", "partial_rotary_factor");

    private final ModelFamily family;
    private final ConfigFields fields;
    private final ConfigFields rope;
    private final int headDim;
    private final int maxPositions;

    private RopeReader(ModelFamily family, ConfigFields fields, ConfigFields rope, int headDim, int maxPositions) {
        this.family = family;
        this.fields = fields;
        this.rope = rope;
        this.headDim = headDim;
        this.maxPositions = maxPositions;
    }

    static RopeDescription read(ModelFamily family, ConfigFields fields, int headDim, int maxPositions) {
        Optional<ConfigFields> scaling = fields.object("rope_parameters").or(() -> fields.object("rope_scaling"));
        double theta = common(fields, "rope_theta", THETA);
        int rotaryDim = rotaryDim(family, fields, headDim);
        // Only GLM pairs neighbours.
        boolean interleaved = family == ModelFamily.GLM;
        if (scaling.isEmpty()) {
            return new RopeDescription(theta, rotaryDim, interleaved, 1, new Default());
        }
        RopeReader reader = new RopeReader(family, fields, scaling.get(), headDim, maxPositions);
        return reader.read(theta, rotaryDim, interleaved);
    }

    private static int rotaryDim(ModelFamily family, ConfigFields fields, int headDim) {
        double usual = family == ModelFamily.GLM ? 0.5 : 1.0;
        double part = common(fields, "partial_rotary_factor", usual);
        boolean expected = family == ModelFamily.GLM || family == ModelFamily.PHI3;
        if (part != 1.0 && !expected || !(part > 0) || part > 1) {
            throw fields.wrong("partial_rotary_factor", "= " + part + " is not supported for " + family);
        }
        return (int) (headDim * part);
    }

    /** A number that the old layout has at the top and the new one among the rope parameters. */
    private static double common(ConfigFields fields, String name, double absent) {
        Optional<ConfigFields> nested = fields.object("rope_parameters").filter(rope -> rope.has(name));
        if (nested.isPresent()
                && fields.has(name)
                && nested.get().number(name) != fields.number(name)) {
            throw fields.wrong(
                    name, "= " + fields.number(name) + " contradicts rope_parameters." + name + " = "
                            + nested.get().number(name));
        }
        return nested.orElse(fields).number(name, absent);
    }

    private RopeDescription read(double theta, int rotaryDim, boolean interleaved) {
        String type = type();
        double attentionFactor = 1;
        Scaling scaling =
                switch (type) {
                    case "default" -> {
                        refuseOthers(Set.of());
                        yield new Default();
                    }
                    case "linear" -> {
                        refuseOthers(Set.of("factor"));
                        yield new Linear(atLeastOne("factor"));
                    }
                    case "llama3" -> llama3();
                    case "yarn" -> {
                        attentionFactor = yarnAttentionFactor();
                        yield yarn();
                    }
                    case "longrope" -> {
                        attentionFactor = longRopeAttentionFactor();
                        yield longRope(rotaryDim);
                    }
                    default -> throw rope.unsupported(rope.has("rope_type") ? "rope_type" : "type");
                };
        return new RopeDescription(theta, rotaryDim, interleaved, attentionFactor, scaling);
    }

    private String type() {
        Optional<String> type = rope.text("rope_type").or(() -> rope.text("type"));
        if (type.isEmpty()) {
            throw rope.wrong("rope_type", "is missing");
        }
        // The first publications of Phi-3 call longrope by these names.
        boolean older = family == ModelFamily.PHI3 && (type.get().equals("su") || type.get().equals("yarn"));
        return older ? "longrope" : type.get();
    }

    private void refuseOthers(Set<String> used) {
        for (String name : rope.names()) {
            if (!COMMON.contains(name) && !used.contains(name) && rope.has(name)) {
                throw rope.unsupported(name);
            }
        }
    }

    private double atLeastOne(String name) {
        double value = rope.number(name);
        if (value < 1) {
            throw rope.wrong(name, "= " + value + " is below 1");
        }
        return value;
    }

    private double positive(String name, double absent) {
        double value = rope.number(name, absent);
        if (!(value > 0)) {
            throw rope.wrong(name, "= " + value + " is not positive");
        }
        return value;
    }

    private Llama3 llama3() {
        refuseOthers(Set.of("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"));
        double low = rope.number("low_freq_factor");
        double high = rope.number("high_freq_factor");
        if (!(low > 0) || !(high > low)) {
            throw rope.wrong("high_freq_factor", "= " + high + " must be above low_freq_factor = " + low + " above 0");
        }
        int original = rope.integer("original_max_position_embeddings");
        return new Llama3(atLeastOne("factor"), low, high, positivePositions(original));
    }

    private int positivePositions(int original) {
        if (original <= 0) {
            throw rope.wrong("original_max_position_embeddings", "= " + original + " is not positive");
        }
        return original;
    }

    /** Positions of the first training: among the rope fields, at the top (Phi-3), or the longest context. */
    private int originalMaxPositions() {
        String name = "original_max_position_embeddings";
        return positivePositions(rope.integer(name, fields.integer(name, maxPositions)));
    }

    private double yarnFactor() {
        return rope.has("factor") ? atLeastOne("factor") : Math.max(1, (double) maxPositions / originalMaxPositions());
    }

    private Yarn yarn() {
        refuseOthers(Set.of(
                "factor",
                "original_max_position_embeddings",
                "beta_fast",
                "beta_slow",
                "attention_factor",
                "mscale",
                "mscale_all_dim",
                "truncate"));
        return new Yarn(
                yarnFactor(),
                positive("beta_fast", 32),
                positive("beta_slow", 1),
                rope.flag("truncate", true),
                originalMaxPositions());
    }

    /** Section 3.4 of the YaRN paper; mscale and mscale_all_dim are DeepSeek's generalisation of it. */
    private double yarnAttentionFactor() {
        if (rope.has("attention_factor")) {
            return positive("attention_factor", 1);
        }
        double factor = yarnFactor();
        if (rope.number("mscale", 0) != 0 && rope.number("mscale_all_dim", 0) != 0) {
            return yarnScale(factor, rope.number("mscale")) / yarnScale(factor, rope.number("mscale_all_dim"));
        }
        return yarnScale(factor, 1);
    }

    private static double yarnScale(double factor, double weight) {
        return factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
    }

    private LongRope longRope(int rotaryDim) {
        refuseOthers(Set.of(
                "short_factor", "long_factor", "original_max_position_embeddings", "factor", "attention_factor"));
        return new LongRope(
                factors("short_factor", rotaryDim), factors("long_factor", rotaryDim), originalMaxPositions());
    }

    private List<Double> factors(String name, int rotaryDim) {
        List<Double> factors = rope.numbers(name);
        if (factors.size() != rotaryDim / 2) {
            throw rope.wrong(name, "has " + factors.size() + " numbers, the " + rotaryDim + " rotated elements of a head of "
                    + headDim + " need " + rotaryDim / 2);
        }
        factors.forEach(factor -> {
            if (!(factor > 0)) {
                throw rope.wrong(name, "has " + factor + ", which is not positive");
            }
        });
        return factors;
    }

    /** Section 3.3 of the LongRoPE paper as Phi-3 uses it: sqrt(1 + ln(stretch) / ln(original)). */
    private double longRopeAttentionFactor() {
        if (rope.has("attention_factor")) {
            return positive("attention_factor", 1);
        }
        int original = originalMaxPositions();
        double stretch = original == maxPositions && rope.has("factor")
                ? rope.number("factor")
                : (double) maxPositions / original;
        return stretch <= 1 ? 1 : Math.sqrt(1 + Math.log(stretch) / Math.log(original));
    }
}
