package dev.shadowkv.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.checkpoint.SafetensorsFile;
import dev.shadowkv.llm.checkpoint.SafetensorsWriter;
import dev.shadowkv.llm.checkpoint.TensorType;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Commands as a user runs them: results, and one clear line for whatever is wrong. */
class CommandLineTest {
    private static final Path ROOT = Path.of(System.getProperty("shadowkv.root", "../..")).toAbsolutePath().normalize();
    private static final Path NEEDLE = ROOT.resolve("models/needle-32k");
    private static final Path LLAMA = ROOT.resolve("java/shadowkv-llm/src/test/resources/golden/llama-3.1");

    @TempDir
    private Path folder;

    private record Outcome(int code, String out, String err) {
        JsonNode json() {
            assertThat(code).as(err).isZero();
            return Output.tree(out);
        }
    }

    private static synchronized Outcome run(Object... arguments) {
        PrintStream out = System.out;
        PrintStream err = System.err;
        ByteArrayOutputStream outBytes = new ByteArrayOutputStream();
        ByteArrayOutputStream errBytes = new ByteArrayOutputStream();
        String[] texts = new String[arguments.length];
        for (int i = 0; i < texts.length; i++) {
            texts[i] = arguments[i].toString();
        }
        try {
            System.setOut(new PrintStream(outBytes, true, StandardCharsets.UTF_8));
            System.setErr(new PrintStream(errBytes, true, StandardCharsets.UTF_8));
            int code = Main.run(texts);
            return new Outcome(
                    code, outBytes.toString(StandardCharsets.UTF_8), errBytes.toString(StandardCharsets.UTF_8));
        } finally {
            System.setOut(out);
            System.setErr(err);
        }
    }

    private static void assertRefused(Outcome outcome, int code, String... parts) {
        assertThat(outcome.code()).as(outcome.toString()).isEqualTo(code);
        assertThat(outcome.err().strip().lines().toList()).as(outcome.err()).hasSize(1);
        assertThat(outcome.err()).contains(parts).doesNotContain("\tat ").doesNotContain("unexpected");
    }

    private Path write(String name, String text) throws IOException {
        return Files.writeString(folder.resolve(name), text);
    }

    private Path copyOfLlama() throws IOException {
        Path copy = Files.createDirectory(folder.resolve("model"));
        for (String name : List.of("config.json", "model.safetensors")) {
            Files.copy(LLAMA.resolve(name), copy.resolve(name));
        }
        return copy;
    }

    @Test
    void infoNamesDevices() {
        JsonNode info = run("info", "--json").json();
        assertThat(info.path("devices").get(0).path("name").asText()).isEqualTo("cpu");
        assertThat(info.path("nativeLibrary").path("origin").asText()).isNotBlank();
        Outcome text = run("info");
        assertThat(text.code()).isZero();
        assertThat(text.out()).contains("native library", "cpu");
    }

    @Test
    void demoComparesBothCaches() {
        JsonNode demo = run("demo", "--context", 1024, "--tasks", "niah_single,niah_multikey", "--budget", 256, "--device", "cpu", "--json")
                .json();
        assertThat(demo.path("results")).hasSize(2);
        for (JsonNode result : demo.path("results")) {
            for (String cache : List.of("exact", "shadow")) {
                JsonNode side = result.path("caches").path(cache);
                assertThat(side.path("score").asDouble()).as(side.toString()).isGreaterThan(0.9);
                assertThat(side.path("attentionMilliseconds").asDouble()).isPositive();
            }
        }
        double exact = demo.path("memory").path("exact").path("deviceBytesPerToken").asDouble();
        assertThat(exact).isEqualTo(2 * 4 * 4 * 4 * 64);
        assertThat(demo.path("memory").path("shadow").path("deviceBytesPerToken").asDouble()).isLessThan(exact);
    }

    @Test
    void generateAnswersPromptsInOrder() throws IOException {
        String question = " . what is the special magic number for %s ? the special magic number for %s is :";
        Path prompts = write(
                "prompts.jsonl",
                """
                {"prompt":"the special magic number for vasori is : 943 568 . the grass is green%1$s","tag":"a"}

                {"prompt":"the sky is blue . the special magic number for nezute is : 122 251 .%2$s","tag":"b"}
                """
                        .formatted(question.formatted("vasori", "vasori"), question.formatted("nezute", "nezute")));
        Path out = folder.resolve("answers.jsonl");
        for (String cache : List.of("dense", "shadow", "auto")) {
            Outcome outcome = run(
                    "generate", "--model", NEEDLE, "--prompts", prompts, "--cache", cache, "--rank", 40, "--budget", 64,
                    "--max-new-tokens", 3, "--out", out, "--device", "cpu");
            assertThat(outcome.code()).as(outcome.err()).isZero();
            List<JsonNode> lines = Files.readAllLines(out).stream().map(Output::tree).toList();
            assertThat(lines).extracting(line -> line.path("text").asText()).containsExactly("943 568 .", "122 251 .");
            assertThat(lines).extracting(line -> line.path("tag").asText()).containsExactly("a", "b");
        }
    }

