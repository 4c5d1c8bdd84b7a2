package dev.shadowkv.bench;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ThroughputPageTest {

    @TempDir
    private Path folder;

    private static String header(long context, int measured, String caches) {
        return String.format(Locale.ROOT, """
                {"device": "cuda:0", "shape": "llama", "context": %d, "modelLayers": 32, "measuredLayers": %d, "date": "2026-01-02",
                 "commit": "abc", "shadow": {"valueType": "fp8", "landmarkType": "i8", "rerank": 0}, "shadowOverDense": 1.017,
                 "caches": {%s}}""", context, measured, caches);
    }

    private static String cache(String name, double speed, String more) {
        return String.format(Locale.ROOT, """
                "%s": {"planned": {"sessions": 33}, "run": {"sessions": 27}, "stepMilliseconds": 12.5, "tokensPerSecond": %f,
                 "deviceBytes": 1073741824, "hostBytes": 0, "deviceGigabytesPerSecond": 1000, "linkGigabytesPerSecond": 20%s}""",
                name, speed, more);
    }

    private String page(String... files) throws Exception {
        Path results = Files.createDirectories(folder.resolve("results"));
        for (int i = 0; i < files.length; i++) {
            Files.writeString(results.resolve(i + ".json"), files[i]);
        }
        Path page = folder.resolve("docs/page.md");
        ThroughputPage.write(results, page);
        return Files.readString(page);
    }

    @Test
    void comparesWithDenseAndItsLimit() throws Exception {
        String dense = cache("dense", 200, ", \"exactLimitTokensPerSecond\": 250");
        String page = page(header(124928, 32, dense + "," + cache("shadow", 1000, ", \"resident\": 0.6")),
                header(62464, 8, dense + "," + cache("shadow", 500, ", \"resident\": 0.61")));
        assertThat(page).contains("| llama | 124928 | 32 | shadow, values fp8, landmarks i8, no rerank | 33 | 27 | 1.0 | 0.0 | 0.60 | 12.50"
                + " | 1000.0 | 5.00 | 4.00 | 1000 | 20.0 | cuda:0, abc, 2026-01-02 |");
        assertThat(page).contains("| 8 of 32 | shadow", "| 500.0 | 2.50 | 2.00 |", "benchmarks/throughput.png").doesNotContain("## Prompts");
        assertThat(folder.resolve("docs/benchmarks/throughput.png")).isNotEmptyFile();
    }

    @Test
    void exactAttentionBesideSeveralTypesIsOneRow() throws Exception {
        String dense = cache("dense", 200, ", \"exactLimitTokensPerSecond\": 250");
        String page = page(header(124928, 32, dense + "," + cache("shadow", 1000, "")),
                header(124928, 32, dense + "," + cache("shadow", 800, "")).replace("fp8", "bf16"));
        assertThat(page.split("\\| dense \\|", -1)).hasSize(2);
        assertThat(page).contains("| 1000.0 | 5.00 |", "| 800.0 | 4.00 |");
    }

    /** Files from before there was a choice do not name the type of the coefficients: they are as stored. */
    @Test
    void coefficientsAreNamedWhereTheyAreNotAsUsual() throws Exception {
        String old = header(124928, 32, cache("shadow", 1000, ""));
        String stored = old.replace("\"rerank\"", "\"coefficientType\": \"bf16\", \"rerank\"");
        String eight = old.replace("\"rerank\"", "\"coefficientType\": \"i8\", \"rerank\"").replace("1000.0", "1100.0");
        String wide = eight.replace("\"rerank\"", "\"rank\": 176, \"rerank\"").replace("1100.0", "1200.0");
        String page = page(old, stored, eight.replace("\"rerank\"", "\"rank\": 160, \"rerank\""), wide);
        assertThat(page.split("values fp8, landmarks i8, no rerank", -1)).hasSize(3);
        assertThat(page.split("values fp8, landmarks i8, coefficients i8, no rerank", -1)).hasSize(2);
        assertThat(page.split("values fp8, landmarks i8, coefficients i8, rank 176, no rerank", -1)).hasSize(2);
    }

    @Test
    void givenBatchesAndFoldersWithin() throws Exception {
        String both = cache("dense", 90, "") + "," + cache("shadow", 99, "");
        Files.createDirectories(folder.resolve("results/single"));
        Files.writeString(folder.resolve("results/single/one.json"),
                header(124928, 32, both).replace("\"steps\"", "").replace("\"shape\"", "\"wantedBatch\": 1, \"shape\""));
        String page = page(header(124928, 32, cache("shadow", 1000, "")));
        assertThat(page.indexOf("## Decode\n")).isLessThan(page.indexOf("| 1000.0 |"));
        assertThat(page.indexOf("## Decode with a given number")).isBetween(page.indexOf("| 1000.0 |"), page.indexOf("| 99.0 | 1.10 |"));
    }

    @Test
    void whatWasRefusedIsLeftOut() throws Exception {
        String page = page(header(1048576, 32, "\"dense\": {\"refused\": \"too large\"}," + cache("shadow", 30, "")));
        assertThat(page).contains("| 30.0 |  |  |").doesNotContain("| dense |").doesNotContain(".png").doesNotContain("NaN");
    }

    @Test
    void promptsHaveATableOfTheirOwn() throws Exception {
        String page = page(header(124928, 8, """
                "dense": {"prefillSeconds": 10, "sealSeconds": 0, "tokensPerSecond": 1},
                "shadow": {"prefillSeconds": 10.17, "sealSeconds": 0.12, "tokensPerSecond": 1}"""));
        assertThat(page).contains("## Prompts", "| 8 of 32 | fp8 | 10.000 | 10.170 | 0.120 | 1.017 |").doesNotContain("## Decode");
    }
}
