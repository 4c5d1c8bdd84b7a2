package dev.shadowkv.bench;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

import org.openjdk.jmh.infra.BenchmarkParams;
import org.openjdk.jmh.infra.IterationParams;
import org.openjdk.jmh.profile.InternalProfiler;
import org.openjdk.jmh.results.AggregationPolicy;
import org.openjdk.jmh.results.IterationResult;
import org.openjdk.jmh.results.Result;
import org.openjdk.jmh.results.ScalarResult;

/** Adds bytes, operations, rates and the distance to the floor to each result: {@code -prof dev.shadowkv.bench.FloorProfiler}. */
public final class FloorProfiler implements InternalProfiler {

    static final String BYTES = "bytes";
    static final String LINK_BYTES = "linkBytes";
    static final String OPERATIONS = "operations";
    static final String BANDWIDTH = "bandwidth";
    static final String RATE = "rate";
    static final String FLOOR = "floor";
    static final String SHARE = "shareOfFloor";
    /** Median microseconds of a call through Java, of the native call alone, and the difference. */
    static final String CALL = "call";
    static final String NATIVE = "native";
    static final String JAVA = "javaShare";

    @Override
    public String getDescription() {
        return "Bytes, operations and distance to the floor";
    }

    @Override
    public void beforeIteration(BenchmarkParams benchmark, IterationParams iteration) {
    }

    @Override
    public Collection<? extends Result<?>> afterIteration(BenchmarkParams benchmark, IterationParams iteration,
                                                          IterationResult result) {
        List<ScalarResult> results = new ArrayList<>();
        Work work = Work.current();
        // A failed iteration has no result.
        if (work == null || result.getRawPrimaryResults().isEmpty()) {
            return results;
        }
        double seconds = result.getPrimaryResult().getScore() / benchmark.getTimeUnit().convert(1, TimeUnit.SECONDS);
        for (Map.Entry<String, Double> entry : Work.observed().entrySet()) {
            add(results, entry.getKey(), entry.getValue(), "");
        }
        if (work.bytes() + work.linkBytes() + work.operations() == 0) {
            return results;
        }
        add(results, BYTES, work.bytes(), "B/op");
        if (work.linkBytes() > 0) {
            add(results, LINK_BYTES, work.linkBytes(), "B/op");
        }
        if (work.operations() > 0) {
            add(results, OPERATIONS, work.operations(), "FLOP/op");
            add(results, RATE, work.operations() / seconds / 1e9, "GFLOP/s");
        }
        add(results, BANDWIDTH, work.bytes() / seconds / 1e9, "GB/s");
        double floor = work.floor(Work.ceilings());
        add(results, FLOOR, floor * 1e6, "us/op");
        add(results, SHARE, floor / seconds, "");
        return results;
    }

    private static void add(List<ScalarResult> results, String name, double value, String unit) {
        results.add(new ScalarResult(name, value, unit, AggregationPolicy.AVG));
    }
}
