package dev.shadowkv.cli;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.PrintWriter;
import java.util.function.Supplier;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** How a command reports: text for people with a progress bar before it, or JSON alone. */
final class ReportArguments {
    @Option(names = "--json", description = "Print JSON.")
    private boolean json;

    @Spec(Spec.Target.MIXEE)
    private CommandSpec command;

    boolean json() {
        return json;
    }

    PrintWriter terminal() {
        return command.commandLine().getOut();
    }

    /** Says something that is no result, such as which file was drawn. */
    void note(String line) {
        command.commandLine().getErr().println(line);
    }

    Progress progress(String task, long total) {
        return Progress.of(task, total, json);
    }

    /** Prints the result in the form that was asked for; the other one is not made. */
    void print(Supplier<?> text, Supplier<? extends JsonNode> node) {
        terminal().println(json ? Output.pretty(node.get()) : text.get());
        terminal().flush();
    }
}
