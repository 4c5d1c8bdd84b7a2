// Tokens that a selection leaves out, on CUDA: their weight by landmarks and by rebuilt keys, and their part in
// attention and in whole layers, against definitions in double precision.
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "decode_gpu_fixture.h"

namespace {

using namespace decode_gpu;
using fixture::kBf16Unit;
using fixture::kF32Unit;
using fixture::kSplitUnit;

constexpr double kNothing = -std::numeric_limits<double>::infinity();

using Lists = std::vector<std::vector<std::int32_t>>;  // [B][K]

// A wrapped and full window; idle; nothing indexed; fewer chunks than wanted; exactly as many, all of them indexed.
std::vector<Batch::Row> rows_of(const Shape& s) {
  const std::int64_t c = s.chunk;
  return {{61 * c + 5, 60 * c, 3, 70},
          {90 * c + s.window, 90 * c, 7, 131},
          {0, 0, 0, 9},
          {3, 0, 0, 4},
          {5 * c + 1, 5 * c, 1, 8},
          {s.select * c + 2, s.select * c, 0, s.select + 2}};
}

constexpr std::size_t kExact = 5;  // of them: all selected

// Chunks whose tokens are alike, and landmarks that are the means of their rebuilt keys: what a selection leaves out
// has a weight that shows.
void make_alike(Batch& b) {
  const Shape& s = b.shape;
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    ShadowSession& session = *b.sessions[i];
    const auto rank = static_cast<std::size_t>(s.rank), d = static_cast<std::size_t>(s.head_dim);
    for (auto& x : session.basis) {
      x = fixture::to_bf16(0.3 * fixture::from_bf16(x));
    }
    for (std::size_t at = 0; at < session.coefficients.size(); ++at) {
      const std::size_t token = at / rank, first = token / static_cast<std::size_t>(s.chunk) * s.chunk;
      const double strength = 8.0 / std::sqrt(1.0 + static_cast<double>(at % rank));
      if (token != first) {
        session.coefficients[at] = fixture::to_bf16(fixture::from_bf16(session.coefficients[first * rank + at % rank]) +
                                                    0.3 * strength * normal(generator));
      }
    }
    const std::int64_t capacity = session.layer().chunk_capacity;
    for (int head = 0; head < s.key_value_heads; ++head) {
      for (std::int32_t c = 0; c < b.states[i].indexed_chunks; ++c) {
        std::vector<double> mean(d, 0.0);
        for (int t = 0; t < s.chunk; ++t) {
          const auto key = session.rebuilt_key(head, static_cast<std::int64_t>(c) * s.chunk + t, *b.tables);
          for (std::size_t e = 0; e < d; ++e) {
            mean[e] += key[e] / s.chunk;
          }
        }
        const auto place = static_cast<std::size_t>(head * capacity + c);
        if (s.landmark_type == SKV_I8) {
          double largest = 0;
          for (const double x : mean) {
            largest = std::max(largest, std::fabs(x));
          }
          session.landmark_scales[place] = static_cast<float>(largest / 127);
          for (std::size_t e = 0; e < d; ++e) {
            session.landmarks8[place * d + e] = static_cast<std::int8_t>(std::lround(mean[e] / largest * 127));
          }
        } else {
          for (std::size_t e = 0; e < d; ++e) {
            session.landmarks[place * d + e] = fixture::to_bf16(mean[e]);
          }
        }
      }
    }
    const skv_shadow_layer& layer = session.layer();
    backend->copy(layer.basis, session.basis.data(), session.basis.size() * 2);
    backend->copy(layer.coefficients, session.coefficients.data(), session.coefficients.size() * 2);
    if (s.landmark_type == SKV_I8) {
      backend->copy(layer.landmarks, session.landmarks8.data(), session.landmarks8.size());
      backend->copy(layer.landmark_scales, session.landmark_scales.data(), session.landmark_scales.size() * 4);
    } else {
      backend->copy(layer.landmarks, session.landmarks.data(), session.landmarks.size() * 2);
    }
    backend->synchronize();
  }
}

