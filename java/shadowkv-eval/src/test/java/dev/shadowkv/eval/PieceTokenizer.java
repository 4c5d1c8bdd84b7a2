package dev.shadowkv.eval;

import dev.shadowkv.llm.text.Tokenizer;
import java.util.Arrays;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.stream.IntStream;

/** Counts as a real tokenizer roughly would: words are cut into pieces of up to four characters. Cannot decode. */
public final class PieceTokenizer implements Tokenizer {
    public PieceTokenizer() {}

    @Override
    public int[] encode(String text, boolean addSpecialTokens) {
        int pieces = Arrays.stream(text.split("(?<=\\n)|[ ]|(?=[^\\p{Alnum}\\s])"))
                .mapToInt(word -> (word.length() + 3) / 4)
                .sum();
        return IntStream.range(0, pieces + (addSpecialTokens ? 1 : 0)).toArray();
    }

    @Override
    public String decode(int[] ids, boolean skipSpecialTokens) {
        throw new UnsupportedOperationException();
    }

    @Override
    public int vocabularySize() {
        return Integer.MAX_VALUE;
    }

    @Override
    public OptionalInt idOf(String token) {
        return OptionalInt.empty();
    }

    @Override
    public Optional<String> tokenOf(int id) {
        return Optional.empty();
    }

    @Override
    public void close() {}
}
