// Ragged batches of random sessions, and calls of the CPU's decode operations on them.
#pragma once

#include "decode_fixture.h"

namespace decode {

using skv::cpu::Execution;
using skv::cpu::ExecutionTraits;

inline std::mt19937_64 generator;
inline int instruction_set = 1;
inline int thread_count = 2;

template <class Params>
void run(void (*operation)(const Params&, Execution&),
         std::uint64_t (*workspace)(const Params&, const ExecutionTraits&), const Params& p, int threads = 0) {
  check::Bench bench(threads > 0 ? threads : thread_count, instruction_set);
  Execution execution = bench.with(workspace(p, bench.traits()));
  operation(p, execution);
}

#define RUN(operation, ...) run(skv::cpu::operation, skv::cpu::operation##_workspace, __VA_ARGS__)

// A ragged batch and what operations on it read and write.
struct Batch {
  struct Row {
    std::int64_t length, recent_begin;
    int outliers;
  };

  Batch(const Shape& s, const std::vector<Row>& rows, std::int64_t positions = 4096)
      : shape(s),
        queries(s.query, static_cast<std::int64_t>(rows.size()) * s.query_heads() * s.dim),
        rope(s.rotary, s.pairing, positions, 10000, s.rope_scale) {
    for (const Row& row : rows) {
      sessions.push_back(std::make_unique<Session>(s, row.length, row.recent_begin, row.outliers, generator));
      max_chunks = std::max<std::int64_t>(max_chunks, sessions.back()->state.indexed_chunks);
    }
    max_chunks += 2;
    queries.fill(generator);
    const std::size_t pairs = rows.size() * static_cast<std::size_t>(s.heads);
    counts.assign(pairs, -7);
    selected.assign(pairs * static_cast<std::size_t>(s.select), -7);
    slots = selected;
    fetch_chunk = selected;
    fetch_slot = selected;
    fetch_count = counts;
    mass.assign(pairs, std::nanf(""));
    tail.assign(rows.size() * static_cast<std::size_t>(s.query_heads()), std::nanf(""));
    refresh();
  }

  void refresh() {
    layers.clear();
    states.clear();
    for (const auto& session : sessions) {
      layers.push_back(session->layer);
      states.push_back(session->state);
    }
  }

  std::vector<double> query(std::size_t session, int head) const {
    return row(queries, (static_cast<std::int64_t>(session) * shape.query_heads() + head) * shape.dim, shape.dim);
  }
  std::int32_t size() const { return static_cast<std::int32_t>(sessions.size()); }
  std::size_t pair(std::size_t session, int head) const {
    return session * static_cast<std::size_t>(shape.heads) + static_cast<std::size_t>(head);
  }

  // A random selection of indexed chunks, at most `select`.
  void select_at_random() {
    for (std::size_t b = 0; b < sessions.size(); ++b) {
      for (int head = 0; head < shape.heads; ++head) {
        std::vector<std::int32_t> ids;
        for (std::int32_t c = 0; sessions[b]->state.length > 0 && c < sessions[b]->state.indexed_chunks; ++c) {
          if (sessions[b]->indexed(head, c)) {
            ids.push_back(c);
          }
        }
        std::shuffle(ids.begin(), ids.end(), generator);
        ids.resize(std::min(ids.size(), static_cast<std::size_t>(shape.select)));
        std::sort(ids.begin(), ids.end());
        std::copy(ids.begin(), ids.end(), selected.begin() + static_cast<std::ptrdiff_t>(pair(b, head)) * shape.select);
        counts[pair(b, head)] = static_cast<std::int32_t>(ids.size());
      }
    }
  }

  std::vector<std::int32_t> chosen(std::size_t b, int head) const {
    const auto first = selected.begin() + static_cast<std::ptrdiff_t>(pair(b, head)) * shape.select;
    return {first, first + counts[pair(b, head)]};
  }

