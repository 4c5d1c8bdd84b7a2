package dev.shadowkv.cli;

import java.io.PrintWriter;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** The {@code shadowkv} command. */
@Command(
        name = "shadowkv",
        description = {
            "Long-context inference on the JVM with a KV cache that holds several times more context per byte of "
                    + "accelerator memory, by the ShadowKV method.",
            ""
        },
        mixinStandardHelpOptions = true,
        versionProvider = Main.Version.class,
        synopsisSubcommandLabel = "COMMAND",
        exitCodeListHeading = "%nExit codes:%n",
        exitCodeList = {"0:success", "1:bad input, or something is missing; one line on stderr says what", "2:wrong options"},
        footerHeading = "%nExamples:%n",
        footer = {
            "  shadowkv demo --context 16384",
            "  shadowkv generate --model models/needle-32k --prompt-file prompt.txt --cache shadow --budget 512 --rank 40",
            "  shadowkv score --model DIR --ids ids.txt --cache dense --out logits.safetensors",
            "  shadowkv bench throughput --shape llama-3.1-8b --context 122k --gpu-memory-limit 80g"
        },
        subcommands = {
            InfoCommand.class,
            DemoCommand.class,
            GenerateCommand.class,
            ScoreCommand.class,
            EvalCommand.class,
            TuneCommand.class,
            BenchCommand.class,
            CommandLine.HelpCommand.class
        })
public final class Main implements Runnable {
    static final int FAILED = 1;

    @Spec
    private CommandSpec spec;

    /** The version that {@code --version} prints. */
    static final class Version implements CommandLine.IVersionProvider {
        @Override
        public String[] getVersion() {
            return new String[] {"shadowkv 0.1.0, Java " + Runtime.version()};
        }
    }

    @Override
    public void run() {
        throw new ParameterException(spec.commandLine(), "a command is missing; shadowkv --help lists them");
    }

    public static void main(String[] arguments) {
        // Before anything loads the tokenizer's library, which would look for a GPU build of itself on the network.
        System.setProperty("ai.djl.offline", "true");
        System.exit(run(arguments));
    }

    /** Runs a command and returns its exit code. */
    static int run(String... arguments) {
        CommandLine line = new CommandLine(new Main());
        line.setCaseInsensitiveEnumValuesAllowed(true);
        line.setUsageHelpAutoWidth(true);
        line.setExecutionExceptionHandler((exception, command, parsed) -> {
            complain(command.getErr(), command, exception);
            return exception instanceof ParameterException ? command.getCommandSpec().exitCodeOnInvalidInput() : FAILED;
        });
        line.setParameterExceptionHandler((exception, given) -> {
            complain(exception.getCommandLine().getErr(), exception.getCommandLine(), exception);
            return exception.getCommandLine().getCommandSpec().exitCodeOnInvalidInput();
        });
        try {
            return line.execute(arguments);
        } catch (OutOfMemoryError e) {
            line.getErr().println("shadowkv: the Java heap is too small: set SHADOWKV_HEAP, for instance to 4g");
            return FAILED;
        } catch (LinkageError e) {
            line.getErr().println("shadowkv: " + Complaint.of(e));
            return FAILED;
        }
    }

    private static void complain(PrintWriter err, CommandLine command, Exception exception) {
        if (Boolean.getBoolean("shadowkv.debug")) {
            exception.printStackTrace(err);
        }
        err.println(command.getCommandSpec().qualifiedName() + ": " + Complaint.of(exception));
    }
}
