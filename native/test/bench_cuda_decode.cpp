// Times the CUDA decode path on one layer of an 8B Llama (32/8 heads, D 128), by default 8 sessions of 122,880 tokens,
// rank 160, budget 2048 in chunks of 8: each kernel by events behind a flushed L2 cache, and whole layers, directly
// and by replay of a graph of several layers whose buffers do not fit in the L2 cache together.
//
// usage: bench_cuda_decode [sessions [tokens [only]]], only: a part of the names of the lines to run
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "backend.h"
#include "cuda/cublas.h"
#include "cuda/decode.h"
#include "moments.h"
#include "shadowkv_types.h"

namespace {

constexpr int kQueryHeads = 32, kHeads = 8, kDim = 128, kChunk = 8, kRank = 160, kSelect = 256, kSlots = 512;
constexpr int kWindow = 256, kRecent = 130, kOutliers = 48;
constexpr int kRuns = 15;

std::unique_ptr<skv::Backend> backend;
cudaStream_t stream;
std::string only;

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
    std::exit(1);
  }
}

// Given back when the process ends.
template <class T>
T* device(std::uint64_t count) {
  return static_cast<T*>(backend->allocate_device(count * sizeof(T)));
}

void random_bf16(void* to, std::uint64_t count, float deviation) {
  static std::uint64_t seed = std::random_device{}();
  skv_random_fill_params p = {};
  p.struct_size = sizeof(p);
  p.type = SKV_BF16;
  p.output = to;
  p.count = static_cast<std::int64_t>(count);
  p.seed = ++seed;
  p.deviation = deviation;
  backend->random_fill(p);
}

template <class T>
T* upload(const std::vector<T>& from) {
  T* const to = device<T>(from.size());
  backend->copy(to, from.data(), from.size() * sizeof(T));
  return to;
}

class Timer {
 public:
  Timer() {
    check(cudaEventCreate(&begin_), "event");
    check(cudaEventCreate(&end_), "event");
  }
  // Median microseconds of run(), each time after prepare().
  double median(const std::function<void()>& prepare, const std::function<void()>& run) {
    std::vector<float> times;
    for (int i = 0; i < kRuns + 3; ++i) {
      prepare();
      check(cudaEventRecord(begin_, stream), "record");
      run();
      check(cudaEventRecord(end_, stream), "record");
      check(cudaEventSynchronize(end_), "run");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "time");
      if (i >= 3) {
        times.push_back(milliseconds * 1000);
      }
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

// A decode layer taken apart: when each of its stages is done, in microseconds behind its beginning.
class StageTimes {
 public:
  explicit StageTimes(std::uint64_t workspace_bytes)
      : workspace_(backend->allocate_device(workspace_bytes), workspace_bytes), cublas_("") {
    cudaDeviceProp properties = {};
    check(cudaGetDeviceProperties(&properties, 0), "device");
    traits_.compute_major = properties.major;
    traits_.compute_minor = properties.minor;
    traits_.multiprocessors = properties.multiProcessorCount;
    traits_.shared_memory_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
    traits_.shared_memory_per_multiprocessor = static_cast<int>(properties.sharedMemPerMultiprocessor);
    traits_.l2_bytes = properties.l2CacheSize;
    skv::cuda::count_clusters(traits_);
    int least = 0, greatest = 0;
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities");
    for (int i = 0; i < skv::cuda::Launch::kSideStreams; ++i) {
      check(cudaStreamCreateWithPriority(&side_[static_cast<std::size_t>(i)], cudaStreamNonBlocking,
                                         skv::cuda::Launch::side_priority(i, least, greatest)),
            "stream");
    }
    for (auto& event : events_) {
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
    }
    for (auto& mark : marks_) {
      check(cudaEventCreate(&mark), "event");
    }
  }

  // Prints the median time of the end of every stage of every group.
  void print(const char* title, const skv_decode_layer_params& p, const std::function<void()>& prepare) {
    std::map<std::pair<int, std::string>, std::vector<float>> times;
    constexpr int kTraced = 9;
    for (int run = 0; run < kTraced + 2; ++run) {
      prepare();
      std::vector<std::pair<int, std::string>> names;
      check(cudaEventRecord(marks_[0], stream), "record");
      skv::cuda::Launch launch{stream, side_.data(), events_.data(), workspace_, traits_, cublas_};
      skv::cuda::decode_in_stages(p, launch, [&](const char* stage, int group, cudaStream_t where) {
        names.emplace_back(group, stage);
        check(cudaEventRecord(marks_.at(names.size()), where), "record");
      });
      check(cudaStreamSynchronize(stream), "run");
      for (std::size_t i = 0; i < names.size(); ++i) {
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, marks_[0], marks_[i + 1]), "time");
        if (run >= 2) {
          times[names[i]].push_back(milliseconds * 1000);
        }
      }
    }
    const auto median = [&](int group, const char* stage) {
      auto& t = times[{group, stage}];
      if (t.empty()) {
        return 0.0F;
      }
      std::sort(t.begin(), t.end());
      return t[t.size() / 2];
    };
    std::printf("%s: new tokens %.1f us, all %.1f us\n", title, median(0, "new tokens"), median(0, "combine"));
    for (int group = 0; times.count({group, "gather"}); ++group) {
      std::printf("    group %2d done: select %6.1f  gather %6.1f  attention %6.1f", group, median(group, "select"),
                  median(group, "gather"), median(group, "attention"));
      std::printf(times.count({group, "tail"}) ? "  tail %6.1f\n" : "\n", median(group, "tail"));
    }
    std::fflush(stdout);
  }

