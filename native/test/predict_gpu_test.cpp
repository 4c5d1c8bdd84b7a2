// Tokens that a rerank drops, on CUDA: their weight, the value that their coefficients predict, and their part in
// attention and in whole layers, against definitions in double precision.
#include "tail_fixture.h"

namespace {

using namespace decode_gpu;

// Two more than the tests of tails have: one without a basis of values, and one without moments of which much is
// dropped.
constexpr std::size_t kWithoutBasis = 6, kBasisAlone = 7;

std::vector<Batch::Row> more_rows_of(const Shape& s) {
  auto rows = rows_of(s);
  const std::int64_t c = s.chunk;
  rows.push_back({45 * c + 3, 45 * c, 2, 50});
  rows.push_back({52 * c + 7, 51 * c, 4, 52});
  return rows;
}

// Makes the scores of some heads so small that they hardly err: every token counts there, and none may be missed.
void flatten_some(Batch& b) {
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  for (std::size_t head = 0; head < b.queries.size() / d; ++head) {
    const float factor = generator() % 3 == 0 ? 0.01F : 1.0F;
    for (std::size_t e = 0; e < d; ++e) {
      b.queries[head * d + e] *= factor;
    }
  }
  b.query_memory->write(b.queries);
}

Batch predicting_batch(const Shape& s) {
  Batch b(s, more_rows_of(s));
  make_alike(b);
  prepare(b);
  flatten_some(b);
  b.table[kBasisAlone].moments = nullptr;
  thin_moments(b);
  add_value_bases(b, kWithoutBasis);
  return b;
}

// A dropped token: its key, its predicted value, and the magnitudes of the terms of that.
struct DroppedToken {
  std::vector<double> key, value, size;
};

std::vector<DroppedToken> dropped_tokens(const Batch& b, int session, int head,
                                         const std::vector<std::int32_t>& chunks) {
  const auto& cache = *b.sessions[static_cast<std::size_t>(session)];
  std::vector<DroppedToken> tokens;
  for (const std::int32_t chunk : chunks) {
    for (int i = 0; i < b.shape.chunk; ++i) {
      const std::int64_t position = static_cast<std::int64_t>(chunk) * b.shape.chunk + i;
      DroppedToken token;
      token.key = cache.rebuilt_key(head, position, *b.tables);
      token.value = cache.product(head, position, cache.value_basis, &token.size);
      tokens.push_back(std::move(token));
    }
  }
  return tokens;
}

// Their part for one query. The mean of predicted values is the prediction of the mean coefficients.
fixture::OracleRest dropped_part(const Batch& b, const std::vector<DroppedToken>& tokens,
                                 const std::vector<double>& query) {
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  fixture::OracleRest part = {kNothing, 0, std::vector<double>(d), std::vector<double>(d)};
  std::vector<Score> scores;
  for (const DroppedToken& token : tokens) {
    scores.push_back(score_of(b, token.key, query));
    part.log_weight = log_add(part.log_weight, scores.back().score);
    part.log_weight_tolerance = std::max(part.log_weight_tolerance, scores.back().tolerance);
  }
  const auto share = [&](std::size_t t) { return std::exp(scores[t].score - part.log_weight); };
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (std::size_t e = 0; e < d; ++e) {
      part.value[e] += share(t) * tokens[t].value[e];
    }
  }
  // A unit of tokens is summed up, then the units; each coefficient is rounded some times more, and once for each term
  // of the product that is added after it.
  const double roundings = b.shape.rank + 64 + static_cast<double>(tokens.size()) / 128;
  for (std::size_t e = 0; e < d; ++e) {
    double variance = 0, bound = 0;
    std::vector<double> along(d);  // what an element of the query moves the value by
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const double away = share(t) * (tokens[t].value[e] - part.value[e]);
      variance += away * away * scores[t].deviation * scores[t].deviation;
      bound += 32 * kF32Unit * (1 + std::fabs(scores[t].score)) * std::fabs(away) +
               roundings * kF32Unit * share(t) * tokens[t].size[e];
      for (std::size_t i = 0; rounds_queries(b.shape) && i < d; ++i) {
        along[i] += away * tokens[t].key[i];
      }
    }
    // The rounding of a query is the same for all tokens.
    for (std::size_t i = 0; i < d; ++i) {
      variance += std::pow(kBf16Unit * query[i] * along[i], 2) / 3 / static_cast<double>(d);
    }
    part.tolerance[e] = 6 * std::sqrt(variance) + bound;
  }
  return part;
}

