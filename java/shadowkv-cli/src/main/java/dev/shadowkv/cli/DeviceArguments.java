package dev.shadowkv.cli;

import dev.shadowkv.Device;
import java.nio.file.Path;
import picocli.CommandLine.Option;

/** Where to compute. */
final class DeviceArguments {
    @Option(
            names = "--device",
            paramLabel = "DEVICE",
            defaultValue = "best",
            description = "Where to compute: best (the first GPU, or the CPU where there is none), cpu, cuda or cuda:N. "
                    + "Default: ${DEFAULT-VALUE}.")
    private String device;

    @Option(names = "--threads", paramLabel = "N", description = "Threads of a CPU. Default: all processors.")
    private int threads;

    @Option(
            names = "--blas",
            paramLabel = "PATH",
            description = "A BLAS library, or folders to look for one first, separated by ':'.")
    private String blas;

    Device open() {
        Device.Builder builder = Device.builder();
        if (blas != null) {
            builder.blasPath(blas);
        }
        if (device.equals("cpu") || device.equals("best") && Device.cudaUnavailableReason().isPresent()) {
            if (threads < 0) {
                throw new IllegalArgumentException("--threads is negative: " + threads);
            }
            return builder.threads(threads).build();
        }
        return builder.cuda(ordinal()).build();
    }

    private int ordinal() {
        if (device.equals("cuda") || device.equals("best")) {
            return 0;
        }
        if (device.matches("cuda:\\d{1,3}")) {
            return Integer.parseInt(device.substring("cuda:".length()));
        }
        throw new IllegalArgumentException("--device is " + device + "; there are best, cpu, cuda and cuda:N");
    }

    /** The folder of the project, for the checkpoint that comes with it. */
    static Path home() {
        return Path.of(System.getProperty("shadowkv.home", "."));
    }
}