 private:
  skv::cuda::Workspace workspace_;
  skv::cuda::DeviceTraits traits_;
  skv::cuda::Cublas cublas_;
  std::array<cudaStream_t, skv::cuda::Launch::kSideStreams> side_ = {};
  std::array<cudaEvent_t, skv::cuda::Launch::kEvents> events_ = {};
  std::array<cudaEvent_t, 160> marks_ = {};
};

struct Ceilings {
  double memory = 0, link = 0;  // bytes a microsecond
};

void line(const char* name, double microseconds, double bytes, double rate) {
  const double floor = bytes / rate;
  std::printf("%-52s %9.1f us %9.1f MB %8.1f GB/s  floor %7.1f us  %5.1f %%\n", name, microseconds, bytes / 1e6,
              bytes / microseconds / 1e3, floor, 100 * floor / microseconds);
  std::fflush(stdout);
}

// How a whole layer is run.
struct Variant {
  int landmark_type, groups, shortlist, tail, predict;
};

constexpr Variant kVariants[] = {{SKV_BF16, 0, 0, 0, 0},
                                 {SKV_BF16, 0, 0, 1, 0},
                                 {SKV_BF16, 0, 4 * kSelect, 0, 0},
                                 {SKV_BF16, 0, 4 * kSelect, 1, 0},
                                 {SKV_BF16, 0, 4 * kSelect, 1, 1},
                                 {SKV_BF16, 1, 0, 0, 0},
                                 {SKV_BF16, 2, 0, 0, 0},
                                 {SKV_BF16, 4, 0, 0, 0},
                                 {SKV_BF16, 8, 0, 0, 0},
                                 {SKV_I8, 0, 0, 0, 0},
                                 {SKV_I8, 0, 0, 1, 0},
                                 {SKV_I8, 0, 4 * kSelect, 0, 0},
                                 {SKV_I8, 0, 4 * kSelect, 1, 0},
                                 {SKV_I8, 0, 4 * kSelect, 1, 1}};

bool wanted(const char* name) {
  return only.empty() || std::strstr(name, only.c_str());
}

struct Setup {
  int sessions;
  std::int64_t tokens;
  int value_type, landmark_type;
  std::int64_t chunks() const { return (tokens - kRecent) / kChunk; }
  skv_geometry geometry() const {
    return {kQueryHeads, kHeads, kDim, kChunk, kRank, SKV_BF16, value_type, landmark_type, kWindow, kSlots};
  }
  std::int64_t pairs() const { return static_cast<std::int64_t>(sessions) * kHeads; }
  std::int64_t value_bytes() const { return kChunk * kDim * (value_type == SKV_F8_E4M3 ? 1 : 2); }
};

// One layer of all sessions.
struct Layer {
  skv_shadow_layer *table, *predicting;     // without and with a basis of values
  std::int32_t *slot_chunk, *slot_stamp;    // of all sessions, one after the other
  std::int32_t *saved_chunk, *saved_stamp;  // the state that timed runs begin with
  std::vector<skv_shadow_layer> rows;
};

