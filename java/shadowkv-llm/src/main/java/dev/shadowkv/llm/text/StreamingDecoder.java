package dev.shadowkv.llm.text;

import java.util.Arrays;
import java.util.Objects;

/**
 * Turns tokens into text as they arrive. A token alone has no text: a letter may be spread over several, and a space
 * may depend on the token before. So a few tokens are decoded together, with and without the new one, and the
 * difference is given out once it ends in a whole character. The pieces together are what decoding all tokens at once
 * gives. For one thread at a time.
 */
public final class StreamingDecoder {
    private static final char INCOMPLETE = '\uFFFD';
    /** A letter takes at most four bytes, so at most four tokens; after more the character is not coming. */
    private static final int LONGEST_WAIT = 8;

    private final Tokenizer tokenizer;
    private int[] window = new int[16];
    /** Tokens in the window, of which the first {@code given} have been given out. */
    private int size;

    private int given;

    StreamingDecoder(Tokenizer tokenizer) {
        this.tokenizer = Objects.requireNonNull(tokenizer, "tokenizer");
    }

    /** Takes a token and returns the text that is certain now, which may be empty. */
    public String accept(int id) {
        if (size == window.length) {
            window = Arrays.copyOf(window, 2 * size);
        }
        window[size++] = id;
        return emit(size - given > LONGEST_WAIT);
    }

    /** Returns the text that was held back. The decoder can be used for the next text then. */
    public String finish() {
        String rest = emit(true);
        size = 0;
        given = 0;
        return rest;
    }

    private String emit(boolean all) {
        String before = tokenizer.decode(Arrays.copyOf(window, given), true);
        String after = tokenizer.decode(Arrays.copyOf(window, size), true);
        boolean incomplete = !after.isEmpty() && after.charAt(after.length() - 1) == INCOMPLETE;
        if (after.length() <= before.length() || incomplete && !all) {
            return "";
        }
        // The tokens just given out stay as the context of the next ones.
        System.arraycopy(window, given, window, 0, size - given);
        size -= given;
        given = size;
        return after.substring(before.length());
    }
}
