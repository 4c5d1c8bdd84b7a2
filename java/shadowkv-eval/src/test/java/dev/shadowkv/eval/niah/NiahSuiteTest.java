package dev.shadowkv.eval.niah;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.PieceTokenizer;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.haystack.Haystack;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;

class NiahSuiteTest {
    private static final Pattern NEEDLE = Pattern.compile("The special magic number for (\\S+) is: (\\d{7})\\.");

    @Test
    void theNeedleIsWhereItShouldBe() {
        PieceTokenizer tokenizer = new PieceTokenizer();
        NiahSuite suite = new NiahSuite(
                tokenizer, Haystack.generated(), List.of(500, 1777, 6000), NiahSuite.depths(5), 2, 3, 4);
        assertThat(suite.cases()).hasSize(30);
        assertThat(NiahSuite.depths(5)).containsExactly(0.0, 0.25, 0.5, 0.75, 1.0);
        for (Case origin : suite.cases()) {
            Prompt prompt = suite.prompt(origin);
            int tokens = tokenizer.encode(prompt.whole()).length + 4 + prompt.maxNewTokens();
            assertThat(tokens).as(origin.id()).isBetween(origin.length() - 6, origin.length());
            String text = prompt.text().split("\n\n")[1];
            Matcher needle = NEEDLE.matcher(text);
            assertThat(needle.find()).isTrue();
            assertThat(needle.group(2)).isEqualTo(prompt.answers().getFirst());
            assertThat(prompt.text()).endsWith("what is the special magic number for " + needle.group(1) + "?");
            // A sentence has up to about 130 characters; the needle stands at the nearest gap.
            double depth = (double) needle.start() / (text.length() - needle.group().length());
            assertThat(depth).isCloseTo(origin.depth(), within(70.0 / text.length()));
            assertThat(suite.score(prompt, "It is " + needle.group(2) + ".")).isEqualTo(1);
            assertThat(suite.score(prompt, needle.group(2).substring(1))).isZero();
        }
    }
}
