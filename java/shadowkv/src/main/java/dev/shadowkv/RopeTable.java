package dev.shadowkv;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * The cosines and sines of a {@link Rope} in a device's memory, for positions from 0 to a limit. Two levels keep it
 * small: the rotation of position p is the product of coarse row p / 512 and fine row p % 512, so that a million
 * positions need 2500 rows. The angles are computed and reduced in double precision.
 */
public final class RopeTable implements AutoCloseable {

    /** Fixed, so that a rotation does not depend on the capacity that a table was made for. */
    static final int FINE_ROWS = 512;

    private final Rope rope;
    private final DeviceArena arena;
    private final DeviceBuffer coarse;
    private final DeviceBuffer fine;
    private final int coarseRows;

    /**
     * Computes and uploads the tables.
     *
     * @param positions how many positions, from 0, can be rotated
     */
    public RopeTable(Device device, Rope rope, long positions) {
        if (positions <= 0 || positions > 1L << 30) {
            throw new IllegalArgumentException("positions must be from 1 to 2^30: " + positions);
        }
        this.rope = rope;
        coarseRows = coarseRows(positions);
        arena = device.newArena();
        coarse = upload(device, rope, coarseRows, FINE_ROWS, rope.scale());
        fine = upload(device, rope, FINE_ROWS, 1, 1);
    }

    /** Bytes of device memory that a table takes. */
    public static long bytes(Rope rope, long positions) {
        return (coarseRows(positions) + (long) FINE_ROWS) * rope.rotaryDim() * Float.BYTES;
    }

    /** What the table was made from. */
    public Rope rope() {
        return rope;
    }

    /** How many positions it covers. */
    public long positions() {
        return (long) coarseRows * FINE_ROWS;
    }

    /** Rows of the coarse table, {@link #fineRows()} positions apart: {@code [row][pair][cos, sin]} times the scale. */
    public DeviceBuffer coarse() {
        return coarse;
    }

    /** Rows of the fine table: {@code [row][pair][cos, sin]}. */
    public DeviceBuffer fine() {
        return fine;
    }

    /** How many coarse rows there are. */
    public int coarseRows() {
        return coarseRows;
    }

    /** How many fine rows there are. */
    public int fineRows() {
        return FINE_ROWS;
    }

    /** Frees the tables; does nothing the second time. */
    @Override
    public void close() {
        arena.close();
    }

    private static int coarseRows(long positions) {
        return Math.toIntExact((positions + FINE_ROWS - 1) / FINE_ROWS);
    }

    private DeviceBuffer upload(Device device, Rope rope, int rows, int step, double scale) {
        double[] frequencies = rope.inverseFrequencies();
        float[] table = new float[Math.multiplyExact(rows, 2 * frequencies.length)];
        int at = 0;
        for (int row = 0; row < rows; row++) {
            for (double frequency : frequencies) {
                double angle = (double) row * step * frequency;
                table[at++] = (float) (Math.cos(angle) * scale);
                table[at++] = (float) (Math.sin(angle) * scale);
            }
        }
        DeviceBuffer buffer = arena.allocate((long) table.length * ValueLayout.JAVA_FLOAT.byteSize());
        device.copy(MemorySegment.ofArray(table), buffer);
        return buffer;
    }
}