// The parts [B][H] of what is dropped; none where nothing is, or a session has no basis of values.
Rests dropped_parts(const Batch& b, const std::vector<std::vector<double>>& queries, const Lists& dropped) {
  Rests parts;
  std::vector<DroppedToken> tokens;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    const bool predicted = b.table[static_cast<std::size_t>(session)].value_basis;
    if (at % static_cast<std::size_t>(b.shape.group()) == 0) {
      tokens = predicted ? dropped_tokens(b, session, head, dropped[pair]) : std::vector<DroppedToken>{};
    }
    parts.emplace_back();
    if (!tokens.empty()) {
      parts.back().push_back(dropped_part(b, tokens, queries[at]));
    }
  });
  return parts;
}

Lists without(const Lists& lists, const Lists& taken) {
  Lists rest;
  for (std::size_t pair = 0; pair < lists.size(); ++pair) {
    rest.push_back(decode_gpu::without(lists[pair], taken[pair]));
  }
  return rest;
}

// --- Reranking ----------------------------------------------------------------------------------

// What a rerank writes, poisoned before.
struct Reranked {
  Lists selected;
  std::vector<float> tail, dropped, values;
};

// tail: what landmark_topk left, or empty.
Reranked rerank(const Batch& b, int keep, const std::vector<float>& tail, bool with_dropped) {
  const std::uint64_t heads = b.queries.size() / static_cast<std::size_t>(b.shape.head_dim);
  const std::uint64_t pairs = heads / static_cast<std::uint64_t>(b.shape.group());
  Memory selected(*backend, pairs * static_cast<std::uint64_t>(keep) * 4), counts(*backend, pairs * 4);
  Memory weights(*backend, heads * 4), dropped(*backend, heads * 4), values(*backend, b.queries.size() * 4);
  for (Memory* const memory : {&selected, &counts, &weights, &dropped, &values}) {
    memory->poison();
  }
  weights.write(tail);
  auto p = rerank_params(b, keep, selected, counts);
  p.tail = tail.empty() ? nullptr : weights.as<float>();
  p.dropped = with_dropped ? dropped.as<float>() : nullptr;
  p.dropped_values = with_dropped ? values.as<float>() : nullptr;
  reserve(SKV_OP_RERANK, &p);
  backend->rerank(p);
  return {read_lists(selected, counts, keep), weights.read<float>(), dropped.read<float>(), values.read<float>()};
}

// NaN equals NaN.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// How far values of a head are off, as a share of what they may be.
double worst_of(const float* actual, const fixture::OracleRest& expected) {
  double worst = 0;
  for (std::size_t e = 0; e < expected.value.size(); ++e) {
    const double off = std::fabs(actual[e] - expected.value[e]) / expected.tolerance[e];
    worst = off <= worst ? worst : off;  // NaN stays
  }
  return worst;
}

