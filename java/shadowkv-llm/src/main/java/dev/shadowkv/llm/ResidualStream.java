package dev.shadowkv.llm;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.DeviceLane;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Rows;
import java.util.ArrayList;
import java.util.List;

/**
 * The residual stream of a prompt, {@code [tokens][hidden]}, on its way through the layers, block of rows by block of
 * rows. A short one lies on the device. A long one, which would take the place of sessions there, lies in pinned host
 * memory: while a block is computed, the one before it goes to the host and the one after it comes, so two blocks are on
 * the device, and the copies, 2 x 33 MB a block of 2048 rows of 4096, hide behind some milliseconds of computation.
 */
abstract sealed class ResidualStream {
    /**
     * Rows that go through a layer together.
     *
     * @param continued whether a later layer or the logits need what the layer makes of them
     */
    record Block(int layer, int first, int rows, boolean continued) {}

    /** All blocks of a prompt in the order in which they are computed: layer by layer, each over the whole prompt. */
    static List<Block> blocks(int tokens, int layers, int size, int firstLogits) {
        List<Block> blocks = new ArrayList<>();
        for (int layer = 0; layer < layers; layer++) {
            // Of the last layer nobody needs more than keys and values but for the rows whose logits are wanted.
            int first = layer == layers - 1 ? firstLogits : 0;
            add(blocks, layer, 0, first, size, false);
            add(blocks, layer, first, tokens, size, true);
        }
        return blocks;
    }

    private static void add(List<Block> blocks, int layer, int first, int end, int size, boolean continued) {
        for (int at = first; at < end; at += size) {
            blocks.add(new Block(layer, at, Math.min(size, end - at), continued));
        }
    }

    final ElementType type;
    final long rowBytes;

    private ResidualStream(ElementType type, long hidden) {
        this.type = type;
        rowBytes = hidden * type.bytes();
    }

    /** Where block {@code index} is computed; of the first layer the rows are still to be made. */
    abstract Rows begin(int index);

    /** Comes after the last block. */
    abstract void end();

    /** Rows after the last block, no more than a block; valid until the next call. */
    abstract Rows rows(int first, int count);

    /** All of it in device memory. */
    static final class OnDevice extends ResidualStream {
        private final List<Block> blocks;
        private final DeviceBuffer memory;

        OnDevice(List<Block> blocks, int tokens, ElementType type, long hidden, DeviceArena arena) {
            super(type, hidden);
            this.blocks = blocks;
            memory = arena.allocate(tokens * rowBytes);
        }

        @Override
        Rows begin(int index) {
            return rows(blocks.get(index).first(), blocks.get(index).rows());
        }

        @Override
        void end() {
            // It is where it was computed.
        }

        @Override
        Rows rows(int first, int count) {
            return Rows.of(memory.slice(first * rowBytes, count * rowBytes), type);
        }
    }

    /**
     * In host memory, of at least two blocks: the block that is fetched while another is computed must have been given
     * back before.
     */
    static final class OnHost extends ResidualStream {
        private final Device device;
        private final List<Block> blocks;
        private final DeviceBuffer host;
        private final DeviceBuffer[] buffers = new DeviceBuffer[2];

        /**
         * @param host pinned memory for the whole prompt
         * @param size rows of the largest block
         */
        OnHost(List<Block> blocks, DeviceBuffer host, int size, ElementType type, long hidden, DeviceArena arena) {
            super(type, hidden);
            this.blocks = blocks;
            this.host = host;
            device = arena.device();
            for (int i = 0; i < buffers.length; i++) {
                buffers[i] = arena.allocate(size * rowBytes);
            }
        }

        @Override
        Rows begin(int index) {
            // The block before is computed and this one is here; from now on both lanes go on beside each other.
            device.meet(DeviceLane.COPIES);
            device.on(DeviceLane.COPIES, () -> {
                give(index - 1);
                fetch(index + 1);
            });
            return Rows.of(buffers[index % 2].slice(0, blocks.get(index).rows() * rowBytes), type);
        }

        @Override
        void end() {
            device.meet(DeviceLane.COPIES);
            give(blocks.size() - 1);
        }

        private void give(int index) {
            if (index >= 0 && blocks.get(index).continued()) {
                Block block = blocks.get(index);
                device.copy(buffers[index % 2].slice(0, block.rows() * rowBytes), place(block.first(), block.rows()));
            }
        }

        private void fetch(int index) {
            if (index < blocks.size() && blocks.get(index).layer() > 0) {
                Block block = blocks.get(index);
                device.copy(place(block.first(), block.rows()), buffers[index % 2]);
            }
        }

        private DeviceBuffer place(int first, int rows) {
            return host.slice(first * rowBytes, rows * rowBytes);
        }

        @Override
        Rows rows(int first, int count) {
            device.copy(place(first, count), buffers[0]);
            return Rows.of(buffers[0].slice(0, count * rowBytes), type);
        }
    }
}
