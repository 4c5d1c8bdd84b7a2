package dev.shadowkv;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

import dev.shadowkv.internal.Children;
import dev.shadowkv.internal.Lifetime;
import dev.shadowkv.internal.NativeContext;
import dev.shadowkv.internal.ffi.ShadowKv;

/** Work of a device, recorded once by {@link Device#capture} and repeated with one call. */
public final class DeviceGraph implements AutoCloseable {

    private final Device device;
    private final NativeContext context;
    private final MemorySegment graph;
    private final Lifetime lifetime;
    private final Children.Child closing;

    DeviceGraph(Device device, Runnable work) {
        this.device = device;
        this.context = device.context();
        this.lifetime = new Lifetime("DeviceGraph", device.lifetime());
        MemorySegment handle = context.enter();
        try (Arena arena = Arena.ofConfined()) {
            context.check(ShadowKv.skv_graph_begin(handle), "graph_begin");
            MemorySegment out = arena.allocate(ValueLayout.ADDRESS);
            RuntimeException failure = null;
            device.capturing(true);
            try {
                work.run();
            } catch (RuntimeException e) {
                failure = e;
            } finally {
                device.capturing(false);
            }
            // A capture must be ended even when the work failed, or the stream stays unusable.
            int status = ShadowKv.skv_graph_end(handle, out);
            if (failure != null) {
                if (status == 0) {
                    ShadowKv.skv_graph_destroy(handle, out.get(ValueLayout.ADDRESS, 0));
                }
                throw failure;
            }
            context.check(status, "graph_end");
            graph = out.get(ValueLayout.ADDRESS, 0);
        } finally {
            context.exit();
        }
        closing = device.children().add(this::destroy);
    }

    /** Repeats the work, asynchronously. */
    public void launch() {
        lifetime.check();
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_graph_launch(handle, graph), "graph_launch");
        } finally {
            context.exit();
        }
    }

    /** Frees the recording; does nothing the second time. */
    @Override
    public void close() {
        closing.close();
        device.children().remove(closing);
    }

    private void destroy() {
        if (!lifetime.close()) {
            return;
        }
        MemorySegment handle = context.enter();
        try {
            context.check(ShadowKv.skv_graph_destroy(handle, graph), "graph_destroy");
        } finally {
            context.exit();
        }
    }
}
