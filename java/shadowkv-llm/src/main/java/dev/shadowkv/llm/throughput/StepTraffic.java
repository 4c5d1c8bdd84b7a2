package dev.shadowkv.llm.throughput;

import dev.shadowkv.ElementType;
import dev.shadowkv.KvCache;
import dev.shadowkv.ShadowKvCache;
import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.llm.CacheOptions;
import dev.shadowkv.llm.checkpoint.ModelConfig;

/** Bytes that a decode step must read from device memory, counted from shapes. */
final class StepTraffic {
    private StepTraffic() {}

    /** The weights, but of the embedding only where it is the output projection too. */
    static long weights(ModelConfig config, long modelBytes, ElementType type) {
        return config.tieWordEmbeddings()
                ? modelBytes
                : modelBytes - (long) config.vocabularySize() * config.hiddenSize() * type.bytes();
    }

    /** Keys and values of one session of a dense cache. */
    static double dense(ModelConfig config, double tokens, ElementType storage) {
        return config.layers() * 2.0 * tokens * config.keyValueWidth() * storage.bytes();
    }

    /**
     * One session of a shadow cache: every landmark with its radius and scale, the coefficients of the chunks that are
     * selected or shortlisted, each once a head, the basis, the selected values, the recent window and the outliers.
     */
    static double shadow(ModelConfig config, ShadowKvCache cache, CacheOptions options, double tokens) {
        Geometry g = cache.geometry();
        double heads = g.keyValueHeads();
        double chunks = Math.max(0, tokens / g.chunk() - g.window() / (double) g.chunk());
        double selected = Math.min(chunks, cache.budget() / (double) g.chunk());
        int select = cache.budget() / g.chunk();
        double rebuilt = Math.min(chunks, Math.max(select, ShadowKvCache.shortlist(options.rerank(), select)));
        int storage = g.storageType().bytes();
        double landmarks = heads * chunks
                * (g.headDim() * g.landmarkType().bytes() + 4 + (g.landmarkType() == ElementType.I8 ? 4 : 0));
        double coefficients = heads * rebuilt * g.chunk() * g.rank() * g.coefficientType().bytes();
        double basis = heads * g.rank() * (double) g.headDim() * storage;
        double values = heads * selected * g.readChunkBytes();
        double dense = 2 * heads * (g.window() + options.outlierChunks() * (double) g.chunk()) * g.headDim() * storage;
        return config.layers() * (landmarks + coefficients + basis + values + dense);
    }

    static double cache(ModelConfig config, KvCache cache, CacheOptions options, double tokens, ElementType storage) {
        return cache instanceof ShadowKvCache shadow
                ? shadow(config, shadow, options, tokens)
                : dense(config, tokens, storage);
    }
}
