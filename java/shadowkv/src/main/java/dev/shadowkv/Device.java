package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;
import java.util.Optional;

import dev.shadowkv.internal.BlasLibraries;
import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.Lifetime;
import dev.shadowkv.internal.NativeContext;
import dev.shadowkv.internal.NativeLibrary;
import dev.shadowkv.internal.ffi.ShadowKv;
import dev.shadowkv.internal.ffi.skv_context_params;
import dev.shadowkv.internal.ffi.skv_device_info;

/**
 * A CPU or a GPU with one stream of work, one workspace and one BLAS library. Work on a GPU is asynchronous:
 * {@link #synchronize()} waits for it; work on a CPU is done when a call returns.
 *
 * <p>May be used from any thread; calls from several threads take turns. Closing it closes the arenas and caches made
 * on it, the youngest first.
 */
public final class Device implements AutoCloseable {

    static {
        NativeContext.lookup(device -> ((Device) device).context);
    }

    /** Free and total bytes of a device's memory. */
    public record Memory(long free, long total) {
    }

    /**
     * What a device is.
     *
     * @param multiprocessors of a GPU, or processors of a CPU
     * @param computeCapability of a GPU such as "9.0", else empty
     * @param driverVersion of a GPU such as 13000, else 0
     * @param instructionSet of a CPU: "portable", "AVX2", "AVX-512", "AVX-512 BF16", else empty
     */
    public record Info(String name, int multiprocessors, String computeCapability, int driverVersion,
                       String instructionSet, long totalMemory) {
    }

    /** Which vector instructions a CPU device uses; for tests and comparisons. */
    public enum InstructionSet {
        /** The best that the processor has. */
        BEST,
        /** The x86-64 baseline. */
        PORTABLE,
        /** 256-bit vectors with fused multiply-add. */
        AVX2,
        /** 512-bit vectors. */
        AVX512,
        /** 512-bit vectors with products of bf16 pairs. */
        AVX512_BF16
    }

    private final boolean cpu;
    private final int ordinal;
    private final NativeContext context;
    private final Lifetime lifetime;
    private final Children children = new Children();
    private final NativeMemory calls;
    private final Info info;
    private volatile boolean capturing;
    private DeviceArena own;