    @Test
    void generateTakesIdsWithoutATokenizer() throws IOException {
        Path ids = write("ids.txt", "1 5 9 200\n7 8\n");
        JsonNode report = run("generate", "--model", LLAMA, "--ids", ids, "--max-new-tokens", 4, "--ignore-end", "--json").json();
        assertThat(report.path("results")).hasSize(2);
        assertThat(report.path("results").get(1).path("ids")).hasSize(4);
        JsonNode again = run(
                        "generate", "--model", LLAMA, "--ids", ids, "--max-new-tokens", 4, "--ignore-end", "--json", "--temperature",
                        1, "--seed", 3)
                .json();
        assertThat(again.path("results").get(0).path("ids")).hasSize(4);
    }

    @Test
    void scoreWritesLogitsThatDoNotDependOnTheSplit() throws IOException {
        Path ids = write("ids.txt", "1 5 9 200 17 3 250 31 8 99\n7 8 3 4 5 6 7 8 9 10\n");
        Path whole = folder.resolve("whole.safetensors");
        Path steps = folder.resolve("steps.safetensors");
        // In F32: in BF16 another split rounds otherwise, by what TransformerTest allows.
        assertThat(run("score", "--model", LLAMA, "--ids", ids, "--device", "cpu", "--out", whole).code()).isZero();
        JsonNode report = run(
                        "score", "--model", LLAMA, "--ids", ids, "--device", "cpu", "--cache", "shadow", "--rank", 32, "--prefill", 3,
                        "--out", steps, "--json")
                .json();
        assertThat(report.path("prefill").asInt()).isEqualTo(3);
        try (SafetensorsFile a = SafetensorsFile.open(whole);
                SafetensorsFile b = SafetensorsFile.open(steps)) {
            assertThat(a.tensor("logits").shape()).containsExactly(2L, 10L, 320L);
            float[] expected = a.tensor("logits").toFloats();
            float[] actual = b.tensor("logits").toFloats();
            for (int i = 0; i < expected.length; i++) {
                assertThat(actual[i]).isCloseTo(expected[i], org.assertj.core.data.Offset.offset(2e-3f));
            }
        }
    }

    @Test
    void evalComparesAndGoesOn() {
        Path out = folder.resolve("results.jsonl");
        Object[] command = {
            "eval", "needle", "--model", NEEDLE, "--tasks", "niah_single", "--lengths", "1024", "--samples", 2, "--out", out,
            "--variant", "exact=dense", "--variant", "paper=shadow,rank=40,budget=128,radius-weight=0,rerank=0,tail=off",
            "--json"
        };
        JsonNode first = run(command).json();
        assertThat(first.path("scores")).hasSize(2);
        assertThat(run(command).json().path("scores")).isEqualTo(first.path("scores"));
    }

    @Test
    void promptsAreAnsweredTogetherAsAlone() throws IOException {
        List<List<JsonNode>> answers = new java.util.ArrayList<>();
        for (int batch : new int[] {1, 3}) {
            Path out = folder.resolve("batch-" + batch + ".jsonl");
            run(
                            "eval", "needle", "--model", NEEDLE, "--tasks", "niah_single,vt", "--lengths", "512,1024", "--samples", 2, "--out",
                            out, "--batch", batch, "--device", "cpu", "--variant", "exact=dense", "--variant",
                            "shadow=shadow,rank=40,budget=length/8", "--json")
                    .json();
            answers.add(Files.readAllLines(out).stream().skip(1).map(Output::tree).toList());
            assertThat(answers.getLast()).hasSize(2 * 2 * 2 * 2);
        }
        for (JsonNode alone : answers.get(0)) {
            assertThat(answers.get(1)).as(alone.toString()).anyMatch(other -> List.of("variant", "task", "length", "index", "answer", "score")
                    .stream().allMatch(field -> other.path(field).equals(alone.path(field))));
        }
        assertRefused(
                run("eval", "needle", "--model", NEEDLE, "--batch", 0, "--out", folder.resolve("x.jsonl")), 1, "--batch", "0");
    }

