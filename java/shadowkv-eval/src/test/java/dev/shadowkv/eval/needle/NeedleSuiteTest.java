package dev.shadowkv.eval.needle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.llm.input.PromptFile;
import dev.shadowkv.llm.internal.json.Json;
import dev.shadowkv.llm.text.Tokenizer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Holds generated prompts against the checkpoint's samples, by a reading of both that shares nothing with the generator. */
class NeedleSuiteTest {
    private static final Path NEEDLE = Path.of(System.getProperty("shadowkv.root"), "models", "needle-32k");
    private static final Pattern STATEMENT = Pattern.compile("the special magic number for (\\w+) is : (\\d{3} \\d{3}) \\."
            + "|VAR (\\w+) = (?:VAR (\\w+)|(\\d{3} \\d{3})) \\.|passage (\\w+) : ([a-z ]+) \\.");
    private static final String[] NOISE =
            "the grass is green . the sky is blue . the sun is yellow . here we go . there and back again .".split(" ");

    private static Tokenizer tokenizer;

    @BeforeAll
    static void open() {
        tokenizer = Tokenizer.open(NEEDLE);
    }

    @AfterAll
    static void close() {
        tokenizer.close();
    }

    /** A prompt taken apart. */
    private record Parts(List<String> statements, List<Integer> places, List<String> filler, String question) {
        boolean noise() {
            return filler.contains("grass");
        }
    }

    private static Parts parts(String prompt) {
        int question = Math.max(
                Math.max(prompt.lastIndexOf("what is the"), prompt.lastIndexOf("what are all the")),
                Math.max(prompt.lastIndexOf("find all variables"), prompt.lastIndexOf("repeat passage")));
        String context = prompt.substring(0, question);
        Matcher matcher = STATEMENT.matcher(context);
        List<String> statements = new ArrayList<>();
        List<Integer> places = new ArrayList<>();
        List<String> filler = new ArrayList<>();
        int from = 0;
        while (matcher.find()) {
            addWords(filler, context.substring(from, matcher.start()));
            statements.add(matcher.group());
            places.add(filler.size());
            from = matcher.end();
        }
        addWords(filler, context.substring(from));
        return new Parts(statements, places, filler, prompt.substring(question));
    }

    private static void addWords(List<String> filler, String text) {
        Arrays.stream(text.split(" ")).filter(word -> !word.isEmpty()).forEach(filler::add);
    }

    /** Works out the answer from the statements, as a reader would. */
    private static String solve(Parts parts) {
        String question = parts.question();
        if (question.startsWith("repeat")) {
            String name = question.split(" ")[2];
            return parts.statements().stream()
                    .filter(statement -> statement.startsWith("passage " + name + " : "))
                    .map(statement -> statement.substring(("passage " + name + " : ").length()))
                    .findFirst()
                    .orElseThrow();
        }
        if (question.startsWith("find")) {
            List<String> chain = new ArrayList<>();
            String meaning = question.replaceAll("\\D+(\\d{3} \\d{3}).*", "$1");
            for (String statement : parts.statements()) {
                if (statement.endsWith(" = " + meaning + " .")) {
                    chain.add(statement.split(" ")[1]);
                    meaning = "VAR " + chain.getLast();
                }
            }
            return String.join(" ", chain) + " .";
        }
        String name = question.replaceAll(".* numbers? for (\\w+) \\?.*", "$1");
        List<String> values = parts.statements().stream()
                .filter(statement -> statement.contains(" for " + name + " is"))
                .map(statement -> statement.replaceAll(".* : (\\d{3} \\d{3}) \\.", "$1"))
                .toList();
        return String.join(" , ", values) + " .";
    }

    private static List<JsonNode> samples() {
        return PromptFile.read(NEEDLE.resolve("samples.jsonl.gz")).stream()
                .map(entry -> (JsonNode) Json.parseObject(entry.json()))
                .toList();
    }

    private static NeedleSuite suite(long seed, int samples, Integer... lengths) {
        return NeedleSuite.tasks(tokenizer, NeedleTask.all(), List.of(lengths), samples, seed);
    }

    @Test
    void theReaderUnderstandsTheSamples() {
        for (JsonNode sample : samples()) {
            assertThat(solve(parts(sample.get("prompt").asText()))).isEqualTo(sample.get("answer").asText());
        }
    }

