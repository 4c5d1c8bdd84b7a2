// Times of the CPU's decode path on one layer of an 8B Llama, and of its prefill on the small checkpoint's shape,
// beside what the machine's memory and arithmetic allow. Run by hand: bench_cpu [threads] [tokens] [batch] [instruction
// set].
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/execution.h"
#include "random.h"

namespace {

using skv::cpu::Execution;
using skv::cpu::InstructionSet;
using skv::cpu::ThreadPool;
using skv::cpu::Workspace;

constexpr double kGiga = 1e9;

// The best of several, and the result of the last must have been looked at by the caller.
double best_seconds(int repeats, const std::function<void()>& work) {
  double best = INFINITY;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : count_(count), memory_(static_cast<T*>(std::aligned_alloc(kAlignment, bytes_of(count))), &std::free) {
    if (!memory_) {
      std::fprintf(stderr, "no memory for %lld elements\n", static_cast<long long>(count));
      std::exit(1);
    }
    // As the backend allocates: with small pages half of the time goes into address translation.
    (void)madvise(memory_.get(), bytes_of(count), MADV_HUGEPAGE);
  }
  T* data() { return memory_.get(); }
  std::int64_t count() const { return count_; }
  T& operator[](std::int64_t i) { return memory_.get()[i]; }

 private:
  static constexpr std::size_t kAlignment = 1 << 21;
  static std::size_t bytes_of(std::int64_t count) {
    return (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::int64_t count_;
  std::unique_ptr<T, decltype(&std::free)> memory_;
};

using Half = std::uint16_t;  // bf16

Half to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<Half>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void fill(ThreadPool& pool, Buffer<Half>& to, std::uint64_t seed, float deviation) {
  pool.parallel_ranges(to.count() / 4, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const skv::RandomNormals normals = skv::random_normals(static_cast<std::uint64_t>(i), seed);
      for (int j = 0; j < 4; ++j) {
        to[4 * i + j] = to_bf16(normals.at[j] * deviation);
      }
    }
  });
}

void fill(Buffer<float>& to, std::uint64_t seed, float deviation) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  for (std::int64_t i = 0; i < to.count(); ++i) {
    to[i] = normal(random);
  }
}

struct Machine {
  double read = 0, copy = 0;  // bytes a second; a copied byte counts twice
};

Machine measure(ThreadPool& pool) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 28, kPiece = std::int64_t{1} << 20;
  Buffer<std::uint64_t> from(kBytes / 8), to(kBytes / 8);
  std::memset(from.data(), 1, kBytes);
  std::memset(to.data(), 2, kBytes);
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(kBytes / kPiece));
  constexpr int kRepeats = 10;
  Machine machine;
  machine.read = kBytes / best_seconds(kRepeats, [&] {
                   pool.parallel_for(kBytes / kPiece, [&](std::int64_t piece) {
                     typedef std::uint64_t Words __attribute__((vector_size(64)));
                     Words sum[4] = {};
                     const Words* const words = reinterpret_cast<const Words*>(from.data() + piece * (kPiece / 8));
                     for (std::int64_t i = 0; i < kPiece / 64; i += 4) {
                       for (int j = 0; j < 4; ++j) {
                         sum[j] += words[i + j];
                       }
                     }
                     const Words all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
                     sums[static_cast<std::size_t>(piece)] = all[0] + all[7];
                   });
                 });
  machine.copy =
      2.0 * kBytes / best_seconds(kRepeats, [&] {
        // One large part a thread: memcpy then writes past the caches, which is the fastest copy.
        const std::int64_t part = kBytes / pool.threads() / 64 * 64;
        pool.parallel_for(pool.threads(), [&](std::int64_t i) {
          std::memcpy(to.data() + i * (part / 8), from.data() + i * (part / 8), static_cast<std::size_t>(part));
        });
      });
  if (sums[1] == 0 || to[7] != from[7]) {
    std::printf("memory does not hold what was written\n");
    std::exit(1);
  }
  return machine;
}

