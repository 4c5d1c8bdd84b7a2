package dev.shadowkv.cli;

import dev.shadowkv.ShadowKvException;
import dev.shadowkv.eval.EvaluationException;
import dev.shadowkv.llm.AdmissionException;
import dev.shadowkv.llm.checkpoint.CheckpointException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.NoSuchFileException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import picocli.CommandLine.ParameterException;

/** What went wrong, in one line for people. */
final class Complaint {
    private Complaint() {}

    static String of(Throwable thrown) {
        return switch (thrown) {
            case CompletionException e when e.getCause() != null -> of(e.getCause());
            case ExecutionException e when e.getCause() != null -> of(e.getCause());
            case UncheckedIOException e -> of(e.getCause());
            case NoSuchFileException e -> e.getFile() + ": no such file or folder";
            case IOException e -> line(e.getMessage() == null ? e.toString() : e.getMessage());
            case ParameterException e -> line(e.getMessage());
            case CheckpointException e -> line(e.getMessage());
            case EvaluationException e -> line(e.getMessage());
            case AdmissionException e -> line(e.getMessage());
            case ShadowKvException e -> line(e.getMessage());
            case IllegalArgumentException e when e.getMessage() != null -> line(e.getMessage());
            case UnsupportedOperationException e when e.getMessage() != null -> line(e.getMessage());
            case ArithmeticException e -> line(e.getMessage());
            case UnsatisfiedLinkError e -> line(e.getMessage());
            default -> "unexpected " + line(thrown.toString()) + " (-Dshadowkv.debug=true in SHADOWKV_JAVA_OPTIONS shows where)";
        };
    }

    private static String line(String message) {
        return message == null ? "no message" : message.strip().replaceAll("\\s*\\R\\s*", "; ");
    }
}
