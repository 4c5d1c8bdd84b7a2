package dev.shadowkv.llm;

import dev.shadowkv.KvBatch;
import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import java.util.ArrayList;
import java.util.List;

/** The requests that decode together in one cache. Most models need one; longrope has one a rotation. */
final class Lane implements AutoCloseable {
    final KvCache cache;
    /** Longest sequence of this lane. */
    final long limit;

    final List<ActiveRequest> active = new ArrayList<>();
    private KvBatch batch;
    private KvBatch.Statistics finished = new KvBatch.Statistics(0, 0, 0, 0);

    Lane(KvCache cache, long limit) {
        this.cache = cache;
        this.limit = limit;
    }

    void join(ActiveRequest request) {
        active.add(request);
        dissolve();
    }

    void leave(ActiveRequest request) {
        active.remove(request);
        dissolve();
    }

    KvBatch batch() {
        if (batch == null) {
            List<KvSession> sessions = new ArrayList<>(active.size());
            active.forEach(request -> sessions.add(request.session));
            batch = cache.batch(sessions);
        }
        return batch;
    }

    /** Counters of the batches so far and the present one. */
    KvBatch.Statistics statistics() {
        return batch == null ? finished : sum(finished, batch.statistics());
    }

    private void dissolve() {
        if (batch != null) {
            finished = sum(finished, batch.statistics());
            batch.close();
            batch = null;
        }
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
