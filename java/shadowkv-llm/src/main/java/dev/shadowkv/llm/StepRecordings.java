package dev.shadowkv.llm;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceGraph;
import dev.shadowkv.KvBatch;
import java.util.ArrayList;
import java.util.List;
import java.util.function.ObjIntConsumer;

/**
 * Decode steps that were recorded once and are replayed with one call, one for each batch and number of rows. What
 * changes from step to step lies in device memory: tokens, lengths, addresses of the sessions. So a recording stays valid
 * while sessions of its batch grow, join and leave.
 *
 * <p>The first step of a batch is computed call by call, so that everything that is made at first use is there; the second
 * one is recorded.
 */
final class StepRecordings implements AutoCloseable {
    /** Batches that take turns; one that nobody steps any more makes room. */
    private static final int MOST = 4;

    private static final class Recording {
        final KvBatch batch;
        final int rows;
        DeviceGraph graph;

        Recording(KvBatch batch, int rows) {
            this.batch = batch;
            this.rows = rows;
        }

        void close() {
            if (graph != null) {
                graph.close();
            }
        }
    }

    private final Device device;
    private final ObjIntConsumer<KvBatch> layers;
    /** The latest used one last. */
    private final List<Recording> recordings = new ArrayList<>();

    StepRecordings(Device device, ObjIntConsumer<KvBatch> layers) {
        this.device = device;
        this.layers = layers;
    }

    /** Takes a step of a batch that has been advanced. */
    void step(KvBatch batch, int rows) {
        Recording recording = find(batch, rows);
        if (recording == null) {
            layers.accept(batch, rows);
            if (recordings.size() == MOST) {
                recordings.removeFirst().close();
            }
            recordings.add(new Recording(batch, rows));
            return;
        }
        if (recording.graph == null) {
            recording.graph = device.capture(() -> layers.accept(batch, rows));
        }
        recording.graph.launch();
    }

    private Recording find(KvBatch batch, int rows) {
        for (int i = recordings.size() - 1; i >= 0; i--) {
            Recording recording = recordings.get(i);
            if (recording.batch == batch && recording.rows == rows) {
                if (i < recordings.size() - 1) {
                    recordings.add(recordings.remove(i));
                }
                return recording;
            }
        }
        return null;
    }

    /** How many steps are recorded. */
    int count() {
        int count = 0;
        for (Recording recording : recordings) {
            count += recording.graph == null ? 0 : 1;
        }
        return count;
    }

    /** Forgets all recordings; steps may follow and are recorded anew. */
    @Override
    public void close() {
        recordings.forEach(Recording::close);
        recordings.clear();
    }
}