    @Test
    void cachesAreComparedByName() {
        Object[] command = {
            "eval", "needle", "--model", NEEDLE, "--tasks", "niah_single", "--lengths", "1024", "--samples", 1, "--json", "--out",
            folder.resolve("named.jsonl")
        };
        JsonNode report = run(with(command, "--cache", "dense,shadow,paper")).json();
        assertThat(report.path("variants").asText()).isEqualTo("exact=dense shadow=shadow,budget=length/64 "
                + "paper=shadow,budget=length/64,radius-weight=0,rerank=0,tail=off,balance=off");
        assertThat(report.path("scores")).hasSize(3);
        assertRefused(run(with(command, "--cache", "dense,shade")), 1, "--cache", "shade", "--variant");
        assertRefused(run(with(command, "--cache", "dense", "--variant", "a=dense")), 1, "--cache", "--variant");
        CacheOptions paper = Variant.parse("a=shadow,rerank=0,balance=off").options(1);
        assertThat(paper.balancesHeads()).isFalse();
        assertThat(Variant.parse("a=shadow").options(1).balancesHeads()).isTrue();
    }

    @Test
    void variantsTakeTheOptionsOfACache() {
        Object[] command = {
            "eval", "needle", "--model", NEEDLE, "--tasks", "niah_single", "--lengths", "1024", "--samples", 1, "--out",
            folder.resolve("variants.jsonl"), "--json", "--variant", "exact=dense", "--variant"
        };
        JsonNode report = run(with(command, "small=shadow,rank=40,budget=length/8,landmark-type=i8,coefficient-type=i8,value-type=f8,"
                + "storage-type=bf16")).json();
        assertThat(report.path("scores")).hasSize(2);
        assertRefused(run(with(command, "a=shadow,speed=9")), 1, "a=shadow,speed=9", "speed", "radius-weight", "landmark-type", "coefficient-type");
        assertThat(Variant.parse("a=shadow").options(1).tailTakesPart()).isTrue();
        assertThat(Variant.parse("a=shadow,rerank=0").options(1).tailTakesPart()).isFalse();
        assertThat(Variant.parse("a=shadow,rerank=0,tail=on").options(1).tailTakesPart()).isTrue();
        assertThat(Variant.parse("a=shadow,tail=off").options(1).tailTakesPart()).isFalse();
        assertRefused(run(with(command, "a=shadow,tail=some")), 1, "a=shadow,tail=some", "'some'");
        assertThat(Variant.parse("a=shadow").options(1).predictsDropped()).isTrue();
        assertThat(Variant.parse("a=shadow,predict=on").options(1).predictsDropped()).isTrue();
        for (String without : List.of("a=shadow,predict=off", "a=shadow,rerank=0", "a=shadow,tail=off", "a=shadow,rerank=0,tail=on")) {
            assertThat(Variant.parse(without).options(1).predictsDropped()).as(without).isFalse();
        }
        for (String neither : List.of("a=shadow,rerank=0,predict=on", "a=shadow,tail=off,predict=on")) {
            assertRefused(run(with(command, neither)), 1, "predict", "rerank", "tail");
        }
        assertRefused(run(with(command, "a=shadow,rank=x")), 1, "a=shadow,rank=x", "'x'");
        assertRefused(run(with(command, "a=shadow,value-type=f13")), 1, "f13", "bf16", "fp12", "fp6");
        assertRefused(run(with(command, "a=shadow,budget=length/x")), 1, "length/x");
        assertRefused(run(with(command, "a=fast")), 1, "fast", "dense");
        assertRefused(run(with(command, "shadow")), 1, "NAME=dense");
    }

    @Tag("charts")
    @Test
    void evalDrawsDepthsAndBudgets() {
        Path charts = folder.resolve("charts");
        JsonNode report = run(
                        "eval", "niah", "--model", NEEDLE, "--lengths", "1024", "--depths", 3, "--samples", 1, "--out",
                        folder.resolve("niah.jsonl"), "--charts", charts, "--variant", "exact=dense", "--variant",
                        "half=shadow,rank=40,budget=128", "--variant", "whole=shadow,rank=40,budget=256", "--json")
                .json();
        assertThat(report.path("scores")).hasSize(3).allMatch(row -> row.path("mean").asDouble() > 0.5);
        assertRefused(
                run("eval", "niah", "--model", NEEDLE, "--lengths", "1024,65536", "--out", folder.resolve("x.jsonl")), 1, "65536", "32768");
        assertThat(folder.resolve("x.jsonl")).doesNotExist();
        for (String chart : List.of("depths-exact.png", "depths-half.png", "depths-whole.png", "budget-1024.png")) {
            assertThat(charts.resolve(chart)).isNotEmptyFile();
        }
    }