void check_dropped(const Batch& b, const Reranked& actual, const Rests& expected) {
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  double worst = 0;
  int parts = 0;
  for (std::size_t at = 0; at < expected.size(); ++at) {
    const float* const values = &actual.values[at * d];
    if (expected[at].empty()) {
      CHECK(actual.dropped[at] == -INFINITY);
      CHECK(std::all_of(values, values + d, [](float x) { return std::isnan(x); }));  // not written
      continue;
    }
    const fixture::OracleRest& part = expected[at].front();
    check_weight(actual.dropped[at], {part.log_weight, part.log_weight_tolerance});
    const double off = worst_of(values, part);
    CHECK(off <= 1);
    worst = std::max(worst, off);
    ++parts;
  }
  CHECK(parts > 0);
  std::printf("  dropped: %d heads, worst error %.2f of its tolerance\n", parts, worst);
}

// What a tail holds behind a rerank with dropped: the dropped weight joins it only where no value can be predicted.
void check_joined(const Batch& b, const std::vector<float>& actual, const std::vector<float>& before,
                  const Lists& dropped) {
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    if (b.table[static_cast<std::size_t>(session)].value_basis) {
      CHECK(actual[at] == before[at]);
      return;
    }
    const auto query = b.query(session, static_cast<int>(at) % b.shape.query_heads);
    const Weight weight = exact_weight(b, session, head, query, dropped[pair]);
    check_weight(actual[at], {log_add(before[at], weight.log), weight.tolerance});
  });
}

void check_rerank(const Batch& b, int keep) {
  Memory weights(*backend, b.queries.size() / static_cast<std::size_t>(b.shape.head_dim) * 4);
  auto p = topk_params(b, kRadiusWeight);
  p.tail = weights.as<float>();
  reserve(SKV_OP_LANDMARK_TOPK, &p);
  backend->landmark_topk(p);
  const Lists shortlist = read_selections(b);
  const auto tail = weights.read<float>();
  const Reranked plain = rerank(b, keep, {}, false), joined = rerank(b, keep, tail, false);
  const Reranked alone = rerank(b, keep, {}, true), both = rerank(b, keep, tail, true);
  CHECK(joined.selected == plain.selected);
  CHECK(alone.selected == plain.selected);
  CHECK(both.selected == plain.selected);
  CHECK(same_bits(alone.dropped, both.dropped));
  CHECK(same_bits(alone.values, both.values));
  const Lists dropped = without(shortlist, plain.selected);
  check_dropped(b, both, dropped_parts(b, queries_of(b), dropped));
  check_joined(b, both.tail, tail, dropped);
}

// --- Attention ----------------------------------------------------------------------------------

// Parts of the softmax as skv_rerank gives them: weights [B][H] and values [B][H][D], which are NaN where there is no
// part.
struct GivenParts {
  std::vector<float> weights, values;
};

// Weights far below, near and far above that of what is attended, and some that are none.
GivenParts random_parts(const Batch& b) {
  constexpr float kNone[] = {-INFINITY, -INFINITY, INFINITY, NAN};
  GivenParts parts;
  std::normal_distribution<float> weight(7.0F, 3.0F), value;
  for (std::size_t i = 0; i < b.queries.size() / static_cast<std::size_t>(b.shape.head_dim); ++i) {
    const bool there = generator() % 4 != 0;
    parts.weights.push_back(there ? weight(generator) : kNone[generator() % std::size(kNone)]);
    for (int e = 0; e < b.shape.head_dim; ++e) {
      parts.values.push_back(there ? value(generator) : NAN);
    }
  }
  return parts;
}

