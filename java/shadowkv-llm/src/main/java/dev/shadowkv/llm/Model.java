package dev.shadowkv.llm;

import dev.shadowkv.Device;
import dev.shadowkv.DeviceArena;
import dev.shadowkv.DeviceBuffer;
import dev.shadowkv.ElementType;
import dev.shadowkv.kernels.Rows;
import dev.shadowkv.kernels.TransformerKernels;
import dev.shadowkv.llm.checkpoint.Checkpoint;
import dev.shadowkv.llm.checkpoint.ModelConfig;
import dev.shadowkv.llm.checkpoint.Tensor;
import dev.shadowkv.llm.checkpoint.TensorType;
import dev.shadowkv.llm.checkpoint.Weight;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;

/**
 * A model's weights on a device. Query, key and value projections lie one behind the other, so that one product gives
 * all three; gate and up projections too. Immutable; may be shared by any number of engines on its device.
 */
public final class Model implements AutoCloseable {
    /** Tensors that change their type on the way are brought over in pieces of this size. */
    private static final long STAGING_BYTES = 16L << 20;

    /**
     * The weights of a layer, each dense.
     *
     * @param attention query, key and value rows, {@code [queryWidth + 2 * keyValueWidth][hiddenSize]}
     * @param attentionBias one number for each of those rows, or null
     * @param outputBias one number for each row of the output projection, or null
     * @param gateUp gate rows, then up rows, {@code [2 * intermediateSize][hiddenSize]}
     */
    record Layer(
            Rows attentionNorm,
            Rows attention,
            DeviceBuffer attentionBias,
            Rows output,
            DeviceBuffer outputBias,
            Rows mlpNorm,
            Rows gateUp,
            Rows down) {}

    private final ModelConfig config;
    private final Device device;
    private final ElementType type;
    private final DeviceArena arena;
    private final Rows embedding;
    private final Rows finalNorm;
    private final Rows outputProjection;
    private final List<Layer> layers = new ArrayList<>();
    private long bytes;

    /** Fills weights of any origin, in order, into a buffer on the device. */
    private interface Source {
        void fill(DeviceBuffer target, Weight weight, int layer);
    }

    private Model(ModelConfig config, Device device, ElementType type) {
        this(config, device, type, null);
    }

    private Model(ModelConfig config, Device device, ElementType type, Checkpoint checkpoint) {
        this.config = Objects.requireNonNull(config, "config");
        this.device = Objects.requireNonNull(device, "device");
        this.type = Objects.requireNonNull(type, "type");
        arena = device.newArena();
        try (DeviceArena staging = device.newArena()) {
            Source source = checkpoint == null ? randomSource() : checkpointSource(checkpoint, staging);
            embedding = rows(source, -1, Weight.EMBEDDING);
            finalNorm = rows(source, -1, Weight.FINAL_NORM);
            outputProjection =
                    config.tieWordEmbeddings() ? embedding : rows(source, -1, Weight.OUTPUT_PROJECTION);
            for (int layer = 0; layer < config.layers(); layer++) {
                layers.add(layer(source, layer));
            }
            device.synchronize();
        } catch (RuntimeException e) {
            arena.close();
            throw e;
        }
    }

    /**
     * Brings a checkpoint's weights to a device, as F32 to a CPU and as BF16 to a GPU. The checkpoint can be closed
     * afterwards.
     */
    public static Model load(Checkpoint checkpoint, Device device) {
        return load(checkpoint, device, device.defaultType());
    }

    /** As above, with another type of weights: F32, BF16 or F16. */
    public static Model load(Checkpoint checkpoint, Device device, ElementType type) {
        return new Model(checkpoint.config(), device, type, Objects.requireNonNull(checkpoint, "checkpoint"));
    }

    /** A model of a shape with random weights, made on the device: for measurements that need no meaning. */
    public static Model random(ModelConfig config, Device device) {
        return new Model(config, device, device.defaultType());
    }

    /** Bytes that the weights of a model take. */
    public static long weightBytes(ModelConfig config, ElementType type) {
        long hidden = config.hiddenSize();
        long attention = hidden * (2L * config.queryWidth() + 2L * config.keyValueWidth());
        long layer = attention + 3 * hidden * config.intermediateSize() + 2 * hidden
                + (config.attentionBias() ? config.queryWidth() + 2L * config.keyValueWidth() : 0)
                + (config.outputBias() ? hidden : 0);
        long embeddings = (config.tieWordEmbeddings() ? 1 : 2) * hidden * config.vocabularySize();
        return (config.layers() * layer + embeddings + hidden) * type.bytes();
    }

