package dev.shadowkv;

import dev.shadowkv.kernels.Geometry;
import dev.shadowkv.kernels.Ring;

/** One layer of what a session has for itself: the recent window and the value slots. Absent parts are null. */
final class OwnLayer {

    final DeviceBuffer recentKeys;
    final DeviceBuffer recentValues;
    final Ring keyRing;
    final Ring valueRing;
    final DeviceBuffer slotValues;
    final DeviceBuffer slotChunk;
    final DeviceBuffer slotStamp;
    final DeviceBuffer slotKeys;

    OwnLayer(DeviceBuffer slab, ShadowLayout l, ShadowOptions options) {
        Geometry g = options.geometry();
        long heads = g.keyValueHeads();
        long window = heads * g.window() * g.headDim() * g.storageType().bytes();
        recentKeys = slab.slice(l.recentKeys, window);
        recentValues = slab.slice(l.recentValues, window);
        keyRing = new Ring(recentKeys, g.storageType(), g.window());
        valueRing = new Ring(recentValues, g.storageType(), g.window());
        slotValues = SharedLayer.part(slab, l.slotValues,
                options.keepKeys() ? 0 : g.slotValueBytes());
        slotChunk = SharedLayer.part(slab, l.slotChunk, heads * g.slots() * 4);
        slotStamp = SharedLayer.part(slab, l.slotStamp, heads * g.slots() * 4);
        slotKeys = SharedLayer.part(slab, l.slotKeys,
                options.keepKeys() ? heads * g.slots() * g.chunk() * g.headDim() * g.storageType().bytes() : 0);
    }
}
