package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.Device;
import dev.shadowkv.internal.ffi.skv_dense_layer;

/** Layers of dense caches in device memory: change entries, then upload. One caller at a time. */
public final class DenseLayers extends Table {

    private final Geometry geometry;

    /** A table for a geometry. */
    public DenseLayers(Device device, Geometry geometry, long entries) {
        super(device, entries, skv_dense_layer.sizeof());
        this.geometry = geometry;
    }

    /** Bytes of device memory of an entry. */
    public static long entryBytes() {
        return skv_dense_layer.sizeof();
    }

    /** Changes an entry on the host. */
    public void set(long index, DenseLayer layer) {
        long bytes = Params.bytes(geometry.storageType(), geometry.keyValueHeads(), layer.capacity(),
                geometry.headDim());
        MemorySegment at = entry(index);
        skv_dense_layer.keys(at, MemorySegment.ofAddress(Operands.address(device, "keys", layer.keys(), bytes)));
        skv_dense_layer.values(at, MemorySegment.ofAddress(Operands.address(device, "values", layer.values(), bytes)));
        skv_dense_layer.capacity(at, layer.capacity());
    }
}
