package dev.shadowkv.eval;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

@Timeout(30)
class PromptsAheadTest {
    private static final int CASES = 12;
    private static final int BROKEN = 7;

    private final Set<Integer> begun = ConcurrentHashMap.newKeySet();

    /** Prompts are their numbers; one cannot be made. */
    private final Suite suite = new Suite() {
        @Override
        public String name() {
            return "numbers";
        }

        @Override
        public List<Case> cases() {
            return IntStream.range(0, CASES).mapToObj(i -> Case.of("t", 8, i, 1)).toList();
        }

        @Override
        public Prompt prompt(Case origin) {
            begun.add(origin.index());
            if (origin.index() == BROKEN) {
                throw new EvaluationException("no prompt " + BROKEN);
            }
            return new Prompt(origin, "x".repeat(origin.index() + 1), "", List.of("y"), 1, false);
        }

        @Override
        public double score(Prompt prompt, String answer) {
            return 0.5;
        }
    };

    private PromptsAhead ahead(List<Case> cases) {
        return new PromptsAhead(suite, new PromptEncoder(new PieceTokenizer(), Optional.empty()), cases, 3, 2);
    }

    @Test
    void promptsAreTheSuitesOwnInAnyOrder() {
        PromptEncoder encoder = new PromptEncoder(new PieceTokenizer(), Optional.empty());
        try (PromptsAhead prompts = ahead(suite.cases())) {
            for (int i : new int[] {0, 1, 2, 5, 4, 0, 11, 3, 3}) {
                Case origin = suite.cases().get(i);
                assertThat(prompts.prompt(origin)).isEqualTo(suite.prompt(origin));
                assertThat(prompts.take(origin)).isEqualTo(encoder.encode(suite.prompt(origin)));
            }
            assertThat(prompts.name()).isEqualTo("numbers");
            assertThat(prompts.cases()).isEqualTo(suite.cases());
        }
    }

    @Test
    void onlyAFewLieReady() {
        try (PromptsAhead prompts = ahead(suite.cases())) {
            prompts.prompt(suite.cases().getFirst());
        }
        // Closing has waited for those that were begun.
        assertThat(begun).contains(0).isSubsetOf(0, 1, 2, 3);
    }

    @Test
    void whatWillNotBeAskedForIsNotMade() {
        List<Case> odd = suite.cases().stream().filter(origin -> origin.index() % 2 == 1 && origin.index() < BROKEN).toList();
        try (PromptsAhead prompts = ahead(odd)) {
            odd.forEach(prompts::take);
        }
        assertThat(begun).containsExactlyInAnyOrder(1, 3, 5);
    }

    @Test
    void aPromptThatCannotBeMadeFailsWhereItIsAskedFor() {
        try (PromptsAhead prompts = ahead(suite.cases())) {
            for (int i = 0; i < BROKEN; i++) {
                prompts.take(suite.cases().get(i));
            }
            assertThatThrownBy(() -> prompts.take(suite.cases().get(BROKEN)))
                    .isInstanceOf(EvaluationException.class)
                    .hasMessage("no prompt " + BROKEN);
            assertThat(prompts.take(suite.cases().get(BROKEN + 1))).isNotEmpty();
        }
    }
}