    @Test
    void evalReadsLongBench() throws IOException {
        String needle = "the special magic number for bekevu is : 477 187 .";
        String line = "{\"input\":\"what is the special magic number for bekevu ? the special magic number for bekevu is :\","
                + "\"context\":\"" + "the grass is green . ".repeat(60) + needle + " the sky is blue .".repeat(60)
                + "\",\"answers\":[\"477 187 .\"],\"all_classes\":null}";
        Path data = Files.createDirectory(folder.resolve("data"));
        Files.writeString(data.resolve("hotpotqa.jsonl"), line + "\n");
        Path templates = Files.writeString(folder.resolve("templates.json"), "{\"hotpotqa\":\"{context} {input}\"}");
        Object[] command = {
            "eval", "longbench", "--model", NEEDLE, "--data", data, "--templates", templates, "--out", folder.resolve("lb.jsonl"),
            "--variant", "exact=dense", "--variant", "shadow=shadow,rank=40,budget=length/8", "--json"
        };
        JsonNode report = run(command).json();
        assertThat(report.path("scores")).hasSize(2).allMatch(row -> row.path("mean").asDouble() > 0);
        assertThat(run(command).json()).isEqualTo(report);
        assertRefused(run(with(command, "--max-tokens", 99999)), 1, "99999");
        assertRefused(run("eval", "longbench", "--model", NEEDLE, "--data", folder, "--out", folder.resolve("x.jsonl")), 1, "LongBench");
    }

    @Tag("charts")
    @Test
    void evalFollowsLongSessions() throws IOException {
        Path charts = folder.resolve("charts");
        Object[] command = {
            "eval", "longgen", "--model", NEEDLE, "--length", 2048, "--new-tokens", 120, "--window", 50, "--turns", 6,
            "--attention-every", 20, "--out",
            folder.resolve("longgen.jsonl"), "--charts", charts, "--variant", "exact=dense", "--variant",
            "shadow=shadow,rank=64,budget=512", "--json"
        };
        JsonNode report = run(command).json();
        // Agreement and four layers of the one, turns of both, in one session and each in a fresh one.
        assertThat(report.path("scores")).hasSize(9).allMatch(row -> row.path("mean").asDouble() > 0.7);
        assertThat(report.path("scores").get(0).path("prompts").asInt()).isEqualTo(3);
        for (String chart : List.of("agreement.png", "mass-shadow.png", "residual-energy-shadow.png")) {
            assertThat(charts.resolve(chart)).isNotEmptyFile();
        }
        List<JsonNode> layers = Files.readAllLines(folder.resolve("longgen.jsonl")).stream()
                .map(Output::tree)
                .filter(line -> line.path("task").asText().startsWith("attention"))
                .toList();
        assertThat(layers).hasSize(4 * 3).allMatch(line -> {
            double missed = line.path("measurements").path("residualEnergy").asDouble();
            return missed > 0 && missed < 0.5;
        });
        assertThat(run(command).json()).isEqualTo(report);
        assertRefused(run("eval", "longgen", "--model", NEEDLE, "--out", folder.resolve("x"), "--variant", "a=shadow"), 1, "dense");
        assertRefused(run("eval", "longgen", "--model", NEEDLE, "--out", folder.resolve("x"), "--tasks", "speed"), 1, "speed");
    }