    @Test
    void promptsHaveTheSamplesShape() {
        Map<String, String> shapes = new TreeMap<>();
        for (JsonNode sample : samples()) {
            Parts parts = parts(sample.get("prompt").asText());
            shapes.put(sample.get("task").asText() + sample.get("length"), shape(parts, sample.get("answer").asText()));
        }
        Map<String, String> generated = new TreeMap<>();
        NeedleSuite suite = suite(7, 2, 1024, 4096, 16_384, 32_768);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            generated.put(
                    origin.task() + origin.length(), shape(parts(prompt.text()), prompt.answers().getFirst()));
        }
        assertThat(generated).isEqualTo(shapes);
    }

    /** Numbers that do not depend on chance, and the question with what is chance replaced. */
    private static String shape(Parts parts, String answer) {
        long distinct = parts.statements().stream().map(NeedleSuiteTest::name).distinct().count();
        return parts.statements().size() + " statements, " + distinct + " names, " + parts.filler().size() + " filler, "
                + answer.split(" ").length + " answer, "
                + parts.question().replaceAll("\\d{3}", "N").replaceAll("(for|passage) \\w+", "$1 X");
    }

    private static String name(String statement) {
        return statement.replaceFirst(".*? for (\\w+) is.*", "$1").replaceFirst("(VAR|passage) (\\w+) .*", "$2");
    }

    @Test
    void lengthsAreExactAndAnswersAreRight() {
        NeedleSuite suite = suite(3, 3, 700, 1024, 2049, 5000);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            int[] ids = tokenizer.encode(prompt.whole());
            assertThat(ids).as(origin.id()).hasSize(origin.length()).doesNotContain(3);
            assertThat(solve(parts(prompt.text()))).isEqualTo(prompt.answers().getFirst());
            assertThat(tokenizer.encode(prompt.answers().getFirst(), false)).hasSize(prompt.maxNewTokens());
            assertThat(suite.score(prompt, prompt.answers().getFirst())).isEqualTo(1);
        }
    }

    @Test
    void fillerIsDrawnAsInTheSamples() {
        List<String> words = new ArrayList<>();
        int noise = 0;
        int prompts = 0;
        double places = 0;
        int statements = 0;
        NeedleSuite suite = suite(5, 40, 4096);
        for (Case origin : suite.cases()) {
            Parts parts = parts(suite.prompt(origin).text());
            prompts++;
            if (parts.noise()) {
                noise++;
                for (int i = 0; i < parts.filler().size(); i++) {
                    assertThat(parts.filler().get(i)).isEqualTo(NOISE[i % NOISE.length]);
                }
            } else {
                words.addAll(parts.filler());
            }
            for (int place : parts.places()) {
                places += (double) place / parts.filler().size();
                statements++;
            }
        }
        // The samples: 12 of 40 are noise, 0.0832 of the filler is full stops, 512 words, places uniform.
        assertThat((double) noise / prompts).isCloseTo(0.3, within(5 * Math.sqrt(0.3 * 0.7 / prompts)));
        double stops = words.stream().filter("."::equals).count() / (double) words.size();
        assertThat(stops).isCloseTo(1.0 / 12, within(5 * Math.sqrt(1.0 / 12 / words.size())));
        assertThat(new HashSet<>(words)).hasSize(513);
        assertThat(places / statements).isCloseTo(0.5, within(5 * Math.sqrt(1.0 / 12 / statements)));
    }

    @Test
    void aCaseDecidesItsPromptAlone() {
        Case origin = Case.of("vt", 2048, 4, 99);
        String text = suite(99, 5, 2048).prompt(origin).text();
        assertThat(suite(99, 50, 1024, 2048).prompt(origin)).isEqualTo(suite(99, 5, 2048).prompt(origin));
        assertThat(suite(1, 1, 1024).prompt(Case.of("vt", 2048, 5, 99)).text()).isNotEqualTo(text);
        assertThat(suite(1, 1, 1024).prompt(Case.of("vt", 2048, 4, 98)).text()).isNotEqualTo(text);
    }

    @Test
    void depthsAreMet() {
        NeedleSuite suite = NeedleSuite.grid(
                tokenizer, NeedleTask.NIAH_SINGLE, List.of(1000, 3001), List.of(0.0, 0.25, 0.5, 1.0), 2, 8);
        assertThat(suite.cases()).hasSize(16);
        for (Case origin : suite.cases()) {
            Parts parts = parts(suite.prompt(origin).text());
            assertThat((double) parts.places().getFirst() / parts.filler().size())
                    .isCloseTo(origin.depth(), within(0.5 / parts.filler().size() + 1e-12));
        }
        assertThatThrownBy(() -> NeedleSuite.grid(tokenizer, NeedleTask.COPY, List.of(4096), List.of(0.5), 1, 1))
                .isInstanceOf(IllegalArgumentException.class);
    }

    @Test
    void conversationsAskAboutOneContext() {
        NeedleConversation conversation = NeedleConversation.make(tokenizer, 4096, 50, 2, 6);
        assertThat(conversation.turns()).hasSize(50);
        // 32 names: all are asked once before any is asked again.
        assertThat(new HashSet<>(conversation.turns().subList(0, 32))).hasSize(32);
        assertThat(new HashSet<>(conversation.turns())).hasSize(32);
        for (int turn = 0; turn < 50; turn++) {
            Prompt fresh = conversation.fresh(turn);
            assertThat(solve(parts(fresh.text()))).isEqualTo(fresh.answers().getFirst());
            assertThat(tokenizer.encode(fresh.text())).hasSize(4096);
        }
        assertThat(NeedleConversation.make(tokenizer, 4096, 50, 2, 6)).isEqualTo(conversation);
    }

    @Test
    void scoresByTokensAtTheirPlace() {
        assertThat(NeedleSuite.tokenScore("123 456 .", "123 456 .")).isEqualTo(1);
        assertThat(NeedleSuite.tokenScore("123 456 .", " 123 455 . the")).isCloseTo(2.0 / 3, within(1e-15));
        assertThat(NeedleSuite.tokenScore("123 456 .", "456 .")).isZero();
        assertThat(NeedleSuite.tokenScore("123 456 .", "")).isZero();
    }

    @Test
    void complainsClearly() {
        NeedleSuite suite = suite(1, 1, 100);
        assertThatThrownBy(() -> suite.prompt(Case.of("copy", 100, 0, 1)))
                .isInstanceOf(EvaluationException.class)
                .hasMessage("a context of 100 tokens is too short for copy");
        assertThatThrownBy(() -> NeedleTask.ofCode("nope")).hasMessageStartingWith("unknown needle task nope; there are ");
    }
}
