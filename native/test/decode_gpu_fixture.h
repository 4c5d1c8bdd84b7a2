// What the tests of the CUDA decode path share: ragged batches of random sessions, attention over them by definition,
// and the inputs of whole layers.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "error.h"
#include "shadow_fixture.h"

namespace decode_gpu {

using fixture::Memory;
using fixture::ShadowSession;
using fixture::Shape;
using fixture::Tables;

inline std::unique_ptr<skv::Backend> backend;
inline std::mt19937_64 generator;

// A ragged batch and everything an operation on it reads or writes.
struct Batch {
  struct Row {
    std::int64_t length, recent_begin;
    int outliers, capacity_chunks;
  };

  Batch(const Shape& s, const std::vector<Row>& rows) : shape(s) {
    std::int64_t longest = 1;
    for (const Row& row : rows) {
      sessions.push_back(
          std::make_unique<ShadowSession>(*backend, shape, row.capacity_chunks, std::max(row.outliers, 1), generator));
      skv_session_state state = {};
      state.length = row.length;
      state.recent_begin = row.recent_begin;
      state.indexed_chunks = static_cast<std::int32_t>(row.recent_begin / shape.chunk);
      state.outliers = row.outliers;
      state.step = 10;
      states.push_back(state);
      longest = std::max(longest, static_cast<std::int64_t>(row.capacity_chunks) * shape.chunk + shape.window);
      max_chunks = std::max<std::int64_t>(max_chunks, state.indexed_chunks);
    }
    max_chunks += 3;  // a capacity, not the exact number
    tables = std::make_unique<Tables>(*backend, shape, longest + 1);
    for (std::size_t i = 0; i < sessions.size(); ++i) {
      table.push_back(sessions[i]->layer());
      if (states[i].indexed_chunks == 0) {
        // Before its first chunks are sealed, a session has a recent window and nothing else.
        skv_shadow_layer& layer = table.back();
        layer.coefficients = layer.landmarks = nullptr;
        layer.basis = nullptr;
        layer.radius = layer.landmark_scales = nullptr;
      }
    }
    layers = fixture::upload(*backend, table);
    state_memory = fixture::upload(*backend, states);
    std::normal_distribution<float> normal;
    queries.resize(static_cast<std::size_t>(size()) * shape.query_heads * shape.head_dim);
    for (float& x : queries) {
      x = normal(generator);
    }
    query_memory = fixture::upload(*backend, queries);
    const auto pairs = static_cast<std::uint64_t>(size()) * static_cast<std::uint64_t>(shape.key_value_heads);
    const std::uint64_t row = pairs * static_cast<std::uint64_t>(shape.select) * 4;
    for (auto* memory : {&selected, &selected_slot, &fetch_chunk, &fetch_slot}) {
      *memory = std::make_unique<Memory>(*backend, row);
      (*memory)->poison();
    }
    for (auto* memory : {&selected_count, &fetch_count, &mass}) {
      *memory = std::make_unique<Memory>(*backend, pairs * 4);
      (*memory)->poison();
    }
  }

  int size() const { return static_cast<int>(states.size()); }
  void write_states() { state_memory->write(states); }
  void write_table() { layers->write(table); }
  std::vector<double> query(int session, int head) const {
    const auto d = static_cast<std::size_t>(shape.head_dim);
    const auto at = (static_cast<std::size_t>(session) * shape.query_heads + static_cast<std::size_t>(head)) * d;
    return {queries.begin() + static_cast<std::ptrdiff_t>(at), queries.begin() + static_cast<std::ptrdiff_t>(at + d)};
  }

  Shape shape;
  std::vector<std::unique_ptr<ShadowSession>> sessions;
  std::vector<skv_shadow_layer> table;  // [B]; write_table() takes changes to the device
  std::vector<skv_session_state> states;
  std::int64_t max_chunks = 0;
  std::unique_ptr<Tables> tables;
  std::vector<float> queries;
  std::unique_ptr<Memory> layers, state_memory, query_memory, selected, selected_slot, selected_count, fetch_chunk,
      fetch_slot, fetch_count, mass;
};

inline void reserve(std::int32_t operation, const void* params) {
  backend->reserve_workspace(backend->workspace_bytes(operation, params));
}

inline skv_landmark_topk_params topk_params(const Batch& b, float radius_weight) {
  skv_landmark_topk_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_F32;
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.queries = b.query_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.radius_weight = radius_weight;
  p.select = b.shape.select;
  p.max_chunks = b.max_chunks;
  p.selected = b.selected->as<std::int32_t>();
  p.selected_count = b.selected_count->as<std::int32_t>();
  p.mass = b.mass->as<float>();
  return p;
}

// Reranks what landmark_topk has left in the batch.
inline skv_rerank_params rerank_params(const Batch& b, int keep, const Memory& selected, const Memory& counts) {
  skv_rerank_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_F32;
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.queries = b.query_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.rope = b.tables->rope();
  p.shortlist_stride = b.shape.select;
  p.shortlist = b.selected->as<std::int32_t>();
  p.shortlist_count = b.selected_count->as<std::int32_t>();
  p.select = keep;
  p.selected = selected.as<std::int32_t>();
  p.selected_count = counts.as<std::int32_t>();
  return p;
}

// Attends to what is selected in the batch.
inline skv_sparse_attention_params sparse_params(const Batch& b, const Memory& slots, const Memory& output,
                                                 const Memory& log_sums) {
  skv_sparse_attention_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = p.output_type = SKV_F32;
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.queries = b.query_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.rope = b.tables->rope();
  p.select = b.shape.select;
  p.selected = b.selected->as<std::int32_t>();
  p.selected_slot = slots.as<std::int32_t>();
  p.selected_count = b.selected_count->as<std::int32_t>();
  p.output = output.as<void>();
  p.log_sum_exp = log_sums.as<float>();
  return p;
}

// Gives all sessions but one a basis of values.
inline void add_value_bases(Batch& b, std::size_t without) {
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    if (i != without) {
      b.sessions[i]->add_value_basis(*backend, generator);
      b.table[i].value_basis = b.sessions[i]->layer().value_basis;
    }
  }
  b.write_table();
}

