package dev.shadowkv;

import java.lang.foreign.MemorySegment;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;

/** One layer of what forks share. Buffers of absent parts are null. */
final class SharedLayer {

    final DeviceBuffer coefficients;
    /** As in {@link dev.shadowkv.kernels.CacheKernels#lowRankFactor}. */
    final DeviceBuffer coefficientScales;
    final DeviceBuffer basis;
    /** As in {@link dev.shadowkv.kernels.CacheKernels#lowRankFactor}. */
    final DeviceBuffer headScales;
    final DeviceBuffer landmarks;
    final DeviceBuffer landmarkScales;
    final DeviceBuffer radius;
    final DeviceBuffer valueScales;
    final DeviceBuffer outlierKeys;
    final DeviceBuffer outlierValues;
    /** The outliers once more, as chunks in the order of their places; null where there are none. */
    final Ring outlierKeyRows;
    final Ring outlierValueRows;
    /** As in {@link dev.shadowkv.kernels.CacheKernels#momentUpdate}. */
    final DeviceBuffer moments;
    /** As in {@link dev.shadowkv.kernels.CacheKernels#valueFit}. */
    final DeviceBuffer valueBasis;
    final DeviceBuffer exactKeys;
    final DeviceBuffer exactValues;
    /** The exact copy once more, as the dense rows that it is; null where there is none. */
    final Ring exactKeyRows;
    final Ring exactValueRows;
    final MemorySegment values;

    SharedLayer(DeviceBuffer slab, MemorySegment pinned, ShadowLayout l, ShadowOptions options) {
        Geometry g = options.geometry();
        long heads = g.keyValueHeads();
        long e = g.storageType().bytes();
        long d = g.headDim();
        coefficients = part(slab, l.coefficients, g.coefficientType().bytes(l.chunks * g.chunk() * g.rank()));
        coefficientScales = part(slab, l.coefficientScales, g.coefficientType() == ElementType.I8 ? g.rank() * 4 : 0);
        basis = part(slab, l.basis, heads * g.rank() * d * e);
        headScales = part(slab, l.headScales, options.balanceHeads() ? heads * 4 : 0);
        landmarks = part(slab, l.landmarks, heads * l.chunks * d * g.landmarkType().bytes());
        landmarkScales = part(slab, l.landmarkScales, g.landmarkType() == ElementType.I8 ? heads * l.chunks * 4 : 0);
        radius = part(slab, l.radius, heads * l.chunks * 4);
        valueScales = part(slab, l.valueScales, g.valueType().isScaled() ? heads * l.chunks * 4 : 0);
        long outliers = heads * options.outlierCapacity() * g.chunk() * d * e;
        outlierKeys = part(slab, l.outlierKeys, outliers);
        outlierValues = part(slab, l.outlierValues, outliers);
        long outlierTokens = (long) options.outlierCapacity() * g.chunk();
        outlierKeyRows = outlierKeys == null ? null : new Ring(outlierKeys, g.storageType(), outlierTokens);
        outlierValueRows = outlierValues == null ? null : new Ring(outlierValues, g.storageType(), outlierTokens);
        moments = part(slab, l.moments, options.tail() ? g.momentFloats() * 4 : 0);
        valueBasis = part(slab, l.valueBasis, options.predictDropped() ? heads * g.rank() * d * e : 0);
        long exactTokens = l.exactChunks * g.chunk();
        exactKeys = part(slab, l.exactKeys, heads * exactTokens * d * e);
        exactValues = part(slab, l.exactValues, heads * exactTokens * d * e);
        exactKeyRows = exactKeys == null ? null : new Ring(exactKeys, g.storageType(), exactTokens);
        exactValueRows = exactValues == null ? null : new Ring(exactValues, g.storageType(), exactTokens);
        values = pinned;
    }

    static DeviceBuffer part(DeviceBuffer slab, long offset, long bytes) {
        return bytes == 0 ? null : slab.slice(offset, bytes);
    }
}
