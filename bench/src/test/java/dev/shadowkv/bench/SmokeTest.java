package dev.shadowkv.bench;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Collection;
import java.util.List;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.ChainedOptionsBuilder;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.VerboseMode;

/** Every benchmark sets up, finds its result right, and runs once; on tiny shapes. */
class SmokeTest {

    /** Sizes that are no multiple of anything, as far as the operations allow. */
    private static final List<String> SIZES = List.of("tokens=37", "width=256", "rows=3", "columns=96", "inner=130",
            "context=1003", "budget=64", "queryHeads=8", "keyValueHeads=2", "headDim=64", "rank=24", "batch=2", "outliers=5");

    @ParameterizedTest
    @ValueSource(strings = {"TransformerBenchmark", "MatmulBenchmark", "PrefillBenchmark", "BuildBenchmark", "DecodeBenchmark",
        "DecodeLayerBenchmark.(dense|shadow)$", "JavaShareBenchmark"})
    void runs(String name) throws RunnerException {
        run(name);
    }

    /** The 8-bit types and reranking take other paths. */
    @ParameterizedTest
    @ValueSource(strings = {"BuildBenchmark.(landmarkBuild|valueStore)", "DecodeBenchmark.(landmarkTopK|valueGather|sparseAttention)",
        "DecodeLayerBenchmark.shadow$"})
    void runsWithEightBits(String name) throws RunnerException {
        run(name, "valueType=F8_E4M3", "landmarkType=I8");
    }

    /** Coefficients of 8 bits, in everything that makes or reads them, alone and beside values and landmarks of few bits. */
    @ParameterizedTest
    @CsvSource({"default, default", "F6_E2M3, I8"})
    void runsWithCoefficientsOfEightBits(String values, String landmarks) throws RunnerException {
        String[] types = {"coefficientType=I8", "valueType=" + values, "landmarkType=" + landmarks};
        for (String name : List.of("BuildBenchmark.(lowRankFactor|lowRankProject|rebuildKeys|valueFit)",
                "DecodeBenchmark.(rerank|sparseAttention)", "DecodeLayerBenchmark.(dense|shadow)$")) {
            run(name, types);
        }
    }

    /** Values that are packed on the host are unpacked into slots, or where they are read. */
    @ParameterizedTest
    @CsvSource({"F12_E4M7, default", "F6_E2M3, I8"})
    void runsWithPackedValues(String values, String landmarks) throws RunnerException {
        for (String name : List.of("BuildBenchmark.valueStore", "DecodeBenchmark.(valueGather|sparseAttention)",
                "DecodeLayerBenchmark.shadow$")) {
            run(name, "valueType=" + values, "landmarkType=" + landmarks);
        }
        run("DecodeLayerBenchmark.shadow$", "valueType=" + values, "landmarkType=" + landmarks, "slots=16");
    }

    private static void run(String name, String... more) throws RunnerException {
        String device = System.getProperty("shadowkv.test.device", "cpu");
        // Measuring the machine takes longer than all of this; the distances to the floor are not looked at here.
        System.setProperty(Ceilings.PROPERTY, "1e10,1e10,1e11,1e10,F32");
        // Nothing here is a measurement that another run could disturb.
        System.setProperty("jmh.ignoreLock", "true");
        ChainedOptionsBuilder options = new OptionsBuilder().include("dev.shadowkv.bench." + name).forks(0)
                .mode(Mode.SingleShotTime).warmupIterations(0).measurementIterations(1).shouldFailOnError(true)
                .verbosity(VerboseMode.SILENT).addProfiler(FloorProfiler.class).param("device", device);
        for (String parameter : SIZES) {
            options.param(parameter.substring(0, parameter.indexOf('=')), parameter.substring(parameter.indexOf('=') + 1));
        }
        for (String parameter : more) {
            options.param(parameter.substring(0, parameter.indexOf('=')), parameter.substring(parameter.indexOf('=') + 1));
        }
        Runner runner = new Runner(options.build());
        Collection<RunResult> results = runner.run();
        assertThat(results).isNotEmpty();
        for (RunResult result : results) {
            assertThat(result.getPrimaryResult().getScore()).isPositive().isFinite();
            assertThat(result.getSecondaryResults()).isNotEmpty();
        }
    }
}
