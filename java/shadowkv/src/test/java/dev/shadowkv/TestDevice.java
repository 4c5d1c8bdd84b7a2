package dev.shadowkv;

import java.util.Random;

/** The device that the build names, and seeds that change from run to run and are printed. */
public final class TestDevice {

    private TestDevice() {
    }

    /** cpu, cuda or cuda:N, by -Dshadowkv.test.device. */
    public static Device open() {
        return open(0);
    }

    /** As {@link #open()}, but of the GPUs the one that many places behind it, in a ring. */
    static Device open(int behind) {
        return cuda() ? Device.cuda((ordinal(named()) + behind) % Device.cudaDevices()) : Device.cpu(2);
    }

    /** As the build names it. */
    static Device open(String name) {
        return isCuda(name) ? Device.cuda(ordinal(name)) : Device.cpu(2);
    }

    static String named() {
        String property = System.getProperty("shadowkv.test.device");
        return property != null ? property : System.getenv().getOrDefault("SHADOWKV_TEST_DEVICE", "cpu");
    }

    public static boolean cuda() {
        return isCuda(named());
    }

    private static boolean isCuda(String name) {
        return name.startsWith("cuda");
    }

    private static int ordinal(String name) {
        String[] parts = name.split(":");
        return parts.length > 1 ? Integer.parseInt(parts[1]) : 0;
    }

    /**
     * How caches under test keep keys and values: as the device does best, or by -Dshadowkv.test.storage=BF16 as a GPU
     * does, to look on a CPU at what that type costs.
     */
    static ElementType storageType(Device device) {
        String property = System.getProperty("shadowkv.test.storage");
        return property == null ? device.defaultType() : ElementType.valueOf(property);
    }

    /** A generator with a fresh seed, or the one of -Dshadowkv.test.seed. */
    public static Random random(Class<?> test) {
        long seed = Long.getLong("shadowkv.test.seed", System.nanoTime());
        System.out.println(test.getSimpleName() + ": -Dshadowkv.test.seed=" + seed);
        return new Random(seed);
    }

    /** Distance from 1 to the next number, halved: the relative rounding error. */
    public static double epsilon(ElementType type) {
        return switch (type) {
            case F32 -> 0x1p-24;
            case F16 -> 0x1p-11;
            case BF16, F12_E4M7 -> 0x1p-8;
            case F8_E4M3, F6_E2M3 -> 0x1p-4;
            case I8 -> 0.5 / 127;
        };
    }

    /**
     * What rounding may add to that for small numbers: half the distance between the smallest, as a share of the largest
     * number of a chunk. Of types with a scale; the scale of F12_E4M7 is counted from the largest's power of two.
     */
    public static double smallest(ElementType type) {
        return switch (type) {
            case F8_E4M3 -> 0x1p-10 / 448;
            case F12_E4M7 -> 0x1p-14 * 0x1p-8;
            case F6_E2M3 -> 0x1p-10 / (7.5 / 64);
            default -> 0;
        };
    }
}
