package dev.shadowkv;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;

/** Memory stays flat however long a cache lives. -Dshadowkv.soak.steps=100000 makes it long. */
class SoakTest {

    private static final Pattern REPORT = Pattern.compile(
            "step (\\d+) device (\\d+) driver (\\d+) pinned (\\d+) resident (\\d+) heap (\\d+)");
    /** What the compiler, the collector and the allocator may still take behind the first steps. */
    private static final long RESIDENT_SLACK = 24L << 20;
    private static final long HEAP_SLACK = 4L << 20;
    /** What the driver takes with the first launch of a kernel, which in a short run may come late. */
    private static final long KERNEL_SLACK = 16L << 20;

    private record Taken(long step, long device, long driver, long pinned, long resident, long heap) {
    }

    @Test
    void memoryStaysFlat() throws Exception {
        Assumptions.assumeTrue(Files.isReadable(Path.of("/proc/self/statm")), "there is no /proc/self/statm");
        long steps = Long.getLong("shadowkv.soak.steps", 2000);
        long seed = Long.getLong("shadowkv.test.seed", System.nanoTime());
        ChildJvm child = ChildJvm.run(Soak.class,
                List.of("-Xmx256m", "-Xms256m", "-XX:+AlwaysPreTouch", "-Ddev.shadowkv.leakDetection=true"), Map.of(),
                TestDevice.named(), Long.toString(steps), Long.toString(seed));
        String output = child.output();
        System.out.println(output);
        assertThat(child.exit()).as("seed %s: %s", seed, output).isZero();
        assertThat(output).doesNotContain("never closed");

        List<Taken> taken = new ArrayList<>();
        for (Matcher line = REPORT.matcher(output); line.find();) {
            taken.add(new Taken(Long.parseLong(line.group(1)), Long.parseLong(line.group(2)), Long.parseLong(line.group(3)),
                    Long.parseLong(line.group(4)), Long.parseLong(line.group(5)), Long.parseLong(line.group(6))));
        }
        assertThat(taken).hasSize(10);
        // Of a short run the first half is warming up.
        Taken first = taken.get(4);
        for (Taken later : taken.subList(4, 10)) {
            assertThat(later.device()).as("device bytes of the arenas at %s", later).isEqualTo(first.device());
            assertThat(later.driver()).as("device bytes by the driver at %s", later)
                    .isLessThanOrEqualTo(first.driver() + (steps < 10_000 ? KERNEL_SLACK : 0));
            assertThat(later.pinned()).as("pinned bytes at %s", later).isEqualTo(first.pinned());
            assertThat(later.resident()).as("resident bytes at %s", later).isLessThan(first.resident() + RESIDENT_SLACK);
            assertThat(later.heap()).as("live heap at %s", later).isLessThan(first.heap() + HEAP_SLACK);
        }
    }
}
