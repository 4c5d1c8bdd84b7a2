package dev.shadowkv;

import dev.shadowkv.kernels.Geometry;

/**
 * Where the parts of a shadow session lie, for a capacity. Three ranges a session: what forks share (device and pinned)
 * and what each has for itself. While a session is short enough to be exact, its dense copy overlays the shared range:
 * the index is not there yet.
 */
final class ShadowLayout {

    final long capacity;
    final long chunks;

    final long coefficients;
    final long coefficientScales;
    final long basis;
    final long headScales;
    final long landmarks;
    final long landmarkScales;
    final long radius;
    final long valueScales;
    final long outlierKeys;
    final long outlierValues;
    final long moments;
    final long valueBasis;
    final long sharedLayerBytes;

    /** Chunks that an exact session keeps dense before the recent window. */
    final long exactChunks;
    final long exactKeys;
    final long exactValues;

    final long recentKeys;
    final long recentValues;
    final long slotValues;
    final long slotChunk;
    final long slotStamp;
    final long slotKeys;
    final long ownLayerBytes;

    final long pinnedLayerBytes;

    private long end;

    ShadowLayout(ShadowOptions options, long capacity) {
        Geometry g = options.geometry();
        this.capacity = capacity;
        long c = g.chunk();
        chunks = (capacity + c - 1) / c;
        long heads = g.keyValueHeads();
        long d = g.headDim();
        long e = g.storageType().bytes();

        coefficients = place(g.coefficientType().bytes(chunks * c * g.rank()));
        coefficientScales = place(g.coefficientType() == ElementType.I8 ? g.rank() * 4 : 0);
        basis = place(heads * g.rank() * d * e);
        headScales = place(options.balanceHeads() ? heads * 4 : 0);
        landmarks = place(heads * chunks * d * g.landmarkType().bytes());
        landmarkScales = place(g.landmarkType() == ElementType.I8 ? heads * chunks * 4 : 0);
        radius = place(heads * chunks * 4);
        valueScales = place(g.valueType().isScaled() ? heads * chunks * 4 : 0);
        long outlierBytes = heads * options.outlierCapacity() * c * d * e;
        outlierKeys = place(outlierBytes);
        outlierValues = place(outlierBytes);
        moments = place(options.tail() ? g.momentFloats() * 4 : 0);
        valueBasis = place(options.predictDropped() ? heads * g.rank() * d * e : 0);
        long indexedBytes = end;

        end = 0;
        exactChunks = Math.min(chunks, options.select() - 1);
        exactKeys = place(heads * exactChunks * c * d * e);
        exactValues = place(heads * exactChunks * c * d * e);
        sharedLayerBytes = Math.max(indexedBytes, end);

        end = 0;
        recentKeys = place(heads * g.window() * d * e);
        recentValues = place(heads * g.window() * d * e);
        slotValues = place(options.keepKeys() ? 0 : g.slotValueBytes());
        slotChunk = place(heads * g.slots() * 4);
        slotStamp = place(heads * g.slots() * 4);
        slotKeys = place(options.keepKeys() ? heads * g.slots() * c * d * e : 0);
        ownLayerBytes = end;

        pinnedLayerBytes = SlabPool.align(g.valueType().bytes(heads * chunks * c * d));
    }

    private long place(long bytes) {
        long at = end;
        end = Math.addExact(end, SlabPool.align(bytes));
        return at;
    }
}