    private Layer layer(Source source, int layer) {
        return new Layer(
                rows(source, layer, Weight.ATTENTION_NORM),
                rows(source, layer, Weight.QUERY, Weight.KEY, Weight.VALUE),
                config.attentionBias()
                        ? buffer(source, layer, Weight.QUERY_BIAS, Weight.KEY_BIAS, Weight.VALUE_BIAS)
                        : null,
                rows(source, layer, Weight.ATTENTION_OUTPUT),
                config.outputBias() ? buffer(source, layer, Weight.ATTENTION_OUTPUT_BIAS) : null,
                rows(source, layer, Weight.MLP_NORM),
                rows(source, layer, Weight.GATE, Weight.UP),
                rows(source, layer, Weight.DOWN));
    }

    private Rows rows(Source source, int layer, Weight... weights) {
        return Rows.of(buffer(source, layer, weights), type);
    }

    /** Weights one behind the other in one buffer. */
    private DeviceBuffer buffer(Source source, int layer, Weight... weights) {
        long size = 0;
        for (Weight weight : weights) {
            size = Math.addExact(size, Math.multiplyExact(elements(weight), (long) type.bytes()));
        }
        DeviceBuffer buffer = arena.allocate(size);
        bytes += size;
        long at = 0;
        for (Weight weight : weights) {
            long length = elements(weight) * type.bytes();
            source.fill(buffer.slice(at, length), weight, layer);
            at += length;
        }
        return buffer;
    }

    private long elements(Weight weight) {
        long hidden = config.hiddenSize();
        return switch (weight) {
            case EMBEDDING, OUTPUT_PROJECTION -> hidden * config.vocabularySize();
            case FINAL_NORM, ATTENTION_NORM, MLP_NORM, ATTENTION_OUTPUT_BIAS -> hidden;
            case QUERY, ATTENTION_OUTPUT -> hidden * config.queryWidth();
            case KEY, VALUE -> hidden * config.keyValueWidth();
            case QUERY_BIAS -> config.queryWidth();
            case KEY_BIAS, VALUE_BIAS -> config.keyValueWidth();
            case GATE, UP, DOWN -> hidden * config.intermediateSize();
        };
    }

    private Source checkpointSource(Checkpoint checkpoint, DeviceArena staging) {
        TransformerKernels kernels = new TransformerKernels(device);
        DeviceBuffer piece = staging.allocate(STAGING_BYTES);
        return (target, weight, layer) -> {
            Tensor tensor = checkpoint.weight(weight, layer);
            ElementType from = elementType(tensor.type());
            if (from == type) {
                device.copy(tensor.data(), target);
                return;
            }
            long count = tensor.elementCount();
            long step = STAGING_BYTES / from.bytes();
            for (long at = 0; at < count; at += step) {
                long n = Math.min(step, count - at);
                device.copy(tensor.data().asSlice(at * from.bytes(), n * from.bytes()), piece);
                kernels.convert(
                        piece, from, target.slice(at * type.bytes(), n * type.bytes()), type, n);
            }
        };
    }

    /** Norms of 1, biases of 0, and matrices that keep the size of what they multiply. */
    private Source randomSource() {
        TransformerKernels kernels = new TransformerKernels(device);
        return (target, weight, layer) -> {
            boolean norm = weight == Weight.FINAL_NORM || weight == Weight.ATTENTION_NORM || weight == Weight.MLP_NORM;
            double inner =
                    switch (weight) {
                        case ATTENTION_OUTPUT -> config.queryWidth();
                        case DOWN -> config.intermediateSize();
                        default -> config.hiddenSize();
                    };
            boolean matrix = elements(weight) > config.hiddenSize() * 16L;
            float deviation = norm || !matrix ? 0 : (float) (1 / Math.sqrt(inner));
            long seed = 31L * (layer + 2) + weight.ordinal();
            kernels.randomFill(target, type, elements(weight), seed, norm ? 1 : 0, deviation);
        };
    }

    private static ElementType elementType(TensorType type) {
        return switch (type) {
            case F32 -> ElementType.F32;
            case F16 -> ElementType.F16;
            case BF16 -> ElementType.BF16;
            default -> throw new IllegalArgumentException("weights cannot be " + type.code());
        };
    }

    /** The shape of the model. */
    public ModelConfig config() {
        return config;
    }

    /** Where the weights are. */
    public Device device() {
        return device;
    }

    /** The type of the weights, and of the activations. */
    public ElementType type() {
        return type;
    }

    /** Device memory that the weights take. */
    public long byteSize() {
        return bytes;
    }

    Rows embedding() {
        return embedding;
    }

    Rows finalNorm() {
        return finalNorm;
    }

    Rows outputProjection() {
        return outputProjection;
    }

    List<Layer> layers() {
        return layers;
    }

    /** Frees the weights; does nothing the second time. */
    @Override
    public void close() {
        arena.close();
    }
}
