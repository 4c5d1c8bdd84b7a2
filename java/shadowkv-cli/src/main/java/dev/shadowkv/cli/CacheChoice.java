package dev.shadowkv.cli;

import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** Which cache, and its settings. */
final class CacheChoice {
    @Option(
            names = "--cache",
            paramLabel = "KIND",
            defaultValue = "dense",
            description = "dense, shadow, or auto: dense for contexts of at most four budgets. Default: ${DEFAULT-VALUE}.")
    private CacheKind kind;

    @Mixin
    private CacheArguments settings;

    CacheOptions options() {
        return settings.options(kind);
    }
}
