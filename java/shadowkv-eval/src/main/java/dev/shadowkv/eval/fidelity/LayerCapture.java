package dev.shadowkv.eval.fidelity;

/**
 * What one layer of a model saw of a text: everything that attention needs.
 *
 * @param tokens of the text
 * @param steps how many of the last tokens have queries
 * @param keys {@code [tokens][keyValueHeads][headDim]} before RoPE
 * @param values {@code [tokens][keyValueHeads][headDim]}
 * @param queries {@code [steps][queryHeads][headDim]} before RoPE
 */
public record LayerCapture(
        int layer,
        int queryHeads,
        int keyValueHeads,
        int headDim,
        int tokens,
        int steps,
        float[] keys,
        float[] values,
        float[] queries) {
    public LayerCapture {
        long width = (long) keyValueHeads * headDim;
        if (steps < 1 || steps >= tokens || keys.length != tokens * width || values.length != keys.length
                || queries.length != (long) steps * queryHeads * headDim) {
            throw new IllegalArgumentException("layer " + layer + " has keys, values and queries of " + keys.length + ", "
                    + values.length + " and " + queries.length + " elements for " + tokens + " tokens, " + steps + " with queries");
        }
    }
}
