package dev.shadowkv.eval.ruler;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.Suite;
import dev.shadowkv.eval.haystack.Haystack;
import dev.shadowkv.eval.haystack.PromptFitter;
import dev.shadowkv.eval.haystack.PromptFitter.Draft;
import dev.shadowkv.eval.haystack.Words;
import dev.shadowkv.llm.text.Tokenizer;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;

/**
 * RULER (Hsieh et al., 2024) for a tokenizer and lengths: prompts as long as possible such that prompt and answer
 * together stay within the length, by the published rules and settings of the 13 tasks.
 *
 * <pre>{@code
 * Suite suite = RulerSuite.builder(tokenizer)
 *     .tasks(RulerTask.selfContained()).lengths(List.of(4096, 8192)).samples(50).seed(1)
 *     .haystack(Haystack.read(essays))
 *     .build();
 * }</pre>
 */
public final class RulerSuite implements Suite {
    private final Builder settings;
    private final PromptFitter fitter;
    private final List<Case> cases = new ArrayList<>();

    private RulerSuite(Builder settings) {
        this.settings = settings;
        fitter = new PromptFitter(settings.tokenizer, settings.overheadTokens);
        for (int length : settings.lengths) {
            for (RulerTask task : settings.tasks) {
                requireQuestions(task);
                for (int index = 0; index < settings.samples; index++) {
                    cases.add(Case.of(task.code(), length, index, settings.seed));
                }
            }
        }
    }

    private void requireQuestions(RulerTask task) {
        if (!task.needsQuestions()) {
            return;
        }
        QuestionFile file = questions(task);
        if (file == null) {
            throw new EvaluationException(
                    task.code() + " needs a " + (task == RulerTask.QA_1 ? "SQuAD" : "HotpotQA") + " file");
        }
        if (file.size() < settings.samples) {
            throw new EvaluationException(
                    task.code() + ": the file has " + file.size() + " questions, " + settings.samples + " are asked for");
        }
    }

    private QuestionFile questions(RulerTask task) {
        return task == RulerTask.QA_1 ? settings.squad : settings.hotpot;
    }

    public static Builder builder(Tokenizer tokenizer) {
        return new Builder(tokenizer);
    }

    @Override
    public String name() {
        return "ruler";
    }

    @Override
    public List<Case> cases() {
        return List.copyOf(cases);
    }

    @Override
    public Prompt prompt(Case origin) {
        RulerTask task = RulerTask.ofCode(origin.task());
        int limit = origin.length() - task.newTokens();
        try {
            Draft draft = draft(task, origin, limit);
            return new Prompt(origin, draft.text(), draft.answerPrefix(), draft.answers(), task.newTokens(), true);
        } catch (EvaluationException e) {
            throw new EvaluationException(task.code() + " at length " + origin.length() + ": " + e.getMessage(), e);
        }
    }

    private Draft draft(RulerTask task, Case origin, int limit) {
        RulerTemplates templates = settings.templates;
        return switch (task) {
            case VARIABLE_TRACKING -> fitter.fit(
                    limit,
                    VariableTracking.HOPS + 1,
                    VariableTracking.UNIT_TOKENS,
                    units -> VariableTracking.draft(templates, units, origin.random()));
            case COMMON_WORDS -> fitter.fit(
                    limit,
                    WordCounting.COMMON,
                    WordCounting.COMMON_UNIT_TOKENS,
                    units -> WordCounting.common(templates, settings.words, origin.length(), units, origin.random()));
            case FREQUENT_WORDS -> fitter.fit(
                    limit,
                    50,
                    WordCounting.FREQUENT_UNIT_TOKENS,
                    units -> WordCounting.frequent(templates, limit, units, origin.random()));
            case QA_1, QA_2 -> fitter.fit(
                    limit,
                    questions(task).minimum(origin.index()),
                    QuestionFile.UNIT_TOKENS,
                    units -> questions(task).draft(templates, origin.index(), units, origin.random()));
            default -> {
                Niah niah = Niah.of(task);
                yield fitter.fit(
                        limit,
                        niah.minimum(),
                        niah.unitTokens(),
                        units -> niah.draft(templates, settings.words, settings.haystack, units, origin.random()));
            }
        };
    }

    @Override
    public double score(Prompt prompt, String answer) {
        return RulerTask.ofCode(prompt.origin().task()).needsQuestions()
                ? RulerScores.matchPart(prompt.answers(), answer)
                : RulerScores.matchAll(prompt.answers(), answer);
    }

    /** Settings of a suite. */
    public static final class Builder {
        private final Tokenizer tokenizer;
        private List<RulerTask> tasks = RulerTask.selfContained();
        private List<Integer> lengths = List.of(4096);
        private int samples = 50;
        private long seed = 1;
        private Haystack haystack = Haystack.generated();
        private Words words = Words.english();
        private RulerTemplates templates = RulerTemplates.builtIn();
        private QuestionFile squad;
        private QuestionFile hotpot;
        private int overheadTokens;

        private Builder(Tokenizer tokenizer) {
            this.tokenizer = Objects.requireNonNull(tokenizer, "tokenizer");
        }

        /** Tasks; all that need no file unless given. */
        public Builder tasks(List<RulerTask> tasks) {
            this.tasks = List.copyOf(tasks);
            return this;
        }

        /** Tokens of prompt and answer together. */
        public Builder lengths(List<Integer> lengths) {
            this.lengths = List.copyOf(lengths);
            return this;
        }

        /** Prompts a task and length. */
        public Builder samples(int samples) {
            this.samples = samples;
            return this;
        }

        public Builder seed(long seed) {
            this.seed = seed;
            return this;
        }

        /** Text to hide needles in; the benchmark takes essays. */
        public Builder haystack(Haystack haystack) {
            this.haystack = Objects.requireNonNull(haystack, "haystack");
            return this;
        }

        /** Words for keys and lists. */
        public Builder words(Words words) {
            this.words = Objects.requireNonNull(words, "words");
            return this;
        }

        /** The wording. */
        public Builder templates(RulerTemplates templates) {
            this.templates = Objects.requireNonNull(templates, "templates");
            return this;
        }

        /** Questions of qa_1. */
        public Builder squad(QuestionFile squad) {
            this.squad = squad;
            return this;
        }

        /** Questions of qa_2. */
        public Builder hotpot(QuestionFile hotpot) {
            this.hotpot = hotpot;
            return this;
        }

        /** Tokens that the chat template around a prompt takes. */
        public Builder overheadTokens(int overheadTokens) {
            this.overheadTokens = overheadTokens;
            return this;
        }

        public RulerSuite build() {
            return new RulerSuite(this);
        }
    }
}
