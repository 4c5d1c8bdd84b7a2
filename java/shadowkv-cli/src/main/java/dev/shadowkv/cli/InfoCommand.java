package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.shadowkv.Device;
import dev.shadowkv.ShadowKvException;
import java.io.PrintWriter;
import java.util.Optional;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** {@code shadowkv info}. */
@Command(
        name = "info",
        mixinStandardHelpOptions = true,
        description = "Shows devices, which native libraries were found where, and what is missing and how to add it.")
final class InfoCommand implements Callable<Integer> {
    private static final String NO_BLAS = "A plain product is used instead. For a faster factorization add OpenBLAS: "
            + "org.bytedeco:openblas on the class path, libopenblas0 of the distribution, or --blas PATH.";
    private static final String NO_GPU = "For a GPU: an NVIDIA driver of version 580 or newer, and cuBLAS from the CUDA "
            + "toolkit or org.bytedeco:cuda-platform-redist on the class path.";

    @Option(names = "--json", description = "Print JSON.")
    private boolean json;

    @Option(names = "--blas", paramLabel = "PATH", description = "Where to look for BLAS first.")
    private String blas;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() {
        ObjectNode info = Output.object();
        info.put("version", "0.1.0");
        ObjectNode java = info.putObject("java");
        java.put("version", Runtime.version().toString());
        java.put("home", System.getProperty("java.home"));
        ObjectNode library = info.putObject("nativeLibrary");
        library.put("origin", Device.nativeLibraryOrigin());
        library.put("build", Device.nativeBuildInfo());
        ArrayNode devices = info.putArray("devices");
        ArrayNode missing = info.putArray("missing");
        try (Device cpu = with(Device.builder()).build()) {
            describe(cpu, devices.addObject());
            if (cpu.describeBlas().startsWith("no ")) {
                missing.addObject().put("what", "BLAS for the CPU").put("why", cpu.describeBlas()).put("remedy", NO_BLAS);
            }
        }
        Optional<String> noGpu = Device.cudaUnavailableReason();
        if (noGpu.isPresent()) {
            missing.addObject().put("what", "GPU").put("why", noGpu.get()).put("remedy", NO_GPU);
        } else {
            for (int ordinal = 0; ordinal < Device.cudaDevices(); ordinal++) {
                gpu(ordinal, devices, missing);
            }
        }
        print(info);
        return 0;
    }

    private Device.Builder with(Device.Builder builder) {
        return blas == null ? builder : builder.blasPath(blas);
    }

    private void gpu(int ordinal, ArrayNode devices, ArrayNode missing) {
        try (Device device = with(Device.builder().cuda(ordinal)).build()) {
            describe(device, devices.addObject());
        } catch (ShadowKvException e) {
            missing.addObject().put("what", "cuda:" + ordinal).put("why", Complaint.of(e)).put("remedy", NO_GPU);
        }
    }

    private static void describe(Device device, ObjectNode node) {
        Device.Info info = device.info();
        Device.Memory memory = device.memory();
        node.put("name", device.name());
        node.put("model", info.name());
        node.put(device.isCpu() ? "processors" : "multiprocessors", info.multiprocessors());
        if (device.isCpu()) {
            node.put("instructionSet", info.instructionSet());
        } else {
            node.put("computeCapability", info.computeCapability());
            node.put("driverVersion", info.driverVersion());
        }
        node.put("totalMemory", memory.total());
        node.put("freeMemory", memory.free());
        node.put("blas", device.describeBlas());
    }

    private void print(ObjectNode info) {
        PrintWriter out = spec.commandLine().getOut();
        if (json) {
            out.println(Output.pretty(info));
            return;
        }
        out.println("shadowkv        " + info.path("version").asText());
        out.println("Java            " + info.path("java").path("version").asText() + " in "
                + info.path("java").path("home").asText());
        out.println("native library  " + info.path("nativeLibrary").path("origin").asText());
        out.println("                " + info.path("nativeLibrary").path("build").asText());
        info.path("devices").forEach(device -> {
            boolean cpu = device.has("processors");
            out.println();
            out.println(device.path("name").asText() + ": " + device.path("model").asText());
            out.println(cpu
                    ? "  " + device.path("processors").asInt() + " processors, " + device.path("instructionSet").asText()
                    : "  " + device.path("multiprocessors").asInt() + " multiprocessors, compute capability "
                            + device.path("computeCapability").asText() + ", driver " + device.path("driverVersion").asInt());
            out.println("  memory " + Output.bytes(device.path("totalMemory").asDouble()) + ", of which "
                    + Output.bytes(device.path("freeMemory").asDouble()) + " free");
            out.println("  BLAS: " + device.path("blas").asText());
        });
        info.path("missing").forEach(missing -> {
            out.println();
            out.println("missing: " + missing.path("what").asText() + ": " + missing.path("why").asText());
            out.println("  " + missing.path("remedy").asText());
        });
    }
}
