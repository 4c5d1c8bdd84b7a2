package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.eval.TextTable;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.throughput.PromptResult;
import dev.shadowkv.llm.throughput.SessionCount;
import dev.shadowkv.llm.throughput.ThroughputResult;
import dev.shadowkv.llm.throughput.ThroughputSettings;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalDouble;

/** What {@code bench throughput} prints. */
final class ThroughputReport {
    private final PrintWriter out;
    private final boolean json;
    private final Device device;
    private final String shape;
    private final ThroughputSettings settings;
    private final CacheOptions shadow;

    ThroughputReport(
            PrintWriter out, boolean json, Device device, String shape, ThroughputSettings settings, CacheOptions shadow) {
        this.out = out;
        this.json = json;
        this.device = device;
        this.shape = shape;
        this.settings = settings;
        this.shadow = shadow;
    }

    private static String name(CacheKind kind) {
        return kind.name().toLowerCase(Locale.ROOT);
    }

    private ObjectNode header() {
        ObjectNode node = Output.object();
        node.put("device", device.toString());
        node.put("shape", shape);
        node.put("context", settings.context());
        node.put("modelLayers", settings.shape().layers());
        node.put("measuredLayers", settings.layers());
        node.put("deviceLimitBytes", settings.deviceLimit());
        node.put("hostLimitBytes", settings.hostLimit());
        node.put("wantedResident", settings.resident());
        settings.batch().ifPresent(batch -> node.put("wantedBatch", batch));
        node.put("steps", settings.steps());
        node.put("seed", settings.seed());
        node.put("date", Instant.now().truncatedTo(ChronoUnit.SECONDS).toString());
        commit().ifPresent(commit -> node.put("commit", commit));
        node.set("shadow", shadow());
        return node;
    }

    /** The settings of the shadow cache, defaults filled in. */
    private ObjectNode shadow() {
        ObjectNode node = Output.object();
        node.put("rank", shadow.rankFor(settings.shape().keyValueWidth()));
        node.put("budget", shadow.budget());
        node.put("chunk", shadow.chunk());
        node.put("radiusWeight", shadow.radiusWeight());
        node.put("rerank", shadow.rerank());
        node.put("tail", shadow.tailTakesPart());
        node.put("predict", shadow.predictsDropped());
        node.put("balance", shadow.balancesHeads());
        node.put("valueType", CacheArguments.typeName(shadow.valueTypeOn(device)));
        node.put("landmarkType", CacheArguments.typeName(shadow.landmarkTypeOn(device)));
        node.put("coefficientType", CacheArguments.typeName(shadow.coefficientTypeOn(device)));
        return node;
    }

    /** What the bundle was made of, if this is one. */
    private static Optional<String> commit() {
        try {
            return Optional.of(Files.readString(DeviceArguments.home().resolve("commit")).strip());
        } catch (IOException e) {
            return Optional.empty();
        }
    }

    private void title() {
        out.printf(
                Locale.ROOT,
                "%s, %d tokens a session, on %s; limits: device %s, host %s%n",
                shape,
                settings.context(),
                device,
                Output.bytes(settings.deviceLimit()),
                Output.bytes(settings.hostLimit()));
        ModelConfig config = settings.shape();
        if (settings.context() > config.maxPositions()) {
            out.printf(Locale.ROOT, "The model is made for %d positions; this is about time, not answers.%n", config.maxPositions());
        }
    }

    void plans(Map<CacheKind, SessionCount> counts) {
        if (json) {
            ObjectNode report = header();
            ObjectNode caches = report.putObject("caches");
            counts.forEach((kind, count) -> caches.set(name(kind), count(count)));
            out.println(Output.pretty(report));
            return;
        }
        title();
        TextTable table = new TextTable(List.of("cache", "sessions", "device", "a session", "host", "a session"));
        counts.forEach((kind, count) -> table.add(List.of(
                name(kind),
                Integer.toString(count.sessions()),
                Output.bytes(count.device()),
                Output.bytes(count.plan().sessionDeviceBytes()),
                Output.bytes(count.host()),
                Output.bytes(count.plan().sessionPinnedBytes()))));
        out.println(table);
    }

