package dev.shadowkv.llm;

import dev.shadowkv.KvCache;
import dev.shadowkv.KvSession;
import dev.shadowkv.MemoryPlan;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Caches of one model that are compared with each other, by name, each with room for as many sessions of the same
 * capacity.
 * Owns the caches, not the model.
 */
public final class NamedCaches implements AutoCloseable {
    private final Map<String, KvCache> caches = new LinkedHashMap<>();
    private final long capacity;

    /** Allocates caches of one session each. */
    public NamedCaches(Model model, Map<String, CacheOptions> options, long capacity) {
        this(model, options, capacity, 1);
    }

    /**
     * Allocates the caches.
     *
     * @param options by name, at least one; their order is kept
     * @param capacity tokens of the longest prompt and what follows it
     * @param sessions of each cache
     */
    public NamedCaches(Model model, Map<String, CacheOptions> options, long capacity, int sessions) {
        if (options.isEmpty()) {
            throw new IllegalArgumentException("there is no cache to run");
        }
        this.capacity = capacity;
        MemoryPlan memory = memory(sessions, capacity);
        try {
            options.forEach((name, own) -> caches.put(name, own.build(model.device(), model.config(), memory, capacity)));
        } catch (RuntimeException e) {
            close();
            throw e;
        }
    }

    private static MemoryPlan memory(int sessions, long capacity) {
        return MemoryPlan.of(sessions, capacity).withStaging(capacity, 1);
    }

    /** The memory of caches before anything is allocated. */
    public static List<MemoryPlan> plans(Model model, Collection<CacheOptions> options, int sessions, long capacity) {
        return options.stream()
                .map(own -> own.builder(model.device(), model.config(), memory(sessions, capacity), capacity).plan())
                .toList();
    }

    /** The names, in the order in which they were given. */
    public List<String> names() {
        return List.copyOf(caches.keySet());
    }

    /** The cache of a name. */
    public KvCache get(String name) {
        KvCache cache = caches.get(name);
        if (cache == null) {
            throw new IllegalArgumentException("there is no cache " + name);
        }
        return cache;
    }

    /** Tokens that a session has room for. */
    public long capacity() {
        return capacity;
    }

    /**
     * Opens a session of each cache, in the order of the names, for the caller to close.
     *
     * @throws IllegalArgumentException when the tokens exceed the capacity
     */
    public List<KvSession> open(long tokens) {
        if (tokens > capacity) {
            throw new IllegalArgumentException(
                    "prompt and answer take " + tokens + " tokens, the capacity is " + capacity);
        }
        List<KvSession> sessions = new ArrayList<>();
        try {
            caches.values().forEach(cache -> sessions.add(cache.open(capacity)));
        } catch (RuntimeException e) {
            sessions.forEach(KvSession::close);
            throw e;
        }
        return sessions;
    }

    /** Frees the caches; does nothing the second time. */
    @Override
    public void close() {
        caches.values().forEach(KvCache::close);
    }
}