    @Tag("charts")
    @Test
    void evalLooksIntoAttention() throws IOException {
        Path prompt = write("prompt.txt", "the special magic number for bekevu is : 477 187 . the sky is blue . ".repeat(40));
        Path other = write("other.txt", "the grass is green . the special magic number for vasori is : 943 568 . ".repeat(30));
        Path charts = folder.resolve("charts");
        Path out = folder.resolve("fidelity.jsonl");
        Object[] command = {
            "eval", "fidelity", "--model", NEEDLE, "--prompt-file", prompt, "--prompt-file", other, "--steps", 4, "--out", out, "--variant",
            "exact=dense", "--variant", "mine=shadow,rank=40,budget=64", "--variant", "more=shadow,rank=40,budget=128"
        };
        JsonNode heads = run(with(command, "--charts", charts, "--json")).json().path("heads");
        assertThat(heads).hasSize(2 * 4 * 8);
        for (JsonNode head : heads) {
            double mass = head.path("capturedMass").asDouble();
            assertThat(mass).isBetween(0.01, head.path("bestMass").asDouble() + 1e-9);
        }
        assertThat(charts.resolve("mass-mine.png")).isNotEmptyFile();
        assertThat(charts.resolve("mass-exact.png")).doesNotExist();
        assertThat(run(command).out()).contains("best possible", "more");

        // One line a cache, layer, head and prompt; a run that was killed does again only what is missing.
        List<String> lines = Files.readAllLines(out);
        assertThat(lines).hasSize(1 + 2 * 2 * 4 * 8);
        Files.write(out, lines.subList(0, 70));
        assertThat(run(with(command, "--json")).json().path("heads")).isEqualTo(heads);
        assertThat(Files.readAllLines(out)).hasSameSizeAs(lines).startsWith(lines.subList(0, 70).toArray(String[]::new));

        assertRefused(run("eval", "fidelity", "--model", NEEDLE, "--prompt-file", prompt, "--steps", 9999, "--out", folder.resolve("x")), 1, "9999");
        assertRefused(
                run("eval", "fidelity", "--model", NEEDLE, "--prompt-file", prompt, "--out", folder.resolve("x"), "--variant", "a=dense"),
                1, "shadow");
    }

    @Test
    void tuneProposesTheCheapest() throws IOException {
        StringBuilder text = new StringBuilder("the special magic number for bekevu is : 477 187 .");
        for (int i = 0; i < 250; i++) {
            text.append(" the grass is green .");
        }
        text.append(" what is the special magic number for bekevu ? the special magic number for bekevu is : 477 187 .");
        Path prompt = write("prompt.txt", text.toString());
        Object[] command = {
            "tune", "--model", NEEDLE, "--prompt-file", prompt, "--steps", 8, "--ranks", "16,256", "--budgets", "64,2048", "--reranks", 4,
            "--json", "--max-loss"
        };
        JsonNode report = run(with(command, 1e-3)).json();
        assertThat(report.path("settings")).hasSize(4);
        JsonNode proposal = report.path("proposal");
        assertThat(proposal.path("loss").asDouble()).isLessThanOrEqualTo(1e-3);
        for (JsonNode row : report.path("settings")) {
            assertThat(row.path("loss").asDouble()).isNotNegative();
            assertThat(row.path("attentionMilliseconds").asDouble()).isPositive();
            boolean cheaper = row.path("memory").path("sessionDeviceBytes").asLong()
                    < proposal.path("memory").path("sessionDeviceBytes").asLong();
            assertThat(cheaper && row.path("loss").asDouble() <= 1e-3).isFalse();
        }
        assertThat(run("tune", "--model", NEEDLE, "--prompt-file", prompt, "--steps", 8, "--ranks", 16, "--budgets", 16, "--reranks", 0,
                        "--json", "--max-loss", 0).json().has("proposal")).isFalse();
        assertThat(report.path("settings")).allMatch(row -> row.path("tail").asBoolean() && row.path("predict").asBoolean());
        assertRefused(run(with(command, -1)), 1, "-1");
        JsonNode without = run(with(command, 1e9, "--no-tail")).json();
        assertThat(without.path("settings")).hasSize(4).noneMatch(row -> row.path("tail").asBoolean() || row.path("predict").asBoolean());
        assertThat(leastBytes(without)).isLessThan(leastBytes(report));
        JsonNode eightBits = run(with(command, 1e9, "--landmark-types", "stored,i8", "--coefficient-types", "i8")).json();
        assertThat(eightBits.path("settings")).hasSize(8).allMatch(row -> row.path("coefficientType").asText().equals("i8"));
        assertThat(leastBytes(eightBits)).isLessThan(leastBytes(report));
        assertThat(eightBits.path("proposal").path("landmarkType").asText()).isEqualTo("i8");
        assertRefused(run(with(command, 1, "--coefficient-types", "i9")), 1, "--coefficient-types", "i9");
    }

    private static long leastBytes(JsonNode report) {
        long least = Long.MAX_VALUE;
        for (JsonNode row : report.path("settings")) {
            least = Math.min(least, row.path("memory").path("sessionDeviceBytes").asLong());
        }
        return least;
    }