// Queries of which some make attention flat and some sharp, and an index without gaps for one session.
void prepare(Batch& b) {
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  for (std::size_t head = 0; head < b.queries.size() / d; ++head) {
    const float sharp = generator() % 2 ? 3.0F : 0.7F;
    for (std::size_t e = 0; e < d; ++e) {
      b.queries[head * d + e] *= sharp;
    }
  }
  b.query_memory->write(b.queries);
  if (b.sessions.size() > kExact) {
    ShadowSession& exact = *b.sessions[kExact];
    for (float& radius : exact.radius) {
      radius = std::fabs(radius);
    }
    backend->copy(exact.layer().radius, exact.radius.data(), exact.radius.size() * 4);
    backend->synchronize();
  }
}

std::vector<std::vector<double>> queries_of(const Batch& b) {
  std::vector<std::vector<double>> queries;
  for (int i = 0; i < b.size() * b.shape.query_heads; ++i) {
    queries.push_back(b.query(i / b.shape.query_heads, i % b.shape.query_heads));
  }
  return queries;
}

// Every query head of a batch: index [B][H], session, key/value head, pair [B][K].
template <class F>
void each_head(const Batch& b, F&& f) {
  for (int session = 0; session < b.size(); ++session) {
    for (int head = 0; head < b.shape.query_heads; ++head) {
      const int kv = head / b.shape.group();
      f(static_cast<std::size_t>(session * b.shape.query_heads + head), session, kv,
        static_cast<std::size_t>(session * b.shape.key_value_heads + kv));
    }
  }
}

double log_add(double a, double b) {
  const double largest = std::max(a, b);
  return largest == kNothing ? kNothing : largest + std::log(std::exp(a - largest) + std::exp(b - largest));
}

// Log of a weight, and how far it may be off.
struct Weight {
  double log = kNothing, tolerance = 0;
};

// Of the indexed tokens, by their landmarks: of all, and of those left out by a list.
struct LandmarkWeight {
  double all = kNothing, left = kNothing;
  double tolerance = 0;  // of `left`, as a share of all
};

LandmarkWeight landmark_weight(const Batch& b, int session, int head, const std::vector<double>& query,
                               const std::vector<std::int32_t>& listed, double radius_weight) {
  const Shape& s = b.shape;
  const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
  const auto& state = b.states[static_cast<std::size_t>(session)];
  const std::set<std::int32_t> taken(listed.begin(), listed.end());
  const double norm = std::sqrt(std::inner_product(query.begin(), query.end(), query.begin(), 0.0));
  const double root = std::sqrt(static_cast<double>(s.head_dim));
  LandmarkWeight weight;
  double logit_tolerance = 0;
  for (int c = 0; state.length > 0 && c < state.indexed_chunks; ++c) {
    const double radius = cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + c)];
    if (radius < 0) {
      CHECK(taken.count(c) == 0);
      continue;
    }
    double dot = 0, squares = 0;
    for (int d = 0; d < s.head_dim; ++d) {
      const double x = query[static_cast<std::size_t>(d)] * cache.landmark(head, c, d);
      dot += x;
      squares += x * x;
    }
    const double logit = dot / root, with_radius = logit + radius_weight * norm * radius / root;
    // As for the selection; the radius may be added and taken off again.
    logit_tolerance = std::max(
        logit_tolerance, (6 * kSplitUnit * std::sqrt(squares) + 6 * kF32Unit * std::sqrt(s.head_dim * squares)) / root +
                             16 * kF32Unit * (1 + std::fabs(with_radius) + std::fabs(logit)));
    const double log = logit + std::log(static_cast<double>(s.chunk));
    weight.all = log_add(weight.all, log);
    if (taken.count(c) == 0) {
      weight.left = log_add(weight.left, log);
    }
  }
  // All and what is listed both err. Exponentials, sums and logarithms are good to some f32 units.
  weight.tolerance = 2 * std::expm1(logit_tolerance) + 64 * kF32Unit;
  return weight;
}

