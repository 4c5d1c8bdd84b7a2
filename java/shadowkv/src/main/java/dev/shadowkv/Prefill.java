package dev.shadowkv;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;
import dev.shadowkv.kernels.Rows;

/** Exact causal attention of new tokens over rows that are positions. */
final class Prefill {

    private Prefill() {
    }

    static void attend(CacheBase cache, Geometry geometry, Rows queries, long count, long first, Ring keys, Ring values,
                       DeviceBuffer output) {
        int width = cache.shape.queryWidth();
        long bytes = queries.type().bytes();
        long stride = queries.stride() == 0 ? width : queries.stride();
        // Before anything is done: the operands hold all tokens, not only the first part.
        java.util.Objects.checkFromIndexSize(0, ((count - 1) * stride + width) * bytes, queries.buffer().byteSize());
        java.util.Objects.checkFromIndexSize(0, count * width * bytes, output.byteSize());
        Rows rotated = Rows.of(cache.prefillQueries, queries.type());
        int part = CacheBase.prefillTokens(cache.memoryPlan());
        for (long done = 0; done < count; done += part) {
            long n = Math.min(part, count - done);
            Rows from = new Rows(queries.buffer().slice(done * stride * bytes), queries.type(), queries.stride());
            cache.transformer.rope(from, rotated, n, cache.shape.queryHeads, cache.shape.headDim, first + done, null, 0,
                    cache.ropeTable, false);
            cache.transformer.prefillAttention(geometry, rotated, n, first + done, keys.buffer(), values.buffer(),
                    keys.capacity(), Rows.of(output.slice(done * width * bytes), queries.type()));
        }
    }
}