void check_sparse(const Batch& b, bool with_tail) {
  const auto queries = queries_of(b);
  const auto d = static_cast<std::size_t>(b.shape.head_dim);
  const GivenParts parts = random_parts(b);
  std::vector<float> weights = random_parts(b).weights;
  // Of a tail, only those of no weight at all are ever given.
  std::replace_if(
      weights.begin(), weights.end(), [](float x) { return !std::isfinite(x); }, -INFINITY);
  const auto tail = fixture::upload(*backend, weights), dropped = fixture::upload(*backend, parts.weights);
  const auto values = fixture::upload(*backend, parts.values);
  Memory output(*backend, b.queries.size() * 4), log_sums(*backend, queries.size() * 4);
  output.poison();
  log_sums.poison();
  auto p = sparse_params(b, *b.selected, output, log_sums);
  // The workspace is asked for before the parts have addresses.
  reserve(SKV_OP_SPARSE_ATTENTION, &p);
  p.tail = with_tail ? tail->as<float>() : nullptr;
  p.dropped = dropped->as<float>();
  p.dropped_values = values->as<float>();
  backend->sparse_attention(p);
  Rests rests;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t) {
    rests.emplace_back();
    if (with_tail) {
      rests.back() = rest_of(b, session, head, queries[at], {weights[at], 0});
    }
    if (std::isfinite(parts.weights[at]) && b.states[static_cast<std::size_t>(session)].length > 0) {
      const auto begin = parts.values.begin() + static_cast<std::ptrdiff_t>(at * d);
      rests.back().push_back(
          {parts.weights[at], 0, {begin, begin + static_cast<std::ptrdiff_t>(d)}, std::vector<double>(d, 0.0)});
    }
  });
  check_attention(b, read_selections(b), queries, output.read<float>(), log_sums.read<float>(),
                  b.shape.group() > 8 ? kBf16Unit : kSplitUnit, kF32Unit, rests);
  // Read alone.
  CHECK(same_bits(dropped->read<float>(), parts.weights));
  CHECK(same_bits(values->read<float>(), parts.values));
}

void check_shape(Shape s) {
  std::printf("G %d, D %d, C %d, r %d, value type %d%s\n", s.group(), s.head_dim, s.chunk, s.rank, s.value_type,
              s.coefficient_name());
  s.slots = 0;
  const Batch b = predicting_batch(s);
  // Some of the sessions drop nothing.
  for (const int keep : {s.select / 3, s.select - 2}) {
    check_rerank(b, keep);
  }
  check_sparse(b, false);
  check_sparse(b, true);
}

void test_shapes() {
  for (const int group : check::cases({1, 4, 7, 8, 16})) {
    for (const int dim : {64, 96, 128}) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = dim;
      s.rank = dim == 64 ? 40 : dim == 96 ? 72 : 160;
      s.pairing = group % 2 ? SKV_INTERLEAVED : SKV_HALF_SPLIT;
      s.value_type = (group + dim / 32) % 2 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = (group + dim / 32) % 2 ? SKV_BF16 : SKV_I8;
      s.chunk = group == 8 || group == 1 ? 16 : 8;
      check_shape(s);
      s.coefficient_type = SKV_I8;
      check_shape(s);
    }
  }
  // Ranks and heads that the tensor cores do not take; an odd rank; the largest.
  for (const auto& [dim, rank] : check::cases<std::pair<int, int>>({{128, 100}, {128, 250}, {80, 33}, {256, 256}})) {
    Shape s;
    s.key_value_heads = 3;
    s.query_heads = dim == 80 ? 48 : 12;
    s.head_dim = dim;
    s.rotary_dim = dim == 80 ? 40 : dim;
    s.rank = rank;
    s.value_type = rank == 250 ? SKV_F8_E4M3 : SKV_BF16;
    check_shape(s);
    s.coefficient_type = SKV_I8;
    check_shape(s);
  }
}

// Shortlists of many units of tokens, of which much is dropped.
void test_long_shortlists() {
  for (const auto& [group, dim, rank, chunk, select, keep] :
       {std::tuple{4, 64, 40, 8, 1024, 256}, std::tuple{7, 128, 72, 16, 400, 3},
        std::tuple{16, 96, 48, 8, 1000, 999}}) {
    std::printf("G %d, D %d, C %d, r %d: %d of %d\n", group, dim, chunk, rank, keep, select);
    Shape s;
    s.key_value_heads = 1;
    s.query_heads = group;
    s.head_dim = s.rotary_dim = dim;
    s.rank = rank;
    s.chunk = chunk;
    s.select = select;
    s.coefficient_type = group == 4 ? SKV_BF16 : SKV_I8;
    const std::int64_t chunks = 1300, few = 333;
    Batch b(s, {{chunk * chunks + 5, chunk * chunks, 3, 1307},
                {chunk * few + 5, chunk * few, 0, 340},
                {0, 0, 0, 9},
                {chunk * 90, chunk * 90, 0, 90}});
    make_alike(b);
    flatten_some(b);
    add_value_bases(b, 3);
    check_rerank(b, keep);
  }
}