void check_landmark_weight(float actual, const LandmarkWeight& expected) {
  if (expected.left == kNothing) {
    CHECK(actual == -INFINITY);
  } else {
    CHECK_NEAR(std::exp(actual - expected.all), std::exp(expected.left - expected.all), expected.tolerance);
  }
}

// Of the tokens of chunks, by their rebuilt keys.
Weight exact_weight(const Batch& b, int session, int head, const std::vector<double>& query,
                    const std::vector<std::int32_t>& chunks) {
  const Shape& s = b.shape;
  const double query_unit = s.group() > 8 ? kBf16Unit : kSplitUnit;
  const double root = std::sqrt(static_cast<double>(s.head_dim));
  Weight weight;
  for (const std::int32_t chunk : chunks) {
    for (int i = 0; i < s.chunk; ++i) {
      const auto key = b.sessions[static_cast<std::size_t>(session)]->rebuilt_key(
          head, static_cast<std::int64_t>(chunk) * s.chunk + i, *b.tables);
      double dot = 0, squares = 0;
      for (std::size_t e = 0; e < key.size(); ++e) {
        dot += key[e] * query[e];
        squares += key[e] * key[e] * query[e] * query[e];
      }
      const double deviation = std::sqrt((kBf16Unit * kBf16Unit + query_unit * query_unit) / 3 * squares) / root;
      weight.tolerance = std::max(weight.tolerance, 6 * deviation + 32 * kF32Unit * (1 + std::fabs(dot / root)));
      weight.log = log_add(weight.log, dot / root);
    }
  }
  return weight;
}

std::vector<std::int32_t> without(const std::vector<std::int32_t>& list, const std::vector<std::int32_t>& taken) {
  std::vector<std::int32_t> rest;
  std::set_difference(list.begin(), list.end(), taken.begin(), taken.end(), std::back_inserter(rest));
  return rest;
}

Lists read_lists(const Memory& ids, const Memory& count, int stride) {
  const auto all = ids.read<std::int32_t>(), counts = count.read<std::int32_t>();
  Lists lists;
  for (std::size_t pair = 0; pair < counts.size(); ++pair) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(pair) * stride;
    lists.emplace_back(begin, begin + counts[pair]);
  }
  return lists;
}

// --- Weights ------------------------------------------------------------------------------------

void check_topk(Batch& b, Memory& tail, float radius_weight) {
  auto p = topk_params(b, radius_weight);
  // The tail changes nothing else.
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  const auto selections = read_selections(b);
  const auto masses = b.mass->read<std::uint32_t>();
  tail.poison();
  b.selected->poison();
  b.selected_count->poison();
  b.mass->poison();
  p.tail = tail.as<float>();
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  CHECK(read_selections(b) == selections);
  CHECK(b.mass->read<std::uint32_t>() == masses);
  const auto actual = tail.read<float>();
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    const auto query = b.query(session, static_cast<int>(at) % b.shape.query_heads);
    check_landmark_weight(actual[at], landmark_weight(b, session, head, query, selections[pair], radius_weight));
  });
}

// tail: what check_topk left.
void check_rerank(Batch& b, Memory& tail) {
  const Shape& s = b.shape;
  const Lists shortlist = read_selections(b);
  const auto before = tail.read<float>();
  const int keep = std::max(1, s.select / 3);
  const auto pairs = shortlist.size();
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
  const Lists chosen = read_lists(selected, counts, keep);
  p.tail = tail.as<float>();
  backend->rerank(p);
  CHECK(read_lists(selected, counts, keep) == chosen);
  const auto actual = tail.read<float>();
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    const auto query = b.query(session, static_cast<int>(at) % s.query_heads);
    const Weight dropped = exact_weight(b, session, head, query, without(shortlist[pair], chosen[pair]));
    const double expected = log_add(before[at], dropped.log);
    if (expected == kNothing) {
      CHECK(actual[at] == -INFINITY);
    } else {
      CHECK_NEAR(actual[at], expected, dropped.tolerance + 16 * kF32Unit * (1 + std::fabs(expected)));
    }
  });
}

