package dev.shadowkv.eval.ruler;

import dev.shadowkv.eval.EvaluationException;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/** The 13 tasks of RULER with the settings of its benchmark. */
public enum RulerTask {
    NIAH_SINGLE_1("niah_single_1", 128),
    NIAH_SINGLE_2("niah_single_2", 128),
    NIAH_SINGLE_3("niah_single_3", 128),
    NIAH_MULTIKEY_1("niah_multikey_1", 128),
    NIAH_MULTIKEY_2("niah_multikey_2", 128),
    NIAH_MULTIKEY_3("niah_multikey_3", 128),
    NIAH_MULTIVALUE("niah_multivalue", 128),
    NIAH_MULTIQUERY("niah_multiquery", 128),
    VARIABLE_TRACKING("vt", 30),
    COMMON_WORDS("cwe", 120),
    FREQUENT_WORDS("fwe", 50),
    /** Questions of a SQuAD file. */
    QA_1("qa_1", 32),
    /** Questions of a HotpotQA file. */
    QA_2("qa_2", 32);

    private final String code;
    private final int newTokens;

    RulerTask(String code, int newTokens) {
        this.code = code;
        this.newTokens = newTokens;
    }

    /** The published name, such as {@code niah_multikey_1}. */
    public String code() {
        return code;
    }

    /** Tokens that an answer may take; they count towards the length of a case. */
    public int newTokens() {
        return newTokens;
    }

    /** Whether the task needs a file of questions. */
    public boolean needsQuestions() {
        return this == QA_1 || this == QA_2;
    }

    /** The tasks that need no file. */
    public static List<RulerTask> selfContained() {
        return Arrays.stream(values()).filter(task -> !task.needsQuestions()).toList();
    }

    /**
     * The task of a name.
     *
     * @throws EvaluationException when there is none
     */
    public static RulerTask ofCode(String code) {
        return Arrays.stream(values())
                .filter(task -> task.code.equals(code))
                .findFirst()
                .orElseThrow(() -> new EvaluationException("unknown RULER task " + code + "; there are "
                        + Arrays.stream(values()).map(RulerTask::code).collect(Collectors.joining(", "))));
    }
}
