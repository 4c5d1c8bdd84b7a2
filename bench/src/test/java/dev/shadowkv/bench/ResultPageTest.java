package dev.shadowkv.bench;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ResultPageTest {

    private static final String FILE = """
            {"set": "quick", "machine": {"device": "cpu", "processor": "a machine", "command": "shadowkv-bench quick",
              "date": "2026-01-02", "commit": "abc", "note": ""},
             "ceilings": {"copyBandwidth": 2e10, "readBandwidth": 4e10, "linkBandwidth": %s, "matrixType": "F32"},
             "results": [%s]}
            """;

    @TempDir
    private Path folder;

    @Test
    void pairsExactWithShadowAndDrawsThem() throws Exception {
        String page = page(result("dense", 8192, 400) + "," + result("shadow", 8192, 100) + "," + result("dense", 16384, 800) + ","
                + result("shadow", 16384, 110));
        assertThat(page).contains("| 1 | 8192 | 512 |").contains("| 4.00x |").contains("| 7.27x |")
                .contains("ceiling: copy within the memory, read and written | 20.00 GB/s")
                .doesNotContain("link to the device").doesNotContain("### Operations").doesNotContain("Java's share");
        assertThat(folder.resolve("docs/benchmarks/quick-speedup.png")).exists();
        assertThat(Files.size(folder.resolve("docs/benchmarks/quick-context.png"))).isGreaterThan(1000);
    }

    @Test
    void doesNotMentionWhatIsAbsent() throws Exception {
        String page = page(result("shadow", 8192, 100));
        assertThat(page).contains("| 1 | 8192 | 512 |").doesNotContain(".png").doesNotContain("x |");
        assertThat(folder.resolve("docs/benchmarks")).doesNotExist();
    }

    /** Of a machine with a link: lines by graph, and how much of both bandwidths is used. */
    @Test
    void drawsContextAndBandwidthsOfADevice() throws Exception {
        String page = page(result("denseGraph", 8192, 400) + "," + result("shadowGraph", 8192, 100) + ","
                + result("denseGraph", 16384, 800) + "," + result("shadowGraph", 16384, 110), "5e10");
        assertThat(page).contains("by graph").contains("quick-context.png").contains("quick-bandwidth.png")
                .contains("link to the device");
        assertThat(Files.size(folder.resolve("docs/benchmarks/quick-bandwidth.png"))).isGreaterThan(1000);
    }

    /** Lines of one batch are told apart by the types of values and landmarks. */
    @Test
    void namesTheTypes() throws Exception {
        String twelve = result("shadow", 8192, 100).replace("\"valueType\": \"default\"", "\"valueType\": \"F12_E4M7\"");
        String six = result("shadow", 8192, 90).replace("\"valueType\": \"default\"", "\"valueType\": \"F6_E2M3\"")
                .replace("\"landmarkType\": \"default\"", "\"landmarkType\": \"I8\"");
        assertThat(page(twelve + "," + six)).contains("| F12_E4M7 |  |", "| F6_E2M3 | I8 |");
        assertThat(ResultPage.types("default", "default", "default")).isEmpty();
        assertThat(ResultPage.types("F12_E4M7", "default", "default")).isEqualTo(" fp12");
        assertThat(ResultPage.types("F6_E2M3", "I8", "")).isEqualTo(" fp6/i8");
        assertThat(ResultPage.types("F8_E4M3", "I8", "I8")).isEqualTo(" fp8/i8, coefficients i8");
        assertThat(ResultPage.types("default", "I8", "default")).isEqualTo(" landmarks i8");
        assertThat(ResultPage.types("default", "default", "I8")).isEqualTo(", coefficients i8");
    }

    /** Only where they are not as stored; results from before there was a choice do not name them at all. */
    @Test
    void namesTheTypeOfCoefficients() throws Exception {
        String without = result("shadow", 8192, 100);
        String stored = result("shadow", 16384, 100).replace("\"landmarkType\"", "\"coefficientType\": \"default\", \"landmarkType\"");
        assertThat(page(without + "," + stored)).doesNotContain("coefficients");
        String eight = result("shadow", 8192, 90).replace("\"landmarkType\": \"default\"",
                "\"landmarkType\": \"I8\", \"coefficientType\": \"I8\"");
        assertThat(page(without + "," + eight + "," + eight.replace("\"landmarkType\": \"I8\"", "\"landmarkType\": \"default\"")))
                .contains("| 512 |  |  |", "| 512 |  | I8, coefficients I8 |", "| 512 |  | coefficients I8 |");
    }

    private static String result(String operation, int context, double time) {
        return String.format(java.util.Locale.ROOT, """
                {"benchmark": "dev.shadowkv.bench.DecodeLayerBenchmark.%s", "params": {"batch": "1", "context": "%d",
                 "budget": "512", "valueType": "default", "landmarkType": "default"},
                 "primaryMetric": {"score": %f, "scoreError": "NaN", "scoreUnit": "us/op"},
                 "secondaryMetrics": {"shareOfFloor": {"score": 0.5}, "bytes": {"score": 1e6}, "linkBytes": {"score": 1e5}}}""", operation, context, time);
    }

    private String page(String results) throws Exception {
        return page(results, "0");
    }

    private String page(String results, String link) throws Exception {
        Path file = Files.createDirectories(folder.resolve("results")).resolve("quick.json");
        Files.writeString(file, String.format(FILE, link, results));
        ResultPage.write(file.getParent(), folder.resolve("docs/benchmarks.md"));
        return Files.readString(folder.resolve("docs/benchmarks.md"));
    }
}
