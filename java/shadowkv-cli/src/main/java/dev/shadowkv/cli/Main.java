package dev.shadowkv.cli;

import picocli.CommandLine;
import picocli.CommandLine.Command;

/** The {@code shadowkv} command. */
@Command(name = "shadowkv", mixinStandardHelpOptions = true, description = "Long-context inference on the JVM.")
public final class Main implements Runnable {

    @Override
    public void run() {
        CommandLine.usage(this, System.out);
    }

    public static void main(String[] arguments) {
        System.exit(new CommandLine(new Main()).execute(arguments));
    }
}
