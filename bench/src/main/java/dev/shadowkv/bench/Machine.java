package dev.shadowkv.bench;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;

import dev.shadowkv.Device;

/** On what a run was made, for those who read its figures. */
final class Machine {

    private Machine() {
    }

    static Map<String, String> describe(Device device, int threads) {
        Map<String, String> out = new LinkedHashMap<>();
        out.put("date", Instant.now().truncatedTo(ChronoUnit.SECONDS).toString());
        out.put("commit", commit());
        out.put("device", device.isCpu() ? "cpu" : device.info().name());
        if (!device.isCpu()) {
            out.put("multiprocessors", Integer.toString(device.info().multiprocessors()));
            out.put("computeCapability", device.info().computeCapability());
            out.put("driver", Integer.toString(device.info().driverVersion()));
            out.put("deviceMemory", gibibytes(device.info().totalMemory()));
        } else {
            out.put("instructionSet", device.info().instructionSet());
            out.put("threads", Integer.toString(threads > 0 ? threads : Runtime.getRuntime().availableProcessors()));
        }
        out.put("processor", processor());
        out.put("processors", Integer.toString(Runtime.getRuntime().availableProcessors()));
        out.put("memory", line("/proc/meminfo", "MemTotal"));
        out.put("system", System.getProperty("os.name") + " " + System.getProperty("os.version"));
        out.put("java", System.getProperty("java.vendor") + " " + Runtime.version());
        out.put("library", Device.nativeBuildInfo());
        // Its version counts, not the folder.
        out.put("blas", device.describeBlas().replaceAll("/[^ ,;()]*/", ""));
        out.put("loadAverageBefore", loadAverage());
        return out;
    }

    /** Running processes a minute, on average: more than this run's threads means that others ran beside it. */
    static String loadAverage() {
        return Double.toString(ManagementFactory.getOperatingSystemMXBean().getSystemLoadAverage());
    }

    private static String processor() {
        String name = line("/proc/cpuinfo", "model name");
        return name.isEmpty() ? System.getProperty("os.arch") : name;
    }

    private static String line(String file, String key) {
        try {
            return Files.readAllLines(Path.of(file)).stream().filter(line -> line.startsWith(key)).findFirst()
                    .map(line -> line.substring(line.indexOf(':') + 1).strip()).orElse("");
        } catch (IOException e) {
            return "";
        }
    }

    /** Of the file that a bundle brings, or of the working copy. */
    private static String commit() {
        Path home = Path.of(System.getProperty("shadowkv.home", "."));
        try {
            if (Files.exists(home.resolve("commit"))) {
                return Files.readString(home.resolve("commit")).strip();
            }
            Process git = new ProcessBuilder("git", "describe", "--always", "--dirty", "--abbrev=12")
                    .directory(home.toFile()).redirectError(ProcessBuilder.Redirect.DISCARD).start();
            String text = new String(git.getInputStream().readAllBytes()).strip();
            return git.waitFor(10, TimeUnit.SECONDS) && git.exitValue() == 0 ? text : "unknown";
        } catch (IOException e) {
            return "unknown";
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            return "unknown";
        }
    }

    private static String gibibytes(long bytes) {
        return Math.round(bytes / 1073741824.0 * 10) / 10.0 + " GiB";
    }
}
