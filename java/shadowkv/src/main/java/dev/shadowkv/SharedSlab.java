package dev.shadowkv;

import java.lang.foreign.MemorySegment;

/** What forks of a session share, in device and in pinned memory, until one of them changes it. */
final class SharedSlab {

    final DeviceBuffer device;
    final MemorySegment pinned;
    final SharedLayer[] layers;
    final long deviceOffset;
    final long pinnedOffset;
    int users = 1;

    SharedSlab(DeviceBuffer device, long deviceOffset, MemorySegment pinned, long pinnedOffset, ShadowLayout layout,
               ShadowOptions options, int layerCount) {
        this.device = device;
        this.deviceOffset = deviceOffset;
        this.pinned = pinned;
        this.pinnedOffset = pinnedOffset;
        layers = new SharedLayer[layerCount];
        for (int layer = 0; layer < layerCount; layer++) {
            layers[layer] = new SharedLayer(
                    device.slice(layer * layout.sharedLayerBytes, layout.sharedLayerBytes),
                    pinned.asSlice(layer * layout.pinnedLayerBytes, layout.pinnedLayerBytes), layout, options);
        }
    }
}
