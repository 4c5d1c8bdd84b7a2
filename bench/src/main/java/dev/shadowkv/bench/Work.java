package dev.shadowkv.bench;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.Supplier;

/**
 * What one call of a benchmark has to do at the very least, whatever the code does: the bytes it must read and write,
 * the bytes that must cross the link to the device, and the operations of its matrix products.
 */
record Work(double readBytes, double writtenBytes, double linkBytes, double operations) {

    private static volatile Work current;
    private static volatile Supplier<Map<String, Double>> observed = Map::of;
    private static volatile Ceilings ceilings;

    static Work memory(double readBytes, double writtenBytes) {
        return new Work(readBytes, writtenBytes, 0, 0);
    }

    Work link(double bytes) {
        return new Work(readBytes, writtenBytes, bytes, operations);
    }

    Work operations(double count) {
        return new Work(readBytes, writtenBytes, linkBytes, count);
    }

    double bytes() {
        return readBytes + writtenBytes;
    }

    /** Seconds that the slowest of memory, link and arithmetic takes at its ceiling. */
    double floor(Ceilings machine) {
        // What only reads is held against the read bandwidth, everything else against that of a copy.
        double bandwidth = writtenBytes <= 0.1 * readBytes ? machine.readBandwidth() : machine.copyBandwidth();
        double floor = bytes() / bandwidth;
        if (linkBytes > 0 && machine.linkBandwidth() > 0) {
            floor = Math.max(floor, linkBytes / machine.linkBandwidth());
        }
        if (operations > 0 && machine.matrixRate() > 0) {
            floor = Math.max(floor, operations / machine.matrixRate());
        }
        return floor;
    }

    /** Tells the profiler what the benchmark that runs now does. */
    void publish(Ceilings machine, Supplier<Map<String, Double>> also) {
        ceilings = machine;
        observed = also;
        current = this;
    }

    /** Keeps what can be observed now, since the device is about to be closed. */
    static void freeze() {
        Map<String, Double> last = observed();
        observed = () -> last;
    }

    static Work current() {
        return current;
    }

    static Ceilings ceilings() {
        return ceilings;
    }

    static Map<String, Double> observed() {
        return new LinkedHashMap<>(observed.get());
    }
}