// --- Attention ----------------------------------------------------------------------------------

// One session without moments, and one head with nothing in them.
constexpr std::size_t kWithoutMoments = 4, kEmptied = 1;

void thin_moments(Batch& b) {
  std::vector<skv_shadow_layer> table;
  for (const auto& session : b.sessions) {
    table.push_back(session->layer());
  }
  table[kWithoutMoments].moments = nullptr;
  b.layers = fixture::upload(*backend, table);
  ShadowSession& empty = *b.sessions[kEmptied];
  std::fill_n(empty.moments.begin(), skv::MomentLayout(b.shape.head_dim).floats, 0.0F);
  backend->copy(empty.layer().moments, empty.moments.data(), empty.moments.size() * 4);
  backend->synchronize();
}

std::optional<fixture::OracleRest> rest_of(const Batch& b, std::size_t session, int head,
                                           const std::vector<double>& query, const Weight& weight) {
  const skv::MomentLayout layout(b.shape.head_dim);
  const float* const moments = &b.sessions[session]->moments[static_cast<std::size_t>(head * layout.floats)];
  if (b.states[session].length == 0 || session == kWithoutMoments || moments[layout.count] == 0 ||
      !std::isfinite(weight.log)) {
    return std::nullopt;
  }
  constexpr double kRotated = 8 * kF32Unit;  // the error of a query that the device has rotated
  return fixture::oracle_rest(query, moments, weight.log, weight.tolerance, kRotated);
}

void check_sparse(Batch& b) {
  const Shape& s = b.shape;
  const auto queries = queries_of(b);
  // Weights far below, near and far above that of what is attended.
  std::vector<float> weights;
  std::normal_distribution<float> normal(7.0F, 3.0F);
  for (std::size_t i = 0; i < queries.size(); ++i) {
    weights.push_back(generator() % 6 == 0 ? -INFINITY : normal(generator));
  }
  const auto tail = fixture::upload(*backend, weights);
  Memory output(*backend, b.queries.size() * 4), log_sums(*backend, queries.size() * 4);
  output.poison();
  log_sums.poison();
  skv_sparse_attention_params p = {};
  p.struct_size = sizeof(p);
  p.query_type = p.output_type = SKV_F32;
  p.geometry = s.geometry();
  p.batch = b.size();
  p.queries = b.query_memory->as<void>();
  p.layers = b.layers->as<skv_shadow_layer>();
  p.states = b.state_memory->as<skv_session_state>();
  p.rope = b.tables->rope();
  p.select = s.select;
  p.selected = p.selected_slot = b.selected->as<std::int32_t>();  // without slots, values are read in place
  p.selected_count = b.selected_count->as<std::int32_t>();
  p.output = output.as<void>();
  p.log_sum_exp = log_sums.as<float>();
  // The workspace is asked for before the tail has an address.
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  p.tail = tail->as<float>();
  backend->sparse_attention(p);
  std::vector<std::optional<fixture::OracleRest>> rests;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t) {
    rests.push_back(rest_of(b, static_cast<std::size_t>(session), head, queries[at], {weights[at], 0}));
  });
  check_attention(b, read_selections(b), queries, output.read<float>(), log_sums.read<float>(),
                  s.group() > 8 ? kBf16Unit : kSplitUnit, kF32Unit, rests);
  CHECK(tail->read<float>() == weights);  // read alone
}

void check_shape(const char* name, Shape s) {
  std::printf("%s\n", name);
  s.slots = 0;
  Batch b(s, rows_of(s));
  make_alike(b);
  prepare(b);
  thin_moments(b);
  Memory tail(*backend, b.queries.size() / static_cast<std::size_t>(s.head_dim) * 4);
  for (const float radius_weight : {0.0F, 0.5F}) {
    check_topk(b, tail, radius_weight);
    check_rerank(b, tail);
  }
  check_sparse(b);
}