// The queries of a batch [B][H].
inline std::vector<std::vector<double>> queries_of(const Batch& b) {
  std::vector<std::vector<double>> queries;
  for (int i = 0; i < b.size() * b.shape.query_heads; ++i) {
    queries.push_back(b.query(i / b.shape.query_heads, i % b.shape.query_heads));
  }
  return queries;
}

// What takes part in attention for tokens left out, [B][H] of any number of parts.
using Rests = std::vector<std::vector<fixture::OracleRest>>;

// The tokens that a key/value head of a session attends to, given its selection.
inline std::vector<fixture::OracleToken> attended(const Batch& b, int session, int head,
                                                  const std::vector<std::int32_t>& chunks) {
  const Shape& s = b.shape;
  const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
  const auto& state = b.states[static_cast<std::size_t>(session)];
  std::vector<fixture::OracleToken> tokens;
  if (state.length == 0) {
    return tokens;
  }
  const auto d = static_cast<std::size_t>(s.head_dim);
  for (const std::int32_t chunk : chunks) {
    for (int i = 0; i < s.chunk; ++i) {
      const std::int64_t position = static_cast<std::int64_t>(chunk) * s.chunk + i;
      fixture::OracleToken token = {cache.rebuilt_key(head, position, *b.tables), std::vector<double>(d), true};
      for (std::size_t e = 0; e < d; ++e) {
        token.value[e] = cache.value(head, position, static_cast<int>(e));
      }
      tokens.push_back(std::move(token));
    }
  }
  const auto dense = [&](const std::vector<std::uint16_t>& keys, const std::vector<std::uint16_t>& values,
                         std::size_t row) {
    fixture::OracleToken token = {std::vector<double>(d), std::vector<double>(d), false};
    for (std::size_t e = 0; e < d; ++e) {
      token.key[e] = fixture::from_bf16(keys[row * d + e]);
      token.value[e] = fixture::from_bf16(values[row * d + e]);
    }
    tokens.push_back(std::move(token));
  };
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(state.outliers) * s.chunk; ++i) {
    dense(cache.outlier_keys, cache.outlier_values,
          static_cast<std::size_t>(head * cache.layer().outlier_capacity * s.chunk + i));
  }
  for (std::int64_t position = state.recent_begin; position < state.length; ++position) {
    dense(cache.recent_keys, cache.recent_values,
          static_cast<std::size_t>(static_cast<std::int64_t>(head) * s.window + position % s.window));
  }
  return tokens;
}

// Compares outputs [B][H][D] with the oracle for given selections [B][K]. rests: empty where nothing takes part for
// tokens left out.
inline void check_attention(const Batch& b, const std::vector<std::vector<std::int32_t>>& selections,
                            const std::vector<std::vector<double>>& queries, const std::vector<float>& output,
                            const std::vector<float>& log_sums, double query_unit, double output_unit,
                            const Rests& rests = {}) {
  const Shape& s = b.shape;
  const double weight_unit = s.group() > 8 ? fixture::kBf16Unit : fixture::kSplitUnit;
  const auto d = static_cast<std::size_t>(s.head_dim);
  double worst = 0;
  for (int session = 0; session < b.size(); ++session) {
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = static_cast<std::size_t>(session) * s.key_value_heads + static_cast<std::size_t>(head);
      const auto tokens = attended(b, session, head, selections[pair]);
      for (int g = 0; g < s.group(); ++g) {
        const auto at =
            static_cast<std::size_t>(session) * s.query_heads + static_cast<std::size_t>(head * s.group() + g);
        const auto rest = rests.empty() ? std::vector<fixture::OracleRest>{} : rests[at];
        const auto expected =
            fixture::oracle_attention(queries[at], tokens, query_unit, weight_unit, output_unit, rest);
        for (std::size_t e = 0; e < d; ++e) {
          const double error = std::fabs(output[at * d + e] - expected.output[e]);
          if (!(error <= expected.tolerance[e])) {
            CHECK_NEAR(output[at * d + e], expected.output[e], expected.tolerance[e]);
            return;
          }
          if (expected.tolerance[e] > 0) {
            worst = std::max(worst, error / expected.tolerance[e]);
          }
        }
        if (!log_sums.empty()) {
          if (tokens.empty() && rest.empty()) {
            CHECK(log_sums[at] == -INFINITY);
          } else {
            CHECK_NEAR(log_sums[at], expected.log_sum_exp, expected.log_sum_exp_tolerance);
          }
        }
      }
    }
  }
  std::printf("  attention: worst error %.2f of its tolerance\n", worst);
  CHECK(worst <= 1);
}