    private Device(Builder builder) {
        cpu = builder.cpu;
        ordinal = builder.ordinal;
        info = describe(cpu ? 0 : 1, ordinal);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment params = skv_context_params.allocate(arena);
            skv_context_params.struct_size(params, (int) skv_context_params.sizeof());
            skv_context_params.backend(params, cpu ? 0 : 1);
            skv_context_params.ordinal(params, ordinal);
            skv_context_params.threads(params, builder.threads);
            skv_context_params.stream(params, builder.stream);
            skv_context_params.own_stream(params, builder.ownStream ? 1 : 0);
            skv_context_params.instruction_set(params, builder.instructionSet.ordinal());
            String blas = BlasLibraries.path(!cpu, builder.blas);
            skv_context_params.blas_path(params, blas == null ? MemorySegment.NULL : arena.allocateFrom(blas));
            context = NativeContext.create(params);
        }
        calls = new NativeMemory(context);
        lifetime = new Lifetime("Device", null);
    }

    /** All processors of this process. */
    public static Device cpu() {
        return builder().build();
    }

    /** A CPU device that computes with a number of threads. */
    public static Device cpu(int threads) {
        return builder().threads(threads).build();
    }

    /**
     * A GPU with a stream of its own.
     *
     * @throws ShadowKvException with {@link Status#NOT_AVAILABLE} and the reason where there is none
     */
    public static Device cuda(int ordinal) {
        return builder().cuda(ordinal).build();
    }

    /** The first GPU, or the CPU where there is none. */
    public static Device best() {
        return cudaUnavailableReason().isEmpty() ? cuda(0) : cpu();
    }

    /** Why there is no GPU to use; empty when there is one. */
    public static Optional<String> cudaUnavailableReason() {
        try {
            return cudaDevices() > 0 ? Optional.empty() : Optional.of("the driver reports no GPU");
        } catch (ShadowKvException e) {
            return Optional.of(e.getMessage());
        }
    }

    /** How many GPUs there are. */
    public static int cudaDevices() {
        NativeLibrary.load();
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment count = arena.allocate(ValueLayout.JAVA_INT);
            MemorySegment message = arena.allocate(4096);
            NativeContext.check(ShadowKv.skv_device_count(1, count, message, message.byteSize()), "device_count",
                    message);
            return count.get(ValueLayout.JAVA_INT, 0);
        }
    }

    /** Version of the native library and what was compiled into it. */
    public static String nativeBuildInfo() {
        return NativeLibrary.buildInfo();
    }

    /** From where the native library was loaded. */
    public static String nativeLibraryOrigin() {
        return NativeLibrary.load().origin();
    }

    /** A device with options; the CPU unless {@link Builder#cuda} is called. */
    public static Builder builder() {
        return new Builder();
    }

    /** Options of a device. */
    public static final class Builder {
        private boolean cpu = true;
        private int ordinal;
        private int threads;
        private long stream;
        private boolean ownStream = true;
        private String blas;
        private InstructionSet instructionSet = InstructionSet.BEST;

        private Builder() {
        }

        /** Takes a GPU. */
        public Builder cuda(int gpu) {
            if (gpu < 0) {
                throw new IllegalArgumentException("ordinal must not be negative: " + gpu);
            }
            cpu = false;
            ordinal = gpu;
            return this;
        }

        /** How many threads a CPU computes with; 0: all processors of this process. */
        public Builder threads(int count) {
            if (count < 0 || count > 4096) {
                throw new IllegalArgumentException("threads must be from 0 to 4096: " + count);
            }
            threads = count;
            return this;
        }

        /** A stream of another library, as the address of its {@code cudaStream_t}, instead of an own one. */
        public Builder stream(long address) {
            stream = address;
            ownStream = false;
            return this;
        }

        /** A file or folder in which to look for BLAS first; several separated by ':'. {@code "none"}: do without. */
        public Builder blasPath(String path) {
            blas = Objects.requireNonNull(path);
            return this;
        }

        /** Which vector instructions a CPU may use. */
        public Builder instructionSet(InstructionSet set) {
            instructionSet = Objects.requireNonNull(set);
            return this;
        }

        /** Opens the device. */
        public Device build() {
            NativeLibrary.load();
            return new Device(this);
        }
    }

    /** Whether this is a CPU, whose memory Java can read. */
    public boolean isCpu() {
        return cpu;
    }

    /** Such as "cpu" or "cuda:0". */
    public String name() {
        return cpu ? "cpu" : "cuda:" + ordinal;
    }

    /** What this device is. */
    public Info info() {
        return info;
    }

    /** The type in which this device keeps keys best: F32 on a CPU, BF16 on a GPU. */
    public ElementType defaultType() {
        return cpu ? ElementType.F32 : ElementType.BF16;
    }

    /** Allocates memory that lives as long as the device. */
    public DeviceBuffer allocate(long bytes) {
        synchronized (this) {
            lifetime.check();
            if (own == null) {
                own = newArena();
            }
        }
        return own.allocate(bytes);
    }

    /** Makes an arena of device memory. */
    public DeviceArena newArena() {
        lifetime.check();
        return new DeviceArena(this);
    }

    /** Makes an arena of host memory that the device can follow. */
    public PinnedArena newPinnedArena() {
        lifetime.check();
        return new PinnedArena(this);
    }

    /**
     * Copies host memory to the device; the source may be a heap segment and may be changed when the call returns.
     *
     * @throws IndexOutOfBoundsException if the target is smaller than the source
     */
    public void copy(MemorySegment source, DeviceBuffer target) {
        require(target, source.byteSize());
        if (source.isNative()) {
            calls.copy(MemorySegment.ofAddress(target.address()), source, source.byteSize());
        } else {
            try (Arena arena = Arena.ofConfined()) {
                MemorySegment staging = arena.allocate(Math.max(1, source.byteSize()), 64).copyFrom(source);
                calls.copy(MemorySegment.ofAddress(target.address()), staging, source.byteSize());
            }
        }
    }

    /**
     * Copies device memory to the host and waits for it.
     *
     * @throws IndexOutOfBoundsException if the source is smaller than the target
     */
    public void copy(DeviceBuffer source, MemorySegment target) {
        require(source, target.byteSize());
        if (target.isReadOnly()) {
            throw new IllegalArgumentException("target is read-only");
        }
        if (target.isNative()) {
            calls.copy(target, MemorySegment.ofAddress(source.address()), target.byteSize());
            synchronize();
        } else {
            try (Arena arena = Arena.ofConfined()) {
                MemorySegment staging = arena.allocate(Math.max(1, target.byteSize()), 64);
                calls.copy(staging, MemorySegment.ofAddress(source.address()), target.byteSize());
                synchronize();
                target.copyFrom(staging.asSlice(0, target.byteSize()));
            }
        }
    }

    /** Copies within the device. */
    public void copy(DeviceBuffer source, DeviceBuffer target) {
        require(source, source.byteSize());
        require(target, source.byteSize());
        calls.copy(MemorySegment.ofAddress(target.address()), MemorySegment.ofAddress(source.address()), source.byteSize());
    }

    /** Copies rows that lie apart, within the device; pitches and width in bytes. */
    public void copyRows(DeviceBuffer source, long sourcePitch, DeviceBuffer target, long targetPitch, long width,
            long rows) {
        require(source, rows == 0 ? 0 : Math.addExact(Math.multiplyExact(rows - 1, sourcePitch), width));
        require(target, rows == 0 ? 0 : Math.addExact(Math.multiplyExact(rows - 1, targetPitch), width));
        calls.copyRows(target.address(), targetPitch, source.address(), sourcePitch, width, rows);
    }

    /** Sets every byte. */
    public void fill(DeviceBuffer target, int value) {
        require(target, target.byteSize());
        calls.fill(target.address(), value, target.byteSize());
    }

    /** Waits until all work of this device is done, on all lanes. */
    public void synchronize() {
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_synchronize(handle), "synchronize");
        } finally {
            context.exit();
        }
    }

    /**
     * Records what the work asks this device to do, to be repeated by {@link DeviceGraph#launch()}. The work is not
     * done now. On a CPU there are no graphs: {@link Status#NOT_AVAILABLE}.
     */
    public DeviceGraph capture(Runnable work) {
        return new DeviceGraph(this, work);
    }

    /**
     * Gives work to a lane, beside what is under way on others: copies, fills and {@code CacheKernels.valueStore}, since
     * everything else shares the workspace. Nobody else can use the device while the work is given.
     *
     * @throws ShadowKvException with {@link Status#INVALID_ARGUMENT} while a step is captured, or for other work
     */
    public void on(DeviceLane lane, Runnable work) {
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_use_lane(handle, lane.ordinal()), "use_lane");
            try {
                work.run();
            } finally {
                context.check(ShadowKv.skv_use_lane(handle, DeviceLane.MAIN.ordinal()), "use_lane");
            }
        } finally {
            context.exit();
        }
    }

    /**
     * Orders two lanes: what {@link DeviceLane#MAIN} and the other are given from now on begins when both have done what
     * they were given before. Does not wait.
     *
     * @throws ShadowKvException with {@link Status#INVALID_ARGUMENT} while a step is captured, or for the main lane
     */
    public void meet(DeviceLane other) {
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_meet_lane(handle, other.ordinal()), "meet_lane");
        } finally {
            context.exit();
        }
    }

    /**
     * Keeps back the operations that {@code work} asks for, then does those of one kind at once, kinds in the order in
     * which they were first asked for: several layers with the launches of one. Operations of one kind must not depend
     * on each other, and whatever is no operation, copies above all, must not depend on them.
     */
    void together(Runnable work) {
        context.together(work);
    }

    /** Records the stream's time under one of the marks 0 to 15. */
    public void mark(int mark) {
        Objects.checkIndex(mark, 16);
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_mark(handle, mark), "mark");
        } finally {
            context.exit();
        }
    }

    /** Milliseconds between two marks; waits for the later one. */
    public double elapsed(int from, int to) {
        Objects.checkIndex(from, 16);
        Objects.checkIndex(to, 16);
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment milliseconds = arena.allocate(ValueLayout.JAVA_FLOAT);
            MemorySegment handle = context.enter();
            try {
                context.check(ShadowKv.skv_elapsed(handle, from, to, milliseconds), "elapsed");
            } finally {
                context.exit();
            }
            return milliseconds.get(ValueLayout.JAVA_FLOAT, 0);
        }
    }

    /** Free and total memory now. */
    public Memory memory() {
        return calls.info();
    }

    /** Bytes of device memory that this device's arenas hold now. */
    public long allocatedBytes() {
        return calls.deviceBytes();
    }

    /** Bytes of pinned memory that this device's arenas hold now. */
    public long pinnedBytes() {
        return calls.pinnedBytes();
    }

    /** Which BLAS is used and where it was found, or where it was looked for. */
    public String describeBlas() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = arena.allocate(8192);
            MemorySegment handle = context.enter();
            try {
                context.check(ShadowKv.skv_blas_describe(handle, text, text.byteSize()), "blas_describe");
            } finally {
                context.exit();
            }
            return text.getString(0);
        }
    }

    /** The address of this device's {@code cudaStream_t}; 0 for a CPU. */
    public long streamAddress() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment stream = arena.allocate(ValueLayout.JAVA_LONG);
            MemorySegment handle = context.enter();
            try {
                context.check(ShadowKv.skv_context_stream(handle, stream), "context_stream");
            } finally {
                context.exit();
            }
            return stream.get(ValueLayout.JAVA_LONG, 0);
        }
    }

    /** Closes what was made on this device, then the device; does nothing the second time. */
    @Override
    public void close() {
        if (lifetime.isClosed()) {
            return;
        }
        RuntimeException failure = Children.close(this::synchronize, null);
        failure = Children.close(children::close, failure);
        if (lifetime.close()) {
            failure = Children.close(context::destroy, failure);
        }
        if (failure != null) {
            throw failure;
        }
    }

    @Override
    public String toString() {
        return name() + " (" + info.name() + ")";
    }

    Lifetime lifetime() {
        return lifetime;
    }

    Children children() {
        return children;
    }

    NativeContext context() {
        return context;
    }

    boolean capturing() {
        return capturing;
    }

    void capturing(boolean now) {
        capturing = now;
    }

    NativeMemory memoryCalls() {
        return calls;
    }

    private void require(DeviceBuffer buffer, long bytes) {
        if (buffer.device() != this) {
            throw new IllegalArgumentException(buffer + " belongs to another device than " + name());
        }
        Objects.checkFromIndexSize(0, bytes, buffer.byteSize());
    }

    private static String instructionSet(int set) {
        return switch (set) {
            case 4 -> "AVX-512 BF16";
            case 3 -> "AVX-512";
            case 2 -> "AVX2";
            default -> "portable";
        };
    }

    private static Info describe(int backend, int ordinal) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment info = skv_device_info.allocate(arena);
            skv_device_info.struct_size(info, (int) skv_device_info.sizeof());
            MemorySegment message = arena.allocate(4096);
            NativeContext.check(ShadowKv.skv_device_describe(backend, ordinal, info, message, message.byteSize()),
                    "device_describe", message);
            return new Info(skv_device_info.name(info).getString(0), skv_device_info.multiprocessors(info),
                    backend == 0 ? "" : skv_device_info.compute_major(info) + "." + skv_device_info.compute_minor(info),
                    skv_device_info.driver_version(info),
                    backend != 0 ? "" : instructionSet(skv_device_info.instruction_set(info)),
                    skv_device_info.total_memory(info));
        }
    }
}
