package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.eval.Charts;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.eval.TextTable;
import dev.shadowkv.eval.fidelity.FidelityProbe;
import dev.shadowkv.eval.fidelity.FidelityReport;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.text.Tokenizer;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.stream.IntStream;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv eval fidelity}. */
@Command(
        name = "fidelity",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "What a shadow cache keeps of attention on a text of yours, by layer and head and without labels: the exact "
                + "weight of the tokens that it attends (mass), the most that as many tokens could hold, how many of them are "
                + "those, and the relative error of the output.")
final class FidelityCommand implements Callable<Integer> {
    @Mixin
    private ModelArguments model;

    @Mixin
    private TextArguments text;

    @Option(
            names = "--steps",
            paramLabel = "N",
            defaultValue = "16",
            description = "How many of the last tokens attend; those before are indexed. Default: ${DEFAULT-VALUE}.")
    private int steps;

    @Mixin
    private CacheArguments cache;

    @Option(names = "--heads", description = "A row a head, not a layer.")
    private boolean heads;

    @Option(names = "--chart", paramLabel = "F.png", description = "Picture of the mass by layer and head.")
    private Path chart;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    @Override
    public Integer call() throws IOException {
        Quantity.requirePositive("--steps", steps);
        CacheOptions options = cache.options(CacheKind.SHADOW);
        FidelityReport fidelity;
        try (Checkpoint checkpoint = Checkpoint.open(model.model);
                Tokenizer tokenizer = Tokenizer.open(model.model)) {
            int[] ids = text.ids(tokenizer, checkpoint.config());
            int layers = checkpoint.config().layers();
            try (Device opened = device.open();
                    Model loaded = Model.load(checkpoint, opened);
                    Progress progress = report.progress("layers", layers)) {
                fidelity = FidelityProbe.measure(
                        loaded, ids, steps, options, layer -> progress.to(layer + 1L, "of " + layers));
            }
        }
        report.print(() -> heads ? headTable(fidelity) : fidelity.table(), () -> json(fidelity));
        if (chart != null) {
            draw(fidelity);
        }
        return 0;
    }

    private static ObjectNode json(FidelityReport fidelity) {
        ObjectNode node = Output.object();
        ArrayNode all = node.putArray("heads");
        fidelity.heads().forEach(head -> all.addObject()
                .put("layer", head.layer())
                .put("head", head.head())
                .put("capturedMass", head.capturedMass())
                .put("bestMass", head.bestMass())
                .put("overlap", head.overlap())
                .put("outputError", head.outputError()));
        return node;
    }

    private static TextTable headTable(FidelityReport fidelity) {
        TextTable table = new TextTable(List.of("layer", "head", "mass", "best possible", "overlap", "output error"));
        fidelity.heads().forEach(head -> table.add(List.of(
                Integer.toString(head.layer()),
                Integer.toString(head.head()),
                Output.number("%.4f", head.capturedMass()),
                Output.number("%.4f", head.bestMass()),
                Output.number("%.4f", head.overlap()),
                Output.number("%.4f", head.outputError()))));
        return table;
    }

    private void draw(FidelityReport fidelity) {
        double[][] mass = fidelity.capturedMass();
        for (double[] row : mass) {
            for (int i = 0; i < row.length; i++) {
                row[i] *= 100;
            }
        }
        try {
            Charts.grid(
                    "Attention mass that the cache keeps (%)",
                    "query head",
                    IntStream.range(0, mass[0].length).mapToObj(Integer::toString).toList(),
                    "layer",
                    IntStream.range(0, mass.length).mapToObj(Integer::toString).toList(),
                    mass,
                    chart);
        } catch (LinkageError e) {
            throw new EvaluationException("charts need the JDK's module java.desktop: " + e.getMessage(), e);
        }
    }
}
