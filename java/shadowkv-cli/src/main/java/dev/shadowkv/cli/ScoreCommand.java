package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import dev.shadowkv.llm.CacheKind;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.Model;
import dev.shadowkv.llm.Transformer;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.SafetensorsWriter;
import dev.shadowkv.llm.checkpoint.TensorType;
import dev.shadowkv.llm.input.TokenIds;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** {@code shadowkv score}. */
@Command(
        name = "score",
        mixinStandardHelpOptions = true,
        sortOptions = false,
        description = "Computes the logits of every position of given sequences, each from the true tokens before it.")
final class ScoreCommand implements Callable<Integer> {
    @Mixin
    private ModelArguments model;

    @Option(
            names = "--ids",
            paramLabel = "F",
            required = true,
            description = "Token ids: a text file with one sequence a line, or a safetensors file with input_ids. All "
                    + "sequences must have one length.")
    private Path ids;

    @Option(
            names = "--prefill",
            paramLabel = "N",
            description = "How many positions are computed and sealed as a prompt; the rest is decoded step by step. "
                    + "Default: all with an exact cache, half with a shadow.")
    private Integer prefill;

    @Option(
            names = "--out",
            paramLabel = "F.safetensors",
            required = true,
            description = "Where to write the tensor logits, f32 [rows, positions, vocabulary].")
    private Path out;

    @Mixin
    private CacheChoice cache;

    @Mixin
    private ReportArguments report;

    @Mixin
    private DeviceArguments device;

    @Override
    public Integer call() throws IOException {
        CacheOptions options = cache.options();
        try (Checkpoint checkpoint = Checkpoint.open(model.model)) {
            List<int[]> sequences = TokenIds.read(ids, checkpoint.config().vocabularySize());
            int positions = sequences.getFirst().length;
            for (int i = 0; i < sequences.size(); i++) {
                if (sequences.get(i).length != positions) {
                    throw new IllegalArgumentException(ids + ": sequence " + (i + 1) + " has " + sequences.get(i).length
                            + " tokens, the first has " + positions + "; all must have one length");
                }
                ModelArguments.requirePositions(checkpoint.config(), positions, "sequence " + (i + 1));
            }
            CacheKind kind = options.decided(positions).kind();
            int sealed = prefill != null ? prefill : kind == CacheKind.SHADOW ? Math.ceilDiv(positions, 2) : positions;
            if (sealed < 1 || sealed > positions) {
                throw new IllegalArgumentException(
                        "--prefill is " + sealed + ", it must be from 1 to the " + positions + " positions");
            }
            requireFolder();
            score(checkpoint, options, sequences, positions, sealed, kind);
        }
        return 0;
    }

    private void requireFolder() {
        Path folder = out.toAbsolutePath().getParent();
        if (folder == null || !Files.isDirectory(folder)) {
            throw new IllegalArgumentException(out + ": there is no such folder");
        }
    }

    private void score(
            Checkpoint checkpoint, CacheOptions options, List<int[]> sequences, int positions, int sealed, CacheKind kind) {
        int vocabulary = checkpoint.config().vocabularySize();
        List<Long> shape = List.of((long) sequences.size(), (long) positions, (long) vocabulary);
        long start = System.nanoTime();
        KvBatch.Statistics statistics = new KvBatch.Statistics(0, 0, 0, 0);
        MemoryPlan memory = MemoryPlan.of(1, positions).withStaging(positions, 1);
        try (Device opened = device.open();
                Model loaded = Model.load(checkpoint, opened);
                KvCache kv = options.build(opened, checkpoint.config(), memory, positions);
                Transformer transformer = new Transformer(loaded, 1);
                Progress progress = report.progress("positions", (long) sequences.size() * positions);
                SafetensorsWriter writer = SafetensorsWriter.create(
                        out, Map.of("logits", new SafetensorsWriter.Declaration(TensorType.F32, shape)))) {
            for (int row = 0; row < sequences.size(); row++) {
                statistics = scoreRow(kv, transformer, sequences.get(row), sealed, writer, progress, (long) row * positions);
            }
        }
        double seconds = (System.nanoTime() - start) * 1e-9;
        KvBatch.Statistics last = statistics;
        report.print(
                () -> String.format(
                        Locale.ROOT,
                        "%s: logits %s, %d positions as a prompt and %d decoded with the %s cache, %.1f s",
                        out,
                        shape,
                        sealed,
                        positions - sealed,
                        kind.name().toLowerCase(Locale.ROOT),
                        seconds),
                () -> json(shape, sealed, kind, seconds, last));
    }

    private static KvBatch.Statistics scoreRow(
            KvCache kv, Transformer transformer, int[] ids, int sealed, SafetensorsWriter writer, Progress progress, long before) {
        try (KvSession session = kv.open(ids.length)) {
            int layers = kv.layers();
            transformer.prefill(
                    session,
                    Arrays.copyOf(ids, sealed),
                    0,
                    (first, rows, logits) -> writer.append("logits", logits),
                    (done, total) -> progress.to(before + done / layers, "prefill"));
            try (KvBatch batch = kv.batch(List.of(session))) {
                int[] next = new int[1];
                for (int position = sealed; position < ids.length; position++) {
                    next[0] = ids[position];
                    transformer.decode(batch, next, 1);
                    writer.append("logits", transformer.logits(1));
                    progress.to(before + position + 1, "decode");
                }
                return batch.statistics();
            }
        }
    }

    private ObjectNode json(
            List<Long> shape, int sealed, CacheKind kind, double seconds, KvBatch.Statistics statistics) {
        ObjectNode node = Output.object();
        node.put("out", out.toString());
        node.put("cache", kind.name().toLowerCase(Locale.ROOT));
        node.put("rows", shape.get(0));
        node.put("positions", shape.get(1));
        node.put("vocabulary", shape.get(2));
        node.put("prefill", sealed);
        node.put("seconds", seconds);
        node.set("decode", Output.statistics(statistics));
        return node;
    }
}
