package dev.shadowkv.cli;

import dev.shadowkv.eval.Answer;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.PromptEncoder;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.SideBySide;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;

/** Answers of all variants to the newest prompt, from one computation of it. */
final class PromptCaches implements AutoCloseable {
    private final Model model;
    private final List<Variant> variants;
    private final Tokenizer tokenizer;
    private final PromptEncoder encoder;
    private final boolean exactLength;
    private SideBySide sides;
    private long capacity;
    private int length = -1;
    private Case newest;
    private final Map<String, Answer> answers = new HashMap<>();

    /** @param exactLength whether prompts are as long as their case says, so that caches can be made for that */
    PromptCaches(Model model, List<Variant> variants, Tokenizer tokenizer, PromptEncoder encoder, boolean exactLength) {
        this.model = model;
        this.variants = variants;
        this.tokenizer = tokenizer;
        this.encoder = encoder;
        this.exactLength = exactLength;
    }

    Answer answer(Prompt prompt, String variant) {
        if (!prompt.origin().equals(newest)) {
            compute(prompt);
            newest = prompt.origin();
        }
        return answers.get(variant);
    }

    private void compute(Prompt prompt) {
        int[] ids = encoder.encode(prompt);
        ModelArguments.requirePositions(model.config(), ids.length, "prompt " + prompt.origin().id());
        // Where the data decide how long a prompt is, its own length decides what a share of the length is.
        int promptLength = prompt.origin().length() == 0 ? ids.length : prompt.origin().length();
        prepare(promptLength, (long) ids.length + prompt.maxNewTokens());
        Set<Integer> ends = Set.copyOf(model.config().endIds());
        SideBySide.Answers all = sides.answer(ids, prompt.maxNewTokens(), ends, (done, total) -> {});
        answers.clear();
        all.outcomes().forEach((name, outcome) -> answers.put(
                name,
                new Answer(
                        tokenizer.decode(outcome.ids()),
                        ids.length,
                        outcome.ids().length,
                        all.prefillSeconds() + outcome.sealSeconds(),
                        outcome.decodeSeconds(),
                        Map.of(
                                "residentShare", outcome.statistics().hitRate(),
                                "landmarkMass", outcome.statistics().landmarkMass(),
                                "attentionMilliseconds", outcome.attentionMilliseconds()))));
    }

    /** Caches for prompts of a length; made anew only where those that there are do not suit. */
    private void prepare(int promptLength, long needed) {
        boolean anyLength = variants.stream().noneMatch(Variant::budgetIsShare);
        if (sides != null && (promptLength == length || anyLength) && needed <= capacity) {
            return;
        }
        close();
        length = promptLength;
        capacity = Math.max(exactLength ? promptLength + 256L : promptLength, needed);
        Map<String, CacheOptions> options = variants.stream()
                .collect(Collectors.toMap(
                        Variant::name, variant -> variant.options(length), (a, b) -> b, LinkedHashMap::new));
        sides = new SideBySide(model, options, capacity);
    }

    @Override
    public void close() {
        Optional.ofNullable(sides).ifPresent(SideBySide::close);
        sides = null;
    }
}