void test_shapes() {
  for (const int group : check::cases({1, 4, 7, 8, 16})) {
    for (const int dim : {64, 96, 128}) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = dim;
      s.rank = dim == 64 ? 16 : dim == 96 ? 72 : 160;
      s.pairing = group % 2 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
      s.value_type = (group + dim / 32) % 2 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = (group + dim / 32) % 2 ? SKV_BF16 : SKV_I8;
      s.chunk = group == 8 ? 16 : 8;
      check_shape(("G " + std::to_string(group) + ", D " + std::to_string(dim)).c_str(), s);
    }
  }
  for (const int dim : check::cases({12, 80, 256, 2})) {
    Shape s;
    s.key_value_heads = 3;
    s.query_heads = dim == 12 ? 48 : 12;
    s.head_dim = dim;
    s.rotary_dim = dim == 80 ? 40 : dim;
    s.rank = 48;
    s.landmark_type = dim == 256 ? SKV_I8 : SKV_BF16;
    check_shape(("D " + std::to_string(dim)).c_str(), s);
  }
}

// Indexes of many units, shared by several blocks; selections of many and of few; thresholds in a crowd.
void test_long_indexes() {
  for (const auto& [chunks, select, landmark_type] :
       {std::tuple{15343, 256, SKV_BF16}, std::tuple{15343, 1024, SKV_I8}, std::tuple{70000, 24, SKV_BF16}}) {
    std::printf("%d chunks, %d selected\n", chunks, select);
    Shape s;
    s.key_value_heads = 1;
    s.query_heads = 4;
    s.head_dim = s.rotary_dim = 64;
    s.rank = 16;
    s.select = select;
    s.landmark_type = landmark_type;
    Batch b(s, {{8LL * chunks + 5, 8LL * chunks, 3, chunks + 7}});
    prepare(b);
    Memory tail(*backend, static_cast<std::uint64_t>(s.query_heads) * 4);
    check_topk(b, tail, 0.5F);
    check_rerank(b, tail);
    // Few different landmarks.
    auto& session = *b.sessions[0];
    const auto d = static_cast<std::size_t>(s.head_dim);
    if (landmark_type == SKV_BF16) {
      for (std::size_t c = 0; c < session.landmarks.size() / d; ++c) {
        std::copy_n(session.landmarks.begin() + static_cast<std::ptrdiff_t>(c % 3 * d), d,
                    session.landmarks.begin() + static_cast<std::ptrdiff_t>(c * d));
      }
      for (float& radius : session.radius) {
        radius = radius < 0 ? radius : 0.25F;
      }
      backend->copy(session.layer().landmarks, session.landmarks.data(), session.landmarks.size() * 2);
      backend->copy(session.layer().radius, session.radius.data(), session.radius.size() * 4);
      backend->synchronize();
      check_topk(b, tail, 0.5F);
    }
  }
}

// Radii so large that exponentials with and without them do not fit into one range of f32.
void test_large_radii() {
  std::printf("large radii\n");
  Shape s;
  s.key_value_heads = 2;
  s.query_heads = 8;
  s.slots = 0;
  Batch b(s, rows_of(s));
  prepare(b);
  for (auto& session : b.sessions) {
    for (float& radius : session->radius) {
      radius *= 100.0F;
    }
    backend->copy(session->layer().radius, session->radius.data(), session->radius.size() * 4);
  }
  backend->synchronize();
  Memory tail(*backend, b.queries.size() / static_cast<std::size_t>(s.head_dim) * 4);
  check_topk(b, tail, 0.5F);
}

// --- Layers -------------------------------------------------------------------------------------

// What a step has selected: the chunks whose slots bear its stamp.
Lists stamped(const Batch& b) {
  const Shape& s = b.shape;
  Lists lists;
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    const auto chunks = b.sessions[i]->slot_chunk->read<std::int32_t>();
    const auto stamps = b.sessions[i]->slot_stamp->read<std::int32_t>();
    for (int head = 0; head < s.key_value_heads; ++head) {
      std::vector<std::int32_t> list;
      for (int slot = head * s.slots; slot < (head + 1) * s.slots; ++slot) {
        if (stamps[static_cast<std::size_t>(slot)] == b.states[i].step) {
          list.push_back(chunks[static_cast<std::size_t>(slot)]);
        }
      }
      std::sort(list.begin(), list.end());
      lists.push_back(list);
    }
  }
  return lists;
}

