package dev.shadowkv.llm.checkpoint;

import java.util.Arrays;
import java.util.function.DoubleUnaryOperator;

/**
 * A decoder in plain double-precision loops, straight from its definition: the oracle for what a configuration means
 * and where its weights are. Slow, for tiny models.
 */
public final class ReferenceModel {
    private final Checkpoint checkpoint;
    private final ModelConfig config;
    private final DoubleUnaryOperator activation;

    public ReferenceModel(Checkpoint checkpoint) {
        this(checkpoint, DoubleUnaryOperator.identity());
    }

    /**
     * A model that keeps its activations in another type: whatever a product reads or writes, rotated queries and keys,
     * and weights of attention. Sums, norms and the residual stream stay in double precision. What it loses is what
     * that type costs the best of implementations.
     *
     * @param activation what the type makes of a number
     */
    public ReferenceModel(Checkpoint checkpoint, DoubleUnaryOperator activation) {
        this.checkpoint = checkpoint;
        this.config = checkpoint.config();
        this.activation = activation;
    }

    /** The nearest BF16 number, the even one of two. */
    public static double bf16(double value) {
        int bits = Float.floatToRawIntBits((float) value);
        return Float.intBitsToFloat(bits + 0x7fff + (bits >>> 16 & 1) & 0xffff0000);
    }

    private double[] kept(double[] values) {
        Arrays.setAll(values, i -> activation.applyAsDouble(values[i]));
        return values;
    }

    /** Hidden states after every layer, and the logits: {@code hidden[layers][position]}, {@code logits[position]}. */
    public record Result(double[][][] hidden, double[][] logits) {}

    private double[] values(Weight weight, int layer) {
        return checkpoint
                .find(weight, layer)
                .map(tensor -> {
                    double[] values = new double[(int) tensor.elementCount()];
                    Arrays.setAll(values, tensor::floatAt);
                    return values;
                })
                .orElse(null);
    }

    public Result run(int[] ids) {
        int positions = ids.length;
        double[] embedding = values(Weight.EMBEDDING, -1);
        double[][] x = new double[positions][];
        for (int p = 0; p < positions; p++) {
            x[p] = Arrays.copyOfRange(embedding, ids[p] * config.hiddenSize(), (ids[p] + 1) * config.hiddenSize());
        }
        double[][][] hidden = new double[config.layers()][positions][];
        for (int layer = 0; layer < config.layers(); layer++) {
            layer(layer, x);
            for (int p = 0; p < positions; p++) {
                hidden[layer][p] = x[p].clone();
            }
        }
        double[] norm = values(Weight.FINAL_NORM, -1);
        double[] head = values(Weight.OUTPUT_PROJECTION, -1);
        double[][] logits = new double[positions][];
        for (int p = 0; p < positions; p++) {
            logits[p] = multiply(head, null, kept(norm(x[p], norm)));
        }
        return new Result(hidden, logits);
    }

    private void layer(int layer, double[][] x) {
        int positions = x.length;
        double[] norm = values(Weight.ATTENTION_NORM, layer);
        double[][] q = new double[positions][];
        double[][] k = new double[positions][];
        double[][] v = new double[positions][];
        double[][] weights = {values(Weight.QUERY, layer), values(Weight.KEY, layer), values(Weight.VALUE, layer)};
        double[][] biases = {
            values(Weight.QUERY_BIAS, layer), values(Weight.KEY_BIAS, layer), values(Weight.VALUE_BIAS, layer)
        };
        double[] frequencies = frequencies(positions);
        for (int p = 0; p < positions; p++) {
            double[] in = kept(norm(x[p], norm));
            q[p] = kept(rotate(kept(multiply(weights[0], biases[0], in)), p, frequencies));
            k[p] = kept(rotate(kept(multiply(weights[1], biases[1], in)), p, frequencies));
            v[p] = kept(multiply(weights[2], biases[2], in));
        }
        double[] output = values(Weight.ATTENTION_OUTPUT, layer);
        double[] outputBias = values(Weight.ATTENTION_OUTPUT_BIAS, layer);
        for (int p = 0; p < positions; p++) {
            add(x[p], multiply(output, outputBias, kept(attend(q[p], k, v, p))));
        }
        double[] mlpNorm = values(Weight.MLP_NORM, layer);
        double[] gate = values(Weight.GATE, layer);
        double[] up = values(Weight.UP, layer);
        double[] down = values(Weight.DOWN, layer);
        for (int p = 0; p < positions; p++) {
            double[] in = kept(norm(x[p], mlpNorm));
            double[] gated = kept(multiply(gate, null, in));
            double[] raised = kept(multiply(up, null, in));
            for (int i = 0; i < gated.length; i++) {
                gated[i] = gated[i] / (1 + Math.exp(-gated[i])) * raised[i];
            }
            add(x[p], multiply(down, null, kept(gated)));
        }
    }

