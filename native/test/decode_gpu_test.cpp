// The CUDA decode path against double-precision oracles: selection, cache plan, fetch, rebuilt attention, rerank, and
// whole layers whose results must depend on nothing but the session.
#include <cstdio>
#include <set>
#include <string>

#include "check.h"
#include "error.h"
#include "shadow_fixture.h"

namespace {

using fixture::Memory;
using fixture::ShadowSession;
using fixture::Shape;
using fixture::Tables;

std::unique_ptr<skv::Backend> backend;
std::mt19937_64 generator;

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
    std::vector<skv_shadow_layer> table;
    for (const auto& session : sessions) {
      table.push_back(session->layer());
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
  std::vector<double> query(int session, int head) const {
    const auto d = static_cast<std::size_t>(shape.head_dim);
    const auto at = (static_cast<std::size_t>(session) * shape.query_heads + static_cast<std::size_t>(head)) * d;
    return {queries.begin() + static_cast<std::ptrdiff_t>(at), queries.begin() + static_cast<std::ptrdiff_t>(at + d)};
  }

  Shape shape;
  std::vector<std::unique_ptr<ShadowSession>> sessions;
  std::vector<skv_session_state> states;
  std::int64_t max_chunks = 0;
  std::unique_ptr<Tables> tables;
  std::vector<float> queries;
  std::unique_ptr<Memory> layers, state_memory, query_memory, selected, selected_slot, selected_count, fetch_chunk,
      fetch_slot, fetch_count, mass;
};

void reserve(std::int32_t operation, const void* params) {
  backend->reserve_workspace(backend->workspace_bytes(operation, params));
}

skv_landmark_topk_params topk_params(const Batch& b, float radius_weight) {
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

void check_topk(Batch& b) {
  const float radius_weight = 0.5F;
  const skv_landmark_topk_params p = topk_params(b, radius_weight);
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  const auto selected = b.selected->read<std::int32_t>();
  const auto counts = b.selected_count->read<std::int32_t>();
  const auto masses = b.mass->read<float>();
  const Shape& s = b.shape;
  for (int session = 0; session < b.size(); ++session) {
    const auto& state = b.states[static_cast<std::size_t>(session)];
    const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
    const int chunks = state.length ? state.indexed_chunks : 0;
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = static_cast<std::size_t>(session) * s.key_value_heads + static_cast<std::size_t>(head);
      std::vector<double> scores(static_cast<std::size_t>(chunks), -INFINITY);
      std::vector<std::vector<double>> logits(static_cast<std::size_t>(s.group()));
      std::vector<double> log_sums;
      double tolerance = 0;
      int indexed = 0;
      for (int g = 0; g < s.group(); ++g) {
        const auto query = b.query(session, head * s.group() + g);
        double norm = 0;
        for (const double x : query) {
          norm += x * x;
        }
        norm = std::sqrt(norm);
        double sum = 0, most = -INFINITY;
        auto& row = logits[static_cast<std::size_t>(g)];
        for (int c = 0; c < chunks; ++c) {
          const double radius = cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + c)];
          double logit = -INFINITY;
          if (radius >= 0) {
            double dot = 0, squares = 0;
            for (int d = 0; d < s.head_dim; ++d) {
              const double x = query[static_cast<std::size_t>(d)] * cache.landmark(head, c, d);
              dot += x;
              squares += x * x;
            }
            logit = (dot + radius_weight * norm * radius) / std::sqrt(s.head_dim);
            tolerance = std::max(tolerance, (6 * fixture::kSplitUnit * std::sqrt(squares) +
                                             6 * fixture::kF32Unit * std::sqrt(s.head_dim * squares)) /
                                                    std::sqrt(s.head_dim) +
                                                16 * fixture::kF32Unit * (1 + std::fabs(logit)));
          }
          row.push_back(logit);
          most = std::max(most, logit);
        }
        for (const double logit : row) {
          sum += std::exp(logit - most);
        }
        log_sums.push_back(chunks ? most + std::log(sum) : 0);
        for (int c = 0; c < chunks; ++c) {
          auto& score = scores[static_cast<std::size_t>(c)];
          score = std::max(score, row[static_cast<std::size_t>(c)] - log_sums.back());
        }
      }
      for (const double score : scores) {
        indexed += score > -INFINITY;
      }
      // Logits and their log sum both err.
      tolerance *= 2;
      const int count = std::min(indexed, s.select);
      if (!CHECK_EQUAL(counts[pair], count)) {
        continue;
      }
      std::set<int> chosen;
      double mass = 0;
      for (int i = 0; i < count; ++i) {
        const int c = selected[pair * static_cast<std::size_t>(s.select) + static_cast<std::size_t>(i)];
        if (!CHECK(c >= 0 && c < chunks && (chosen.empty() || c > *chosen.rbegin()))) {
          return;
        }
        chosen.insert(c);
        for (int g = 0; g < s.group(); ++g) {
          mass += std::exp(logits[static_cast<std::size_t>(g)][static_cast<std::size_t>(c)] -
                           log_sums[static_cast<std::size_t>(g)]) /
                  s.group();
        }
      }
      double worst_in = INFINITY, best_out = -INFINITY;
      for (int c = 0; c < chunks; ++c) {
        const double score = scores[static_cast<std::size_t>(c)];
        if (chosen.count(c)) {
          worst_in = std::min(worst_in, score);
        } else {
          best_out = std::max(best_out, score);
        }
      }
      if (count > 0) {
        CHECK(worst_in > -INFINITY);
        CHECK(worst_in >= best_out - 2 * tolerance);
      }
      CHECK_NEAR(masses[pair], count ? mass : 0.0, 4 * tolerance + 64 * fixture::kF32Unit);
    }
  }
}

