package dev.shadowkv.kernels;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.internal.ffi.skv_shadow_layer;

/** Layers of shadow caches in device memory: change entries, then upload. One caller at a time. */
public final class ShadowLayers extends Table {

    private final Geometry geometry;

    /** A table for a geometry. */
    public ShadowLayers(Device device, Geometry geometry, long entries) {
        super(device, entries, skv_shadow_layer.sizeof());
        this.geometry = geometry;
    }

    /** Bytes of device memory of an entry. */
    public static long entryBytes() {
        return skv_shadow_layer.sizeof();
    }

    /** Changes an entry on the host. */
    public void set(long index, ShadowLayer layer) {
        Geometry g = geometry;
        long heads = g.keyValueHeads();
        long chunks = layer.chunkCapacity();
        long chunkElements = (long) g.chunk() * g.headDim();
        ElementType storage = g.storageType();
        MemorySegment at = entry(index);
        skv_shadow_layer.coefficients(at, buffer("coefficients", layer.coefficients(),
                Params.bytes(g.coefficientType(), chunks, g.chunk(), g.rank())));
        skv_shadow_layer.basis(at, buffer("basis", layer.basis(), Params.bytes(storage, heads, g.rank(), g.headDim())));
        skv_shadow_layer.landmarks(at, buffer("landmarks", layer.landmarks(),
                Params.bytes(g.landmarkType(), heads, chunks, g.headDim())));
        skv_shadow_layer.landmark_scales(at, g.landmarkType() == ElementType.I8
                ? buffer("landmarkScales", layer.landmarkScales(), 4 * heads * chunks) : MemorySegment.NULL);
        skv_shadow_layer.radius(at, buffer("radius", layer.radius(), 4 * heads * chunks));
        long outliers = Params.bytes(storage, heads, layer.outlierCapacity(), chunkElements);
        skv_shadow_layer.outlier_keys(at, outliers == 0 ? MemorySegment.NULL
                : buffer("outlierKeys", layer.outlierKeys(), outliers));
        skv_shadow_layer.outlier_values(at, outliers == 0 ? MemorySegment.NULL
                : buffer("outlierValues", layer.outlierValues(), outliers));
        long window = Params.bytes(storage, heads, g.window(), g.headDim());
        skv_shadow_layer.recent_keys(at, buffer("recentKeys", layer.recentKeys(), window));
        skv_shadow_layer.recent_values(at, buffer("recentValues", layer.recentValues(), window));
        skv_shadow_layer.values(at, Params.host("values", layer.values(),
                Params.bytes(g.valueType(), heads, chunks, chunkElements)));
        skv_shadow_layer.value_scales(at, g.valueType().isScaled()
                ? buffer("valueScales", layer.valueScales(), 4 * heads * chunks) : MemorySegment.NULL);
        boolean slots = g.slots() > 0;
        long slotEntries = heads * g.slots();
        skv_shadow_layer.slot_values(at, slots && layer.slotKeys() == null
                ? buffer("slotValues", layer.slotValues(), Params.bytes(g.valueType().unpacked(), slotEntries, chunkElements))
                : MemorySegment.NULL);
        skv_shadow_layer.slot_chunk(at, slots ? buffer("slotChunk", layer.slotChunk(),
                4 * slotEntries) : MemorySegment.NULL);
        skv_shadow_layer.slot_stamp(at, slots ? buffer("slotStamp", layer.slotStamp(),
                4 * slotEntries) : MemorySegment.NULL);
        skv_shadow_layer.moments(at, layer.moments() == null ? MemorySegment.NULL
                : buffer("moments", layer.moments(), 4 * g.momentFloats()));
        skv_shadow_layer.slot_keys(at, layer.slotKeys() == null ? MemorySegment.NULL
                : buffer("slotKeys", layer.slotKeys(), Params.bytes(storage, slotEntries, chunkElements)));
        skv_shadow_layer.value_basis(at, layer.valueBasis() == null ? MemorySegment.NULL
                : buffer("valueBasis", layer.valueBasis(), Params.bytes(storage, heads, g.rank(), g.headDim())));
        skv_shadow_layer.chunk_capacity(at, chunks);
        skv_shadow_layer.outlier_capacity(at, layer.outlierCapacity());
    }

    private MemorySegment buffer(String name, DeviceBuffer buffer, long bytes) {
        return MemorySegment.ofAddress(Operands.address(device, name, buffer, bytes));
    }
}
