package dev.shadowkv.eval.longbench;

import dev.shadowkv.eval.EvaluationException;
import java.util.Arrays;
import java.util.List;

/** The 21 tasks of LongBench: their metric, and how long their answers may be. */
public enum LongBenchTask {
    NARRATIVEQA("narrativeqa", Metric.F1, 128),
    QASPER("qasper", Metric.F1, 128),
    MULTIFIELDQA_EN("multifieldqa_en", Metric.F1, 64),
    MULTIFIELDQA_ZH("multifieldqa_zh", Metric.F1_CHINESE, 64),
    HOTPOTQA("hotpotqa", Metric.F1, 32),
    WIKI2MQA("2wikimqa", Metric.F1, 32),
    MUSIQUE("musique", Metric.F1, 32),
    DUREADER("dureader", Metric.ROUGE_CHINESE, 128),
    GOV_REPORT("gov_report", Metric.ROUGE, 512),
    QMSUM("qmsum", Metric.ROUGE, 512),
    MULTI_NEWS("multi_news", Metric.ROUGE, 512),
    VCSUM("vcsum", Metric.ROUGE_CHINESE, 512),
    TREC("trec", Metric.CLASSIFICATION, 64),
    TRIVIAQA("triviaqa", Metric.F1, 32),
    SAMSUM("samsum", Metric.ROUGE, 128),
    LSHT("lsht", Metric.CLASSIFICATION, 64),
    PASSAGE_COUNT("passage_count", Metric.COUNT, 32),
    PASSAGE_RETRIEVAL_EN("passage_retrieval_en", Metric.RETRIEVAL, 32),
    PASSAGE_RETRIEVAL_ZH("passage_retrieval_zh", Metric.RETRIEVAL, 32),
    LCC("lcc", Metric.CODE, 64),
    REPOBENCH_P("repobench-p", Metric.CODE, 64);

    private enum Metric {
        F1,
        F1_CHINESE,
        ROUGE,
        ROUGE_CHINESE,
        CLASSIFICATION,
        COUNT,
        RETRIEVAL,
        CODE
    }

    private final String code;
    private final Metric metric;
    private final int newTokens;

    LongBenchTask(String code, Metric metric, int newTokens) {
        this.code = code;
        this.metric = metric;
        this.newTokens = newTokens;
    }

    /** The published name, which is that of the data file as well. */
    public String code() {
        return code;
    }

    /** Tokens that an answer may take. */
    public int newTokens() {
        return newTokens;
    }

    /** Whether the prompt ends in examples that the answer continues; those go to a model without a chat template. */
    public boolean continuesExamples() {
        return switch (this) {
            case TREC, TRIVIAQA, SAMSUM, LSHT, LCC, REPOBENCH_P -> true;
            default -> false;
        };
    }

    /**
     * The task of a name.
     *
     * @throws EvaluationException when there is none
     */
    public static LongBenchTask ofCode(String code) {
        return Arrays.stream(values())
                .filter(task -> task.code.equals(code))
                .findFirst()
                .orElseThrow(() -> new EvaluationException("unknown LongBench task " + code + "; there are "
                        + String.join(", ", Arrays.stream(values()).map(LongBenchTask::code).toList())));
    }

    /** The best score over the accepted answers. */
    double score(String prediction, List<String> answers, List<String> classes) {
        boolean firstLine = this == TREC || this == TRIVIAQA || this == SAMSUM || this == LSHT;
        String text = firstLine ? Metrics.withoutNewlines(prediction).split("\n", 2)[0] : prediction;
        double best = 0;
        for (String answer : answers) {
            best = Math.max(best, scoreOne(text, answer, classes));
        }
        return best;
    }

    private double scoreOne(String text, String answer, List<String> classes) {
        return switch (metric) {
            case F1 -> Metrics.f1(text, answer);
            case F1_CHINESE -> Metrics.f1Chinese(text, answer);
            case ROUGE -> Metrics.rougeL(text, answer);
            case ROUGE_CHINESE -> Metrics.rougeLChinese(text, answer);
            case CLASSIFICATION -> Metrics.classification(text, answer, classes);
            case COUNT -> Metrics.count(text, answer);
            case RETRIEVAL -> Metrics.retrieval(text, answer);
            case CODE -> Metrics.codeSimilarity(text, answer);
        };
    }
}