    private double[] attend(double[] q, double[][] k, double[][] v, int position) {
        int d = config.headDim();
        double[] out = new double[config.queryWidth()];
        for (int head = 0; head < config.queryHeads(); head++) {
            int shared = head / config.groupSize() * d;
            double[] score = new double[position + 1];
            for (int t = 0; t <= position; t++) {
                for (int i = 0; i < d; i++) {
                    score[t] += q[head * d + i] * k[t][shared + i];
                }
                score[t] /= Math.sqrt(d);
            }
            double largest = Arrays.stream(score).max().orElseThrow();
            double total = Arrays.stream(score).map(s -> Math.exp(s - largest)).sum();
            for (int t = 0; t <= position; t++) {
                for (int i = 0; i < d; i++) {
                    out[head * d + i] += activation.applyAsDouble(Math.exp(score[t] - largest)) / total * v[t][shared + i];
                }
            }
        }
        return out;
    }

    /** Radians a position for every rotated pair. */
    private double[] frequencies(int positions) {
        RopeDescription rope = config.rope();
        int pairs = rope.rotaryDim() / 2;
        double[] frequencies = new double[pairs];
        for (int i = 0; i < pairs; i++) {
            double plain = Math.pow(rope.theta(), -2.0 * i / rope.rotaryDim());
            frequencies[i] = switch (rope.scaling()) {
                case RopeDescription.Default none -> plain;
                case RopeDescription.Linear linear -> plain / linear.factor();
                case RopeDescription.Llama3 llama -> llama3(plain, llama);
                case RopeDescription.Yarn yarn -> yarn(plain, i, yarn);
                case RopeDescription.LongRope longRope -> plain
                        / (positions > longRope.originalMaxPositions() ? longRope.longFactors() : longRope.shortFactors()).get(i);
            };
        }
        return frequencies;
    }

    private static double llama3(double plain, RopeDescription.Llama3 llama) {
        double turns = llama.originalMaxPositions() * plain / (2 * Math.PI);
        double kept = (turns - llama.lowFrequencyFactor()) / (llama.highFrequencyFactor() - llama.lowFrequencyFactor());
        double share = Math.clamp(kept, 0.0, 1.0);
        return share * plain + (1 - share) * plain / llama.factor();
    }

    private double yarn(double plain, int pair, RopeDescription.Yarn yarn) {
        double low = pairOf(yarn.betaFast(), yarn);
        double high = pairOf(yarn.betaSlow(), yarn);
        if (yarn.truncate()) {
            low = Math.floor(low);
            high = Math.ceil(high);
        }
        low = Math.max(low, 0);
        high = Math.min(high, config.rope().rotaryDim() - 1);
        double ramp = Math.clamp((pair - low) / Math.max(high - low, 0.001), 0.0, 1.0);
        return plain / yarn.factor() * ramp + plain * (1 - ramp);
    }

    private double pairOf(double turns, RopeDescription.Yarn yarn) {
        return config.rope().rotaryDim() * Math.log(yarn.originalMaxPositions() / (turns * 2 * Math.PI))
                / (2 * Math.log(config.rope().theta()));
    }

    private double[] rotate(double[] heads, int position, double[] frequencies) {
        RopeDescription rope = config.rope();
        int pairs = rope.rotaryDim() / 2;
        for (int start = 0; start < heads.length; start += config.headDim()) {
            for (int i = 0; i < pairs; i++) {
                int a = start + (rope.interleaved() ? 2 * i : i);
                int b = start + (rope.interleaved() ? 2 * i + 1 : i + pairs);
                double cosine = Math.cos(position * frequencies[i]) * rope.attentionFactor();
                double sine = Math.sin(position * frequencies[i]) * rope.attentionFactor();
                double first = heads[a];
                heads[a] = first * cosine - heads[b] * sine;
                heads[b] = heads[b] * cosine + first * sine;
            }
        }
        return heads;
    }

    private double[] norm(double[] x, double[] weight) {
        double squares = Arrays.stream(x).map(value -> value * value).sum() / x.length;
        double[] out = new double[x.length];
        Arrays.setAll(out, i -> x[i] / Math.sqrt(squares + config.rmsNormEpsilon()) * weight[i]);
        return out;
    }

    private static double[] multiply(double[] matrix, double[] bias, double[] x) {
        double[] out = new double[matrix.length / x.length];
        for (int row = 0; row < out.length; row++) {
            double sum = bias == null ? 0 : bias[row];
            for (int i = 0; i < x.length; i++) {
                sum += matrix[row * x.length + i] * x[i];
            }
            out[row] = sum;
        }
        return out;
    }

    private static void add(double[] x, double[] y) {
        for (int i = 0; i < x.length; i++) {
            x[i] += y[i];
        }
    }
}
