package dev.shadowkv.bench;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

import org.openjdk.jmh.runner.options.ChainedOptionsBuilder;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;

/**
 * A named set of runs.
 *
 * @param device of the {@code device} parameter
 * @param forks processes a benchmark; 0 where setting up costs much more than measuring
 */
record Profile(String name, String device, int forks, List<Run> runs) {

    /** Tokens of the 8B layer. */
    private static final String LONG = "122880";

    /**
     * Benchmarks and their parameters.
     *
     * @param include a pattern of names
     * @param parameters as {@code name=value[,value]}
     */
    record Run(String include, List<String> parameters) {
        static Run of(String include, String... parameters) {
            return new Run(include, List.of(parameters));
        }
    }

    static List<Profile> all() {
        return List.of(quick(), cpu8b(), gpu8b());
    }

    /** Everything once on a CPU, small. */
    private static Profile quick() {
        return new Profile("quick", "cpu", 1, List.of(
                Run.of("TransformerBenchmark"),
                Run.of("MatmulBenchmark"),
                Run.of("PrefillBenchmark"),
                Run.of("BuildBenchmark"),
                Run.of("DecodeBenchmark"),
                Run.of("DecodeLayerBenchmark.(dense|shadow)$", "context=4096,8192,16384,32768"),
                Run.of("JavaShareBenchmark", "threads=1", "batch=1")));
    }

    /** One layer of an 8B Llama on a CPU: 32/8 heads of 128, 122880 tokens, bf16. */
    private static Profile cpu8b() {
        return new Profile("cpu-8b", "cpu", 0, List.of(
                Run.of("BuildBenchmark", "context=" + LONG),
                Run.of("DecodeBenchmark", "context=" + LONG, "budget=2048"),
                Run.of("DecodeLayerBenchmark.(dense|shadow)$", "context=16384,32768,65536," + LONG, "budget=2048"),
                Run.of("DecodeLayerBenchmark.shadow$", "context=" + LONG, "budget=2048", "valueType=F8_E4M3",
                        "landmarkType=I8"),
                Run.of("DecodeLayerBenchmark.shadow$", "context=" + LONG, "budget=2048", "valueType=F12_E4M7"),
                Run.of("DecodeLayerBenchmark.shadow$", "context=" + LONG, "budget=2048", "valueType=F6_E2M3",
                        "landmarkType=I8"),
                Run.of("BuildBenchmark.valueStore", "context=" + LONG, "valueType=F8_E4M3,F12_E4M7,F6_E2M3")));
    }

    /** One layer of an 8B Llama on a GPU, 8 sessions of 122880 tokens; what matters most first. */
    private static Profile gpu8b() {
        String[] layer = {"context=" + LONG, "budget=2048", "batch=8"};
        String[] eight = {"valueType=F8_E4M3", "landmarkType=I8"};
        String[] twelve = {"valueType=F12_E4M7"};
        String[] six = {"valueType=F6_E2M3", "landmarkType=I8"};
        String[] shorter = {"context=16384,32768,65536", "budget=2048", "batch=8"};
        return new Profile("gpu-8b", "cuda", 0, List.of(
                Run.of("DecodeLayerBenchmark.denseGraph$", layer),
                Run.of("DecodeLayerBenchmark.shadowGraph$", with(layer, "resident=0.6,0.83")),
                Run.of("DecodeLayerBenchmark.shadowGraph$", with(with(layer, eight), "resident=0.6,0.83")),
                Run.of("DecodeLayerBenchmark.shadowGraph$", with(with(layer, twelve), "resident=0.6,0.83")),
                Run.of("DecodeLayerBenchmark.shadowGraph$", with(with(layer, six), "resident=0.6,0.83")),
                Run.of("DecodeLayerBenchmark.(dense|shadow)Graph$", "context=" + LONG, "budget=2048", "batch=1"),
                Run.of("DecodeLayerBenchmark.shadow$", layer),
                Run.of("DecodeBenchmark", layer),
                Run.of("DecodeBenchmark.(landmarkTopK|valueGather|sparseAttention)", with(layer, eight)),
                Run.of("DecodeBenchmark.valueGather", with(layer, "valueType=F12_E4M7,F6_E2M3")),
                Run.of("DecodeLayerBenchmark.(dense|shadow)Graph$", shorter),
                Run.of("DecodeLayerBenchmark.shadowGraph$", with(shorter, eight)),
                Run.of("BuildBenchmark", "context=" + LONG),
                Run.of("BuildBenchmark.valueStore", "context=" + LONG, "valueType=F8_E4M3,F12_E4M7,F6_E2M3"),
                Run.of("PrefillBenchmark", "context=32768", "tokens=32768"),
                Run.of("MatmulBenchmark", "rows=1,8,4096"),
                Run.of("TransformerBenchmark", "tokens=16384"),
                Run.of("DecodeLayerBenchmark.shadowGraph$", "context=" + LONG, "budget=1024,4096", "batch=8"),
                Run.of("DecodeLayerBenchmark.(dense|shadow)Graph$", "context=" + LONG, "budget=2048", "batch=2,4"),
                Run.of("JavaShareBenchmark", "threads=1")));
    }

    private static String[] with(String[] first, String... more) {
        List<String> out = new ArrayList<>(List.of(first));
        out.addAll(List.of(more));
        return out.toArray(String[]::new);
    }

    /** The options of a run, but for what is run. */
    ChainedOptionsBuilder options(Run run, Ceilings ceilings, List<String> overrides) {
        ChainedOptionsBuilder builder = new OptionsBuilder().addProfiler(FloorProfiler.class).shouldFailOnError(false).forks(forks)
                .jvmArgsAppend("-D" + Ceilings.PROPERTY + "=" + ceilings.text(), "--enable-native-access=ALL-UNNAMED")
                .param("device", device);
        // What is measured of Java itself needs its own, longer warm-up.
        if (forks == 0 && !run.include().startsWith("JavaShare")) {
            builder.warmupIterations(1).warmupTime(TimeValue.milliseconds(200)).measurementIterations(3)
                    .measurementTime(TimeValue.milliseconds(200));
        }
        // The builder would add the values of an override to those of the run.
        Map<String, String> values = new LinkedHashMap<>();
        run.parameters().forEach(parameter -> set(values, parameter));
        overrides.forEach(parameter -> set(values, parameter));
        values.forEach((key, value) -> builder.param(key, value.split(",")));
        return builder;
    }

    private static void set(Map<String, String> values, String parameter) {
        int at = parameter.indexOf('=');
        if (at < 1) {
            throw new IllegalArgumentException("a parameter must be name=value[,value]: " + parameter);
        }
        values.put(parameter.substring(0, at), parameter.substring(at + 1));
    }
}