    @Tag("charts")
    @Test
    void benchMeasuresAndDraws() {
        JsonNode report = run("bench", "context", "--contexts", "1024,512", "--charts", folder.resolve("c"), "--json").json();
        assertThat(report.path("results")).hasSize(4).allMatch(row -> row.path("attentionMilliseconds").asDouble() > 0);
        assertThat(folder.resolve("c-memory.png")).isNotEmptyFile();
        assertThat(folder.resolve("c-attention.png")).isNotEmptyFile();
        assertRefused(run("bench", "context", "--contexts", "99999"), 1, "99999");
        assertRefused(run("bench"), 2, "benchmark");
    }

    @Test
    void benchFillsWhatFitsAndTimesIt() {
        Object[] common = {
            "bench", "throughput", "--shape", "needle-32k", "--context", "2k", "--gpu-memory-limit", "200m", "--budget", 256, "--rank", 40,
            "--device", "cpu"
        };
        JsonNode report = run(with(common, "--host-memory-limit", "40m", "--steps", 4, "--layers", 2, "--slots", 32, "--json")).json();
        assertThat(report.path("modelLayers").asInt()).isEqualTo(4);
        assertThat(report.path("measuredLayers").asInt()).isEqualTo(2);
        assertThat(report.path("shadow").path("valueType").asText()).isEqualTo("f32");
        assertThat(report.path("shadow").path("rank").asInt()).isEqualTo(40);
        for (String cache : List.of("dense", "shadow")) {
            JsonNode result = report.path("caches").path(cache);
            assertThat(result.path("run").path("sessions").asInt()).as(result.toString()).isPositive();
            assertThat(result.path("tokensPerSecond").asDouble()).isPositive();
        }
        JsonNode shadow = report.path("caches").path("shadow");
        assertThat(shadow.path("resident").asDouble()).isBetween(0.5, 0.7);
        assertThat(shadow.path("hostBytes").asLong()).isBetween(1L, 40L << 20);
        assertThat(shadow.path("run").path("sessions").asInt()).isLessThan(shadow.path("planned").path("sessions").asInt());
        assertThat(report.path("shadowOverDense").asDouble()).isPositive();

        Outcome text = run(with(common, "--host-memory-limit", "40m", "--steps", 2, "--batch", 2, "--layers", 1));
        assertThat(text.code()).as(text.err()).isZero();
        assertThat(text.out()).contains("1 of 4 layers", "unlimited memory", "tokens/s");

        JsonNode plan = run(with(common, "--plan-only", "--json")).json();
        assertThat(plan.path("caches").path("dense").path("sessions").asInt()).isPositive();
        assertThat(plan.path("caches").path("dense").has("tokensPerSecond")).isFalse();
    }

