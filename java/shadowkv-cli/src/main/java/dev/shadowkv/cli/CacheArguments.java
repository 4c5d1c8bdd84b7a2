package dev.shadowkv.cli;

import dev.shadowkv.ElementType;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import java.util.Arrays;
import java.util.Locale;
import java.util.Optional;
import java.util.stream.Collectors;
import picocli.CommandLine.Option;

/** Settings of the shadow cache. */
final class CacheArguments implements Cloneable {
    /** What {@code --value-type} says of itself. */
    static final String VALUE_TYPES = "How values are kept in host memory: f32, bf16, f16, f8, f12 (bf16 with a shorter exponent, "
            + "almost exact) or f6, or by their full names f8_e4m3, f12_e4m7 and f6_e2m3. Default: f12 on a GPU, else the storage type.";

    @Option(
            names = "--rank",
            paramLabel = "N",
            description = "Rank of the keys, 16 to 256. Default: 160, or the width of the key-value heads.")
    private Integer rank;

    @Option(
            names = "--budget",
            paramLabel = "TOKENS",
            description = "Tokens that a step selects for each key-value head. Default: 2048.")
    private Integer budget;

    @Option(names = "--chunk", paramLabel = "TOKENS", description = "Tokens a chunk, 8 or 16. Default: 8.")
    private Integer chunk;

    @Option(
            names = "--outliers",
            paramLabel = "CHUNKS",
            description = "Chunks a key-value head that stay exact. Default: 24 for each 1024 tokens of budget.")
    private Integer outliers;

    @Option(
            names = "--radius-weight",
            paramLabel = "X",
            description = "Weight of a landmark's radius in its score; 0 is the paper's method. Default: 0.5.")
    private Float radiusWeight;

    @Option(
            names = "--rerank",
            paramLabel = "X",
            description = "Shortlist X times the budget, at least 128 chunks, and pick from it by exact attention; 0: off. Default: 4.")
    private Double rerank;

    @Option(
            names = "--tail",
            negatable = true,
            description = "Whether the tokens that a step does not select take part in it together, with the weight that their "
                    + "landmarks say and the value expected for the query; not in the paper's method. Default: with a rerank.")
    private Boolean tail;

    @Option(
            names = "--predict",
            negatable = true,
            description = "Whether those of them that reranking drops take part at their exact weight, with values predicted from the "
                    + "coefficients of their keys. Default: with a rerank and a tail.")
    private Boolean predict;

    @Option(
            names = "--balance",
            negatable = true,
            description = "Whether the heads' keys are brought to the same length before they are factored together; not in the "
                    + "paper's method. Default: yes.")
    private Boolean balance;

    @Option(
            names = "--value-type",
            paramLabel = "TYPE",
            description = VALUE_TYPES)
    private String valueType;

    @Option(
            names = "--landmark-type",
            paramLabel = "TYPE",
            description = "How landmarks are kept: f32, bf16, f16 or i8. Default: the storage type.")
    private String landmarkType;

    @Option(
            names = "--coefficient-type",
            paramLabel = "TYPE",
            description = "How the coefficients of the keys are kept on the device: f32, bf16, f16 or i8. Default: the storage type.")
    private String coefficientType;

    @Option(
            names = "--storage-type",
            paramLabel = "TYPE",
            description = "How keys and values are kept: f32, bf16 or f16. Default: f32 on a CPU, bf16 on a GPU.")
    private String storageType;

    CacheOptions options(CacheKind kind) {
        return options(kind, CacheOptions.USUAL_BUDGET, null);
    }

    /** The same with other types, as {@code bf16/i8} for values and landmarks, {@code bf16/i8/i8} for coefficients too. */
    CacheArguments withTypes(String option, String types) {
        String[] names = types.split("/", -1);
        if (names.length < 2 || names.length > 3) {
            throw new IllegalArgumentException(option + " is " + types
                    + ", it must be a value type, / and a landmark type, and may have another / and a coefficient type");
        }
        for (String name : names) {
            type(option, name);
        }
        CacheArguments other = clone();
        other.valueType = names[0];
        other.landmarkType = names[1];
        if (names.length == 3) {
            other.coefficientType = names[2];
        }
        return other;
    }

    @Override
    protected CacheArguments clone() {
        try {
            return (CacheArguments) super.clone();
        } catch (CloneNotSupportedException e) {
            throw new AssertionError(e);
        }
    }

    int chunk() {
        return chunk == null ? CacheOptions.USUAL_CHUNK : chunk;
    }

    /** The options, with other defaults. */
    CacheOptions options(CacheKind kind, int usualBudget, Integer usualRank) {
        CacheOptions.Builder builder =
                CacheOptions.shadow(budget == null ? usualBudget : budget).toBuilder().kind(kind).chunk(chunk());
        Optional.ofNullable(rank == null ? usualRank : rank).ifPresent(builder::rank);
        Optional.ofNullable(outliers).ifPresent(builder::outliers);
        Optional.ofNullable(radiusWeight).ifPresent(builder::radiusWeight);
        Optional.ofNullable(rerank).ifPresent(builder::rerank);
        Optional.ofNullable(tail).ifPresent(builder::tail);
        Optional.ofNullable(predict).ifPresent(builder::predict);
        Optional.ofNullable(balance).ifPresent(builder::balance);
        type("--value-type", valueType).ifPresent(builder::valueType);
        type("--landmark-type", landmarkType).ifPresent(builder::landmarkType);
        type("--coefficient-type", coefficientType).ifPresent(builder::coefficientType);
        type("--storage-type", storageType).ifPresent(builder::storageType);
        return builder.build();
    }

    /** The type of a name such as {@code bf16}, {@code f8}, {@code fp8} or {@code f8_e4m3}; empty for none. */
    static Optional<ElementType> type(String option, String name) {
        if (name == null) {
            return Optional.empty();
        }
        String wanted = name.toLowerCase(Locale.ROOT);
        return Optional.of(Arrays.stream(ElementType.values())
                .filter(type -> wanted.equals(type.name().toLowerCase(Locale.ROOT))
                        || wanted.equals(typeName(type))
                        || wanted.equals(typeName(type).replace("fp", "f")))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException(option + " is " + name + "; there are "
                        + Arrays.stream(ElementType.values())
                                .map(CacheArguments::typeName)
                                .collect(Collectors.joining(", ")))));
    }

    /** The short name of a type, as reports and files have it. */
    static String typeName(ElementType type) {
        return switch (type) {
            case F8_E4M3 -> "fp8";
            case F12_E4M7 -> "fp12";
            case F6_E2M3 -> "fp6";
            default -> type.name().toLowerCase(Locale.ROOT);
        };
    }
}