    private static ObjectNode count(SessionCount count) {
        ObjectNode node = Output.object();
        node.put("sessions", count.sessions());
        node.put("deviceBytes", count.device());
        node.put("hostBytes", count.sessions() == 0 ? 0 : count.host());
        node.put("sessionDeviceBytes", count.plan().sessionDeviceBytes());
        node.put("sessionHostBytes", count.plan().sessionPinnedBytes());
        node.put("stagingBytes", count.plan().stagingBytes());
        node.put("tableBytes", count.plan().tableBytes());
        node.put("workspaceBytes", count.plan().workspaceBytes());
        return node;
    }

    void results(Map<CacheKind, ThroughputResult> results, Map<CacheKind, String> refused) {
        if (json) {
            out.println(Output.pretty(tree(results, refused)));
            return;
        }
        title();
        TextTable table = new TextTable(List.of(
                "cache", "fit", "run", "ms/step", "tokens/s", "attention ms", "resident", "device", "host", "HBM GB/s", "link GB/s"));
        results.forEach((kind, r) -> table.add(List.of(
                name(kind),
                Integer.toString(r.planned().sessions()),
                Integer.toString(r.run().sessions()),
                Output.number("%.3f", r.stepMilliseconds()),
                Output.number("%.1f", r.tokensPerSecond()),
                Output.number("%.3f", r.attentionMilliseconds()),
                r.resident().isPresent() ? Output.number("%.3f", r.resident().getAsDouble()) : "",
                Output.bytes(r.deviceBytes()),
                Output.bytes(r.hostBytes()),
                Output.number("%.0f", bandwidth(r.deviceBytesPerStep(), r.stepMilliseconds())),
                Output.number("%.1f", bandwidth(r.linkBytesPerStep(), r.stepMilliseconds())))));
        out.println(table);
        notes(results, refused).forEach(out::println);
    }

    void prompts(Map<CacheKind, PromptResult> results, Map<CacheKind, String> refused) {
        PromptResult dense = results.get(CacheKind.DENSE);
        PromptResult shadow = results.get(CacheKind.SHADOW);
        if (json) {
            ObjectNode report = header();
            ObjectNode caches = report.putObject("caches");
            results.forEach((kind, r) -> caches.putObject(name(kind))
                    .put("prefillSeconds", r.seconds())
                    .put("sealSeconds", r.sealSeconds())
                    .put("tokensPerSecond", r.tokensPerSecond()));
            refused.forEach((kind, why) -> caches.putObject(name(kind)).put("refused", why));
            if (dense != null && shadow != null) {
                report.put("shadowOverDense", shadow.seconds() / dense.seconds());
            }
            out.println(Output.pretty(report));
            return;
        }
        title();
        TextTable table = new TextTable(List.of("cache", "prefill s", "sealing s", "tokens/s"));
        results.forEach((kind, r) -> table.add(List.of(
                name(kind),
                Output.number("%.3f", r.seconds()),
                Output.number("%.3f", r.sealSeconds()),
                Output.number("%.0f", r.tokensPerSecond()))));
        out.println(table);
        partNote().ifPresent(out::println);
        refused.forEach((kind, why) -> out.println(name(kind) + ": not run: " + why + "."));
        if (dense != null && shadow != null) {
            out.println(Output.number("A prompt takes %.3f times as long with shadow as with dense.", shadow.seconds() / dense.seconds()));
        }
    }

    private Optional<String> partNote() {
        return settings.layers() == settings.shape().layers()
                ? Optional.empty()
                : Optional.of("Measured with " + settings.layers() + " of " + settings.shape().layers()
                        + " layers: times and tokens/s are of these layers, not of the model.");
    }

    private static double bandwidth(double bytes, double milliseconds) {
        return bytes / milliseconds * 1e-6;
    }