std::vector<std::int32_t> indexed(const Batch& b, int session, int head) {
  const auto& state = b.states[static_cast<std::size_t>(session)];
  const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
  std::vector<std::int32_t> list;
  for (std::int32_t c = 0; state.length > 0 && c < state.indexed_chunks; ++c) {
    if (cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + c)] >= 0) {
      list.push_back(c);
    }
  }
  return list;
}

// The weight of what a layer leaves out. With a rerank, everything is on the shortlist.
Weight left_out(const Batch& b, int session, int head, const std::vector<double>& query,
                const std::vector<std::int32_t>& selected, bool reranked) {
  if (reranked) {
    return exact_weight(b, session, head, query, without(indexed(b, session, head), selected));
  }
  const LandmarkWeight weight = landmark_weight(b, session, head, query, selected, 0.5);
  if (weight.left == kNothing) {
    return {};
  }
  const double off = weight.tolerance / std::exp(weight.left - weight.all);
  CHECK(off < 0.5);
  return {weight.left, -std::log1p(-off)};
}

void check_layer(const Shape& s, int shortlist) {
  std::printf("layer, G %d, D %d, value type %d, landmark type %d, shortlist %d\n", s.group(), s.head_dim, s.value_type,
              s.landmark_type, shortlist);
  Batch b(s, rows_of(s));
  make_alike(b);
  prepare(b);
  thin_moments(b);
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    b.sessions[i]->fill_slots(generator, 0.6, std::max(1, b.states[i].indexed_chunks));
  }
  const StepInput in(b);
  Memory output(*backend, b.queries.size() * 2);
  auto p = decode_params(b, in, output, static_cast<int>(generator() % 4), shortlist);
  const auto plain = decode(p, output);
  p.tail = 1;
  const auto bits = decode(p, output);
  const Lists lists = stamped(b);
  // The device's own new tokens.
  for (auto& session : b.sessions) {
    session->recent_keys = session->recent_keys_memory->read<std::uint16_t>();
    session->recent_values = session->recent_values_memory->read<std::uint16_t>();
  }
  const auto queries = rotated_queries(b, in);
  std::vector<std::optional<fixture::OracleRest>> rests;
  const auto d = static_cast<std::size_t>(s.head_dim);
  bool same_without = true, different_with = true;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    rests.push_back(rest_of(b, static_cast<std::size_t>(session), head, queries[at],
                            left_out(b, session, head, queries[at], lists[pair], shortlist > 0)));
    const auto begin = static_cast<std::ptrdiff_t>(at * d);
    const bool same =
        std::equal(bits.begin() + begin, bits.begin() + begin + static_cast<std::ptrdiff_t>(d), plain.begin() + begin);
    (rests.back() ? different_with : same_without) &= same != rests.back().has_value();
  });
  CHECK(same_without);
  CHECK(different_with);
  std::vector<float> actual;
  for (const auto x : bits) {
    actual.push_back(static_cast<float>(fixture::from_bf16(x)));
  }
  check_attention(b, lists, queries, actual, {}, s.group() > 8 ? kBf16Unit : kSplitUnit, kBf16Unit, rests);
}

void test_layers() {
  for (const int shortlist : {0, 100}) {
    for (const int group : check::cases({1, 4, 8, 16})) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = group == 8 ? 80 : group == 1 ? 64 : 128;
      s.rank = 48;
      s.value_type = group == 4 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = group == 16 ? SKV_I8 : SKV_BF16;
      s.slots = 40;
      check_layer(s, shortlist);
    }
  }
}

}  // namespace

int main() {
  return run([] {
    test_shapes();
    test_long_indexes();
    test_large_radii();
    test_layers();
  });
}
