package dev.shadowkv.cli;

import java.io.Console;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;

/** A progress bar on stderr where somebody looks at it; nothing elsewhere. */
final class Progress implements AutoCloseable {
    private static final int MILLISECONDS = 200;

    private final ProgressBar bar;

    private Progress(ProgressBar bar) {
        this.bar = bar;
    }

    static Progress of(String task, long total, boolean quiet) {
        Console console = System.console();
        if (quiet || console == null || !console.isTerminal()) {
            return new Progress(null);
        }
        return new Progress(new ProgressBarBuilder()
                .setTaskName(task)
                .setInitialMax(total)
                .setUpdateIntervalMillis(MILLISECONDS)
                .setStyle(ProgressBarStyle.ASCII)
                .build());
    }

    void to(long done, String what) {
        if (bar != null) {
            bar.stepTo(done);
            bar.setExtraMessage(what);
        }
    }

    @Override
    public void close() {
        if (bar != null) {
            bar.close();
        }
    }
}
