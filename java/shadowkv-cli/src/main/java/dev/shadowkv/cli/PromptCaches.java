package dev.shadowkv.cli;

import dev.shadowkv.Device;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.eval.Answer;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.NamedCaches;
import dev.shadowkv.llm.SideBySide;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;

/** Answers of all variants to the newest prompts, from one computation of each. */
final class PromptCaches implements AutoCloseable {
    /** Tokens beyond a prompt's length that a cache has room for, so that other tasks' answers fit too. */
    private static final long ANSWER = 256;

    private final Model model;
    private final List<Variant> variants;
    private final Tokenizer tokenizer;
    private final Function<Case, int[]> ids;
    private final int most;
    private final boolean fixed;
    private final boolean exactLength;
    private SideBySide sides;
    private int together;
    private long capacity;
    private int length = -1;
    private final Map<Case, Map<String, Answer>> answers = new HashMap<>();

    /**
     * Allocates nothing yet.
     *
     * @param ids tokens of a prompt
     * @param most prompts that are decoded together
     * @param fixed whether it must be so many, or as many as memory has room for
     * @param exactLength whether prompts are as long as their case says, so that caches can be made for that
     */
    PromptCaches(
            Model model,
            List<Variant> variants,
            Tokenizer tokenizer,
            Function<Case, int[]> ids,
            int most,
            boolean fixed,
            boolean exactLength) {
        this.model = model;
        this.variants = variants;
        this.tokenizer = tokenizer;
        this.ids = ids;
        this.most = most;
        this.fixed = fixed;
        this.exactLength = exactLength;
    }

    /** A variant's answers; what all variants answer is computed when the first of them is asked. */
    List<Answer> answer(List<Prompt> prompts, String variant) {
        if (!prompts.stream().allMatch(prompt -> answers.containsKey(prompt.origin()))) {
            answers.clear();
            compute(prompts);
        }
        return prompts.stream().map(prompt -> answers.get(prompt.origin()).get(variant)).toList();
    }

    private void compute(List<Prompt> prompts) {
        List<int[]> encoded = new ArrayList<>();
        for (Prompt prompt : prompts) {
            encoded.add(ids.apply(prompt.origin()));
            ModelArguments.requirePositions(model.config(), encoded.getLast().length, "prompt " + prompt.origin().id());
        }
        for (int from = 0; from < prompts.size(); ) {
            int own = length(prompts.get(from), encoded.get(from));
            int to = from + 1;
            while (to < prompts.size() && length(prompts.get(to), encoded.get(to)) == own) {
                to++;
            }
            from += together(prompts.subList(from, to), encoded.subList(from, to), own);
        }
    }

    /** Where the data decide how long a prompt is, its own length decides what a share of the length is. */
    private static int length(Prompt prompt, int[] ids) {
        return prompt.origin().length() == 0 ? ids.length : prompt.origin().length();
    }

    /** Answers the first of some prompts of one length and says how many they are. */
    private int together(List<Prompt> prompts, List<int[]> encoded, int promptLength) {
        List<SideBySide.Question> questions = new ArrayList<>();
        long needed = 0;
        for (int i = 0; i < prompts.size(); i++) {
            questions.add(new SideBySide.Question(encoded.get(i), prompts.get(i).maxNewTokens()));
            needed = Math.max(needed, (long) encoded.get(i).length + prompts.get(i).maxNewTokens());
        }
        prepare(promptLength, needed);
        int count = Math.min(together, questions.size());
        List<SideBySide.Answers> all =
                sides.answer(questions.subList(0, count), Set.copyOf(model.config().endIds()), (done, total) -> {});
        for (int i = 0; i < count; i++) {
            answers.put(prompts.get(i).origin(), answers(all.get(i), encoded.get(i).length));
        }
        return count;
    }

    private Map<String, Answer> answers(SideBySide.Answers all, int promptTokens) {
        Map<String, Answer> byVariant = new HashMap<>();
        all.outcomes().forEach((name, outcome) -> byVariant.put(
                name,
                new Answer(
                        tokenizer.decode(outcome.ids()),
                        promptTokens,
                        outcome.ids().length,
                        all.prefillSeconds() + outcome.sealSeconds(),
                        outcome.decodeSeconds(),
                        Map.of(
                                "residentShare", outcome.statistics().hitRate(),
                                "landmarkMass", outcome.statistics().landmarkMass()))));
        return byVariant;
    }

    /** Caches for prompts of a length; made anew only where those that there are do not suit. */
    private void prepare(int promptLength, long needed) {
        boolean anyLength = variants.stream().noneMatch(Variant::budgetIsShare);
        if (sides != null && (promptLength == length || anyLength) && needed <= capacity) {
            return;
        }
        close();
        length = promptLength;
        capacity = Math.max(exactLength ? promptLength + ANSWER : promptLength, needed);
        Map<String, CacheOptions> options = new LinkedHashMap<>();
        variants.forEach(variant -> options.put(variant.name(), variant.options(length)));
        together = fixed ? most : Math.min(most, room(options));
        sides = new SideBySide(model, options, capacity, together);
        sides.timeAttention(false);
    }

    /** Prompts whose sessions take at most half of what memory has free. */
    private int room(Map<String, CacheOptions> options) {
        long device = 0;
        long host = 0;
        for (MemoryPlan plan : NamedCaches.plans(model, options.values(), 1, capacity)) {
            device += plan.sessionDeviceBytes();
            host += plan.sessionPinnedBytes();
        }
        Device.Memory memory = model.device().memory();
        long fit = Math.min(
                memory.free() / 2 / Math.max(1, device), HostMemory.availableBytes() / 2 / Math.max(1, host));
        return Math.clamp(fit, 1, most);
    }

    @Override
    public void close() {
        Optional.ofNullable(sides).ifPresent(SideBySide::close);
        sides = null;
    }
}
