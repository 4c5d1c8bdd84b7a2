package dev.shadowkv.llm.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;

/**
 * A model's folder: its configuration and its weights, in one {@code model.safetensors} or in several files listed by
 * {@code model.safetensors.index.json}. Opening checks that every weight of the model is there with the right shape
 * and one of the types that weights have (F32, F16 or BF16); the weights themselves are read from the mapped files when touched.
 *
 * <pre>{@code
 * try (Checkpoint checkpoint = Checkpoint.open(folder)) {
 *     Tensor keys = checkpoint.weight(Weight.KEY, layer);       // a slice where the family fuses query, key, value
 *     Optional<Tensor> bias = checkpoint.find(Weight.KEY_BIAS, layer);
 * }
 * }</pre>
 *
 * <p>Usable from any thread; tensors die with {@link #close}.
 */
public final class Checkpoint implements AutoCloseable {
    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";

    private final Path directory;
    private final ModelConfig config;
    private final WeightNames names;
    private final List<SafetensorsFile> files;
    private final Map<String, Tensor> tensors;

    private Checkpoint(Path directory, ModelConfig config, List<SafetensorsFile> files, Map<String, Tensor> tensors) {
        this.directory = directory;
        this.config = config;
        this.names = WeightNames.of(config);
        this.files = files;
        this.tensors = tensors;
    }

    /**
     * Opens a model's folder.
     *
     * @throws CheckpointException when something is missing, broken, unsupported or of the wrong shape
     */
    public static Checkpoint open(Path directory) {
        if (!Files.isDirectory(directory)) {
            throw new CheckpointException(directory + ": no such folder");
        }
        return open(directory, ModelConfig.read(directory));
    }

    /** As {@link #open(Path)}, with a configuration that was read from elsewhere. */
    public static Checkpoint open(Path directory, ModelConfig config) {
        Map<Path, SafetensorsFile> files = new LinkedHashMap<>();
        try {
            Map<String, Tensor> tensors = openTensors(directory, files);
            Checkpoint checkpoint = new Checkpoint(directory, config, List.copyOf(files.values()), tensors);
            checkpoint.names.places().forEach(place -> checkpoint.weight(place.weight(), place.layer()));
            return checkpoint;
        } catch (RuntimeException e) {
            files.values().forEach(SafetensorsFile::close);
            throw e;
        }
    }

    private static Map<String, Tensor> openTensors(Path directory, Map<Path, SafetensorsFile> files) {
        Map<String, Tensor> tensors = new TreeMap<>();
        Path single = directory.resolve(SINGLE);
        if (Files.exists(single)) {
            SafetensorsFile file = SafetensorsFile.open(single);
            files.put(single, file);
            file.names().forEach(name -> tensors.put(name, file.tensor(name)));
            return tensors;
        }
        Path index = directory.resolve(INDEX);
        if (!Files.exists(index)) {
            throw new CheckpointException(directory + ": has neither " + SINGLE + " nor " + INDEX);
        }
        ConfigFields shards = ConfigFields.read(index)
                .object("weight_map")
                .orElseThrow(() -> new CheckpointException(index + ": weight_map is missing"));
        for (String name : shards.names()) {
            String shard = shards.text(name).orElseThrow(() -> shards.wrong(name, "names no file"));
            Path path = directory.resolve(shard).normalize();
            if (!directory.normalize().equals(path.getParent())) {
                throw shards.wrong(name, "points outside the folder: " + shard);
            }
            tensors.put(name, files.computeIfAbsent(path, SafetensorsFile::open).tensor(name));
        }
        return tensors;
    }

    public Path directory() {
        return directory;
    }

    public ModelConfig config() {
        return config;
    }

    public WeightNames names() {
        return names;
    }

    /** Names of all tensors in the files, also of those that the model does not use. */
    public Set<String> tensorNames() {
        return Collections.unmodifiableSet(tensors.keySet());
    }

    /** Bytes of all tensors. */
    public long byteSize() {
        return tensors.values().stream().mapToLong(tensor -> tensor.data().byteSize()).sum();
    }

    /** A whole tensor by its name in the files. */
    public Optional<Tensor> find(String tensorName) {
        return Optional.ofNullable(tensors.get(tensorName));
    }

    /** A weight; empty when the model has none of that kind. */
    public Optional<Tensor> find(Weight weight, int layer) {
        return names.locate(weight, layer).map(this::read);
    }

    /**
     * A weight that the model must have.
     *
     * @param layer its layer; ignored for weights that belong to none
     */
    public Tensor weight(Weight weight, int layer) {
        return find(weight, layer)
                .orElseThrow(() -> new IllegalArgumentException(config.family() + " has no " + weight + " here"));
    }

    /** A weight that belongs to no layer. */
    public Tensor weight(Weight weight) {
        if (weight.perLayer()) {
            throw new IllegalArgumentException(weight + " needs a layer");
        }
        return weight(weight, -1);
    }

    private Tensor read(WeightNames.Location location) {
        Tensor tensor = tensors.get(location.tensor());
        if (tensor == null) {
            throw new CheckpointException(directory + ": there is no tensor " + location.tensor());
        }
        if (!tensor.shape().equals(location.tensorShape())) {
            throw new CheckpointException(directory + ": tensor " + location.tensor() + " has shape " + tensor.shape()
                    + ", the configuration asks for " + location.tensorShape());
        }
        switch (tensor.type()) {
            case F32, F16, BF16 -> {}
            default -> throw new CheckpointException(directory + ": tensor " + location.tensor() + " has type "
                    + tensor.type().code() + "; weights must be F32, F16 or BF16");
        }
        return location.fused() ? tensor.rows(location.firstRow(), location.rows()) : tensor;
    }

    /** Unmaps the files. Further closing does nothing. */
    @Override
    public void close() {
        files.forEach(SafetensorsFile::close);
    }
}