struct Rope {
  Buffer<float> coarse, fine;
  skv_rope table;
  Rope(int dim, std::int64_t positions)
      : coarse((positions / kFineRows + 1) * dim),
        fine(kFineRows * dim),
        table{coarse.data(),  fine.data(), static_cast<std::int32_t>(positions / kFineRows + 1), kFineRows, dim,
              SKV_HALF_SPLIT, 1.0F} {
    for (int i = 0; i < dim / 2; ++i) {
      const double frequency = std::pow(500000.0, -2.0 * i / dim);
      for (std::int64_t row = 0; row < table.coarse_rows; ++row) {
        coarse[row * dim + 2 * i] = static_cast<float>(std::cos(static_cast<double>(row * kFineRows) * frequency));
        coarse[row * dim + 2 * i + 1] = static_cast<float>(std::sin(static_cast<double>(row * kFineRows) * frequency));
      }
      for (int row = 0; row < kFineRows; ++row) {
        fine[row * dim + 2 * i] = static_cast<float>(std::cos(row * frequency));
        fine[row * dim + 2 * i + 1] = static_cast<float>(std::sin(row * frequency));
      }
    }
  }
  static constexpr int kFineRows = 1024;
};

void report(const char* what, double seconds, double bytes, double operations, const Machine& machine) {
  std::printf("%-34s %9.3f ms", what, seconds * 1e3);
  if (bytes > 0) {
    std::printf("  %7.1f MB %6.1f GB/s = %3.0f %% of copy, %3.0f %% of read", bytes / 1e6, bytes / seconds / kGiga,
                100 * bytes / seconds / machine.copy, 100 * bytes / seconds / machine.read);
  }
  if (operations > 0) {
    std::printf("  %8.1f GFLOP/s", operations / seconds / kGiga);
  }
  std::printf("\n");
  std::fflush(stdout);
}

bool finite(Buffer<float>& output) {
  for (std::int64_t i = 0; i < output.count(); ++i) {
    if (!std::isfinite(output[i])) {
      return false;
    }
  }
  return true;
}

void require_finite(Buffer<float>& output, const char* what) {
  if (!finite(output)) {
    std::printf("%s: the result is not finite\n", what);
    std::exit(1);
  }
}

class Runner {
 public:
  Runner(ThreadPool& pool, InstructionSet set) : pool_(pool), set_(set) {}

  template <class Params>
  double time(int repeats, const Params& p, void (*operation)(const Params&, Execution&),
              std::uint64_t (*workspace)(const Params&, const skv::cpu::ExecutionTraits&)) {
    const std::uint64_t bytes = workspace(p, {pool_.threads(), set_});
    Buffer<char> memory(static_cast<std::int64_t>(bytes) + 64);
    std::memset(memory.data(), 0, bytes);
    return best_seconds(repeats, [&] {
      Execution execution{pool_, Workspace(memory.data(), bytes), set_, no_path_};
      operation(p, execution);
    });
  }

 private:
  ThreadPool& pool_;
  InstructionSet set_;
  std::string no_path_;
};

constexpr int kRepeats = 12;

double dense(Runner& runner, ThreadPool& pool, const Machine& machine, std::int64_t tokens, std::int32_t batch) {
  const skv_geometry g = {32, 8, 128, 8, 160, SKV_BF16, SKV_BF16, SKV_BF16, 64, 0};
  Buffer<Half> keys(batch * tokens * 8 * 128), values(batch * tokens * 8 * 128);
  fill(pool, keys, 1, 1.0F);
  fill(pool, values, 2, 1.0F);
  Buffer<float> queries(batch * 32 * 128), output(batch * 32 * 128);
  fill(queries, 3, 1.0F);
  std::vector<skv_dense_layer> layers;
  std::vector<skv_session_state> states(static_cast<std::size_t>(batch));
  for (std::int32_t b = 0; b < batch; ++b) {
    layers.push_back({keys.data() + b * tokens * 8 * 128, values.data() + b * tokens * 8 * 128, tokens});
    states[static_cast<std::size_t>(b)].length = tokens;
  }
  skv_dense_attention_params p{};
  p.query_type = p.output_type = SKV_F32;
  p.geometry = g;
  p.batch = batch;
  p.queries = queries.data();
  p.layers = layers.data();
  p.states = states.data();
  p.max_length = tokens;
  p.output = output.data();
  const double seconds = runner.time(kRepeats, p, skv::cpu::dense_attention, skv::cpu::dense_attention_workspace);
  require_finite(output, "dense_attention");
  report("dense attention", seconds, static_cast<double>(batch) * tokens * 8 * 128 * 2 * 2, 0, machine);
  return seconds;
}