inline std::vector<std::vector<std::int32_t>> read_selections(const Batch& b) {
  const auto selected = b.selected->read<std::int32_t>();
  const auto counts = b.selected_count->read<std::int32_t>();
  std::vector<std::vector<std::int32_t>> lists;
  for (std::size_t pair = 0; pair < counts.size(); ++pair) {
    const auto begin = selected.begin() + static_cast<std::ptrdiff_t>(pair) * b.shape.select;
    lists.emplace_back(begin, begin + counts[pair]);
  }
  return lists;
}

// New tokens of a step, before RoPE, as the tests and the device have them.
struct StepInput {
  std::vector<std::uint16_t> queries, keys, values;
  std::unique_ptr<Memory> query_memory, key_memory, value_memory;

  explicit StepInput(const Batch& b) {
    const Shape& s = b.shape;
    std::normal_distribution<double> normal;
    const auto fill = [&](std::vector<std::uint16_t>& to, int heads) {
      to.resize(static_cast<std::size_t>(b.size()) * static_cast<std::size_t>(heads * s.head_dim));
      for (auto& x : to) {
        x = fixture::to_bf16(normal(generator));
      }
    };
    fill(queries, s.query_heads);
    fill(keys, s.key_value_heads);
    fill(values, s.key_value_heads);
    query_memory = fixture::upload(*backend, queries);
    key_memory = fixture::upload(*backend, keys);
    value_memory = fixture::upload(*backend, values);
  }
};

// The queries of a step [B][H], rotated.
inline std::vector<std::vector<double>> rotated_queries(const Batch& b, const StepInput& in) {
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  std::vector<std::vector<double>> queries;
  for (int session = 0; session < b.size(); ++session) {
    for (int head = 0; head < b.shape.query_heads; ++head) {
      std::vector<double> query(d);
      for (std::size_t e = 0; e < d; ++e) {
        query[e] =
            fixture::from_bf16(in.queries[static_cast<std::size_t>(session * b.shape.query_heads + head) * d + e]);
      }
      const std::int64_t length = b.states[static_cast<std::size_t>(session)].length;
      if (length) {
        b.tables->rotate(query.data(), length - 1);
      }
      queries.push_back(query);
    }
  }
  return queries;
}

inline constexpr float kRadiusWeight = 0.5F;

inline skv_decode_layer_params decode_params(const Batch& b, const StepInput& in, Memory& output, int groups,
                                             int shortlist, int tail = 0) {
  skv_decode_layer_params p = {};
  p.struct_size = sizeof(p);
  p.input_type = SKV_BF16;
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.queries = in.query_memory->as<void>();
  p.keys = in.key_memory->as<void>();
  p.values = in.value_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.rope = b.tables->rope();
  p.radius_weight = kRadiusWeight;
  p.select = b.shape.select;
  p.shortlist = shortlist;
  p.max_chunks = b.max_chunks;
  p.groups = groups;
  p.tail = tail;
  p.output = output.as<void>();
  return p;
}

inline std::vector<std::uint16_t> decode(const skv_decode_layer_params& p, Memory& output) {
  output.poison();
  reserve(SKV_OP_DECODE_LAYER, &p);
  backend->decode_layer(p);
  return output.read<std::uint16_t>();
}

// SHADOWKV_TEST_DEVICE=cpu: the same tests of the CPU backend, which has no graphs. Where there is no GPU, they show
// whether a test itself is right.
inline bool on_cpu() {
  const char* const device = std::getenv("SHADOWKV_TEST_DEVICE");
  return device && std::strcmp(device, "cpu") == 0;
}

// Runs the tests with a context, or says why not. The exit code of main().
template <class Tests>
int run(Tests&& tests) {
  skv_context_params params = {};
  params.struct_size = sizeof(params);
  params.backend = on_cpu() ? SKV_BACKEND_CPU : SKV_BACKEND_CUDA;
  params.own_stream = !on_cpu();
  try {
    backend = on_cpu() ? skv::make_cpu_backend(params) : skv::make_cuda_backend(params);
  } catch (const skv::Error& e) {
    return check::skip(e.what());
  }
  generator = check::fresh_generator();
  try {
    tests();
  } catch (const skv::Error& e) {
    std::fprintf(stderr, "threw: %s\n", e.what());
    CHECK(false);
  }
  backend.reset();
  return check::verdict();
}

}  // namespace decode_gpu