skv_cache_plan_params plan_params(const Batch& b) {
  skv_cache_plan_params p = {};
  p.struct_size = sizeof(p);
  p.geometry = b.shape.geometry();
  p.batch = b.size();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.select = b.shape.select;
  p.selected = b.selected->as<std::int32_t>();
  p.selected_count = b.selected_count->as<std::int32_t>();
  p.selected_slot = b.selected_slot->as<std::int32_t>();
  p.fetch_chunk = b.fetch_chunk->as<std::int32_t>();
  p.fetch_slot = b.fetch_slot->as<std::int32_t>();
  p.fetch_count = b.fetch_count->as<std::int32_t>();
  return p;
}

// Plans, and checks every number against a literal reading of the rule.
void check_plan(Batch& b) {
  const Shape& s = b.shape;
  const auto selected = b.selected->read<std::int32_t>();
  const auto counts = b.selected_count->read<std::int32_t>();
  std::vector<std::vector<std::int32_t>> chunks, stamps;
  for (const auto& session : b.sessions) {
    chunks.push_back(session->slot_chunk->read<std::int32_t>());
    stamps.push_back(session->slot_stamp->read<std::int32_t>());
  }
  backend->cache_plan(plan_params(b));
  const auto slots = b.selected_slot->read<std::int32_t>();
  const auto fetch_chunk = b.fetch_chunk->read<std::int32_t>();
  const auto fetch_slot = b.fetch_slot->read<std::int32_t>();
  const auto fetch_count = b.fetch_count->read<std::int32_t>();
  for (int session = 0; session < b.size(); ++session) {
    const auto si = static_cast<std::size_t>(session);
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = si * s.key_value_heads + static_cast<std::size_t>(head);
      const auto list = pair * static_cast<std::size_t>(s.select);
      if (s.slots == 0) {
        CHECK_EQUAL(fetch_count[pair], 0);
        for (int i = 0; i < counts[pair]; ++i) {
          CHECK_EQUAL(slots[list + static_cast<std::size_t>(i)], selected[list + static_cast<std::size_t>(i)]);
        }
        continue;
      }
      std::int32_t* const which = chunks[si].data() + static_cast<std::ptrdiff_t>(head) * s.slots;
      std::int32_t* const stamp = stamps[si].data() + static_cast<std::ptrdiff_t>(head) * s.slots;
      std::vector<int> free;
      for (int slot = 0; slot < s.slots; ++slot) {
        bool wanted = false;
        for (int i = 0; i < counts[pair]; ++i) {
          wanted |= selected[list + static_cast<std::size_t>(i)] == which[slot];
        }
        if (!wanted) {
          free.push_back(slot);
        }
      }
      std::stable_sort(free.begin(), free.end(), [&](int x, int y) { return stamp[x] < stamp[y]; });
      std::size_t fetched = 0;
      bool all = true;
      for (int i = 0; i < counts[pair]; ++i) {
        const int chunk = selected[list + static_cast<std::size_t>(i)];
        int slot = -1;
        for (int j = 0; j < s.slots; ++j) {
          if (which[j] == chunk) {
            slot = j;
          }
        }
        if (slot < 0) {
          slot = free[fetched];
          all &= fetch_chunk[list + fetched] == chunk && fetch_slot[list + fetched] == slot;
          ++fetched;
        }
        all &= slots[list + static_cast<std::size_t>(i)] == slot;
      }
      for (int i = 0; i < counts[pair]; ++i) {
        const int slot = slots[list + static_cast<std::size_t>(i)];
        if (!CHECK(slot >= 0 && slot < s.slots)) {
          return;
        }
        which[slot] = selected[list + static_cast<std::size_t>(i)];
        stamp[slot] = b.states[si].step;
      }
      CHECK(all);
      CHECK_EQUAL(fetch_count[pair], static_cast<std::int32_t>(fetched));
    }
    if (s.slots) {
      CHECK(b.sessions[si]->slot_chunk->read<std::int32_t>() == chunks[si]);
      CHECK(b.sessions[si]->slot_stamp->read<std::int32_t>() == stamps[si]);
    }
  }
}

// Fetches, and checks that every slot that says it holds a chunk does.
void check_gather(Batch& b, int blocks) {
  const Shape& s = b.shape;
  skv_value_gather_params p = {};
  p.struct_size = sizeof(p);
  p.geometry = s.geometry();
  p.batch = b.size();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.select = s.select;
  p.fetch_chunk = b.fetch_chunk->as<std::int32_t>();
  p.fetch_slot = b.fetch_slot->as<std::int32_t>();
  p.fetch_count = b.fetch_count->as<std::int32_t>();
  p.blocks = blocks;
  backend->value_gather(p);
  for (const auto& session : b.sessions) {
    const auto which = session->slot_chunk->read<std::int32_t>();
    const auto content = session->slot_values->read<std::uint8_t>();
    const std::size_t bytes = session->chunk_bytes();
    bool same = true;
    for (std::size_t at = 0; at < which.size(); ++at) {
      if (which[at] >= 0) {
        const std::size_t head = at / static_cast<std::size_t>(s.slots);
        const std::size_t chunk =
            head * static_cast<std::size_t>(session->layer().chunk_capacity) + static_cast<std::size_t>(which[at]);
        same &= std::memcmp(&content[at * bytes], session->value_bytes() + chunk * bytes, bytes) == 0;
      }
    }
    CHECK(same);
  }
}

