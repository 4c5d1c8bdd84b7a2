package dev.shadowkv.eval.ruler;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.PieceTokenizer;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.haystack.Haystack;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class RulerSuiteTest {
    private static final Tokenizer TOKENIZER = new PieceTokenizer();
    private static final Pattern NEEDLE = Pattern.compile("One of the special magic (\\w+) for (\\S+) is: (\\S+)\\.");

    @TempDir
    private Path folder;

    private RulerSuite suite(RulerTask task, int samples, Integer... lengths) throws IOException {
        return RulerSuite.builder(TOKENIZER)
                .tasks(List.of(task))
                .lengths(List.of(lengths))
                .samples(samples)
                .seed(11)
                .squad(QuestionFile.readSquad(squad()))
                .hotpot(QuestionFile.readHotpot(hotpot()))
                .overheadTokens(9)
                .build();
    }

    /** 60 paragraphs in 6 articles; the first question of each cannot be answered. */
    private Path squad() throws IOException {
        StringBuilder json = new StringBuilder("{\"data\":[");
        for (int article = 0; article < 6; article++) {
            json.append(article == 0 ? "" : ",").append("{\"paragraphs\":[");
            for (int paragraph = 0; paragraph < 10; paragraph++) {
                String about = "subject" + article + "x" + paragraph;
                json.append(paragraph == 0 ? "" : ",")
                        .append("{\"context\":\"The paragraph about ").append(about).append(" has ")
                        .append(" more words".repeat(30)).append(".\",\"qas\":[")
                        .append("{\"question\":\"Never?\",\"is_impossible\":true,\"answers\":[]},")
                        .append("{\"question\":\"What about ").append(about).append("?\",\"is_impossible\":false,")
                        .append("\"answers\":[{\"text\":\"").append(about).append("\"},{\"text\":\"SAME-").append(about)
                        .append("\"}]}]}");
            }
            json.append("]}");
        }
        return Files.writeString(folder.resolve("squad.json"), json.append("]}").toString());
    }

    private Path hotpot() throws IOException {
        StringBuilder json = new StringBuilder("[");
        for (int question = 0; question < 8; question++) {
            json.append(question == 0 ? "" : ",").append("{\"question\":\"Which ").append(question)
                    .append("?\",\"answer\":\"fact").append(question).append("\",\"context\":[");
            for (int document = 0; document < 3; document++) {
                json.append(document == 0 ? "" : ",").append("[\"Title ").append(question).append(document)
                        .append("\",[\"One sentence. \",\"It says fact").append(question).append(" in part ")
                        .append(document).append(".\"]]");
            }
            json.append("]}");
        }
        return Files.writeString(folder.resolve("hotpot.json"), json.append("]").toString());
    }

    @ParameterizedTest
    @EnumSource(RulerTask.class)
    void promptsFillTheirLength(RulerTask task) throws IOException {
        RulerSuite suite = suite(task, 2, 2000, 4096, 9001);
        assertThat(suite.cases()).hasSize(6);
        // A unit of haystack more would not have fitted. Counts in fwe jump at times by more than one word a unit.
        int unit = switch (task) {
            case NIAH_SINGLE_1, VARIABLE_TRACKING -> 45;
            case NIAH_MULTIKEY_2 -> 60;
            case NIAH_MULTIKEY_3 -> 100;
            case COMMON_WORDS, FREQUENT_WORDS -> 60;
            case QA_1 -> 150;
            case QA_2 -> 60;
            default -> 8;
        };
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            int tokens = TOKENIZER.encode(prompt.whole()).length + 9 + task.newTokens();
            assertThat(tokens).as(origin.id()).isBetween(origin.length() - unit, origin.length());
            assertThat(prompt.maxNewTokens()).isEqualTo(task.newTokens());
            assertThat(prompt).isEqualTo(suite.prompt(origin));
            assertThat(prompt.whole()).doesNotContain("{", "}");
            assertThat(suite.score(prompt, "It is " + String.join(", ", prompt.answers()).toUpperCase())).isEqualTo(1);
            assertThat(suite.score(prompt, "")).isZero();
        }
    }

    @ParameterizedTest
    @EnumSource(value = RulerTask.class, names = "NIAH.*", mode = EnumSource.Mode.MATCH_ALL)
    void needlesCanBeFoundByAReader(RulerTask task) throws IOException {
        RulerSuite suite = suite(task, 3, 5000);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            List<MatchResult> needles = NEEDLE.matcher(prompt.text()).results().toList();
            String query = prompt.text().replaceFirst("(?s).* gives for (.*)\\?$", "$1");
            List<String> asked = List.of(query.split(", and |, "));
            List<String> found = asked.stream()
                    .flatMap(key -> needles.stream().filter(needle -> needle.group(2).equals(key)))
                    .map(needle -> needle.group(3))
                    .toList();
            assertThat(found).as(origin.id()).containsExactlyInAnyOrderElementsOf(prompt.answers());
            int hidden = switch (task) {
                case NIAH_SINGLE_1, NIAH_SINGLE_2, NIAH_SINGLE_3 -> 1;
                case NIAH_MULTIKEY_2, NIAH_MULTIKEY_3 -> needles.size();
                default -> 4;
            };
            assertThat(needles).hasSize(hidden).hasSizeGreaterThanOrEqualTo(1);
            boolean crowd = task == RulerTask.NIAH_MULTIKEY_2 || task == RulerTask.NIAH_MULTIKEY_3;
            assertThat(needles.size() > 50).isEqualTo(crowd);
            boolean uuids = task == RulerTask.NIAH_SINGLE_3 || task == RulerTask.NIAH_MULTIKEY_3;
            assertThat(prompt.answers()).allMatch(value -> value.matches(
                    uuids ? "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}" : "[1-9]\\d{6}"));
            assertThat(prompt.answerPrefix()).endsWith(prompt.answers().size() == 1 ? " is" : " are");
            assertThat(prompt.text().startsWith("A special magic ")).isEqualTo(prompt.answers().size() == 1);
        }
    }

    @Test
    void chainsCanBeFollowedByAReader() throws IOException {
        RulerSuite suite = suite(RulerTask.VARIABLE_TRACKING, 3, 3000);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            String[] parts = prompt.text().split("\n\n(?=The text below)");
            assertThat(parts).hasSize(2);
            String asked = parts[1];
            String meaning = asked.replaceFirst("(?s).* have the value (\\d{5}) in the end\\?$", "$1");
            List<String> chain = new ArrayList<>();
            for (String line : asked.split("\n")) {
                if (line.startsWith("VAR ") && line.endsWith(" = " + meaning)) {
                    chain.add(line.split(" ")[1]);
                    meaning = "VAR " + chain.getLast();
                }
            }
            assertThat(chain).isEqualTo(prompt.answers()).hasSize(5).allMatch(name -> name.matches("[A-Z]{5}"));
            assertThat(parts[0]).containsPattern("5 variables have the value \\d{5}\\. They are:  ?[A-Z]{3}( [A-Z]{3}){4}$");
        }
    }

    private static Map<String, Long> counts(String text) {
        return Arrays.stream(text.split("\\s+")).collect(Collectors.groupingBy(Function.identity(), Collectors.counting()));
    }

    @Test
    void commonWordsAreTheMostCommon() throws IOException {
        for (int length : new int[] {3000, 6000}) {
            RulerSuite suite = suite(RulerTask.COMMON_WORDS, 2, length);
            for (Case origin : suite.cases()) {
                Prompt prompt = suite.prompt(origin);
                String list = prompt.text().substring(prompt.text().lastIndexOf("rest.\n"), prompt.text().lastIndexOf("\nQuestion"));
                Map<String, Long> counts = counts(list.replaceAll("\\d+\\. ", ""));
                List<String> most = counts.entrySet().stream()
                        .sorted(Map.Entry.comparingByValue(Comparator.reverseOrder()))
                        .limit(10)
                        .map(Map.Entry::getKey)
                        .toList();
                assertThat(most).containsExactlyInAnyOrderElementsOf(prompt.answers());
                assertThat(prompt.answers()).allMatch(word -> counts.get(word) == (length < 4096 ? 6 : 30));
                assertThat(new HashSet<>(counts.values())).contains(length < 4096 ? 1L : 3L);
            }
        }
    }

    @Test
    void frequentWordsFollowTheZetaDistribution() throws IOException {
        RulerSuite suite = suite(RulerTask.FREQUENT_WORDS, 2, 8000);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            Map<String, Long> counts = counts(prompt.text());
            double dots = counts.get("...");
            for (int rank = 2; rank <= 4; rank++) {
                assertThat(counts.get(prompt.answers().get(rank - 2)) / dots)
                        .isCloseTo(1.0 / (rank * rank), within(2 / dots));
            }
        }
    }

    @Test
    void questionsComeWithTheirDocuments() throws IOException {
        RulerSuite suite = suite(RulerTask.QA_1, 5, 2000);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            String about = prompt.answers().getFirst();
            assertThat(prompt.text()).endsWith("Question: What about " + about + "?");
            assertThat(prompt.text()).containsOnlyOnce("about " + about + " has");
            // Others of the article come first.
            assertThat(prompt.text()).contains(about.replaceFirst("x\\d+", "x" + (about.endsWith("1") ? 2 : 1)) + " has");
        }
        Prompt hotpot = suite(RulerTask.QA_2, 1, 400).prompt(Case.of("qa_2", 400, 3, 11));
        assertThat(hotpot.text()).contains("Title 30\nOne sentence. It says fact3 in part 0.", "Title 31", "Title 32");
        assertThat(hotpot.answers()).containsExactly("fact3");
    }

    @Test
    void scoresAreThoseOfTheBenchmark() {
        assertThat(RulerScores.matchAll(List.of("12", "Ab", "x"), "the ab and 012")).isCloseTo(2.0 / 3, within(1e-15));
        assertThat(RulerScores.matchPart(List.of("12", "Ab"), "nothing")).isZero();
        assertThat(RulerScores.matchPart(List.of("12", "Ab"), "cab")).isEqualTo(1);
    }

    @Test
    void wordingCanBeGiven() throws IOException {
        Path path = Files.writeString(
                folder.resolve("t.json"),
                "{\"niah\":{\"template\":\"Some {type_needle_v} are: {context} What are all of {query}?\","
                        + "\"answer_prefix\":\" They are\"}}");
        RulerTemplates templates = RulerTemplates.read(path);
        assertThat(templates.name()).isEqualTo("t.json");
        RulerSuite suite = RulerSuite.builder(TOKENIZER)
                .templates(templates)
                .tasks(List.of(RulerTask.NIAH_SINGLE_2))
                .haystack(Haystack.ofText("One. {query} two {x. Three!"))
                .lengths(List.of(500))
                .build();
        Prompt prompt = suite.prompt(suite.cases().getFirst());
        assertThat(prompt.text()).startsWith("A number is: ").contains("{query} two {x.").containsPattern("What is of \\S+\\?$");
        assertThat(prompt.answerPrefix()).isEqualTo(" They is");
        Files.writeString(path, "{\"qa\":{\"template\":\"no place\"}}");
        assertThatThrownBy(() -> RulerTemplates.read(path)).hasMessage(path + ": qa.template has no {context}");
    }

    @Test
    void complainsClearly() throws IOException {
        assertThatThrownBy(() -> RulerSuite.builder(TOKENIZER).tasks(List.of(RulerTask.QA_2)).build())
                .isInstanceOf(EvaluationException.class)
                .hasMessage("qa_2 needs a HotpotQA file");
        assertThatThrownBy(() -> suite(RulerTask.QA_2, 9, 4096)).hasMessage("qa_2: the file has 8 questions, 9 are asked for");
        RulerSuite small = suite(RulerTask.NIAH_SINGLE_1, 1, 160);
        assertThatThrownBy(() -> small.prompt(small.cases().getFirst()))
                .isInstanceOf(EvaluationException.class)
                .hasMessageStartingWith("niah_single_1 at length 160: the shortest prompt takes ");
        assertThatThrownBy(() -> RulerTask.ofCode("niah")).hasMessageStartingWith("unknown RULER task niah; there are ");
        Path broken = Files.writeString(folder.resolve("b.json"), "{\"data\":[]}");
        assertThatThrownBy(() -> QuestionFile.readSquad(broken)).hasMessageContaining("has no questions in the layout of SQuAD");
        assertThatThrownBy(() -> QuestionFile.readHotpot(folder.resolve("none"))).isInstanceOf(EvaluationException.class);
    }
}
