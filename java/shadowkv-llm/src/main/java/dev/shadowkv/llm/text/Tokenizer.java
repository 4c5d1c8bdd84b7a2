package dev.shadowkv.llm.text;

import java.nio.file.Path;
import java.util.Optional;
import java.util.OptionalInt;

/** Text to token ids and back. Usable from any thread until it is closed. */
public interface Tokenizer extends AutoCloseable {
    /**
     * Opens the tokenizer of a model, without any network access.
     *
     * @param path a {@code tokenizer.json}, or the folder that holds it
     * @throws dev.shadowkv.llm.checkpoint.CheckpointException when it is missing or broken
     */
    static Tokenizer open(Path path) {
        return TokenizerFile.open(path);
    }

    /**
     * Encodes a text.
     *
     * @param addSpecialTokens whether to add what the tokenizer puts around a text, such as the token that begins it;
     *     false for a text that a {@link ChatTemplate} made, which has them already
     */
    int[] encode(String text, boolean addSpecialTokens);

    /** Encodes a text with the special tokens around it. */
    default int[] encode(String text) {
        return encode(text, true);
    }

    /**
     * Decodes tokens.
     *
     * @param skipSpecialTokens whether to leave out special tokens
     * @throws IllegalArgumentException when an id is negative; ids that the tokenizer does not know give no text
     */
    String decode(int[] ids, boolean skipSpecialTokens);

    /** Decodes tokens without the special ones. */
    default String decode(int[] ids) {
        return decode(ids, true);
    }

    /** One more than the largest id. */
    int vocabularySize();

    /** The id of a token as the vocabulary spells it. */
    OptionalInt idOf(String token);

    /** The spelling of an id in the vocabulary; a model may have more ids than its tokenizer has tokens. */
    Optional<String> tokenOf(int id);

    /** A decoder for tokens that arrive one by one. */
    default StreamingDecoder streamingDecoder() {
        return new StreamingDecoder(this);
    }

    @Override
    void close();
}