// Of so many tokens: sums of independent keys and values.
float* make_moments(std::int64_t tokens) {
  const skv::MomentLayout layout(kDim);
  std::mt19937 random(std::random_device{}());
  std::normal_distribution<float> normal(0.0F, std::sqrt(static_cast<float>(tokens)));
  std::vector<float> moments(static_cast<std::size_t>(kHeads * layout.floats));
  for (float& x : moments) {
    x = normal(random);
  }
  for (std::int64_t head = 0; head < kHeads; ++head) {
    moments[static_cast<std::size_t>(head * layout.floats + layout.count)] = static_cast<float>(tokens);
  }
  return upload(moments);
}

Layer make_layer(const Setup& s, const std::vector<std::uint8_t>& noise) {
  Layer layer;
  const auto capacity = static_cast<std::uint64_t>(s.chunks()) + 8;
  const auto slots = static_cast<std::uint64_t>(s.pairs()) * kSlots;
  layer.slot_chunk = device<std::int32_t>(slots);
  layer.slot_stamp = device<std::int32_t>(slots);
  layer.saved_chunk = device<std::int32_t>(slots);
  layer.saved_stamp = device<std::int32_t>(slots);
  backend->fill(layer.slot_chunk, 0xff, slots * 4);
  backend->fill(layer.slot_stamp, 0, slots * 4);
  for (int i = 0; i < s.sessions; ++i) {
    skv_shadow_layer row = {};
    const auto bf16 = [](std::uint64_t count, float deviation) {
      void* const to = device<std::uint16_t>(count);
      random_bf16(to, count, deviation);
      return to;
    };
    row.coefficients = bf16(capacity * kChunk * kRank, 1.0F);
    row.basis = bf16(static_cast<std::uint64_t>(kHeads) * kRank * kDim, 0.1F);
    row.value_basis = bf16(static_cast<std::uint64_t>(kHeads) * kRank * kDim, 0.1F);
    row.landmarks = bf16(kHeads * capacity * kDim, 1.0F);  // I8 reads the first half of the bytes
    row.landmark_scales = upload(std::vector<float>(kHeads * capacity, 0.01F));
    row.radius = upload(std::vector<float>(kHeads * capacity, 0.5F));
    row.outlier_keys = bf16(static_cast<std::uint64_t>(kHeads) * kOutliers * kChunk * kDim, 1.0F);
    row.outlier_values = bf16(static_cast<std::uint64_t>(kHeads) * kOutliers * kChunk * kDim, 1.0F);
    row.recent_keys = bf16(static_cast<std::uint64_t>(kHeads) * kWindow * kDim, 1.0F);
    row.recent_values = bf16(static_cast<std::uint64_t>(kHeads) * kWindow * kDim, 1.0F);
    const std::uint64_t bytes = kHeads * capacity * static_cast<std::uint64_t>(s.value_bytes());
    row.values = backend->allocate_host(bytes);
    for (std::uint64_t at = 0; at < bytes; at += noise.size()) {
      std::memcpy(static_cast<char*>(row.values) + at, noise.data(), std::min<std::uint64_t>(noise.size(), bytes - at));
    }
    row.value_scales = upload(std::vector<float>(kHeads * capacity, 0.01F));
    row.slot_values =
        device<std::uint8_t>(static_cast<std::uint64_t>(kHeads) * kSlots * static_cast<std::uint64_t>(s.value_bytes()));
    backend->fill(row.slot_values, 0,
                  static_cast<std::uint64_t>(kHeads) * kSlots * static_cast<std::uint64_t>(s.value_bytes()));
    row.slot_chunk = layer.slot_chunk + static_cast<std::ptrdiff_t>(i) * kHeads * kSlots;
    row.slot_stamp = layer.slot_stamp + static_cast<std::ptrdiff_t>(i) * kHeads * kSlots;
    row.moments = make_moments(s.tokens);
    row.chunk_capacity = static_cast<std::int64_t>(capacity);
    row.outlier_capacity = kOutliers;
    layer.rows.push_back(row);
  }
  layer.predicting = upload(layer.rows);
  auto without = layer.rows;
  for (skv_shadow_layer& row : without) {
    row.value_basis = nullptr;
  }
  layer.table = upload(without);
  return layer;
}

