// What the benchmark of the CUDA decode path measures on: the machine with its clock and its ceilings, the inputs of
// one decode step, and shadow caches of layers of an 8B Llama.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "moments.h"
#include "shadowkv_types.h"
#include "value_types.h"

namespace decode_bench {

constexpr int kQueryHeads = 32, kHeads = 8, kDim = 128, kChunk = 8, kRank = 160, kSelect = 256, kSlots = 512;
constexpr int kShortlist = 4 * kSelect;
constexpr int kWindow = 256, kRecent = 130, kOutliers = 48;
constexpr int kRuns = 15;

inline std::unique_ptr<skv::Backend> backend;
inline cudaStream_t stream;  // the backend's
inline std::string only;     // a part of the names of the benchmarks to run; empty: all

inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
    std::exit(1);
  }
}

inline bool wanted(const char* name) {
  return only.empty() || std::strstr(name, only.c_str());
}

inline void reserve(std::int32_t operation, const void* params) {
  backend->reserve_workspace(backend->workspace_bytes(operation, params));
}

// Given back when the process ends.
template <class T>
T* device(std::uint64_t count) {
  return static_cast<T*>(backend->allocate_device(count * sizeof(T)));
}

template <class T>
T* upload(const std::vector<T>& from) {
  T* const to = device<T>(from.size());
  backend->copy(to, from.data(), from.size() * sizeof(T));
  return to;
}

