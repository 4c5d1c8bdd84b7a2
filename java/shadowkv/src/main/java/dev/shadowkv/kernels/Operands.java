package dev.shadowkv.kernels;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceBuffer;

/** Checks operands against the bytes that the native side will touch. */
final class Operands {

    private Operands() {
    }

    static long address(Device device, String name, DeviceBuffer buffer, long bytes) {
        if (buffer == null) {
            throw new NullPointerException(name);
        }
        if (buffer.device() != device) {
            throw new IllegalArgumentException(name + " belongs to another device: " + buffer);
        }
        if (buffer.byteSize() < bytes) {
            throw new IndexOutOfBoundsException(
                    name + " has " + buffer.byteSize() + " bytes, but " + bytes + " will be touched");
        }
        return buffer.address();
    }
}
