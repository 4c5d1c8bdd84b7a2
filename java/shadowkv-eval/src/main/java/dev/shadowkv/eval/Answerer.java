package dev.shadowkv.eval;

import java.util.ArrayList;
import java.util.List;

/** A model with a cache: all that an evaluation needs to know about an engine. */
@FunctionalInterface
public interface Answerer {
    /** Answers a prompt, greedily unless the caller of the evaluation wants it otherwise. */
    Answer answer(Prompt prompt);

    /** Answers several prompts, in order; an engine that can decode a batch overrides it. */
    default List<Answer> answerAll(List<Prompt> prompts) {
        List<Answer> answers = new ArrayList<>(prompts.size());
        prompts.forEach(prompt -> answers.add(answer(prompt)));
        return answers;
    }
}
