package dev.shadowkv.llm;

import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import java.util.ArrayList;
import java.util.List;

/** The requests that decode together in one cache. Most models need one; longrope has one a rotation. */
final class Lane implements AutoCloseable {
    final KvCache cache;
    /** Longest sequence of this lane. */
    final long limit;

    /** Row i of the batch belongs to request i. */
    final List<ActiveRequest> active = new ArrayList<>();

    /** Made once, so that a recorded step stays valid while requests come and go. */
    final KvBatch batch;

    Lane(KvCache cache, long limit, int rows) {
        this.cache = cache;
        this.limit = limit;
        try {
            batch = cache.batch(rows);
        } catch (RuntimeException e) {
            cache.close();
            throw e;
        }
    }

    void join(ActiveRequest request) {
        batch.set(active.size(), request.session);
        active.add(request);
    }

    /** The last request takes the row of the one that leaves, so that the rows in use are the first ones. */
    void leave(ActiveRequest request) {
        int row = active.indexOf(request);
        int last = active.size() - 1;
        batch.set(last, null);
        if (row < last) {
            active.set(row, active.get(last));
            batch.set(row, active.get(row).session);
        }
        active.remove(last);
    }

    static KvBatch.Statistics sum(KvBatch.Statistics a, KvBatch.Statistics b) {
        long selected = a.selectedChunks() + b.selectedChunks();
        double mass = selected == 0
                ? 0
                : (a.landmarkMass() * a.selectedChunks() + b.landmarkMass() * b.selectedChunks()) / selected;
        return new KvBatch.Statistics(a.steps() + b.steps(), selected, a.fetchedChunks() + b.fetchedChunks(), mass);
    }

    @Override
    public void close() {
        cache.close();
    }
}
