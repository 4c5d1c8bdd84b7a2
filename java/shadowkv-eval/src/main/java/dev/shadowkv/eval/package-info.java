/**
 * Long-context evaluations: the same prompts put to several caches, side by side.
 *
 * <p>A {@link dev.shadowkv.eval.Suite} makes prompts and scores answers: {@link dev.shadowkv.eval.ruler.RulerSuite},
 * {@link dev.shadowkv.eval.niah.NiahSuite}, {@link dev.shadowkv.eval.longbench.LongBenchSuite}, and {@link
 * dev.shadowkv.eval.needle.NeedleSuite} for the needle-32k checkpoint. An {@link dev.shadowkv.eval.Answerer} is a model
 * with a cache. An {@link dev.shadowkv.eval.Evaluation} brings them together and leaves every answer in a {@link
 * dev.shadowkv.eval.ResultStore}, from which a {@link dev.shadowkv.eval.Summary} and {@link dev.shadowkv.eval.Charts}
 * are made. Nothing here knows how a model is run.
 *
 * <pre>{@code
 * Suite suite = NeedleSuite.tasks(tokenizer, NeedleTask.all(), List.of(4096, 16384), 50, seed);
 * Map<String, Answerer> variants = new LinkedHashMap<>();
 * variants.put("dense", prompt -> engine.answer(prompt, dense));
 * variants.put("shadow", prompt -> engine.answer(prompt, shadow));
 * try (ResultStore store = ResultStore.open(path, Map.of("suite", suite.name(), "model", folder.toString()))) {
 *     new Evaluation(suite, variants, 8).run(store, (result, done, total) -> progress.stepTo(done));
 *     System.out.print(new Summary(store.results()).table());
 * }
 * }</pre>
 *
 * <p>{@link dev.shadowkv.eval.PromptEncoder} turns prompts into tokens, with or without a model's chat template.
 */
package dev.shadowkv.eval;
