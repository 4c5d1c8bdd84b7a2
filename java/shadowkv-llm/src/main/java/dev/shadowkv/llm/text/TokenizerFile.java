package dev.shadowkv.llm.text;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import dev.shadowkv.llm.internal.json.Json;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;

/** A {@code tokenizer.json}, run by the Hugging Face library's own native code. */
final class TokenizerFile implements Tokenizer {
    static {
        // The Java side of the library reports its use to its authors, and looks for builds of its native code on the
        // network, unless it is told not to. It must do neither; a user's own settings stay.
        setIfAbsent("OPT_OUT_TRACKING", "true");
        setIfAbsent("ai.djl.offline", "true");
        setIfAbsent("RUST_FLAVOR", "cpu");
    }

    private final Path path;
    private final HuggingFaceTokenizer tokenizer;
    private final Map<String, Integer> ids;
    private final Map<Integer, String> tokens = new HashMap<>();
    private final int vocabularySize;
    private volatile boolean closed;

    private TokenizerFile(Path path, HuggingFaceTokenizer tokenizer, Map<String, Integer> ids) {
        this.path = path;
        this.tokenizer = tokenizer;
        this.ids = ids;
        ids.forEach((token, id) -> tokens.put(id, token));
        vocabularySize = 1 + ids.values().stream().mapToInt(Integer::intValue).max().orElse(-1);
    }

    private static void setIfAbsent(String property, String value) {
        if (System.getProperty(property) == null && System.getenv(property) == null) {
            System.setProperty(property, value);
        }
    }

    static TokenizerFile open(Path given) {
        Path path = Files.isDirectory(given) ? given.resolve("tokenizer.json") : given;
        if (!Files.isRegularFile(path)) {
            throw new CheckpointException(path + ": no such file");
        }
        Map<String, Integer> ids;
        try {
            ids = vocabulary(Json.parseObject(path));
        } catch (UncheckedIOException e) {
            throw new CheckpointException(path + ": cannot be read: " + e.getCause().getMessage(), e);
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(path + ": not a tokenizer: " + e.getMessage(), e);
        }
        // By stream, so that tokenizer.json alone decides and no file beside it changes the meaning.
        try (InputStream json = Files.newInputStream(path)) {
            HuggingFaceTokenizer tokenizer = HuggingFaceTokenizer.newInstance(
                    json, Map.of("truncation", "DO_NOT_TRUNCATE", "padding", "DO_NOT_PAD"));
            return new TokenizerFile(path, tokenizer, ids);
        } catch (IOException | RuntimeException e) {
            throw new CheckpointException(path + ": not a tokenizer: " + firstLine(e), e);
        } catch (LinkageError e) {
            // The library unpacks its native code into a folder of the user on first use.
            throw new CheckpointException(
                    path + ": the tokenizer's native library cannot be loaded: " + firstLine(e)
                            + " (set DJL_CACHE_DIR to a folder that can be written)",
                    e);
        }
    }

    private static String firstLine(Throwable e) {
        return String.valueOf(e.getMessage()).lines().findFirst().orElse(e.getClass().getSimpleName());
    }

    private static Map<String, Integer> vocabulary(JsonNode json) {
        Map<String, Integer> ids = new HashMap<>();
        JsonNode vocabulary = json.path("model").path("vocab");
        if (vocabulary.isArray()) {
            // A unigram model lists [token, score] pairs in the order of the ids.
            for (int id = 0; id < vocabulary.size(); id++) {
                ids.put(vocabulary.get(id).path(0).asText(), id);
            }
        } else if (vocabulary.isObject()) {
            vocabulary.properties().forEach(entry -> ids.put(entry.getKey(), entry.getValue().intValue()));
        } else {
            throw new IllegalArgumentException("it has no model.vocab");
        }
        json.path("added_tokens").forEach(token -> ids.put(token.path("content").asText(), token.path("id").intValue()));
        return ids;
    }

    @Override
    public int[] encode(String text, boolean addSpecialTokens) {
        requireOpen();
        long[] encoded = tokenizer.encode(text, addSpecialTokens, false).getIds();
        return Arrays.stream(encoded).mapToInt(Math::toIntExact).toArray();
    }

    @Override
    public String decode(int[] ids, boolean skipSpecialTokens) {
        requireOpen();
        long[] wide = new long[ids.length];
        for (int i = 0; i < ids.length; i++) {
            if (ids[i] < 0) {
                throw new IllegalArgumentException("token id " + ids[i] + " is negative");
            }
            wide[i] = ids[i];
        }
        return tokenizer.decode(wide, skipSpecialTokens);
    }

    @Override
    public int vocabularySize() {
        return vocabularySize;
    }

    @Override
    public OptionalInt idOf(String token) {
        Integer id = ids.get(token);
        return id == null ? OptionalInt.empty() : OptionalInt.of(id);
    }

    @Override
    public Optional<String> tokenOf(int id) {
        return Optional.ofNullable(tokens.get(id));
    }

    private void requireOpen() {
        if (closed) {
            throw new IllegalStateException("the tokenizer of " + path + " is closed");
        }
    }

    @Override
    public synchronized void close() {
        if (!closed) {
            closed = true;
            tokenizer.close();
        }
    }
}
