package dev.shadowkv.cli;

import picocli.CommandLine.Command;
import picocli.CommandLine.HelpCommand;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** {@code shadowkv eval}. */
@Command(
        name = "eval",
        mixinStandardHelpOptions = true,
        description = "Puts the same prompts to several caches and compares what they answer. A prompt is computed once for all "
                + "of them. A run that was stopped goes on when it is started again with the same --out.",
        subcommands = {
            EvalSuites.Needle.class,
            EvalSuites.Ruler.class,
            EvalSuites.Niah.class,
            EvalSuites.LongBench.class,
            LongGenCommand.class,
            FidelityCommand.class,
            HelpCommand.class
        })
final class EvalCommand implements Runnable {
    @Spec
    private CommandSpec spec;

    @Override
    public void run() {
        throw new ParameterException(spec.commandLine(), "a suite is missing; shadowkv eval --help lists them");
    }
}
