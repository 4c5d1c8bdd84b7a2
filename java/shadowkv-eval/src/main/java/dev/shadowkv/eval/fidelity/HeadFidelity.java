package dev.shadowkv.eval.fidelity;

import dev.shadowkv.eval.Answer;
import dev.shadowkv.eval.Case;
import dev.shadowkv.eval.Prompt;
import dev.shadowkv.eval.Result;
import java.util.List;
import java.util.Map;

/**
 * What a cache keeps of the attention of one query head, mean over the steps of a prompt.
 *
 * @param capturedMass share of the exact weights that the attended tokens hold
 * @param bestMass the most that as many tokens could hold
 * @param overlap share of the attended tokens that are among those
 * @param outputError length of the difference of the outputs over the length of the exact one
 */
public record HeadFidelity(
        int layer, int head, double capturedMass, double bestMass, double overlap, double outputError) {
    /** The case that a head of a prompt is in a file of results. */
    public static Case origin(int layer, int head, int prompt, int tokens) {
        return Case.of("layer " + layer + " head " + head, tokens, prompt, 0);
    }

    /**
     * As a result to be stored; the captured mass is its score.
     *
     * @param variant the cache
     * @param prompt number of the prompt
     * @param tokens of the prompt
     * @param steps that attended
     */
    public Result result(String variant, int prompt, int tokens, int steps) {
        Prompt asked = new Prompt(
                origin(layer, head, prompt, tokens), "", "", List.of("what exact attention attends"), steps, false);
        Map<String, Double> measurements = Map.of(
                "layer", (double) layer, "head", (double) head, "bestMass", bestMass, "overlap", overlap, "outputError",
                outputError);
        // A sum of weights may round to more than all of them.
        return new Result(
                variant, asked, new Answer("", tokens, steps, 0, 0, measurements), Math.min(1, capturedMass));
    }

    /** What a stored result says. */
    public static HeadFidelity of(Result result) {
        Map<String, Double> measurements = result.answer().measurements();
        return new HeadFidelity(
                measurements.get("layer").intValue(),
                measurements.get("head").intValue(),
                result.score(),
                measurements.get("bestMass"),
                measurements.get("overlap"),
                measurements.get("outputError"));
    }
}
