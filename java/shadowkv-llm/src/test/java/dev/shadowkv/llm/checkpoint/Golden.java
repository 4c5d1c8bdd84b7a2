package dev.shadowkv.llm.checkpoint;

import java.net.URISyntaxException;
import java.nio.file.Path;

/** Folders of the small reference checkpoints among the test resources. */
public final class Golden {
    private Golden() {}

    public static Path folder(String family) {
        try {
            return Path.of(Golden.class.getResource("/golden/" + family + "/config.json").toURI()).getParent();
        } catch (URISyntaxException e) {
            throw new IllegalStateException(e);
        }
    }

    public static ModelConfig config(String family) {
        return ModelConfig.read(folder(family));
    }
}
