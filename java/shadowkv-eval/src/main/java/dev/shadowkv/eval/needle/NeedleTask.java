package dev.shadowkv.eval.needle;

import dev.shadowkv.eval.EvaluationException;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/** What the needle-32k checkpoint can do, with the number of statements that a context of some length holds. */
public enum NeedleTask {
    /** One statement, asked for. */
    NIAH_SINGLE("niah_single"),
    /** One statement each of many names, one of which is asked for. */
    NIAH_MULTIKEY("niah_multikey"),
    /** Three statements each of several names, one of which is asked for. */
    NIAH_MULTIVALUE("niah_multivalue"),
    /** Chains of four variables, one of which is asked for by its value. */
    VARIABLE_TRACKING("vt"),
    /** Passages of 128 words, the first of which is to be repeated. */
    COPY("copy");

    private final String code;

    NeedleTask(String code) {
        this.code = code;
    }

    /** The name in results, such as {@code niah_single}. */
    public String code() {
        return code;
    }

    /**
     * The task of a name.
     *
     * @throws EvaluationException when there is none
     */
    public static NeedleTask ofCode(String code) {
        return Arrays.stream(values())
                .filter(task -> task.code.equals(code))
                .findFirst()
                .orElseThrow(() -> new EvaluationException("unknown needle task " + code + "; there are "
                        + Arrays.stream(values()).map(NeedleTask::code).collect(Collectors.joining(", "))));
    }

    /** All tasks. */
    public static List<NeedleTask> all() {
        return List.of(values());
    }

    /** Names (or chains, or passages) in a context of that many tokens: as in the checkpoint's own samples. */
    int names(int length) {
        return switch (this) {
            case NIAH_SINGLE -> 1;
            case NIAH_MULTIKEY -> Math.clamp(length / 128, 1, 128);
            case NIAH_MULTIVALUE -> Math.clamp(length / 512, 1, 32);
            case VARIABLE_TRACKING -> Math.clamp(length / 256, 1, 20);
            case COPY -> Math.clamp(length / 1024, 2, 8);
        };
    }
}