double shadow(Runner& runner, ThreadPool& pool, const Machine& machine, std::int64_t tokens, std::int32_t batch) {
  constexpr int kSelect = 256, kOutliers = 48, kChunk = 8, kRank = 160, kWindow = 64;
  const skv_geometry g = {32, 8, 128, kChunk, kRank, SKV_BF16, SKV_BF16, SKV_BF16, kWindow, 0};
  const std::int64_t chunks = tokens / kChunk, indexed = chunks - 4;
  Buffer<Half> coefficients(batch * tokens * kRank), basis(batch * 8 * kRank * 128),
      landmarks(batch * 8 * chunks * 128), outlier_keys(batch * 8 * kOutliers * kChunk * 128),
      outlier_values(batch * 8 * kOutliers * kChunk * 128), recent_keys(batch * 8 * kWindow * 128),
      recent_values(batch * 8 * kWindow * 128), values(batch * 8 * tokens * 128);
  Buffer<float> radius(batch * 8 * chunks);
  fill(pool, coefficients, 11, 1.0F);
  fill(pool, basis, 12, 0.08F);
  fill(pool, landmarks, 13, 0.7F);
  fill(pool, outlier_keys, 14, 1.0F);
  fill(pool, outlier_values, 15, 1.0F);
  fill(pool, recent_keys, 16, 1.0F);
  fill(pool, recent_values, 17, 1.0F);
  fill(pool, values, 18, 1.0F);
  std::mt19937_64 random(19);
  for (std::int64_t i = 0; i < radius.count(); ++i) {
    radius[i] = static_cast<float>(random() % 1000) * 1e-3F;
  }
  const Rope rope(128, tokens + 1);
  Buffer<float> queries(batch * 32 * 128), output(batch * 32 * 128), new_keys(batch * 8 * 128),
      new_values(batch * 8 * 128);
  fill(queries, 3, 1.0F);
  fill(new_keys, 4, 1.0F);
  fill(new_values, 5, 1.0F);
  std::vector<skv_shadow_layer> layers;
  std::vector<skv_session_state> states(static_cast<std::size_t>(batch));
  for (std::int32_t b = 0; b < batch; ++b) {
    skv_shadow_layer layer{};
    layer.coefficients = coefficients.data() + b * tokens * kRank;
    layer.basis = basis.data() + b * 8 * kRank * 128;
    layer.landmarks = landmarks.data() + b * 8 * chunks * 128;
    layer.radius = radius.data() + b * 8 * chunks;
    layer.outlier_keys = outlier_keys.data() + b * 8 * kOutliers * kChunk * 128;
    layer.outlier_values = outlier_values.data() + b * 8 * kOutliers * kChunk * 128;
    layer.recent_keys = recent_keys.data() + b * 8 * kWindow * 128;
    layer.recent_values = recent_values.data() + b * 8 * kWindow * 128;
    layer.values = values.data() + b * 8 * tokens * 128;
    layer.chunk_capacity = chunks;
    layer.outlier_capacity = kOutliers;
    layers.push_back(layer);
    states[static_cast<std::size_t>(b)] = {
        indexed * kChunk + 33, indexed * kChunk, static_cast<std::int32_t>(indexed), kOutliers, 1, 0};
  }
  skv_decode_layer_params p{};
  p.input_type = SKV_F32;
  p.geometry = g;
  p.batch = batch;
  p.queries = queries.data();
  p.keys = new_keys.data();
  p.values = new_values.data();
  p.layers = layers.data();
  p.states = states.data();
  p.rope = rope.table;
  p.radius_weight = 0.5F;
  p.select = kSelect;
  p.max_chunks = chunks;
  p.output = output.data();
  const double pairs = 8.0 * batch;
  const double landmark_bytes = pairs * static_cast<double>(indexed) * 128 * 2;
  const double kept_bytes = pairs * (kSelect * kChunk * (kRank + 128.0) + kOutliers * kChunk * 256.0 + 33 * 256) * 2;
  const double rebuild = 2 * pairs * kSelect * kChunk * kRank * 128;
  const double seconds = runner.time(kRepeats, p, skv::cpu::decode_layer, skv::cpu::decode_layer_workspace);
  require_finite(output, "decode_layer");
  report("shadow decode layer", seconds, landmark_bytes + kept_bytes, rebuild, machine);

  Buffer<std::int32_t> selected(batch * 8 * kSelect), counts(batch * 8);
  skv_landmark_topk_params topk{};
  topk.query_type = SKV_F32;
  topk.geometry = g;
  topk.batch = batch;
  topk.queries = queries.data();
  topk.layers = layers.data();
  topk.states = states.data();
  topk.radius_weight = 0.5F;
  topk.select = kSelect;
  topk.max_chunks = chunks;
  topk.selected = selected.data();
  topk.selected_count = counts.data();
  report("  of which landmark_topk",
         runner.time(kRepeats, topk, skv::cpu::landmark_topk, skv::cpu::landmark_topk_workspace), landmark_bytes, 0,
         machine);
  skv_sparse_attention_params sparse{};
  sparse.query_type = sparse.output_type = SKV_F32;
  sparse.geometry = g;
  sparse.batch = batch;
  sparse.queries = queries.data();
  sparse.layers = layers.data();
  sparse.states = states.data();
  sparse.rope = rope.table;
  sparse.select = kSelect;
  sparse.selected = sparse.selected_slot = selected.data();
  sparse.selected_count = counts.data();
  sparse.output = output.data();
  report("  of which sparse_attention",
         runner.time(kRepeats, sparse, skv::cpu::sparse_attention, skv::cpu::sparse_attention_workspace), kept_bytes,
         rebuild, machine);
  return seconds;
}