// Makes a share of the chunks selected at `step` not resident and keeps the state for the timed runs. Returns the
// misses.
std::int64_t drop(const Setup& s, Layer& layer, double resident, int step) {
  const auto count = static_cast<std::size_t>(s.pairs()) * kSlots;
  std::vector<std::int32_t> chunk(count), stamp(count);
  backend->copy(chunk.data(), layer.slot_chunk, count * 4);
  backend->copy(stamp.data(), layer.slot_stamp, count * 4);
  backend->synchronize();
  std::mt19937 random(std::random_device{}());
  std::uniform_real_distribution<double> uniform;
  std::int64_t misses = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (stamp[i] == step && uniform(random) >= resident) {
      chunk[i] = -1;
      ++misses;
    }
  }
  backend->copy(layer.saved_chunk, chunk.data(), count * 4);
  backend->copy(layer.saved_stamp, stamp.data(), count * 4);
  backend->synchronize();
  return misses;
}

void restore(const Setup& s, const Layer& layer) {
  const auto bytes = static_cast<std::uint64_t>(s.pairs()) * kSlots * 4;
  backend->copy(layer.slot_chunk, layer.saved_chunk, bytes);
  backend->copy(layer.slot_stamp, layer.saved_stamp, bytes);
}

skv_rope make_rope(std::int64_t tokens) {
  const int fine = 256;
  const int coarse = static_cast<int>(tokens / fine) + 2;
  std::vector<float> a, b;
  for (int row = 0; row < coarse; ++row) {
    for (int i = 0; i < kDim / 2; ++i) {
      const double angle = row * 256.0 * std::pow(500000.0, -2.0 * i / kDim);
      a.push_back(static_cast<float>(std::cos(angle)));
      a.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  for (int row = 0; row < fine; ++row) {
    for (int i = 0; i < kDim / 2; ++i) {
      const double angle = row * std::pow(500000.0, -2.0 * i / kDim);
      b.push_back(static_cast<float>(std::cos(angle)));
      b.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return {upload(a), upload(b), coarse, fine, kDim, SKV_HALF_SPLIT, 1.0F};
}

}  // namespace

int main(int argc, char** argv) {
  const int sessions = argc > 1 ? std::atoi(argv[1]) : 8;
  const std::int64_t tokens = argc > 2 ? std::atoll(argv[2]) : 122880;
  only = argc > 3 ? argv[3] : "";
  skv_context_params context = {};
  context.struct_size = sizeof(context);
  context.backend = SKV_BACKEND_CUDA;
  context.own_stream = 1;
  try {
    backend = skv::make_cuda_backend(context);
  } catch (const skv::Error& e) {
    std::printf("skipped: %s\n", e.what());
    return 77;
  }
  try {
    stream = reinterpret_cast<cudaStream_t>(backend->stream());
    skv_device_info info = {};
    info.struct_size = sizeof(info);
    backend->describe(info);
    std::printf("%s, %d multiprocessors; %d sessions of %lld tokens\n", info.name, info.multiprocessors, sessions,
                static_cast<long long>(tokens));
    Timer timer;
    Ceilings ceiling;
    constexpr std::uint64_t kFlush = std::uint64_t{256} << 20;
    auto* const flushed = device<std::uint8_t>(2 * kFlush);
    random_bf16(flushed, kFlush, 1.0F);
    const auto flush = [&] { backend->copy(flushed, flushed + kFlush, kFlush); };
    ceiling.memory = 2.0 * kFlush / timer.median([] {}, flush);
    void* const host = backend->allocate_host(kFlush);
    ceiling.link = kFlush / timer.median([] {}, [&] { backend->copy(flushed, host, kFlush); });
    std::printf("ceilings: memory %.0f GB/s (copy, read + write), link %.1f GB/s (copy engine)\n", ceiling.memory / 1e3,
                ceiling.link / 1e3);

    std::mt19937_64 random(std::random_device{}());
    std::vector<std::uint8_t> noise(std::size_t{16} << 20);
    for (std::size_t i = 0; i < noise.size(); i += 8) {
      // Finite both as bf16 and as e4m3.
      const std::uint64_t bits = random() & 0xbf77bf77bf77bf77ULL;
      std::memcpy(&noise[i], &bits, 8);
    }
    const skv_rope rope = make_rope(tokens);
    const std::uint64_t query_count = static_cast<std::uint64_t>(sessions) * kQueryHeads * kDim;
    void* const queries = device<std::uint16_t>(query_count);
    void* const keys = device<std::uint16_t>(query_count);
    void* const values = device<std::uint16_t>(query_count);
    random_bf16(queries, query_count, 1.0F);
    random_bf16(keys, query_count, 1.0F);
    random_bf16(values, query_count, 1.0F);
    void* const output = device<std::uint16_t>(query_count);
    std::vector<skv_session_state> states(static_cast<std::size_t>(sessions));
    int step = 1;
    skv_session_state* const state_table = device<skv_session_state>(states.size());
    const auto write_states = [&](const Setup& s) {
      for (auto& state : states) {
        state = {};
        state.indexed_chunks = static_cast<std::int32_t>(s.chunks());
        state.recent_begin = s.chunks() * kChunk;
        state.length = s.tokens;
        state.outliers = kOutliers;
        state.step = step;
      }
      backend->copy(state_table, states.data(), states.size() * sizeof(states[0]));
      backend->synchronize();
    };

    for (const int value_type : {SKV_BF16, SKV_F8_E4M3}) {
      const int layer_count = sessions >= 4 ? 3 : 16;
      Setup s = {sessions, tokens, value_type, SKV_BF16};
      const char* const type_name = value_type == SKV_BF16 ? "bf16" : "fp8";
      write_states(s);
      std::vector<Layer> layers;
      for (int i = 0; i < layer_count; ++i) {
        layers.push_back(make_layer(s, noise));
      }
      skv_decode_layer_params d = {};
      d.struct_size = sizeof(d);
      d.input_type = SKV_BF16;
      d.geometry = s.geometry();
      d.batch = sessions;
      d.queries = queries;
      d.keys = keys;
      d.values = values;
      d.states = state_table;
      d.rope = rope;
      d.radius_weight = 0.5F;
      d.select = kSelect;
      d.max_chunks = s.chunks();
      d.output = output;
      const auto reserve = [&](std::int32_t operation, const void* p) {
        backend->reserve_workspace(backend->workspace_bytes(operation, p));
      };
      d.layers = layers[0].table;
      reserve(SKV_OP_DECODE_LAYER, &d);
      bool predict = false;
      const auto table_of = [&](const Layer& layer) { return predict ? layer.predicting : layer.table; };
      const auto decode_all = [&] {
        for (const Layer& layer : layers) {
          d.layers = table_of(layer);
          backend->decode_layer(d);
        }
      };
      decode_all();  // cold: everything is fetched
      std::vector<std::uint16_t> cold(query_count), warm(query_count);
      backend->copy(cold.data(), output, query_count * 2);
      backend->synchronize();
      decode_all();
      backend->copy(warm.data(), output, query_count * 2);
      backend->synchronize();
      const bool finite =
          std::none_of(cold.begin(), cold.end(), [](std::uint16_t x) { return (x & 0x7f80) == 0x7f80; });
      const bool zero = std::all_of(cold.begin(), cold.end(), [](std::uint16_t x) { return (x & 0x7fff) == 0; });
      std::printf("%s values: result cold %s warm, %s\n", type_name, cold == warm ? "equals" : "DIFFERS FROM",
                  finite && !zero ? "finite" : "NOT FINITE OR ZERO");

      // Each kernel on the first layer.
      const std::int64_t pairs = s.pairs();
      auto* const selected = device<std::int32_t>(static_cast<std::uint64_t>(pairs) * kSelect * 4);
      auto* const selected_slot = device<std::int32_t>(static_cast<std::uint64_t>(pairs) * kSelect);
      auto* const fetch_chunk = device<std::int32_t>(static_cast<std::uint64_t>(pairs) * kSelect);
      auto* const fetch_slot = device<std::int32_t>(static_cast<std::uint64_t>(pairs) * kSelect);
      auto* const counts = device<std::int32_t>(static_cast<std::uint64_t>(pairs) * 2);
      const double landmark_bytes = static_cast<double>(pairs * s.chunks()) * kDim * 2;
      char name[128];
      skv_landmark_topk_params t = {};
      t.struct_size = sizeof(t);
      t.query_type = SKV_BF16;
      t.geometry = s.geometry();
      t.batch = sessions;
      t.queries = queries;
      t.layers = layers[0].table;
      t.states = state_table;
      t.radius_weight = 0.5F;
      t.select = kSelect;
      t.max_chunks = s.chunks();
      t.selected = selected;
      t.selected_count = counts;
      reserve(SKV_OP_LANDMARK_TOPK, &t);
      auto* const tail = device<float>(static_cast<std::uint64_t>(sessions) * kQueryHeads);
      if (value_type == SKV_BF16 && wanted("landmark_topk")) {
        for (const int select : {kSelect, 4 * kSelect}) {
          for (const int landmark_type : {SKV_BF16, SKV_I8}) {
            const bool int8 = landmark_type == SKV_I8;
            t.select = select;
            t.geometry.landmark_type = landmark_type;
            for (float* const wish : {static_cast<float*>(nullptr), tail}) {
              t.tail = wish;
              reserve(SKV_OP_LANDMARK_TOPK, &t);
              std::snprintf(name, sizeof(name), "landmark_topk %s, %d chunks%s", int8 ? "i8" : "bf16", select,
                            wish ? ", tail" : "");
              line(name, timer.median(flush, [&] { backend->landmark_topk(t); }),
                   int8 ? landmark_bytes / 2 : landmark_bytes, ceiling.memory);
            }
          }
        }
        t.tail = nullptr;
        t.select = kSelect;
        t.geometry.landmark_type = SKV_BF16;
      }
      backend->landmark_topk(t);
      skv_cache_plan_params c = {};
      c.struct_size = sizeof(c);
      c.geometry = s.geometry();
      c.batch = sessions;
      c.layers = layers[0].table;
      c.states = state_table;
      c.select = kSelect;
      c.selected = selected;
      c.selected_count = counts;
      c.selected_slot = selected_slot;
      c.fetch_chunk = fetch_chunk;
      c.fetch_slot = fetch_slot;
      c.fetch_count = counts + pairs;
      skv_value_gather_params g = {};
      g.struct_size = sizeof(g);
      g.geometry = s.geometry();
      g.batch = sessions;
      g.layers = layers[0].table;
      g.select = kSelect;
      g.fetch_chunk = fetch_chunk;
      g.fetch_slot = fetch_slot;
      g.fetch_count = counts + pairs;
      // The plan of the same selection at 60 % resident.
      backend->cache_plan(c);
      backend->value_gather(g);
      drop(s, layers[0], 0.6, step);
      const auto before_plan = [&] {
        restore(s, layers[0]);
        flush();
      };
      const double plan_us = timer.median(before_plan, [&] { backend->cache_plan(c); });
      std::vector<std::int32_t> fetched(static_cast<std::size_t>(pairs));
      backend->copy(fetched.data(), counts + pairs, fetched.size() * sizeof(fetched[0]));
      backend->synchronize();
      std::int64_t misses = 0;
      for (const std::int32_t count : fetched) {
        misses += count;
      }
      if (wanted("cache_plan")) {
        line("cache_plan 60 % resident", plan_us, static_cast<double>(pairs) * (kSlots * 8 + kSelect * 16),
             ceiling.memory);
      }
      if (wanted("value_gather")) {
        for (const int blocks : {8, 16, 32}) {
          g.blocks = blocks;
          std::snprintf(name, sizeof(name), "value_gather %s, %d blocks", type_name, blocks);
          line(name, timer.median(flush, [&] { backend->value_gather(g); }),
               static_cast<double>(misses * s.value_bytes()), ceiling.link);
        }
      }
      skv_sparse_attention_params a = {};
      a.struct_size = sizeof(a);
      a.query_type = SKV_BF16;
      a.output_type = SKV_BF16;
      a.geometry = s.geometry();
      a.batch = sessions;
      a.queries = queries;
      a.layers = layers[0].table;
      a.states = state_table;
      a.rope = rope;
      a.select = kSelect;
      a.selected = selected;
      a.selected_slot = selected_slot;
      a.selected_count = counts;
      a.output = output;
      reserve(SKV_OP_SPARSE_ATTENTION, &a);
      const double dense_tokens = kOutliers * kChunk + kRecent;
      const double sparse_bytes =
          static_cast<double>(pairs) * (kSelect * (kChunk * kRank * 2.0 + static_cast<double>(s.value_bytes())) +
                                        dense_tokens * kDim * 4 + kRank * kDim * 2.0);
      const double tail_bytes = static_cast<double>(pairs * skv::MomentLayout(kDim).floats) * 4;
      const double value_basis_bytes = static_cast<double>(pairs) * kRank * kDim * 2;
      if (wanted("sparse_attention")) {
        std::snprintf(name, sizeof(name), "sparse_attention %s", type_name);
        line(name, timer.median(flush, [&] { backend->sparse_attention(a); }), sparse_bytes, ceiling.memory);
        a.tail = upload(std::vector<float>(static_cast<std::size_t>(sessions) * kQueryHeads, 5.0F));
        std::snprintf(name, sizeof(name), "sparse_attention %s, tail", type_name);
        line(name, timer.median(flush, [&] { backend->sparse_attention(a); }), sparse_bytes + tail_bytes,
             ceiling.memory);
        a.dropped = a.tail;
        a.dropped_values = upload(std::vector<float>(query_count, 1.0F));
        std::snprintf(name, sizeof(name), "sparse_attention %s, tail and dropped", type_name);
        line(name, timer.median(flush, [&] { backend->sparse_attention(a); }),
             sparse_bytes + tail_bytes + static_cast<double>(query_count) * 4, ceiling.memory);
      }
      if (value_type == SKV_BF16 && wanted("rerank")) {
        t.select = 4 * kSelect;
        reserve(SKV_OP_LANDMARK_TOPK, &t);
        backend->landmark_topk(t);
        skv_rerank_params r = {};
        r.struct_size = sizeof(r);
        r.query_type = SKV_BF16;
        r.geometry = s.geometry();
        r.batch = sessions;
        r.queries = queries;
        r.layers = layers[0].table;
        r.states = state_table;
        r.rope = rope;
        r.shortlist_stride = 4 * kSelect;
        r.shortlist = selected;
        r.shortlist_count = counts;
        r.select = kSelect;
        r.selected = selected_slot;
        r.selected_count = counts + pairs;
        reserve(SKV_OP_RERANK, &r);
        const double shortlist_bytes = static_cast<double>(pairs) * 4 * kSelect * kChunk * kRank * 2;
        line("rerank of 4 times the budget", timer.median(flush, [&] { backend->rerank(r); }), shortlist_bytes,
             ceiling.memory);
        // Each run adds what the last one left; the time does not depend on the weights.
        backend->fill(tail, 0, static_cast<std::uint64_t>(sessions) * kQueryHeads * 4);
        r.tail = tail;
        line("rerank of 4 times the budget, tail", timer.median(flush, [&] { backend->rerank(r); }), shortlist_bytes,
             ceiling.memory);
        r.layers = layers[0].predicting;
        r.dropped = device<float>(static_cast<std::uint64_t>(sessions) * kQueryHeads);
        r.dropped_values = device<float>(query_count);
        reserve(SKV_OP_RERANK, &r);
        line("rerank of 4 times the budget, tail, dropped", timer.median(flush, [&] { backend->rerank(r); }),
             shortlist_bytes + value_basis_bytes, ceiling.memory);
      }

      if (wanted("stages")) {
        for (const auto& [shortlist, with_tail, with_prediction] :
             {std::tuple{0, 0, false}, std::tuple{4 * kSelect, 0, false}, std::tuple{4 * kSelect, 1, false},
              std::tuple{4 * kSelect, 1, true}}) {
          d.shortlist = shortlist;
          d.tail = with_tail;
          predict = with_prediction;
          reserve(SKV_OP_DECODE_LAYER, &d);
          StageTimes stages(backend->workspace_bytes(SKV_OP_DECODE_LAYER, &d));
          d.layers = table_of(layers[0]);
          for (const double resident : {0.6, 0.83}) {
            step += 2;
            write_states(s);
            d.groups = 1;
            backend->decode_layer(d);
            drop(s, layers[0], resident, step);
            for (const int groups : {1, 0, 8}) {
              if ((groups == 8 && sessions == 1) || (groups != 0 && shortlist > 0)) {
                continue;
              }
              d.groups = groups;
              std::snprintf(name, sizeof(name), "stages %s, %.0f %% resident, groups %d, shortlist %d%s%s", type_name,
                            100 * resident, groups, shortlist, with_tail ? ", tail" : "", predict ? ", predict" : "");
              stages.print(name, d, before_plan);
            }
          }
        }
        d.shortlist = d.tail = 0;
        predict = false;
      }
      if (wanted("decode_layer")) {
        for (const Variant& v : kVariants) {
          d.geometry.landmark_type = v.landmark_type;
          d.groups = v.groups;
          d.shortlist = v.shortlist;
          d.tail = v.tail;
          predict = v.predict != 0;
          d.layers = table_of(layers[0]);
          reserve(SKV_OP_DECODE_LAYER, &d);
          for (const double resident : {0.6, 0.83}) {
            step += 2;
            write_states(s);
            decode_all();
            std::int64_t missed = 0;
            for (Layer& layer : layers) {
              missed += drop(s, layer, resident, step);
            }
            const auto prepare = [&] {
              for (const Layer& layer : layers) {
                restore(s, layer);
              }
              flush();
            };
            const double link_bytes = static_cast<double>(missed * s.value_bytes()) / layer_count;
            const double floor = std::max(link_bytes / ceiling.link,
                                          (landmark_bytes / (v.landmark_type == SKV_I8 ? 2 : 1) + sparse_bytes +
                                           static_cast<double>(pairs) * v.shortlist * kChunk * kRank * 2 +
                                           v.tail * tail_bytes + v.predict * value_basis_bytes) /
                                              ceiling.memory);
            const double direct = timer.median(prepare, decode_all) / layer_count;
            backend->begin_graph();
            decode_all();
            const auto graph = backend->end_graph();
            const double replayed = timer.median(prepare, [&] { backend->launch_graph(*graph); }) / layer_count;
            std::printf(
                "decode_layer %-4s %.0f %% resident, %-4s landmarks, groups %2d, shortlist %4d, tail %d, predict %d: "
                "direct "
                "%7.1f us, graph %7.1f us, link %6.1f us, floor %6.1f us, %5.1f %%\n",
                type_name, 100 * resident, v.landmark_type == SKV_I8 ? "i8" : "bf16", v.groups, v.shortlist, v.tail,
                v.predict, direct, replayed, link_bytes / ceiling.link, floor, 100 * floor / replayed);
            std::fflush(stdout);
          }
        }
        d.geometry.landmark_type = SKV_BF16;
        d.shortlist = d.tail = 0;
        predict = false;
      }
      for (Layer& layer : layers) {
        for (const skv_shadow_layer& row : layer.rows) {
          for (void* address :
               {row.coefficients, row.basis, row.value_basis, row.landmarks, row.outlier_keys, row.outlier_values,
                row.recent_keys, row.recent_values, row.slot_values, static_cast<void*>(row.moments)}) {
            backend->free_device(address);
          }
          backend->free_host(row.values);
        }
      }
    }

    if (wanted("dense_attention")) {
      std::vector<skv_dense_layer> rows;
      for (int i = 0; i < sessions; ++i) {
        const std::uint64_t count = static_cast<std::uint64_t>(kHeads) * static_cast<std::uint64_t>(tokens) * kDim;
        skv_dense_layer row = {device<std::uint16_t>(count), device<std::uint16_t>(count), tokens};
        random_bf16(row.keys, count, 1.0F);
        random_bf16(row.values, count, 1.0F);
        rows.push_back(row);
      }
      Setup s = {sessions, tokens, SKV_BF16, SKV_BF16};
      write_states(s);
      skv_dense_attention_params p = {};
      p.struct_size = sizeof(p);
      p.query_type = p.output_type = SKV_BF16;
      p.geometry = s.geometry();
      p.batch = sessions;
      p.queries = queries;
      p.layers = upload(rows);
      p.states = state_table;
      p.max_length = tokens;
      p.output = output;
      backend->reserve_workspace(backend->workspace_bytes(SKV_OP_DENSE_ATTENTION, &p));
      line("dense_attention", timer.median(flush, [&] { backend->dense_attention(p); }),
           static_cast<double>(sessions) * static_cast<double>(tokens) * kHeads * kDim * 4, ceiling.memory);
    }
    backend->synchronize();
  } catch (const skv::Error& e) {
    std::fprintf(stderr, "threw: %s\n", e.what());
    return 1;
  }
  return 0;
}