inline void random_bf16(void* to, std::uint64_t count, float deviation) {
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

inline const char* coefficient_name(int coefficient_type) {
  return coefficient_type == SKV_I8 ? ", i8 coefficients" : "";
}

inline const char* landmark_name(int landmark_type) {
  return landmark_type == SKV_I8 ? "i8" : "bf16";
}

inline void line(const char* name, double microseconds, double bytes, double rate) {
  const double floor = bytes / rate;
  std::printf("%-52s %9.1f us %9.1f MB %8.1f GB/s  floor %7.1f us  %5.1f %%\n", name, microseconds, bytes / 1e6,
              bytes / microseconds / 1e3, floor, 100 * floor / microseconds);
  std::fflush(stdout);
}

// The clock of all benchmarks, and the rates that their floors are set by.
class Machine {
 public:
  // Measures the rates and prints them.
  Machine() {
    check(cudaEventCreate(&begin_), "event");
    check(cudaEventCreate(&end_), "event");
    flushed_ = device<std::uint8_t>(2 * kFlush);
    random_bf16(flushed_, kFlush, 1.0F);
    memory_ = 2.0 * kFlush / median([] {}, [this] { flush(); });
    void* const host = backend->allocate_host(kFlush);
    link_ = kFlush / median([] {}, [this, host] { backend->copy(flushed_, host, kFlush); });
    std::printf("ceilings: memory %.0f GB/s (copy, read + write), link %.1f GB/s (copy engine)\n", memory_ / 1e3,
                link_ / 1e3);
  }

  // Bytes a microsecond.
  double memory() const { return memory_; }
  double link() const { return link_; }

  // Leaves nothing of use in the L2 cache.
  void flush() const { backend->copy(flushed_, flushed_ + kFlush, kFlush); }

  // Median microseconds of run(), each time after prepare().
  double median(const std::function<void()>& prepare, const std::function<void()>& run) const {
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

  // Median microseconds of run(), each time behind a flush.
  double cold(const std::function<void()>& run) const {
    return median([this] { flush(); }, run);
  }

 private:
  static constexpr std::uint64_t kFlush = std::uint64_t{256} << 20;  // bytes

  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::uint8_t* flushed_ = nullptr;  // twice kFlush
  double memory_ = 0, link_ = 0;
};

inline skv_rope make_rope(std::int64_t tokens) {
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

inline std::int64_t indexed_chunks(std::int64_t tokens) {
  return (tokens - kRecent) / kChunk;
}

// One token of each session: what a decode step takes besides the caches, and what it gives. Pointers are to device
// memory.
struct Batch {
  Batch(int batch_sessions, std::int64_t session_tokens)
      : sessions(batch_sessions),
        tokens(session_tokens),
        rope(make_rope(tokens)),
        elements(static_cast<std::uint64_t>(sessions) * kQueryHeads * kDim),
        queries(device<std::uint16_t>(elements)),
        keys(device<std::uint16_t>(elements)),
        values(device<std::uint16_t>(elements)) {
    random_bf16(queries, elements, 1.0F);
    random_bf16(keys, elements, 1.0F);
    random_bf16(values, elements, 1.0F);
    output = device<std::uint16_t>(elements);
    states = device<skv_session_state>(static_cast<std::uint64_t>(sessions));
  }

  std::uint64_t query_heads() const { return static_cast<std::uint64_t>(sessions) * kQueryHeads; }

  // Where all sessions stand at `step`. Must have been called before anything reads the states.
  void write_states() const {
    skv_session_state state = {};
    state.indexed_chunks = static_cast<std::int32_t>(indexed_chunks(tokens));
    state.recent_begin = indexed_chunks(tokens) * kChunk;
    state.length = tokens;
    state.outliers = kOutliers;
    state.step = step;
    const std::vector<skv_session_state> all(static_cast<std::size_t>(sessions), state);
    backend->copy(states, all.data(), all.size() * sizeof(all[0]));
    backend->synchronize();
  }

  // Gives the chunks that are selected from now on a stamp of their own, which drop() knows them by.
  void next_step() {
    step += 2;
    write_states();
  }

  int sessions;
  std::int64_t tokens;  // of each session
  skv_rope rope;
  std::uint64_t elements;  // of queries, and of outputs
  std::uint16_t *queries, *keys, *values, *output;
  skv_session_state* states;
  int step = 1;
};

// The sizes of a layer's shadow caches.
inline const char* value_name(int type) {
  return type == SKV_BF16 ? "bf16" : type == SKV_F8_E4M3 ? "fp8" : type == SKV_F12_E4M7 ? "fp12" : "fp6";
}

struct Setup {
  int sessions;
  std::int64_t tokens;
  int value_type;

  // Landmarks and coefficients are bf16 unless a benchmark says otherwise.
  skv_geometry geometry() const {
    return {kQueryHeads, kHeads, kDim, kChunk, kRank, SKV_BF16, value_type, SKV_BF16, SKV_BF16, kWindow, kSlots};
  }
  std::int64_t chunks() const { return indexed_chunks(tokens); }
  std::int64_t pairs() const { return static_cast<std::int64_t>(sessions) * kHeads; }
  // Of a chunk, in host memory and in a slot.
  std::int64_t value_bytes() const { return skv::value_bytes(value_type, kChunk * kDim); }
  std::int64_t slot_bytes() const { return skv::value_bytes(skv::slot_type(value_type), kChunk * kDim); }

  // Bytes that kernels on all sessions must read at least.
  double landmark_bytes(int landmark_type) const {
    return static_cast<double>(pairs() * chunks()) * kDim * (landmark_type == SKV_I8 ? 1 : 2);
  }
  double shortlist_bytes(int shortlist, int coefficient_type = SKV_BF16) const {
    return static_cast<double>(pairs()) * shortlist * coefficient_bytes(coefficient_type);
  }
  double attention_bytes(int coefficient_type = SKV_BF16) const {
    const double dense_tokens = kOutliers * kChunk + kRecent;
    return static_cast<double>(pairs()) *
           (kSelect * (coefficient_bytes(coefficient_type) + static_cast<double>(slot_bytes())) +
            dense_tokens * kDim * 4 + kRank * kDim * 2.0);
  }
  // Of a chunk.
  static double coefficient_bytes(int coefficient_type) {
    return kChunk * kRank * (coefficient_type == SKV_I8 ? 1.0 : 2.0);
  }
  double tail_bytes() const { return static_cast<double>(pairs() * skv::MomentLayout(kDim).floats) * 4; }
  double value_basis_bytes() const { return static_cast<double>(pairs()) * kRank * kDim * 2; }
};

// One layer of all sessions.
struct Layer {
  skv_shadow_layer *table, *predicting;     // without and with a basis of values
  std::int32_t *slot_chunk, *slot_stamp;    // of all sessions, one after the other
  std::int32_t *saved_chunk, *saved_stamp;  // the state that timed runs begin with
  std::vector<skv_shadow_layer> rows;

  const skv_shadow_layer* table_for(bool predict) const { return predict ? predicting : table; }
};

// Of so many tokens: sums of independent keys and values.
inline float* make_moments(std::int64_t tokens) {
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

// Bytes that are finite both as bf16 and as e4m3, to fill values with.
inline std::vector<std::uint8_t> make_noise() {
  std::mt19937_64 random(std::random_device{}());
  std::vector<std::uint8_t> noise(std::size_t{16} << 20);
  for (std::size_t i = 0; i < noise.size(); i += 8) {
    const std::uint64_t bits = random() & 0xbf77bf77bf77bf77ULL;
    std::memcpy(&noise[i], &bits, 8);
  }
  return noise;
}

// One session's row of a layer, all but its places in the slots' tables of the layer.
inline skv_shadow_layer make_row(const Setup& s, std::uint64_t capacity, const std::vector<std::uint8_t>& noise) {
  const auto bf16 = [](std::uint64_t count, float deviation) {
    void* const to = device<std::uint16_t>(count);
    random_bf16(to, count, deviation);
    return to;
  };
  const auto value_bytes = static_cast<std::uint64_t>(s.value_bytes());
  skv_shadow_layer row = {};
  // I8 reads the first half of the bytes, of these and of the landmarks.
  row.coefficients = bf16(capacity * kChunk * kRank, 1.0F);
  row.basis = bf16(static_cast<std::uint64_t>(kHeads) * kRank * kDim, 0.1F);
  row.value_basis = bf16(static_cast<std::uint64_t>(kHeads) * kRank * kDim, 0.1F);
  row.landmarks = bf16(kHeads * capacity * kDim, 1.0F);
  row.landmark_scales = upload(std::vector<float>(kHeads * capacity, 0.01F));
  row.radius = upload(std::vector<float>(kHeads * capacity, 0.5F));
  row.outlier_keys = bf16(static_cast<std::uint64_t>(kHeads) * kOutliers * kChunk * kDim, 1.0F);
  row.outlier_values = bf16(static_cast<std::uint64_t>(kHeads) * kOutliers * kChunk * kDim, 1.0F);
  row.recent_keys = bf16(static_cast<std::uint64_t>(kHeads) * kWindow * kDim, 1.0F);
  row.recent_values = bf16(static_cast<std::uint64_t>(kHeads) * kWindow * kDim, 1.0F);
  const std::uint64_t bytes = kHeads * capacity * value_bytes;
  row.values = backend->allocate_host(bytes);
  for (std::uint64_t at = 0; at < bytes; at += noise.size()) {
    std::memcpy(static_cast<char*>(row.values) + at, noise.data(), std::min<std::uint64_t>(noise.size(), bytes - at));
  }
  row.value_scales = upload(std::vector<float>(kHeads * capacity, 0.01F));
  const std::uint64_t slot_bytes = static_cast<std::uint64_t>(kHeads * kSlots * s.slot_bytes());
  row.slot_values = device<std::uint8_t>(slot_bytes);
  backend->fill(row.slot_values, 0, slot_bytes);
  row.moments = make_moments(s.tokens);
  row.chunk_capacity = static_cast<std::int64_t>(capacity);
  row.outlier_capacity = kOutliers;
  return row;
}

// Nothing is resident.
inline Layer make_layer(const Setup& s, const std::vector<std::uint8_t>& noise) {
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
    skv_shadow_layer row = make_row(s, capacity, noise);
    row.slot_chunk = layer.slot_chunk + static_cast<std::ptrdiff_t>(i) * kHeads * kSlots;
    row.slot_stamp = layer.slot_stamp + static_cast<std::ptrdiff_t>(i) * kHeads * kSlots;
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

// The large buffers, so that the layers of the next type of values fit.
inline void free_rows(const Layer& layer) {
  for (const skv_shadow_layer& row : layer.rows) {
    for (void* address :
         {row.coefficients, row.basis, row.value_basis, row.landmarks, row.outlier_keys, row.outlier_values,
          row.recent_keys, row.recent_values, row.slot_values, static_cast<void*>(row.moments)}) {
      backend->free_device(address);
    }
    backend->free_host(row.values);
  }
}

// Makes a share of the chunks selected at `step` not resident and keeps the state for the timed runs, which restore()
// brings back. Returns the misses.
inline std::int64_t drop(const Setup& s, const Layer& layer, double resident, int step) {
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

inline void restore(const Setup& s, const Layer& layer) {
  const auto bytes = static_cast<std::uint64_t>(s.pairs()) * kSlots * 4;
  backend->copy(layer.slot_chunk, layer.saved_chunk, bytes);
  backend->copy(layer.slot_stamp, layer.saved_stamp, bytes);
}

// What kernels on the first layer hand on to each other, in device memory.
struct Lists {
  explicit Lists(const Setup& s) {
    const auto pairs = static_cast<std::uint64_t>(s.pairs());
    selected = device<std::int32_t>(pairs * kShortlist);
    selected_slot = device<std::int32_t>(pairs * kSelect);
    fetch_chunk = device<std::int32_t>(pairs * kSelect);
    fetch_slot = device<std::int32_t>(pairs * kSelect);
    selected_count = device<std::int32_t>(pairs * 2);
    fetch_count = selected_count + pairs;
    tail = device<float>(static_cast<std::uint64_t>(s.sessions) * kQueryHeads);
  }

  std::int32_t *selected, *selected_slot;  // of chunks, or a shortlist of up to kShortlist; their slots
  std::int32_t *fetch_chunk, *fetch_slot;
  std::int32_t *selected_count, *fetch_count;
  float* tail;
};

}  // namespace decode_bench