void prefill(Runner& runner, const Machine& machine, std::int64_t tokens) {
  const skv_geometry g = {8, 4, 64, 8, 40, SKV_F32, SKV_F32, SKV_F32, 64, 0};
  Buffer<float> queries(tokens * 8 * 64), keys(tokens * 4 * 64), values(tokens * 4 * 64), output(tokens * 8 * 64);
  fill(queries, 21, 1.0F);
  fill(keys, 22, 1.0F);
  fill(values, 23, 1.0F);
  skv_prefill_attention_params p{};
  p.query_type = p.output_type = SKV_F32;
  p.geometry = g;
  p.queries = queries.data();
  p.count = tokens;
  p.keys = keys.data();
  p.values = values.data();
  p.capacity = tokens;
  p.output = output.data();
  const double seconds = runner.time(2, p, skv::cpu::prefill_attention, skv::cpu::prefill_attention_workspace);
  require_finite(output, "prefill_attention");
  report("prefill 8/4 heads x 64, f32", seconds, 0,
         4.0 * 64 * 8 * static_cast<double>(tokens) * static_cast<double>(tokens + 1) / 2, machine);
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const int threads = static_cast<int>(argument(1, ThreadPool::processors()));
  const std::int64_t tokens = argument(2, 122880);
  const std::int32_t batch = static_cast<std::int32_t>(argument(3, 1));
  const auto set = static_cast<InstructionSet>(argument(4, static_cast<int>(skv::cpu::best_instruction_set())));
  const std::int64_t prefill_tokens = argument(5, 4096);
  ThreadPool pool(threads);
  const Machine machine = measure(pool);
  std::printf("%d threads, instruction set %d; memory: read %.1f GB/s, copy %.1f GB/s (read and written)\n", threads,
              static_cast<int>(set), machine.read / kGiga, machine.copy / kGiga);
  Runner runner(pool, set);
  const double exact = dense(runner, pool, machine, tokens, batch);
  const double sparse = shadow(runner, pool, machine, tokens, batch);
  std::printf("%-34s %9.2f\n", "dense / shadow", exact / sparse);
  if (prefill_tokens > 0) {
    prefill(runner, machine, prefill_tokens);
  }
  return 0;
}