  Shape shape;
  std::vector<std::unique_ptr<Session>> sessions;
  Array queries;
  check::RopeTables rope;
  std::int64_t max_chunks = 0;
  std::vector<skv_shadow_layer> layers;
  std::vector<skv_session_state> states;
  std::vector<std::int32_t> selected, counts, slots, fetch_chunk, fetch_slot, fetch_count;
  std::vector<float> mass, tail;
};

template <class Params>
Params base_of(Batch& b) {
  Params p{};
  p.struct_size = sizeof(p);
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.layers = b.layers.data();
  return p;
}

inline skv_landmark_topk_params topk_of(Batch& b, float radius_weight) {
  auto p = base_of<skv_landmark_topk_params>(b);
  p.query_type = b.shape.query;
  p.queries = b.queries.data();
  p.states = b.states.data();
  p.radius_weight = radius_weight;
  p.select = b.shape.select;
  p.max_chunks = b.max_chunks;
  p.selected = b.selected.data();
  p.selected_count = b.counts.data();
  p.mass = b.mass.data();
  return p;
}

// list [B][K][shortlist]
inline skv_rerank_params rerank_of(Batch& b, const std::vector<std::int32_t>& list,
                                   const std::vector<std::int32_t>& list_count, int shortlist) {
  auto p = base_of<skv_rerank_params>(b);
  p.query_type = b.shape.query;
  p.queries = b.queries.data();
  p.states = b.states.data();
  p.rope = b.rope.table;
  p.shortlist_stride = shortlist;
  p.shortlist = list.data();
  p.shortlist_count = list_count.data();
  p.select = b.shape.select;
  p.selected = b.selected.data();
  p.selected_count = b.counts.data();
  return p;
}

inline skv_cache_plan_params plan_of(Batch& b) {
  auto p = base_of<skv_cache_plan_params>(b);
  p.states = b.states.data();
  p.select = b.shape.select;
  p.selected = b.selected.data();
  p.selected_count = b.counts.data();
  p.selected_slot = b.slots.data();
  p.fetch_chunk = b.fetch_chunk.data();
  p.fetch_slot = b.fetch_slot.data();
  p.fetch_count = b.fetch_count.data();
  return p;
}

inline skv_value_gather_params gather_of(Batch& b) {
  auto p = base_of<skv_value_gather_params>(b);
  p.select = b.shape.select;
  p.fetch_chunk = b.fetch_chunk.data();
  p.fetch_slot = b.fetch_slot.data();
  p.fetch_count = b.fetch_count.data();
  return p;
}

inline skv_sparse_attention_params attention_of(Batch& b, Array& output, std::vector<float>& log_sum_exp) {
  auto p = base_of<skv_sparse_attention_params>(b);
  p.query_type = b.shape.query;
  p.output_type = b.shape.output;
  p.queries = b.queries.data();
  p.states = b.states.data();
  p.rope = b.rope.table;
  p.select = b.shape.select;
  p.selected = b.selected.data();
  p.selected_slot = b.slots.data();
  p.selected_count = b.counts.data();
  p.output = output.data();
  p.log_sum_exp = log_sum_exp.data();
  return p;
}

inline void fill_slots(Batch& b, double share) {
  const Shape& s = b.shape;
  const std::int64_t elements = static_cast<std::int64_t>(s.chunk) * s.dim;
  for (auto& session : b.sessions) {
    for (int head = 0; head < s.heads; ++head) {
      std::vector<std::int32_t> ids(static_cast<std::size_t>(session->state.indexed_chunks));
      for (std::size_t i = 0; i < ids.size(); ++i) {
        ids[i] = static_cast<std::int32_t>(i);
      }
      std::shuffle(ids.begin(), ids.end(), generator);
      for (int slot = 0; slot < s.slots; ++slot) {
        const std::size_t at = static_cast<std::size_t>(head) * s.slots + static_cast<std::size_t>(slot);
        session->slot_stamp[at] = static_cast<std::int32_t>(generator() % 5);
        session->slot_chunk[at] = -1;
        if (!ids.empty() && static_cast<double>(generator() % 100) < share * 100) {
          session->slot_chunk[at] = ids.back();
          ids.pop_back();
          const std::int64_t from = head * session->capacity + session->slot_chunk[at];
          const double scale = s.value == SKV_F12_E4M7 ? session->value_scales[from] : 1.0;
          for (std::int64_t i = 0; i < elements; ++i) {
            session->slot_values.set(static_cast<std::int64_t>(at) * elements + i,
                                     session->values[from * elements + i] * scale);
          }
        }
      }
    }
  }
}

inline std::vector<Batch::Row> rows_of(const Shape& s) {
  const std::int64_t w = s.window, c = s.chunk;
  return {{0, 0, 0},                    // idle
          {w - 3, 0, 0},                // nothing indexed
          {37 * c + w - 1, 37 * c, 3},  // the window wraps
          {5 * c + 1, 5 * c, 1},        // one recent token; fewer indexed than selected
          {150 * c + w / 2 + 5, 150 * c, 7}};
}

struct Layer {
  explicit Layer(Batch& b)
      : keys(b.shape.query, static_cast<std::int64_t>(b.sessions.size()) * b.shape.heads * b.shape.dim + 5),
        values(b.shape.query, keys.count()),
        output(b.shape.query, b.queries.count()),
        counters(b.sessions.size()) {
    keys.fill(generator);
    values.fill(generator);
  }
  skv_decode_layer_params params(Batch& b) {
    auto p = base_of<skv_decode_layer_params>(b);
    p.input_type = b.shape.query;
    p.queries = b.queries.data();
    p.keys = keys.data();
    p.values = values.data();
    p.states = b.states.data();
    p.rope = b.rope.table;
    p.radius_weight = 0.5F;
    p.select = b.shape.select;
    p.max_chunks = b.max_chunks;
    p.output = output.data();
    p.counters = counters.data();
    return p;
  }
  Array keys, values, output;
  std::vector<skv_decode_counters> counters;
};

template <class Call>
bool refused(skv_status status, Call&& call) {
  try {
    call();
  } catch (const skv::Error& error) {
    return error.status() == status;
  }
  return false;
}

// Whether the output of query head `at` is as expected; worst: grows to the largest error as a share of what is
// allowed.
inline bool near_output(const Shape& s, const Attention& expected, const Array& output, std::size_t at, double& worst) {
  bool good = true;
  for (int d = 0; d < s.dim; ++d) {
    const double want = expected.output[static_cast<std::size_t>(d)];
    const double allowed = output_tolerance(s.output, want, expected.tolerance[static_cast<std::size_t>(d)]);
    const double got = output[static_cast<std::int64_t>(at) * s.dim + d];
    good = check::near(got, want, allowed) && good;
    worst = std::max(worst, std::fabs(got - want) / allowed);
  }
  return good;
}

// Every session of a decode step gives alone the bits that it gave in the batch.
inline void check_alone(const Shape& s, const skv_decode_layer_params& p, const Array& together) {
  const std::int64_t queries = static_cast<std::int64_t>(s.query_heads()) * s.dim,
                     keys = static_cast<std::int64_t>(s.heads) * s.dim;
  for (std::int64_t session = 0; session < p.batch; ++session) {
    auto alone = p;
    alone.batch = 1;
    alone.layers = p.layers + session;
    alone.states = p.states + session;
    alone.queries = skv::cpu::element_at(p.queries, s.query, session * queries);
    alone.keys = skv::cpu::element_at(p.keys, s.query, session * keys);
    alone.values = skv::cpu::element_at(p.values, s.query, session * keys);
    alone.max_chunks = p.max_chunks + 2000;
    alone.counters = nullptr;
    Array output(s.query, queries);
    alone.output = output.data();
    RUN(decode_layer, alone);
    for (std::int64_t i = 0; i < queries; ++i) {
      if (!CHECK(output[i] == together[session * queries + i])) {
        std::fprintf(stderr, "  set %d, %s, session %d, element %d: %.9g, in the batch %.9g\n", instruction_set,
                     s.name().c_str(), static_cast<int>(session), static_cast<int>(i), output[i],
                     together[session * queries + i]);
        return;
      }
    }
  }
}

}  // namespace decode