    private List<String> notes(Map<CacheKind, ThroughputResult> results, Map<CacheKind, String> refused) {
        List<String> notes = new ArrayList<>();
        partNote().ifPresent(notes::add);
        results.forEach((kind, r) -> {
            if (r.run().sessions() < r.planned().sessions() && settings.batch().isEmpty()) {
                notes.add(name(kind) + ": " + r.planned().sessions() + " sessions fit into the device memory, but the host's "
                        + Output.bytes(settings.hostLimit()) + " hold the values of " + r.run().sessions() + "; these were run.");
            }
            if (r.resident().isPresent() && Math.abs(r.resident().getAsDouble() - settings.resident()) > 0.02) {
                notes.add(Output.number(name(kind) + ": a share of %.3f was wanted, ", settings.resident())
                        + Output.number("%.3f was reached.", r.resident().getAsDouble()));
            }
        });
        refused.forEach((kind, why) -> notes.add(name(kind) + ": not run: " + why + "."));
        ThroughputResult dense = results.get(CacheKind.DENSE);
        ThroughputResult shadow = results.get(CacheKind.SHADOW);
        if (dense != null) {
            notes.add(Output.number("Exact attention reads keys and values at %.0f GB/s; ", bandwidth(dense.cacheBytesPerStep(), dense.attentionMilliseconds()))
                    + Output.number("with unlimited memory it could give at most %.1f tokens/s.", dense.exactLimit().getAsDouble()));
        }
        if (dense != null && shadow != null) {
            notes.add(Output.number("shadow gives %.2f times the tokens/s of dense", shadow.tokensPerSecond() / dense.tokensPerSecond())
                    + Output.number(", %.2f times what exact attention could at most.", shadow.tokensPerSecond() / dense.exactLimit().getAsDouble()));
        }
        return notes;
    }

    private ObjectNode tree(Map<CacheKind, ThroughputResult> results, Map<CacheKind, String> refused) {
        ObjectNode report = header();
        ObjectNode caches = report.putObject("caches");
        results.forEach((kind, r) -> {
            ObjectNode node = caches.putObject(name(kind));
            node.set("planned", count(r.planned()));
            node.set("run", count(r.run()));
            node.put("layers", r.runLayers());
            node.put("buildSeconds", r.buildSeconds());
            node.put("fillSeconds", r.fillSeconds());
            node.put("stepMilliseconds", r.stepMilliseconds());
            node.put("medianStepMilliseconds", r.medianMilliseconds());
            node.put("slowestStepMilliseconds", r.slowestMilliseconds());
            node.put("attentionMilliseconds", r.attentionMilliseconds());
            node.put("tokensPerSecond", r.tokensPerSecond());
            node.put("drift", r.drift());
            put(node, "resident", r.resident());
            node.put("deviceBytes", r.deviceBytes());
            node.put("hostBytes", r.hostBytes());
            node.put("deviceBytesPerStep", r.deviceBytesPerStep());
            node.put("linkBytesPerStep", r.linkBytesPerStep());
            node.put("deviceGigabytesPerSecond", bandwidth(r.deviceBytesPerStep(), r.stepMilliseconds()));
            node.put("linkGigabytesPerSecond", bandwidth(r.linkBytesPerStep(), r.stepMilliseconds()));
            put(node, "exactLimitTokensPerSecond", r.exactLimit());
        });
        refused.forEach((kind, why) -> caches.putObject(name(kind)).put("refused", why));
        ThroughputResult dense = results.get(CacheKind.DENSE);
        ThroughputResult shadow = results.get(CacheKind.SHADOW);
        if (dense != null && shadow != null) {
            report.put("shadowOverDense", shadow.tokensPerSecond() / dense.tokensPerSecond());
            report.put("shadowOverExactLimit", shadow.tokensPerSecond() / dense.exactLimit().getAsDouble());
        }
        return report;
    }

    private static void put(ObjectNode node, String name, OptionalDouble value) {
        if (value.isPresent()) {
            node.put(name, value.getAsDouble());
        } else {
            node.putNull(name);
        }
    }
}