// --- Layers -------------------------------------------------------------------------------------

// Makes the radii of so many chunks of every head so large that they are the shortlist, and returns it [B][K].
Lists choose_shortlist(Batch& b, int shortlist) {
  Lists lists;
  for (int session = 0; session < b.size(); ++session) {
    ShadowSession& cache = *b.sessions[static_cast<std::size_t>(session)];
    for (int head = 0; head < b.shape.key_value_heads; ++head) {
      auto list = indexed(b, session, head);
      std::shuffle(list.begin(), list.end(), generator);
      list.resize(std::min(list.size(), static_cast<std::size_t>(shortlist)));
      std::sort(list.begin(), list.end());
      for (const std::int32_t chunk : list) {
        cache.radius[static_cast<std::size_t>(head * cache.layer().chunk_capacity + chunk)] += 100;
      }
      lists.push_back(list);
    }
    write_radii(cache);
  }
  return lists;
}

void check_layer(const Shape& s, int shortlist) {
  std::printf("layer, G %d, D %d, r %d, value type %d, landmark type %d%s, shortlist %d\n", s.group(), s.head_dim,
              s.rank, s.value_type, s.landmark_type, s.coefficient_name(), shortlist);
  Batch b = predicting_batch(s);
  const Lists listed = choose_shortlist(b, shortlist);
  const LayerStep step = step_layer(b, shortlist);
  const Lists dropped = without(listed, step.selected);
  Rests rests = dropped_parts(b, step.queries, dropped);
  int both = 0;
  each_head(b, [&](std::size_t at, int session, int head, std::size_t pair) {
    CHECK(std::includes(listed[pair].begin(), listed[pair].end(), step.selected[pair].begin(),
                        step.selected[pair].end()));
    const bool predicted = b.table[static_cast<std::size_t>(session)].value_basis;
    const Weight weight = left_out(b, session, head, step.queries[at], listed[pair],
                                   predicted ? std::vector<std::int32_t>{} : dropped[pair]);
    for (const auto& rest : rest_of(b, session, head, step.queries[at], weight)) {
      both += !rests[at].empty();
      rests[at].push_back(rest);
    }
  });
  check_step(b, step, rests);
  // With everything on the shortlist, all that has a prediction is dropped.
  CHECK(both > 0 || shortlist > 90);
}

void test_layers() {
  for (const int shortlist : {32, 100}) {
    for (const int group : check::cases({1, 4, 7, 8, 16})) {
      Shape s;
      s.key_value_heads = group == 16 ? 1 : 2;
      s.query_heads = group * s.key_value_heads;
      s.head_dim = s.rotary_dim = group == 8 ? 80 : group == 1 ? 64 : group == 7 ? 96 : 128;
      s.rank = group == 1 ? 40 : group == 7 ? 72 : group == 8 ? 100 : 160;
      s.value_type = group == 4 || group == 7 ? SKV_F8_E4M3 : SKV_BF16;
      s.landmark_type = group == 16 ? SKV_I8 : SKV_BF16;
      s.chunk = group == 7 ? 16 : 8;
      s.coefficient_type = (group == 1 || group == 4) == (shortlist == 32) ? SKV_I8 : SKV_BF16;
      s.slots = 40;
      check_layer(s, shortlist);
    }
  }
}

}  // namespace

int main() {
  return run([] {
    test_shapes();
    test_long_shortlists();
    test_layers();
  });
}