// The tokens that a key/value head of a session attends to, given its selection.
std::vector<fixture::OracleToken> attended(const Batch& b, int session, int head,
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

// Compares outputs [B][H][D] with the oracle for given selections [B][K].
void check_attention(const Batch& b, const std::vector<std::vector<std::int32_t>>& selections,
                     const std::vector<std::vector<double>>& queries, const std::vector<float>& output,
                     const std::vector<float>& log_sums, double query_unit, double output_unit) {
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
        const auto expected = fixture::oracle_attention(queries[at], tokens, query_unit, weight_unit, output_unit);
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
          if (tokens.empty()) {
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

std::vector<std::vector<std::int32_t>> read_selections(const Batch& b) {
  const auto selected = b.selected->read<std::int32_t>();
  const auto counts = b.selected_count->read<std::int32_t>();
  std::vector<std::vector<std::int32_t>> lists;
  for (std::size_t pair = 0; pair < counts.size(); ++pair) {
    const auto begin = selected.begin() + static_cast<std::ptrdiff_t>(pair) * b.shape.select;
    lists.emplace_back(begin, begin + counts[pair]);
  }
  return lists;
}

void check_sparse(Batch& b) {
  const Shape& s = b.shape;
  Memory output(*backend, b.queries.size() * 4), log_sums(*backend, b.queries.size() / s.head_dim * 4);
  output.poison();
  log_sums.poison();
  skv_sparse_attention_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_F32;
  p.output_type = SKV_F32;
  p.geometry = s.geometry();
  p.batch = b.size();
  p.queries = b.query_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.rope = b.tables->rope();
  p.select = s.select;
  p.selected = b.selected->as<std::int32_t>();
  p.selected_slot = b.selected_slot->as<std::int32_t>();
  p.selected_count = b.selected_count->as<std::int32_t>();
  p.output = output.as<void>();
  p.log_sum_exp = log_sums.as<float>();
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  backend->sparse_attention(p);
  std::vector<std::vector<double>> queries;
  for (int i = 0; i < b.size() * s.query_heads; ++i) {
    queries.push_back(b.query(i / s.query_heads, i % s.query_heads));
  }
  check_attention(b, read_selections(b), queries, output.read<float>(), log_sums.read<float>(),
                  s.group() > 8 ? fixture::kBf16Unit : fixture::kSplitUnit, fixture::kF32Unit);
}

void check_rerank(Batch& b) {
  const Shape& s = b.shape;
  const auto shortlist = read_selections(b);
  const int keep = std::max(1, s.select / 3);
  const auto pairs = static_cast<std::uint64_t>(b.size()) * static_cast<std::uint64_t>(s.key_value_heads);
  Memory selected(*backend, pairs * static_cast<std::uint64_t>(keep) * 4), counts(*backend, pairs * 4);
  selected.poison();
  counts.poison();
  skv_rerank_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = SKV_F32;
  p.geometry = s.geometry();
  p.batch = b.size();
  p.queries = b.query_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.rope = b.tables->rope();
  p.shortlist_stride = s.select;
  p.shortlist = b.selected->as<std::int32_t>();
  p.shortlist_count = b.selected_count->as<std::int32_t>();
  p.select = keep;
  p.selected = selected.as<std::int32_t>();
  p.selected_count = counts.as<std::int32_t>();
  reserve(SKV_OP_RERANK, &p);
  backend->rerank(p);
  const auto chosen = selected.read<std::int32_t>();
  const auto chosen_counts = counts.read<std::int32_t>();
  for (int session = 0; session < b.size(); ++session) {
    for (int head = 0; head < s.key_value_heads; ++head) {
      const auto pair = static_cast<std::size_t>(session) * s.key_value_heads + static_cast<std::size_t>(head);
      const auto& list = shortlist[pair];
      const int count = std::min(keep, static_cast<int>(list.size()));
      if (!CHECK_EQUAL(chosen_counts[pair], count)) {
        continue;
      }
      std::vector<double> best(list.size(), -INFINITY);
      double tolerance = 0;
      const double query_unit = s.group() > 8 ? fixture::kBf16Unit : fixture::kSplitUnit;
      for (int g = 0; g < s.group() && !list.empty(); ++g) {
        const auto query = b.query(session, head * s.group() + g);
        std::vector<double> masses;
        double total = 0;
        for (const std::int32_t chunk : list) {
          double sum = 0;
          for (int i = 0; i < s.chunk; ++i) {
            const auto key = b.sessions[static_cast<std::size_t>(session)]->rebuilt_key(
                head, static_cast<std::int64_t>(chunk) * s.chunk + i, *b.tables);
            double dot = 0, squares = 0;
            for (std::size_t e = 0; e < key.size(); ++e) {
              dot += key[e] * query[e];
              squares += key[e] * key[e] * query[e] * query[e];
            }
            const double root = std::sqrt(static_cast<double>(s.head_dim));
            tolerance = std::max(
                tolerance,
                6 * std::sqrt((fixture::kBf16Unit * fixture::kBf16Unit + query_unit * query_unit) / 3 * squares) /
                        root +
                    32 * fixture::kF32Unit * (1 + std::fabs(dot / root)));
            sum += std::exp(dot / root);
          }
          masses.push_back(std::log(sum));
          total += sum;
        }
        for (std::size_t i = 0; i < list.size(); ++i) {
          best[i] = std::max(best[i], masses[i] - std::log(total));
        }
      }
      double worst_in = INFINITY, best_out = -INFINITY;
      std::size_t next = 0;
      for (std::size_t i = 0; i < list.size(); ++i) {
        const bool in =
            next < static_cast<std::size_t>(count) && chosen[pair * static_cast<std::size_t>(keep) + next] == list[i];
        if (in) {
          ++next;
          worst_in = std::min(worst_in, best[i]);
        } else {
          best_out = std::max(best_out, best[i]);
        }
      }
      CHECK_EQUAL(next, static_cast<std::size_t>(count));
      if (count > 0) {
        CHECK(worst_in >= best_out - 4 * tolerance);
      }
    }
  }
}

void check_shape(const char* name, const Shape& shape, const std::vector<Batch::Row>& rows) {
  std::printf("%s\n", name);
  Batch b(shape, rows);
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    b.sessions[i]->fill_slots(generator, 0.6, std::max(1, b.states[i].indexed_chunks));
  }
  check_topk(b);
  check_rerank(b);
  check_plan(b);
  check_gather(b, 1 + static_cast<int>(generator() % 12));
  check_sparse(b);
}

std::vector<Batch::Row> ragged(const Shape& s) {
  const int c = s.chunk, w = s.window;
  // A tail in the window; exactly full; wrapped and full window; idle; nothing indexed; fewer chunks than wanted.
  return {{61LL * c + 5, 60LL * c, 3, 70},
          {77LL * c, 75LL * c, 0, 77},
          {90LL * c + w, 90LL * c, 7, 131},
          {0, 0, 0, 9},
          {3, 0, 0, 4},
          {5LL * c + 1, 5LL * c, 1, 8}};
}

void test_shapes() {
  for (const int group : check::cases({1, 4, 7, 8, 16})) {
    for (const int dim : {64, 96, 128}) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = dim;
      s.rank = dim == 64 ? 16 : dim == 96 ? 200 : 160;
      s.pairing = group % 2 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
      s.value_type = (group + dim / 32) % 2 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = dim / 32 % 2 ? SKV_I8 : SKV_BF16;
      s.chunk = group == 8 ? 16 : 8;
      s.slots = group == 7 ? 0 : 40;
      s.rope_scale = group == 4 ? 1.2 : 1.0;
      const std::string name = "G " + std::to_string(group) + ", D " + std::to_string(dim);
      check_shape(name.c_str(), s, ragged(s));
    }
  }
  Shape s;
  s.key_value_heads = 2;
  s.query_heads = 8;
  s.slots = 33;
  for (const int type : {SKV_BF16, SKV_F8_E4M3}) {
    s.value_type = type;
    s.rotary_dim = 64;
    check_shape("partial rotary, half split", s, ragged(s));
    s.pairing = SKV_INTERLEAVED;
    check_shape("partial rotary, interleaved", s, ragged(s));
    s.pairing = SKV_HALF_SPLIT;
    s.rotary_dim = 24;
    check_shape("rotary dim of no multiple of 16", s, ragged(s));
    s.rank = 256;
    s.rotary_dim = 128;
    check_shape("rank 256", s, ragged(s));
    s.rank = 72;
    check_shape("rank 72", s, ragged(s));
    s.rank = 19;
    check_shape("rank 19", s, ragged(s));
    s.rank = 160;
    s.fine_rows = 4;
    check_shape("fine table shorter than a chunk", s, ragged(s));
    s.fine_rows = 256;
    s.landmark_type = SKV_I8;
  }
  for (const int dim : {12, 80, 256, 2}) {
    Shape any;
    any.key_value_heads = 3;
    any.query_heads = dim == 12 ? 48 : 12;
    any.head_dim = dim;
    any.rotary_dim = dim == 80 ? 40 : dim;
    any.rank = 48;
    any.slots = 30;
    any.value_type = dim == 80 ? SKV_F8_E4M3 : SKV_BF16;
    any.landmark_type = dim == 256 ? SKV_I8 : SKV_BF16;
    any.pairing = dim == 12 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
    check_shape(("D " + std::to_string(dim)).c_str(), any, ragged(any));
  }
  Shape many;
  many.key_value_heads = 32;
  many.query_heads = 32;
  many.head_dim = many.rotary_dim = 64;
  many.rank = 32;
  many.select = 9;
  many.slots = 1000;
  check_shape("K 32, many slots", many, {{61 * 8 + 5, 60 * 8, 3, 70}, {9 * 8 + 2, 8 * 8, 0, 20}});
  Shape longer;
  longer.key_value_heads = 1;
  longer.query_heads = 4;
  longer.head_dim = longer.rotary_dim = 64;
  longer.rank = 16;
  longer.select = 1024;
  longer.slots = 2500;
  check_shape("large selection", longer, {{6000 * 8 + 5, 6000 * 8, 3, 6010}, {9 * 8 + 2, 8 * 8, 40, 20}});
  longer.select = 256;
  longer.slots = 512;
  check_shape("one layer of a long context", longer,
              {{15343 * 8 + 5, 15343 * 8, 3, 15350}, {9 * 8 + 2, 8 * 8, 40, 20}});
  longer.select = 24;
  longer.slots = 24;
  // More chunks than one block's shared memory holds scores of.
  check_shape("long context", longer, {{70000LL * 8 + 5, 70000LL * 8, 3, 70001}});
}

// Equal landmarks give equal scores: the lower ids win, and a crowd in one bin is told apart exactly.
void test_ties() {
  std::printf("ties\n");
  // Rows of scores that are held in registers, in few and in many pieces, and one that is too long for that.
  for (const auto& [chunks, distinct] : {std::pair{3000, 1}, std::pair{3000, 2}, std::pair{3000, 3000},
                                         std::pair{12001, 2}, std::pair{12001, 3000}, std::pair{20003, 3000}}) {
    Shape s;
    s.key_value_heads = 2;
    s.query_heads = 8;
    s.select = 100;
    s.slots = 0;
    Batch b(s, {{8LL * chunks + 8, 8LL * chunks, 0, chunks + 1}});
    const auto d = static_cast<std::size_t>(s.head_dim);
    auto& session = *b.sessions[0];
    std::fill(session.radius.begin(), session.radius.end(), 0.0F);
    session.radius[5] = -1.0F;
    // The first query is a multiple of one axis; landmark c is (c % distinct) small steps along it.
    for (std::size_t c = 0; c < session.landmarks.size() / d; ++c) {
      const auto in_head = c % (static_cast<std::size_t>(chunks) + 1);
      for (std::size_t e = 0; e < d; ++e) {
        session.landmarks[c * d + e] =
            e == 0 ? fixture::to_bf16(static_cast<double>(in_head % static_cast<std::size_t>(distinct) % 256)) : 0;
      }
    }
    for (std::size_t i = 0; i < b.queries.size(); ++i) {
      b.queries[i] = i % d == 0 ? 0.125F : 0.0F;
    }
    b.query_memory->write(b.queries);
    backend->copy(session.layer().landmarks, session.landmarks.data(), session.landmarks.size() * 2);
    backend->copy(session.layer().radius, session.radius.data(), session.radius.size() * 4);
    backend->synchronize();
    const auto p = topk_params(b, 0.0F);
    reserve(SKV_OP_LANDMARK_TOPK, &p);
    backend->landmark_topk(p);
    const auto lists = read_selections(b);
    for (int head = 0; head < 2; ++head) {
      std::vector<std::pair<int, int>> order;  // (-value, id)
      for (int c = 0; c < chunks; ++c) {
        if (head != 0 || c != 5) {
          order.emplace_back(-(c % distinct % 256), c);
        }
      }
      std::sort(order.begin(), order.end());
      std::vector<std::int32_t> expected;
      for (int i = 0; i < s.select; ++i) {
        expected.push_back(order[static_cast<std::size_t>(i)].second);
      }
      std::sort(expected.begin(), expected.end());
      CHECK(lists[static_cast<std::size_t>(head)] == expected);
    }
  }
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

skv_decode_layer_params decode_params(const Batch& b, const StepInput& in, Memory& output, int groups, int shortlist) {
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
  p.radius_weight = 0.5F;
  p.select = b.shape.select;
  p.shortlist = shortlist;
  p.max_chunks = b.max_chunks;
  p.groups = groups;
  p.output = output.as<void>();
  return p;
}

std::vector<std::uint16_t> decode(const skv_decode_layer_params& p, Memory& output) {
  output.poison();
  reserve(SKV_OP_DECODE_LAYER, &p);
  backend->decode_layer(p);
  return output.read<std::uint16_t>();
}

// Steps of a generation with every chunk selected, so that the oracle knows what is attended: far beyond the window,
// which wraps and whose oldest chunks move to the index.
void test_generation() {
  std::printf("generation\n");
  Shape s;
  s.key_value_heads = 2;
  s.query_heads = 8;
  s.window = 32;
  s.rank = 32;
  s.select = 40;
  s.slots = 44;
  Batch b(s, {{13, 8, 2, 40}, {27, 0, 0, 40}, {0, 0, 0, 40}});
  b.max_chunks = 40;
  // Nothing but the index decides what is attended.
  for (auto& session : b.sessions) {
    for (float& radius : session->radius) {
      radius = std::fabs(radius);
    }
    backend->copy(session->layer().radius, session->radius.data(), session->radius.size() * 4);
  }
  backend->synchronize();
  Memory output(*backend, b.queries.size() * 2);
  const auto d = static_cast<std::size_t>(s.head_dim);
  for (int step = 0; step < 170; ++step) {
    for (std::size_t i = 0; i < 2; ++i) {
      auto& state = b.states[i];
      if (state.length - state.recent_begin == s.window) {
        state.recent_begin += s.chunk;
        state.indexed_chunks += 1;
      }
      state.length += 1;
      state.step += 1;
    }
    b.write_states();
    const StepInput in(b);
    for (std::size_t i = 0; i < 2; ++i) {
      const std::int64_t position = b.states[i].length - 1;
      for (std::size_t head = 0; head < 2; ++head) {
        std::vector<double> key(d);
        for (std::size_t e = 0; e < d; ++e) {
          key[e] = fixture::from_bf16(in.keys[(i * 2 + head) * d + e]);
        }
        b.tables->rotate(key.data(), position);
        const auto row =
            (head * static_cast<std::size_t>(s.window) + static_cast<std::size_t>(position % s.window)) * d;
        for (std::size_t e = 0; e < d; ++e) {
          b.sessions[i]->recent_keys[row + e] = fixture::to_bf16(key[e]);
          b.sessions[i]->recent_values[row + e] = in.values[(i * 2 + head) * d + e];
        }
      }
    }
    const auto bits = decode(decode_params(b, in, output, step % 4, 0), output);
    if (step % 8 != 0 && step < 150) {
      continue;
    }
    std::vector<float> actual;
    for (const auto x : bits) {
      actual.push_back(static_cast<float>(fixture::from_bf16(x)));
    }
    std::vector<std::vector<double>> queries;
    for (int session = 0; session < b.size(); ++session) {
      for (int head = 0; head < s.query_heads; ++head) {
        std::vector<double> query(d);
        for (std::size_t e = 0; e < d; ++e) {
          query[e] = fixture::from_bf16(in.queries[(static_cast<std::size_t>(session * s.query_heads + head)) * d + e]);
        }
        const std::int64_t length = b.states[static_cast<std::size_t>(session)].length;
        if (length) {
          b.tables->rotate(query.data(), length - 1);
        }
        queries.push_back(query);
      }
    }
    std::vector<std::vector<std::int32_t>> lists;
    for (int session = 0; session < b.size(); ++session) {
      std::vector<std::int32_t> list;
      for (int c = 0; c < b.states[static_cast<std::size_t>(session)].indexed_chunks; ++c) {
        list.push_back(c);
      }
      lists.push_back(list);
      lists.push_back(list);
    }
    check_attention(b, lists, queries, actual, {}, fixture::kSplitUnit, fixture::kBf16Unit);
    // What the step stored. The key may round the other way where the rotation lies between two numbers.
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(b.sessions[i]->recent_values_memory->read<std::uint16_t>() == b.sessions[i]->recent_values);
      const auto keys = b.sessions[i]->recent_keys_memory->read<std::uint16_t>();
      bool near = true;
      for (std::size_t e = 0; e < keys.size(); ++e) {
        const double expected = fixture::from_bf16(b.sessions[i]->recent_keys[e]);
        near &= std::fabs(fixture::from_bf16(keys[e]) - expected) <=
                2 * fixture::kBf16Unit * std::fabs(expected) + 16 * fixture::kF32Unit;
      }
      CHECK(near);
      // The oracle goes on with the device's own keys.
      b.sessions[i]->recent_keys = keys;
    }
  }
}

// Bit for bit the same, whatever is resident, however the batch is cut, whoever else is in it, and from a graph.
void test_independence(int value_type, int shortlist, int slots) {
  std::printf("independence, value type %d, shortlist %d, %d slots\n", value_type, shortlist, slots);
  Shape s;
  s.key_value_heads = 4;
  s.query_heads = 16;
  s.value_type = value_type;
  s.select = 30;
  s.slots = slots;
  Batch b(s, {{501 * 8 + 5, 500 * 8, 3, 520}, {0, 0, 0, 9}, {77 * 8, 75 * 8, 0, 77}, {300 * 8 + 60, 300 * 8, 7, 520}});
  Memory output(*backend, b.queries.size() * 2);
  const StepInput in(b);
  const auto reference = decode(decode_params(b, in, output, 1, shortlist), output);
  bool idle_is_zero = true;
  const std::size_t row = static_cast<std::size_t>(s.query_heads) * s.head_dim;
  for (std::size_t i = row; i < 2 * row; ++i) {
    idle_is_zero &= reference[i] == 0;
  }
  CHECK(idle_is_zero);
  // All of it is resident now.
  CHECK(decode(decode_params(b, in, output, 1, shortlist), output) == reference);
  for (const int groups : check::cases({0, 2, 3, 5, 16})) {
    for (std::size_t i = 0; i < b.sessions.size(); ++i) {
      b.sessions[i]->fill_slots(generator, 0.4, std::max(1, b.states[i].indexed_chunks));
    }
    CHECK(decode(decode_params(b, in, output, groups, shortlist), output) == reference);
  }
  // Alone in its batch.
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    auto p = decode_params(b, in, output, 0, shortlist);
    p.batch = 1;
    p.queries = in.query_memory->as<std::uint16_t>() + i * row;
    p.keys = in.key_memory->as<std::uint16_t>() + i * static_cast<std::size_t>(s.key_value_heads * s.head_dim);
    p.values = in.value_memory->as<std::uint16_t>() + i * static_cast<std::size_t>(s.key_value_heads * s.head_dim);
    p.layers += i;
    p.states += i;
    const auto alone = decode(p, output);
    CHECK(std::equal(alone.begin(), alone.begin() + static_cast<std::ptrdiff_t>(row),
                     reference.begin() + static_cast<std::ptrdiff_t>(i * row)));
  }
  // Counters.
  std::vector<skv_decode_counters> zero(4);
  auto counters = fixture::upload(*backend, zero);
  auto p = decode_params(b, in, output, 0, shortlist);
  p.counters = counters->as<skv_decode_counters>();
  CHECK(decode(p, output) == reference);
  const auto counted = counters->read<skv_decode_counters>();
  CHECK_EQUAL(counted[0].selected, 4 * 30);
  CHECK_EQUAL(counted[1].selected, 0);
  CHECK(counted[0].fetched >= 0 && counted[0].fetched <= counted[0].selected);
  CHECK(counted[0].mass > 0 && counted[0].mass <= 4 * (1 + 1e-4));
  // A graph, replayed after the sessions have moved on and one has joined.
  const auto captured = decode_params(b, in, output, 3, shortlist);
  reserve(SKV_OP_DECODE_LAYER, &captured);
  backend->begin_graph();
  backend->decode_layer(captured);
  const auto graph = backend->end_graph();
  for (int step = 0; step < 4; ++step) {
    for (auto& state : b.states) {
      state.length += step > 0 && state.length > 0;
      state.step += 1;
    }
    if (step == 2) {
      b.states[1].length = 3;
    }
    b.write_states();
    output.poison();
    backend->launch_graph(*graph);
    const auto replayed = output.read<std::uint16_t>();
    CHECK(decode(captured, output) == replayed);
    CHECK(step == 0 ? replayed == reference : replayed != reference);
  }
}

