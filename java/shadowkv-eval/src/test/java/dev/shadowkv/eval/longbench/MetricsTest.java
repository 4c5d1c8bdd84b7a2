package dev.shadowkv.eval.longbench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.List;
import org.junit.jupiter.api.Test;

/** Every expected number was computed by hand; the working stands beside it. */
class MetricsTest {
    @Test
    void f1() {
        // "cat sat on mat" against "cat on big mat": 3 of 4 common on both sides.
        assertThat(Metrics.f1("The cat sat, on a mat.", "a cat on the big mat")).isCloseTo(0.75, within(1e-15));
        // Precision 1/2, recall 1/3: 2 * 1/6 / (5/6) = 0.4.
        assertThat(Metrics.f1("red blue", "red green yellow")).isCloseTo(0.4, within(1e-15));
        // A word counts as often as it is in both: common 1, precision 1/2, recall 1.
        assertThat(Metrics.f1("yes yes", "yes")).isCloseTo(2.0 / 3, within(1e-15));
        // "u.s." loses its points and becomes one word; "theory" keeps its "the".
        assertThat(Metrics.f1("U.S. theory", "us theory")).isEqualTo(1);
        assertThat(Metrics.f1("", "x")).isZero();
        assertThat(Metrics.f1("a the", "the")).isZero();
    }

    @Test
    void f1OfChineseIsOverCharacters() {
        // 3 of 4 characters, and 3 of 3: precision 0.75, recall 1, F1 6/7.
        assertThat(Metrics.f1Chinese("在北京。市", "北京市")).isCloseTo(6.0 / 7, within(1e-15));
        assertThat(Metrics.f1Chinese("，", "北京")).isZero();
    }

    @Test
    void rougeL() {
        // LCS of "the cat was under the bed" and "the cat was found under the bed": all six of the former, five
        // different; the truth has five different words, the prediction six: recall 1, precision 5/6, F1 10/11.
        assertThat(Metrics.rougeL("the cat was found under the bed", "the cat was under the bed"))
                .isCloseTo(10.0 / 11, within(1e-7));
        // Two sentences: "a b" and "c d" against "c d a": LCS with the first is "a", with the second "c d"; union 3.
        // Truth 3 different words, prediction 4: recall 1, precision 3/4, F1 6/7.
        assertThat(Metrics.rougeL("a b. c d", "c d a")).isCloseTo(6.0 / 7, within(1e-7));
        // Order counts: the LCS of "x y" and "y x" is one word; the one kept is what going left in the second gives.
        // 1 of 2 on both sides.
        assertThat(Metrics.rougeL("x y", "y x")).isCloseTo(0.5, within(1e-7));
        assertThat(Metrics.rougeL("", "x")).isZero();
        assertThat(Metrics.rougeL("...", "x")).isZero();
        assertThat(Metrics.rougeL("p", "q")).isZero();
        // "a. " has a sentence of one empty word behind the point: 1 of 2 against 1 of 1.
        assertThat(Metrics.rougeL("a. ", "a")).isCloseTo(2.0 / 3, within(1e-7));
        // Characters 北京 in common; 2 of 3 and 2 of 2.
        assertThat(Metrics.rougeLChinese("北京市", "北京")).isCloseTo(0.8, within(1e-7));
    }

    @Test
    void classification() {
        List<String> classes = List.of("City", "State", "Other location", "Other");
        assertThat(Metrics.classification("Type: City", "City", classes)).isEqualTo(1);
        assertThat(Metrics.classification("City or State", "City", classes)).isEqualTo(0.5);
        assertThat(Metrics.classification("State", "City", classes)).isZero();
        // "Other" is part of the right name and is named with it: does not count as another.
        assertThat(Metrics.classification("Other location", "Other location", classes)).isEqualTo(1);
        // Named: Other, Oth, Other location. Removing "Other" skips "Oth", which stays: 1/2.
        assertThat(Metrics.classification("Other location", "Other location", List.of("Other", "Oth", "Other location")))
                .isEqualTo(0.5);
        assertThat(Metrics.classification("", "City", classes)).isZero();
    }

    @Test
    void numbers() {
        assertThat(Metrics.retrieval("Paragraph 12, not 3", "Paragraph 12")).isEqualTo(0.5);
        assertThat(Metrics.retrieval("段落7", "段落7")).isEqualTo(1);
        assertThat(Metrics.retrieval("none", "Paragraph 12")).isZero();
        assertThat(Metrics.count("there are 17. 17! or 18 or 7", "17")).isEqualTo(0.5);
        assertThat(Metrics.count("many", "17")).isZero();
    }

    @Test
    void codeSimilarity() {
        assertThat(Metrics.codeSimilarity("\n\nreturn x\nmore", "return x")).isEqualTo(1);
        // Fence and comment lines are skipped.
        assertThat(Metrics.codeSimilarity("```java\n// note\n# note\nreturn x", "return x")).isEqualTo(1);
        // "abcd" and "abxd" have "abd" in common: 2 * 3 / 8 = 0.75.
        assertThat(Metrics.codeSimilarity("abcd", "abxd")).isEqualTo(0.75);
        // "abc" and "abcde": 2 * 3 / 8 = 0.75; "ab" and "abc": 4/5 = 0.8; "a" and "abcdef": 2/7 = 0.2857 -> 0.29.
        assertThat(Metrics.codeSimilarity("ab", "abc")).isEqualTo(0.8);
        assertThat(Metrics.codeSimilarity("a", "abcdef")).isEqualTo(0.29);
        assertThat(Metrics.codeSimilarity("", "a")).isZero();
        assertThat(Metrics.codeSimilarity("# only a comment", "a")).isZero();
        assertThat(Metrics.codeSimilarity("xyz", "ab")).isZero();
    }
}
