package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.util.List;
import java.util.Random;

/**
 * Fills sessions and decodes with operands from the host; several layers get the same tokens, scaled layer by layer.
 */
final class CacheRunner {

    static final int QUERY_HEADS = 4;
    static final int KEY_VALUE_HEADS = 2;
    static final int HEAD_DIM = 64;
    static final Rope ROPE = Rope.standard(HEAD_DIM, 10_000);

    private CacheRunner() {
    }

    static Tokens tokens(Random random, int count, int rank) {
        return Tokens.random(random, count, QUERY_HEADS, KEY_VALUE_HEADS, HEAD_DIM, rank);
    }

    static <B extends CacheBuilder<B>> B shape(B builder, int layers, int sessions, long capacity) {
        return builder.layers(layers).queryHeads(QUERY_HEADS).keyValueHeads(KEY_VALUE_HEADS).headDim(HEAD_DIM)
                .rope(ROPE)
                .memory(MemoryPlan.of(sessions, capacity).withStaging(capacity, layers * sessions));
    }

    /** Appends tokens in pieces of random size to all layers. */
    static void append(KvSession session, Tokens tokens, int from, int to, Random random) {
        for (int layer = 0; layer < session.cache().layers(); layer++) {
            for (int at = from; at < to;) {
                int n = random == null ? to - from : Math.min(to - at, 1 + random.nextInt(97));
                session.append(layer, n, tokens.keys(at, at + n), tokens.values(at, at + n));
                at += n;
            }
        }
    }

    /** One step with token {@code token} for every session of a batch; returns the last layer's output. */
    static float[] step(KvBatch batch, Tokens tokens, int token) {
        int sessions = batch.sessions().size();
        Tokens[] all = new Tokens[sessions];
        int[] at = new int[sessions];
        java.util.Arrays.fill(all, tokens);
        java.util.Arrays.fill(at, token);
        return step(batch, all, at);
    }

    static float[] step(KvBatch batch, Tokens[] tokens, int[] token) {
        int sessions = tokens.length;
        KvCache cache = batch.cache();
        int queryWidth = cache.queryHeads() * cache.headDim();
        int keyWidth = cache.keyValueHeads() * cache.headDim();
        float[] queries = new float[sessions * queryWidth];
        float[] keys = new float[sessions * keyWidth];
        float[] values = new float[sessions * keyWidth];
        for (int i = 0; i < sessions; i++) {
            System.arraycopy(tokens[i].queries, token[i] * queryWidth, queries, i * queryWidth, queryWidth);
            System.arraycopy(tokens[i].keys, token[i] * keyWidth, keys, i * keyWidth, keyWidth);
            System.arraycopy(tokens[i].values, token[i] * keyWidth, values, i * keyWidth, keyWidth);
        }
        float[] output = new float[sessions * queryWidth];
        for (int layer = 0; layer < cache.layers(); layer++) {
            cache.attend(layer, batch, MemorySegment.ofArray(queries), MemorySegment.ofArray(keys),
                    MemorySegment.ofArray(values), MemorySegment.ofArray(output));
        }
        return output;
    }

    /** Decodes tokens one by one with a batch of this session alone; returns all outputs. */
    static float[][] decode(KvSession session, Tokens tokens, int from, int to) {
        float[][] outputs = new float[to - from][];
        try (KvBatch batch = session.cache().batch(List.of(session))) {
            for (int t = from; t < to; t++) {
                outputs[t - from] = step(batch, tokens, t);
            }
        }
        return outputs;
    }
}