    /** A table in one process: weights and exact attention are there once, each cell has its file. */
    @Test
    void benchWritesAFileForEachContextAndPairOfTypes() throws IOException {
        Path out = folder.resolve("throughput");
        Outcome text = run(
                "bench", "throughput", "--shape", "needle-32k", "--context", "1k,2k", "--types", "f32/f32,f8/i8,f12/f32,FP6/i8,f8/i8/i8", "--out", out,
                "--gpu-memory-limit", "200m", "--host-memory-limit", "40m", "--batch", 2, "--budget", 256, "--rank", 40, "--steps", 2,
                "--layers", 1, "--slots", 32, "--device", "cpu");
        assertThat(text.code()).as(text.err()).isZero();
        assertThat(text.out().split("tokens a session", -1)).hasSize(11);
        for (String context : List.of("1k", "2k")) {
            JsonNode wide = new com.fasterxml.jackson.databind.ObjectMapper().readTree(out.resolve("needle-32k-" + context + "-f32-f32.json").toFile());
            JsonNode narrow = new com.fasterxml.jackson.databind.ObjectMapper().readTree(out.resolve("needle-32k-" + context + "-fp8-i8.json").toFile());
            assertThat(wide.path("context").asInt()).isEqualTo(context.equals("1k") ? 1024 : 2048);
            assertThat(narrow.path("shadow").path("valueType").asText()).isEqualTo("fp8");
            assertThat(narrow.path("shadow").path("landmarkType").asText()).isEqualTo("i8");
            assertThat(narrow.path("caches").path("dense")).isEqualTo(wide.path("caches").path("dense"));
            assertThat(narrow.path("caches").path("shadow").path("hostBytes").asLong())
                    .isBetween(1L, wide.path("caches").path("shadow").path("hostBytes").asLong() / 2);
            JsonNode twelve = new com.fasterxml.jackson.databind.ObjectMapper().readTree(out.resolve("needle-32k-" + context + "-fp12-f32.json").toFile());
            JsonNode six = new com.fasterxml.jackson.databind.ObjectMapper().readTree(out.resolve("needle-32k-" + context + "-fp6-i8.json").toFile());
            assertThat(twelve.path("shadow").path("valueType").asText()).isEqualTo("fp12");
            assertThat(six.path("shadow").path("valueType").asText()).isEqualTo("fp6");
            long eightBits = narrow.path("caches").path("shadow").path("hostBytes").asLong();
            assertThat(twelve.path("caches").path("shadow").path("hostBytes").asLong()).isEqualTo(eightBits * 12 / 8);
            assertThat(six.path("caches").path("shadow").path("hostBytes").asLong()).isEqualTo(eightBits * 6 / 8);
            // What they are is told in any case, and named where it is not as stored.
            JsonNode narrower = new com.fasterxml.jackson.databind.ObjectMapper().readTree(out.resolve("needle-32k-" + context + "-fp8-i8-i8.json").toFile());
            assertThat(narrow.path("shadow").path("coefficientType").asText()).isEqualTo("f32");
            assertThat(narrower.path("shadow").path("coefficientType").asText()).isEqualTo("i8");
            assertThat(narrower.path("caches").path("shadow").path("hostBytes").asLong()).isEqualTo(eightBits);
            assertThat(narrower.path("caches").path("shadow").path("deviceBytes").asLong())
                    .isLessThan(narrow.path("caches").path("shadow").path("deviceBytes").asLong());
        }
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--types", "f8"), 1, "--types", "f8");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--types", "f8/x9"), 1, "--types", "x9");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--types", "f8/i8/x9"), 1, "--types", "x9");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--types", "f8/i8/i8/i8"), 1, "--types", "f8/i8/i8/i8");
    }

    @Test
    void benchTimesPrompts() {
        Object[] common = {
            "bench", "throughput", "--prefill", "--shape", "needle-32k", "--context", 1500, "--budget", 256, "--rank", 40, "--layers", 1,
            "--device", "cpu"
        };
        JsonNode report = run(with(common, "--json")).json();
        JsonNode dense = report.path("caches").path("dense");
        JsonNode shadow = report.path("caches").path("shadow");
        assertThat(dense.path("prefillSeconds").asDouble()).isPositive();
        assertThat(shadow.path("sealSeconds").asDouble()).isPositive().isLessThan(shadow.path("prefillSeconds").asDouble());
        assertThat(report.path("shadowOverDense").asDouble()).isPositive();
        Outcome text = run(with(common, "--gpu-memory-limit", "60m"));
        assertThat(text.code()).as(text.err()).isZero();
        assertThat(text.out()).contains("1 of 4 layers", "times as long");
        assertRefused(run(with(common, "--gpu-memory-limit", "1m")), 1, "1 session of", "hold 0");
    }

    private static Object[] with(Object[] common, Object... more) {
        return java.util.stream.Stream.concat(java.util.Arrays.stream(common), java.util.Arrays.stream(more)).toArray();
    }

    @Test
    void wrongThroughputOptionsAreRefused() {
        assertRefused(run("bench", "throughput", "--shape", "gpt-2"), 1, "gpt-2", "llama-3.1-8b");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--context", "12x"), 1, "--context", "12x");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--cache", "auto"), 1, "auto");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--layers", 5), 1, "layers", "5", "4");
        assertRefused(run("bench", "throughput", "--shape", "needle-32k", "--resident", 1.5), 1, "resident", "1.5");
        assertRefused(
                run("bench", "throughput", "--shape", "needle-32k", "--context", "2k", "--batch", 900, "--gpu-memory-limit", "100m"),
                1, "900 sessions", "hold");
    }

    @Test
    void missingFilesAreNamed() {
        Path none = folder.resolve("none");
        assertRefused(run("generate", "--model", none, "--prompt", "x"), 1, none.toString());
        assertRefused(run("generate", "--model", NEEDLE, "--prompt-file", none), 1, none.toString());
        assertRefused(run("generate", "--model", NEEDLE, "--prompts", none), 1, none.toString());
        assertRefused(run("score", "--model", LLAMA, "--ids", none, "--out", folder.resolve("x.safetensors")), 1, none.toString());
    }

    @Test
    void aTruncatedCheckpointIsNamed() throws IOException {
        Path model = copyOfLlama();
        Path weights = model.resolve("model.safetensors");
        byte[] bytes = Files.readAllBytes(weights);
        for (int length : new int[] {0, 5, 200, bytes.length - 1}) {
            Files.write(weights, java.util.Arrays.copyOf(bytes, length));
            assertRefused(run("generate", "--model", model, "--ids", write("ids.txt", "1 2")), 1, "model.safetensors");
        }
    }

    @Test
    void aWrongShapeIsNamed() throws IOException {
        Path model = copyOfLlama();
        Path config = model.resolve("config.json");
        Files.writeString(config, Files.readString(config).replace("\"intermediate_size\": 224", "\"intermediate_size\": 225"));
        assertRefused(run("generate", "--model", model, "--ids", write("ids.txt", "1 2")), 1, "shape", "225");
    }

    @Test
    void anUnknownArchitectureIsNamed() throws IOException {
        Path model = copyOfLlama();
        Path config = model.resolve("config.json");
        Files.writeString(config, Files.readString(config).replace("LlamaForCausalLM", "MambaForCausalLM"));
        assertRefused(run("generate", "--model", model, "--ids", write("ids.txt", "1 2")), 1, "MambaForCausalLM");
    }

    @Test
    void idsOutsideTheVocabularyAreNamed() throws IOException {
        assertRefused(run("generate", "--model", LLAMA, "--ids", write("ids.txt", "1 320")), 1, "320");
        assertRefused(run("generate", "--model", LLAMA, "--ids", write("words.txt", "1 two")), 1, "two");
        Path tensor = folder.resolve("ids.safetensors");
        try (SafetensorsWriter writer = SafetensorsWriter.create(
                tensor, Map.of("input_ids", new SafetensorsWriter.Declaration(TensorType.I64, List.of(1L, 2L, 1L))))) {
            writer.append("input_ids", new long[] {1, 2});
        }
        assertRefused(run("generate", "--model", LLAMA, "--ids", tensor), 1, "input_ids", "[1, 2, 1]");
    }

    @Test
    void contextsBeyondWhatThereIsAreRefused() throws IOException {
        Path ids = write("ids.txt", "1 2 3 4 5 6 7 8");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--capacity", 10, "--max-new-tokens", 3), 1, "11", "10");
        Path model = copyOfLlama();
        Path config = model.resolve("config.json");
        Files.writeString(config, Files.readString(config).replace("\"max_position_embeddings\": 131072", "\"max_position_embeddings\": 7"));
        assertRefused(run("generate", "--model", model, "--ids", ids), 1, "8", "7");
        assertRefused(run("demo", "--context", 32769), 1, "32769");
    }

    @Test
    void settingsOutOfRangeAreRefused() throws IOException {
        Path ids = write("ids.txt", "1 2 3 4 5 6 7 8");
        Path out = folder.resolve("x.safetensors");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--cache", "shadow", "--budget", 7), 1, "budget 7", "8");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--cache", "shadow", "--rank", 64), 1, "rank", "64");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--cache", "shadow", "--chunk", 9), 1, "chunk", "9");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--top-p", 2), 1, "top-p");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--value-type", "f13"), 1, "f13");
        assertRefused(run("generate", "--model", LLAMA, "--ids", ids, "--device", "tpu"), 1, "tpu");
        assertRefused(run("score", "--model", LLAMA, "--ids", ids, "--prefill", 9, "--out", out), 1, "9", "8");
        assertRefused(run("score", "--model", LLAMA, "--ids", write("ragged.txt", "1 2\n3\n"), "--out", out), 1, "length");
        assertThat(out).doesNotExist();
    }

    @Test
    void wrongOptionsAreRefused() {
        assertRefused(run(), 2, "command");
        assertRefused(run("generat"), 2, "generat");
        assertRefused(run("generate", "--model", LLAMA), 2, "--prompt");
        assertRefused(run("generate", "--model", LLAMA, "--prompt", "a", "--cache", "fast"), 2, "fast");
        assertRefused(run("score", "--model", LLAMA), 2, "--ids");
    }

    @Test
    void helpIsThere() {
        for (String command : List.of("info", "demo", "generate", "score", "eval", "tune", "bench")) {
            Outcome outcome = run(command, "--help");
            assertThat(outcome.code()).isZero();
            assertThat(outcome.out()).contains("Usage: shadowkv " + command);
        }
    }
}