void test_dense() {
  for (const int group : check::cases({1, 4, 7, 8, 16})) {
    for (const int dim : {64, 96, 128, 12, 80, 256}) {
      std::printf("dense, G %d, D %d\n", group, dim);
      Shape s;
      s.key_value_heads = 2;
      s.query_heads = 2 * group;
      s.head_dim = s.rotary_dim = dim;
      s.pairing = group == 4 ? SKV_HALF_SPLIT : SKV_INTERLEAVED;
      const std::vector<std::int64_t> lengths = {1, 16, 0, 1000, 1024, 2077};
      const std::int64_t capacity = 2100;
      const auto d = static_cast<std::size_t>(dim);
      std::normal_distribution<double> normal;
      Tables tables(*backend, s, capacity);
      std::vector<std::vector<std::uint16_t>> keys, values;
      std::vector<std::unique_ptr<Memory>> kept;
      std::vector<skv_dense_layer> layers;
      std::vector<skv_session_state> states;
      for (const std::int64_t length : lengths) {
        std::vector<std::uint16_t> data(2 * static_cast<std::size_t>(capacity) * d);
        for (auto* to : {&keys, &values}) {
          for (auto& x : data) {
            x = fixture::to_bf16(normal(generator));
          }
          // What lies behind a session's end is never to be read into a result.
          for (std::size_t head = 0; head < 2; ++head) {
            for (auto i = static_cast<std::size_t>(length) * d; i < static_cast<std::size_t>(capacity) * d; ++i) {
              data[head * static_cast<std::size_t>(capacity) * d + i] = 0x7fc0;
            }
          }
          to->push_back(data);
          kept.push_back(fixture::upload(*backend, data));
        }
        layers.push_back({kept[kept.size() - 2]->as<void>(), kept.back()->as<void>(), capacity});
        skv_session_state state = {};
        state.length = length;
        states.push_back(state);
      }
      const auto layer_memory = fixture::upload(*backend, layers);
      const auto state_memory = fixture::upload(*backend, states);
      std::vector<float> queries(lengths.size() * static_cast<std::size_t>(s.query_heads) * d);
      for (auto& x : queries) {
        x = static_cast<float>(fixture::from_bf16(fixture::to_bf16(normal(generator))));
      }
      const auto query_memory = fixture::upload(*backend, queries);
      Memory output(*backend, queries.size() * 4), log_sums(*backend, queries.size() / d * 4);
      output.poison();
      log_sums.poison();
      skv_dense_attention_params p = {};
      p.struct_size = sizeof(p);
      p.query_type = p.output_type = SKV_F32;
      p.geometry = s.geometry();
      p.batch = static_cast<std::int32_t>(lengths.size());
      p.queries = query_memory->as<void>();
      p.layers = layer_memory->as<skv_dense_layer>();
      p.states = state_memory->as<skv_session_state>();
      p.max_length = capacity;
      p.output = output.as<void>();
      p.log_sum_exp = log_sums.as<float>();
      reserve(SKV_OP_DENSE_ATTENTION, &p);
      backend->dense_attention(p);
      const auto actual = output.read<float>();
      const auto lse = log_sums.read<float>();
      const auto verify = [&](const std::vector<float>& got, std::size_t session, const std::vector<double>& query,
                              std::size_t head, double query_unit, double output_unit, bool with_lse) {
        std::vector<fixture::OracleToken> tokens;
        for (std::int64_t t = 0; t < states[session].length; ++t) {
          fixture::OracleToken token = {std::vector<double>(d), std::vector<double>(d), false};
          const auto at = (head / static_cast<std::size_t>(group) * static_cast<std::size_t>(capacity) +
                           static_cast<std::size_t>(t)) *
                          d;
          for (std::size_t e = 0; e < d; ++e) {
            token.key[e] = fixture::from_bf16(keys[session][at + e]);
            token.value[e] = fixture::from_bf16(values[session][at + e]);
          }
          tokens.push_back(std::move(token));
        }
        const auto expected = fixture::oracle_attention(
            query, tokens, query_unit, group > 8 ? fixture::kBf16Unit : fixture::kSplitUnit, output_unit);
        const auto row = session * static_cast<std::size_t>(s.query_heads) + head;
        for (std::size_t e = 0; e < d; ++e) {
          if (!CHECK_NEAR(got[row * d + e], expected.output[e], expected.tolerance[e])) {
            return;
          }
        }
        if (with_lse) {
          if (tokens.empty()) {
            CHECK(lse[row] == -INFINITY);
          } else {
            CHECK_NEAR(lse[row], expected.log_sum_exp, expected.log_sum_exp_tolerance);
          }
        }
      };
      for (std::size_t session = 0; session < lengths.size(); ++session) {
        for (std::size_t head = 0; head < static_cast<std::size_t>(s.query_heads); ++head) {
          const auto at = (session * static_cast<std::size_t>(s.query_heads) + head) * d;
          // These queries are bf16 numbers.
          verify(actual, session,
                 {queries.begin() + static_cast<std::ptrdiff_t>(at),
                  queries.begin() + static_cast<std::ptrdiff_t>(at + d)},
                 head, 0, fixture::kF32Unit, true);
        }
      }
      // A whole layer: the token at length - 1 is written, then attended.
      std::vector<std::uint16_t> new_queries(queries.size()), new_keys(lengths.size() * 2 * d),
          new_values(new_keys.size());
      for (auto* to : {&new_queries, &new_keys, &new_values}) {
        for (auto& x : *to) {
          x = fixture::to_bf16(normal(generator));
        }
      }
      const auto a = fixture::upload(*backend, new_queries), k = fixture::upload(*backend, new_keys),
                 v = fixture::upload(*backend, new_values);
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        states[i].length += states[i].length > 0;
      }
      state_memory->write(states);
      Memory layer_output(*backend, queries.size() * 2);
      layer_output.poison();
      skv_dense_decode_layer_params l = {};
      l.struct_size = sizeof(l);
      l.input_type = SKV_BF16;
      l.geometry = s.geometry();
      l.batch = p.batch;
      l.queries = a->as<void>();
      l.keys = k->as<void>();
      l.values = v->as<void>();
      l.layers = p.layers;
      l.states = p.states;
      l.rope = tables.rope();
      l.max_length = capacity;
      l.output = layer_output.as<void>();
      reserve(SKV_OP_DENSE_DECODE_LAYER, &l);
      backend->dense_decode_layer(l);
      std::vector<float> got;
      for (const auto x : layer_output.read<std::uint16_t>()) {
        got.push_back(static_cast<float>(fixture::from_bf16(x)));
      }
      for (std::size_t session = 0; session < lengths.size(); ++session) {
        const std::int64_t position = states[session].length - 1;
        keys[session] = kept[2 * session]->read<std::uint16_t>();
        values[session] = kept[2 * session + 1]->read<std::uint16_t>();
        for (std::size_t head = 0; head < 2 && position >= 0; ++head) {
          std::vector<double> key(d);
          for (std::size_t e = 0; e < d; ++e) {
            key[e] = fixture::from_bf16(new_keys[(session * 2 + head) * d + e]);
          }
          tables.rotate(key.data(), position);
          for (std::size_t e = 0; e < d; ++e) {
            const auto at = (head * static_cast<std::size_t>(capacity) + static_cast<std::size_t>(position)) * d + e;
            CHECK_NEAR(fixture::from_bf16(keys[session][at]), key[e],
                       fixture::kBf16Unit * std::fabs(key[e]) + 16 * fixture::kF32Unit);
            CHECK(values[session][at] == new_values[(session * 2 + head) * d + e]);
          }
        }
        for (std::size_t head = 0; head < static_cast<std::size_t>(s.query_heads); ++head) {
          std::vector<double> query(d);
          for (std::size_t e = 0; e < d; ++e) {
            query[e] =
                fixture::from_bf16(new_queries[(session * static_cast<std::size_t>(s.query_heads) + head) * d + e]);
          }
          if (position >= 0) {
            tables.rotate(query.data(), position);
          }
          verify(got, session, query, head, group > 8 ? fixture::kBf16Unit : fixture::kSplitUnit, fixture::kBf16Unit,
                 false);
        }
      }
    }
  }
}

