package dev.shadowkv.bench;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Locale;
import java.util.Map;
import java.util.function.Supplier;

import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.PinnedArena;
import dev.shadowkv.kernels.CacheKernels;
import dev.shadowkv.kernels.DecodeKernels;
import dev.shadowkv.kernels.TransformerKernels;

/** The device that a benchmark runs on, what it allocates there, and the work that it repeats. */
@State(Scope.Benchmark)
public abstract class DeviceState {

    /** {@code cpu}, {@code cuda} or {@code cuda:1}. */
    @Param("cpu")
    public String device;

    /** Threads of a CPU device; 0: all processors. */
    @Param("0")
    public int threads;

    Device open;
    DeviceArena arena;
    PinnedArena pinned;
    TransformerKernels transformer;
    CacheKernels cache;
    DecodeKernels decode;

    private Work work;
    private Runnable call;

    /** Opens the device. To be called first by the set-up of a benchmark. */
    final void openDevice() {
        open = switch (device) {
            case "cpu" -> Device.cpu(threads);
            case "cuda" -> Device.cuda(0);
            default -> {
                if (!device.startsWith("cuda:")) {
                    throw new IllegalArgumentException("device must be cpu, cuda or cuda:<ordinal>: " + device);
                }
                yield Device.cuda(Integer.parseInt(device.substring(5)));
            }
        };
        arena = open.newArena();
        pinned = open.newPinnedArena();
        transformer = new TransformerKernels(open);
        cache = new CacheKernels(open);
        decode = new DecodeKernels(open);
    }

    /** What is repeated, and what it has to do at least. */
    final void define(Work amount, Runnable repeated) {
        define(amount, Map::of, repeated);
    }

    final void define(Work amount, Supplier<Map<String, Double>> observed, Runnable repeated) {
        work = amount;
        call = repeated;
        work.publish(Ceilings.of(open, threads), observed);
    }

    /** Runs the work once; its result is then checked by the caller. */
    final void once() {
        call.run();
        open.synchronize();
    }

    /** Runs the work several times and waits for the device once, which is part of the time. */
    final void repeat(int count) {
        for (int i = 0; i < count; i++) {
            call.run();
        }
        open.synchronize();
    }

    /** Reads what was counted, which the profiler asks for after the last iteration's end, and frees everything. */
    @TearDown(Level.Trial)
    public final void finish() {
        try {
            Work.freeze();
        } finally {
            close();
        }
    }

    /** Frees everything, also after a failed set-up. */
    void close() {
        call = null;
        if (open != null) {
            open.close();
            open = null;
        }
    }

    /** What activations are made of: full precision on a CPU, as the caches take them. */
    final ElementType activationType() {
        return open.defaultType();
    }

    final DeviceBuffer allocate(ElementType type, long... sizes) {
        long bytes = type.bytes();
        for (long size : sizes) {
            bytes = Math.multiplyExact(bytes, size);
        }
        return arena.allocate(bytes);
    }

    final DeviceBuffer ints(long count) {
        return arena.allocate(4 * count);
    }

    final DeviceBuffer upload(float[] numbers, ElementType type) {
        DeviceBuffer buffer = allocate(type, numbers.length);
        open.copy(Numbers.encode(numbers, type), buffer);
        return buffer;
    }

    final DeviceBuffer upload(int[] numbers) {
        DeviceBuffer buffer = ints(numbers.length);
        open.copy(MemorySegment.ofArray(numbers), buffer);
        return buffer;
    }

    /** Normally distributed numbers, made by the device. */
    final DeviceBuffer random(ElementType type, long count, long seed, float deviation) {
        DeviceBuffer buffer = allocate(type, count);
        transformer.randomFill(buffer, type, count, seed, 0, deviation);
        return buffer;
    }

    /** A copy on the host. */
    final MemorySegment download(DeviceBuffer buffer) {
        MemorySegment host = Arena.ofAuto().allocate(buffer.byteSize(), 64);
        open.copy(buffer, host);
        return host;
    }

    /** A copy on the host of so many elements from an index on. */
    final double[] download(DeviceBuffer buffer, ElementType type, long first, int count) {
        MemorySegment host = download(buffer.slice(first * type.bytes(), (long) count * type.bytes()));
        double[] out = new double[count];
        for (int i = 0; i < count; i++) {
            out[i] = Numbers.decode(host, type, i);
        }
        return out;
    }

    final int[] downloadInts(DeviceBuffer buffer, long first, int count) {
        int[] out = new int[count];
        open.copy(buffer.slice(4 * first, 4L * count), MemorySegment.ofArray(out));
        return out;
    }

    /** The type of a parameter; "default" is the one given. */
    static ElementType type(String name, ElementType byDefault) {
        return name.equals("default") ? byDefault : ElementType.valueOf(name.toUpperCase(Locale.ROOT));
    }
}
