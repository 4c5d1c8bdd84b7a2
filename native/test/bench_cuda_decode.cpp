// Times the CUDA decode path on one layer of an 8B Llama (32/8 heads, D 128), by default 8 sessions of 122,880 tokens,
// rank 160, budget 2048 in chunks of 8: each kernel by events behind a flushed L2 cache, and whole layers, directly
// and by replay of a graph of several layers whose buffers do not fit in the L2 cache together.
//
// usage: bench_cuda_decode [sessions [tokens [only]]], only: a part of the names of the lines to run
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "cuda/cublas.h"
#include "cuda/decode.h"
#include "decode_bench.h"
#include "shadowkv_types.h"

namespace {

using namespace decode_bench;

// Layers of all sessions with values of one type; kernels are measured on the first.
struct Cache {
  Cache(const Batch& batch, int value_type, const std::vector<std::uint8_t>& noise)
      : setup{batch.sessions, batch.tokens, value_type}, type_name(value_name(value_type)) {
    const int layer_count = batch.sessions >= 4 ? 3 : 16;
    for (int i = 0; i < layer_count; ++i) {
      layers.push_back(make_layer(setup, noise));
    }
  }

  const Layer& first() const { return layers.front(); }

  Setup setup;
  const char* type_name;
  std::vector<Layer> layers;
};

skv_landmark_topk_params landmark_topk_params(const Batch& batch, const Cache& cache, const Lists& lists) {
  skv_landmark_topk_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_BF16;
  p.geometry = cache.setup.geometry();
  p.batch = batch.sessions;
  p.queries = batch.queries;
  p.layers = cache.first().table;
  p.states = batch.states;
  p.radius_weight = 0.5F;
  p.select = kSelect;
  p.max_chunks = cache.setup.chunks();
  p.selected = lists.selected;
  p.selected_count = lists.selected_count;
  return p;
}

skv_cache_plan_params cache_plan_params(const Batch& batch, const Cache& cache, const Lists& lists) {
  skv_cache_plan_params p = {};
  p.struct_size = sizeof(p);
  p.geometry = cache.setup.geometry();
  p.batch = batch.sessions;
  p.layers = cache.first().table;
  p.states = batch.states;
  p.select = kSelect;
  p.selected = lists.selected;
  p.selected_count = lists.selected_count;
  p.selected_slot = lists.selected_slot;
  p.fetch_chunk = lists.fetch_chunk;
  p.fetch_slot = lists.fetch_slot;
  p.fetch_count = lists.fetch_count;
  return p;
}

skv_value_gather_params value_gather_params(const Batch& batch, const Cache& cache, const Lists& lists) {
  skv_value_gather_params p = {};
  p.struct_size = sizeof(p);
  p.geometry = cache.setup.geometry();
  p.batch = batch.sessions;
  p.layers = cache.first().table;
  p.select = kSelect;
  p.fetch_chunk = lists.fetch_chunk;
  p.fetch_slot = lists.fetch_slot;
  p.fetch_count = lists.fetch_count;
  return p;
}

skv_sparse_attention_params sparse_attention_params(const Batch& batch, const Cache& cache, const Lists& lists) {
  skv_sparse_attention_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_BF16;
  p.output_type = SKV_BF16;
  p.geometry = cache.setup.geometry();
  p.batch = batch.sessions;
  p.queries = batch.queries;
  p.layers = cache.first().table;
  p.states = batch.states;
  p.rope = batch.rope;
  p.select = kSelect;
  p.selected = lists.selected;
  p.selected_slot = lists.selected_slot;
  p.selected_count = lists.selected_count;
  p.output = batch.output;
  return p;
}

// Takes a shortlist in `selected`; what it selects of it goes where a plan keeps slots and counts of fetches.
skv_rerank_params rerank_params(const Batch& batch, const Cache& cache, const Lists& lists) {
  skv_rerank_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_BF16;
  p.geometry = cache.setup.geometry();
  p.batch = batch.sessions;
  p.queries = batch.queries;
  p.layers = cache.first().table;
  p.states = batch.states;
  p.rope = batch.rope;
  p.shortlist_stride = kShortlist;
  p.shortlist = lists.selected;
  p.shortlist_count = lists.selected_count;
  p.select = kSelect;
  p.selected = lists.selected_slot;
  p.selected_count = lists.fetch_count;
  return p;
}

skv_decode_layer_params decode_layer_params(const Batch& batch, const Cache& cache) {
  skv_decode_layer_params p = {};
  p.struct_size = sizeof(p);
  p.input_type = SKV_BF16;
  p.geometry = cache.setup.geometry();
  p.batch = batch.sessions;
  p.queries = batch.queries;
  p.keys = batch.keys;
  p.values = batch.values;
  p.layers = cache.first().table;
  p.states = batch.states;
  p.rope = batch.rope;
  p.radius_weight = 0.5F;
  p.select = kSelect;
  p.max_chunks = cache.setup.chunks();
  p.output = batch.output;
  return p;
}

// One step of all layers, each as `p` says but for the layer.
void decode_all(const Cache& cache, skv_decode_layer_params p, bool predict) {
  for (const Layer& layer : cache.layers) {
    p.layers = layer.table_for(predict);
    backend->decode_layer(p);
  }
}

std::vector<std::uint16_t> decoded(const Batch& batch, const Cache& cache, const skv_decode_layer_params& p) {
  decode_all(cache, p, false);
  std::vector<std::uint16_t> output(batch.elements);
  backend->copy(output.data(), batch.output, output.size() * sizeof(output[0]));
  backend->synchronize();
  return output;
}

// Prints whether a cold and a warm step of the last layer agree; leaves what every layer selects resident.
void check_result(const Batch& batch, const Cache& cache) {
  const skv_decode_layer_params p = decode_layer_params(batch, cache);
  reserve(SKV_OP_DECODE_LAYER, &p);
  const std::vector<std::uint16_t> cold = decoded(batch, cache, p);  // everything is fetched
  const std::vector<std::uint16_t> warm = decoded(batch, cache, p);
  const bool finite = std::none_of(cold.begin(), cold.end(), [](std::uint16_t x) { return (x & 0x7f80) == 0x7f80; });
  const bool zero = std::all_of(cold.begin(), cold.end(), [](std::uint16_t x) { return (x & 0x7fff) == 0; });
  std::printf("%s values: result cold %s warm, %s\n", cache.type_name, cold == warm ? "equals" : "DIFFERS FROM",
              finite && !zero ? "finite" : "NOT FINITE OR ZERO");
}

// Whatever is wanted, leaves kSelect chunks of each session and head in `selected`.
void bench_landmark_topk(const Machine& machine, const Batch& batch, const Cache& cache, const Lists& lists) {
  const skv_landmark_topk_params selection = landmark_topk_params(batch, cache, lists);
  reserve(SKV_OP_LANDMARK_TOPK, &selection);
  if (cache.setup.value_type == SKV_BF16 && wanted("landmark_topk")) {
    skv_landmark_topk_params p = selection;
    for (const int select : {kSelect, kShortlist}) {
      for (const int landmark_type : {SKV_BF16, SKV_I8}) {
        p.select = select;
        p.geometry.landmark_type = landmark_type;
        for (float* const tail : {static_cast<float*>(nullptr), lists.tail}) {
          p.tail = tail;
          reserve(SKV_OP_LANDMARK_TOPK, &p);
          char name[128];
          std::snprintf(name, sizeof(name), "landmark_topk %s, %d chunks%s", landmark_name(landmark_type), select,
                        tail ? ", tail" : "");
          line(name, machine.cold([&] { backend->landmark_topk(p); }), cache.setup.landmark_bytes(landmark_type),
               machine.memory());
        }
      }
    }
  }
  backend->landmark_topk(selection);
}

// Needs the selection of bench_landmark_topk. Whatever is wanted, leaves its plan where 60 % of it are resident: the
// slots, and lists of the rest to fetch. Returns how many chunks those are.
std::int64_t bench_cache_plan(const Machine& machine, const Batch& batch, const Cache& cache, const Lists& lists) {
  const Setup& s = cache.setup;
  const skv_cache_plan_params p = cache_plan_params(batch, cache, lists);
  // All of the selection is resident before a share of it is dropped.
  backend->cache_plan(p);
  backend->value_gather(value_gather_params(batch, cache, lists));
  drop(s, cache.first(), 0.6, batch.step);
  const double microseconds = machine.median(
      [&] {
        restore(s, cache.first());
        machine.flush();
      },
      [&] { backend->cache_plan(p); });
  std::vector<std::int32_t> fetched(static_cast<std::size_t>(s.pairs()));
  backend->copy(fetched.data(), lists.fetch_count, fetched.size() * sizeof(fetched[0]));
  backend->synchronize();
  if (wanted("cache_plan")) {
    line("cache_plan 60 % resident", microseconds, static_cast<double>(s.pairs()) * (kSlots * 8 + kSelect * 16),
         machine.memory());
  }
  return std::accumulate(fetched.begin(), fetched.end(), std::int64_t{0});
}

// Needs the fetch lists of bench_cache_plan, `misses` chunks long in all.
void bench_value_gather(const Machine& machine, const Batch& batch, const Cache& cache, const Lists& lists,
                        std::int64_t misses) {
  if (!wanted("value_gather")) {
    return;
  }
  skv_value_gather_params p = value_gather_params(batch, cache, lists);
  for (const int blocks : {8, 16, 32}) {
    p.blocks = blocks;
    char name[128];
    std::snprintf(name, sizeof(name), "value_gather %s, %d blocks", cache.type_name, blocks);
    line(name, machine.cold([&] { backend->value_gather(p); }), static_cast<double>(misses * cache.setup.value_bytes()),
         machine.link());
  }
}

// Needs the selection of bench_landmark_topk and the slots of bench_cache_plan.
void bench_sparse_attention(const Machine& machine, const Batch& batch, const Cache& cache, const Lists& lists) {
  const Setup& s = cache.setup;
  skv_sparse_attention_params p = sparse_attention_params(batch, cache, lists);
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  if (!wanted("sparse_attention")) {
    return;
  }
  const auto time = [&](const char* with, double bytes) {
    char name[128];
    std::snprintf(name, sizeof(name), "sparse_attention %s%s", cache.type_name, with);
    line(name, machine.cold([&] { backend->sparse_attention(p); }), bytes, machine.memory());
  };
  time("", s.attention_bytes());
  p.geometry.coefficient_type = SKV_I8;
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  time(coefficient_name(SKV_I8), s.attention_bytes(SKV_I8));
  p.geometry.coefficient_type = SKV_BF16;
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  p.tail = upload(std::vector<float>(batch.query_heads(), 5.0F));
  time(", tail", s.attention_bytes() + s.tail_bytes());
  p.dropped = p.tail;
  p.dropped_values = upload(std::vector<float>(batch.elements, 1.0F));
  time(", tail and dropped", s.attention_bytes() + s.tail_bytes() + static_cast<double>(batch.elements) * 4);
}

// Makes its own shortlist. Overwrites the selection, its slots and the counts, so it comes behind all that need them.
void bench_rerank(const Machine& machine, const Batch& batch, const Cache& cache, const Lists& lists) {
  const Setup& s = cache.setup;
  if (s.value_type != SKV_BF16 || !wanted("rerank")) {
    return;
  }
  skv_landmark_topk_params shortlist = landmark_topk_params(batch, cache, lists);
  shortlist.select = kShortlist;
  reserve(SKV_OP_LANDMARK_TOPK, &shortlist);
  backend->landmark_topk(shortlist);
  skv_rerank_params p = rerank_params(batch, cache, lists);
  const auto time = [&](const char* name, double bytes) {
    line(name, machine.cold([&] { backend->rerank(p); }), bytes, machine.memory());
  };
  reserve(SKV_OP_RERANK, &p);
  time("rerank of 4 times the budget", s.shortlist_bytes(kShortlist));
  p.geometry.coefficient_type = SKV_I8;
  reserve(SKV_OP_RERANK, &p);
  time("rerank of 4 times the budget, i8 coefficients", s.shortlist_bytes(kShortlist, SKV_I8));
  p.geometry.coefficient_type = SKV_BF16;
  reserve(SKV_OP_RERANK, &p);
  // Each run adds what the last one left; the time does not depend on the weights.
  backend->fill(lists.tail, 0, batch.query_heads() * sizeof(float));
  p.tail = lists.tail;
  time("rerank of 4 times the budget, tail", s.shortlist_bytes(kShortlist));
  p.layers = cache.first().predicting;
  p.dropped = device<float>(batch.query_heads());
  p.dropped_values = device<float>(batch.elements);
  reserve(SKV_OP_RERANK, &p);
  time("rerank of 4 times the budget, tail, dropped", s.shortlist_bytes(kShortlist) + s.value_basis_bytes());
}

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

// The stages of the first layer, each residency in a step of its own.
void bench_stages(const Machine& machine, Batch& batch, const Cache& cache) {
  if (!wanted("stages")) {
    return;
  }
  const auto prepare = [&] {
    restore(cache.setup, cache.first());
    machine.flush();
  };
  struct Setting {
    int shortlist, tail;
    bool predict;
  };
  skv_decode_layer_params p = decode_layer_params(batch, cache);
  for (const auto& [shortlist, tail, predict] : {Setting{0, 0, false}, Setting{kShortlist, 0, false},
                                                 Setting{kShortlist, 1, false}, Setting{kShortlist, 1, true}}) {
    p.shortlist = shortlist;
    p.tail = tail;
    p.layers = cache.first().table_for(predict);
    reserve(SKV_OP_DECODE_LAYER, &p);
    StageTimes stages(backend->workspace_bytes(SKV_OP_DECODE_LAYER, &p));
    for (const double resident : {0.6, 0.83}) {
      batch.next_step();
      p.groups = 1;
      backend->decode_layer(p);
      drop(cache.setup, cache.first(), resident, batch.step);
      for (const int groups : {1, 0, 8}) {
        if ((groups == 8 && batch.sessions == 1) || (groups != 0 && shortlist > 0)) {
          continue;
        }
        p.groups = groups;
        char name[128];
        std::snprintf(name, sizeof(name), "stages %s, %.0f %% resident, groups %d, shortlist %d%s%s", cache.type_name,
                      100 * resident, groups, shortlist, tail ? ", tail" : "", predict ? ", predict" : "");
        stages.print(name, p, prepare);
      }
    }
  }
}

// How a whole layer is run.
struct Variant {
  int landmark_type, groups, shortlist, tail, predict, coefficient_type = SKV_BF16;
};

constexpr Variant kVariants[] = {{SKV_BF16, 0, 0, 0, 0},
                                 {SKV_BF16, 0, 0, 1, 0},
                                 {SKV_BF16, 0, kShortlist, 0, 0},
                                 {SKV_BF16, 0, kShortlist, 1, 0},
                                 {SKV_BF16, 0, kShortlist, 1, 1},
                                 {SKV_BF16, 1, 0, 0, 0},
                                 {SKV_BF16, 2, 0, 0, 0},
                                 {SKV_BF16, 4, 0, 0, 0},
                                 {SKV_BF16, 8, 0, 0, 0},
                                 {SKV_I8, 0, 0, 0, 0},
                                 {SKV_I8, 0, 0, 1, 0},
                                 {SKV_I8, 0, kShortlist, 0, 0},
                                 {SKV_I8, 0, kShortlist, 1, 0},
                                 {SKV_I8, 0, kShortlist, 1, 1},
                                 {SKV_I8, 0, 0, 0, 0, SKV_I8},
                                 {SKV_I8, 0, 0, 1, 0, SKV_I8},
                                 {SKV_I8, 0, kShortlist, 0, 0, SKV_I8},
                                 {SKV_I8, 0, kShortlist, 1, 1, SKV_I8}};

// How long a layer takes with a share of its chunks resident, called directly and in a graph: the mean over all
// layers, in a step of its own.
void bench_variant(const Machine& machine, Batch& batch, const Cache& cache, const Variant& v,
                   const skv_decode_layer_params& p, double resident) {
  const Setup& s = cache.setup;
  const auto layer_count = static_cast<double>(cache.layers.size());
  const auto decode = [&] { decode_all(cache, p, v.predict != 0); };
  const auto prepare = [&] {
    for (const Layer& layer : cache.layers) {
      restore(s, layer);
    }
    machine.flush();
  };
  batch.next_step();
  decode();
  std::int64_t misses = 0;
  for (const Layer& layer : cache.layers) {
    misses += drop(s, layer, resident, batch.step);
  }
  const double direct = machine.median(prepare, decode) / layer_count;
  backend->begin_graph();
  decode();
  const auto graph = backend->end_graph();
  const double replayed = machine.median(prepare, [&] { backend->launch_graph(*graph); }) / layer_count;

  const double link_us = static_cast<double>(misses * s.value_bytes()) / layer_count / machine.link();
  const double memory_bytes = s.landmark_bytes(v.landmark_type) + s.attention_bytes(v.coefficient_type) +
                              s.shortlist_bytes(v.shortlist, v.coefficient_type) + v.tail * s.tail_bytes() +
                              v.predict * s.value_basis_bytes();
  const double floor = std::max(link_us, memory_bytes / machine.memory());
  std::printf(
      "decode_layer %-4s %.0f %% resident, %-4s landmarks%s, groups %2d, shortlist %4d, tail %d, predict %d: "
      "direct %7.1f us, graph %7.1f us, link %6.1f us, floor %6.1f us, %5.1f %%\n",
      cache.type_name, 100 * resident, landmark_name(v.landmark_type), coefficient_name(v.coefficient_type), v.groups,
      v.shortlist, v.tail, v.predict, direct, replayed, link_us, floor, 100 * floor / replayed);
  std::fflush(stdout);
}

void bench_decode_layer(const Machine& machine, Batch& batch, const Cache& cache) {
  if (!wanted("decode_layer")) {
    return;
  }
  for (const Variant& v : kVariants) {
    skv_decode_layer_params p = decode_layer_params(batch, cache);
    p.geometry.landmark_type = v.landmark_type;
    p.geometry.coefficient_type = v.coefficient_type;
    p.groups = v.groups;
    p.shortlist = v.shortlist;
    p.tail = v.tail;
    p.layers = cache.first().table_for(v.predict != 0);
    reserve(SKV_OP_DECODE_LAYER, &p);
    for (const double resident : {0.6, 0.83}) {
      bench_variant(machine, batch, cache, v, p, resident);
    }
  }
}

// All that is measured of a shadow cache with values of one type. The order matters: kernels run on what those before
// them have left in the lists and in the first layer's slots, which the rerank and whole layers overwrite.
void bench_cache(const Machine& machine, Batch& batch, int value_type, const std::vector<std::uint8_t>& noise) {
  batch.write_states();
  const Cache cache(batch, value_type, noise);
  check_result(batch, cache);
  const Lists lists(cache.setup);
  bench_landmark_topk(machine, batch, cache, lists);
  const std::int64_t misses = bench_cache_plan(machine, batch, cache, lists);
  bench_value_gather(machine, batch, cache, lists, misses);
  bench_sparse_attention(machine, batch, cache, lists);
  bench_rerank(machine, batch, cache, lists);
  bench_stages(machine, batch, cache);
  bench_decode_layer(machine, batch, cache);
  for (const Layer& layer : cache.layers) {
    free_rows(layer);
  }
}

void bench_dense_attention(const Machine& machine, const Batch& batch) {
  if (!wanted("dense_attention")) {
    return;
  }
  const std::uint64_t count = static_cast<std::uint64_t>(kHeads) * static_cast<std::uint64_t>(batch.tokens) * kDim;
  std::vector<skv_dense_layer> rows;
  for (int i = 0; i < batch.sessions; ++i) {
    skv_dense_layer row = {device<std::uint16_t>(count), device<std::uint16_t>(count), batch.tokens};
    random_bf16(row.keys, count, 1.0F);
    random_bf16(row.values, count, 1.0F);
    rows.push_back(row);
  }
  batch.write_states();
  skv_dense_attention_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = p.output_type = SKV_BF16;
  p.geometry = Setup{batch.sessions, batch.tokens, SKV_BF16}.geometry();
  p.batch = batch.sessions;
  p.queries = batch.queries;
  p.layers = upload(rows);
  p.states = batch.states;
  p.max_length = batch.tokens;
  p.output = batch.output;
  reserve(SKV_OP_DENSE_ATTENTION, &p);
  line("dense_attention", machine.cold([&] { backend->dense_attention(p); }),
       static_cast<double>(batch.sessions) * static_cast<double>(batch.tokens) * kHeads * kDim * 4, machine.memory());
}

void print_device(int sessions, std::int64_t tokens) {
  skv_device_info info = {};
  info.struct_size = sizeof(info);
  backend->describe(info);
  std::printf("%s, %d multiprocessors; %d sessions of %lld tokens\n", info.name, info.multiprocessors, sessions,
              static_cast<long long>(tokens));
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
    print_device(sessions, tokens);
    const Machine machine;
    const std::vector<std::uint8_t> noise = make_noise();
    Batch batch(sessions, tokens);
    for (const int value_type : {SKV_BF16, SKV_F8_E4M3, SKV_F12_E4M7, SKV_F6_E2M3}) {
      bench_cache(machine, batch, value_type, noise);
    }
    bench_dense_attention(machine, batch);
    backend->synchronize();
  } catch (const skv::Error& e) {
    std::fprintf(stderr, "threw: %s\n", e.what());
    return 1;
  }
  return 0;
}