// Shapes without a kernel are refused, with the limit, before anything is launched.
void test_refusals() {
  Shape s;
  Batch b(s, {{61 * 8 + 5, 60 * 8, 0, 70}});
  const auto refused = [&](auto change, skv_status status) {
    auto p = topk_params(b, 0.5F);
    change(p);
    try {
      backend->landmark_topk(p);
      CHECK(!"accepted");
    } catch (const skv::Error& e) {
      CHECK_EQUAL(e.status(), status);
      CHECK(std::string(e.what()).size() > 20);
    }
  };
  refused([](auto& p) { p.geometry.head_dim = 258; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.head_dim = 63; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.query_heads = 8 * 17; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.storage_type = SKV_F16; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.landmark_type = SKV_F8_E4M3; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.chunk = 12; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.geometry.rank = 8; }, SKV_UNSUPPORTED);
  refused([](auto& p) { p.max_chunks = std::int64_t{1} << 40; }, SKV_INVALID_ARGUMENT);
  auto plan = plan_params(b);
  plan.geometry.slots = plan.select - 1;
  try {
    backend->cache_plan(plan);
    CHECK(!"accepted");
  } catch (const skv::Error& e) {
    CHECK_EQUAL(e.status(), SKV_INVALID_ARGUMENT);
  }
}

}  // namespace

int main() {
  skv_context_params params = {};
  params.struct_size = sizeof(params);
  params.backend = SKV_BACKEND_CUDA;
  params.own_stream = 1;
  try {
    backend = skv::make_cuda_backend(params);
  } catch (const skv::Error& e) {
    return check::skip(e.what());
  }
  generator = check::fresh_generator();
  try {
    test_refusals();
    test_ties();
    test_shapes();
    test_generation();
    test_independence(SKV_BF16, 0, 50);
    test_independence(SKV_BF16, 0, 0);
    test_independence(SKV_F8_E4M3, 0, 50);
    test_independence(SKV_BF16, 60, 50);
    test_independence(SKV_F8_E4M3, 60, 0);
    test_dense();
  } catch (const skv::Error& e) {
    std::fprintf(stderr, "threw: %s\n", e.what());
    CHECK(false);
  }
  backend.reset();
  return check::verdict();
}
