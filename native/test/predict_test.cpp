// Values of the tokens that a rerank drops, predicted from their coefficients, on the CPU: the basis of values, the
// weight and value of what is dropped, and its part in attention, against definitions in double precision, on every
// instruction set of this processor.
#include <cstdio>

#include "check.h"
#include "decode_batch.h"

namespace {

using namespace decode;

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// --- The basis of values ----------------------------------------------------------------------

// Coefficients and a ring of values, of which [first, first + tokens) count; the rest of both is NaN.
struct Tokens {
  Tokens(int type, int h, int d, int r, std::int64_t from, std::int64_t number)
      : heads(h),
        dim(d),
        rank(r),
        first(from),
        tokens(number),
        capacity(number + 9),
        coefficients(type, (from + number + 3) * r),
        values(type, h * capacity * d) {
    for (std::int64_t i = 0; i < coefficients.count(); ++i) {
      coefficients.set(i, std::nan(""));
    }
    for (std::int64_t i = 0; i < values.count(); ++i) {
      values.set(i, std::nan(""));
    }
  }

  std::int64_t value_row(std::int64_t head, std::int64_t t) const {
    return (head * capacity + (first + t) % capacity) * dim;
  }

  // Columns of a falling spectrum, the last three: zero, below what counts and above it. Values follow them in part.
  void fill() {
    std::normal_distribution<double> normal;
    Array map(SKV_F32, heads * rank * dim);
    map.fill(generator, 0.3);
    // As long as a column may be against the longest and still be rounding alone.
    const int type = coefficients.type();
    const double edge = type == SKV_BF16 ? 0x1p-10 : 0x1p-12;
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<double> row;
      for (std::int64_t j = 0; j < rank; ++j) {
        const std::int64_t last = rank - 1 - j;
        const double size = last > 2    ? 3.0 / std::sqrt(1.0 + static_cast<double>(j))
                            : last == 2 ? 6.0 * edge
                            : last == 1 ? 1.5 * edge
                                        : 0;
        coefficients.set((first + t) * rank + j, size * normal(generator));
        row.push_back(size == 0 ? 0 : coefficients[(first + t) * rank + j] / size);
      }
      for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t d = 0; d < dim; ++d) {
          double value = 0.5 * normal(generator);
          for (std::int64_t j = 0; j < rank; ++j) {
            value += row[static_cast<std::size_t>(j)] * map[(head * rank + j) * dim + d];
          }
          values.set(value_row(head, t) + d, value);
        }
      }
    }
  }

  skv_value_fit_params params(Array& value_basis) {
    skv_value_fit_params p{};
    p.struct_size = sizeof(p);
    p.storage_type = coefficients.type();
    p.key_value_heads = static_cast<std::int32_t>(heads);
    p.head_dim = static_cast<std::int32_t>(dim);
    p.rank = static_cast<std::int32_t>(rank);
    p.coefficients = coefficients.data();
    p.values = values.data();
    p.capacity = capacity;
    p.first_position = first;
    p.tokens = tokens;
    p.value_basis = value_basis.data();
    return p;
  }

  std::int64_t heads, dim, rank, first, tokens, capacity;
  Array coefficients, values;
};

void check_fit(const Tokens& from, const Array& value_basis) {
  double worst = 0;
  bool good = true;
  for (std::int64_t j = 0; j < from.rank; ++j) {
    double squares = 0;
    for (std::int64_t t = 0; t < from.tokens; ++t) {
      squares += std::pow(from.coefficients[(from.first + t) * from.rank + j], 2);
    }
    for (std::int64_t i = 0; i < from.heads * from.dim; ++i) {
      const std::int64_t head = i / from.dim, d = i % from.dim;
      const double got = value_basis[(head * from.rank + j) * from.dim + d];
      if (j >= from.rank - 2) {
        good = got == 0 && good;
        continue;
      }
      double sum = 0, size = 0;
      for (std::int64_t t = 0; t < from.tokens; ++t) {
        const double term =
            from.coefficients[(from.first + t) * from.rank + j] * from.values[from.value_row(head, t) + d];
        sum += term;
        size += std::fabs(term);
      }
      // Blocks of 128 tokens, blocks of a piece and pieces one after the other, above the line and below it.
      const double roundings = 2 * (128 + static_cast<double>(from.tokens) / 128 / 16 + 16 + 4);
      const double allowed = check::tolerance(value_basis.type(), sum / squares, roundings, size / squares);
      good = check::near(got, sum / squares, allowed) && good;
      worst = std::max(worst, std::fabs(got - sum / squares) / allowed);
    }
  }
  CHECK(value_basis.guard_intact());
  if (!CHECK(good)) {
    std::fprintf(stderr, "  value_fit, set %d, type %d, D %d, r %d: %.2f of what is allowed\n", instruction_set,
                 value_basis.type(), static_cast<int>(from.dim), static_cast<int>(from.rank), worst);
  }
}

void test_fit(int type, int heads, int dim, int rank, std::int64_t first, std::int64_t tokens) {
  Tokens from(type, heads, dim, rank, first, tokens);
  from.fill();
  Array value_basis(type, static_cast<std::int64_t>(heads) * rank * dim);
  auto p = from.params(value_basis);
  RUN(value_fit, p);
  check_fit(from, value_basis);
  const Array before = value_basis;
  for (const int threads : {1, 3, 7}) {
    value_basis.fill(generator);
    RUN(value_fit, p, threads);
    CHECK(value_basis == before);
  }
  p.tokens = 0;
  p.coefficients = p.values = nullptr;
  RUN(value_fit, p);
  bool zero = true;
  for (std::int64_t i = 0; i < value_basis.count(); ++i) {
    zero = value_basis[i] == 0 && zero;
  }
  CHECK(zero);
}

// Solves a x = b for a symmetric positive a [n][n], b [n][columns], in place.
void solve(std::vector<double>& a, std::vector<double>& b, std::size_t n, std::size_t columns) {
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t row = i + 1; row < n; ++row) {
      const double factor = a[row * n + i] / a[i * n + i];
      for (std::size_t j = i; j < n; ++j) {
        a[row * n + j] -= factor * a[i * n + j];
      }
      for (std::size_t c = 0; c < columns; ++c) {
        b[row * columns + c] -= factor * b[i * columns + c];
      }
    }
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t c = 0; c < columns; ++c) {
      for (std::size_t j = i + 1; j < n; ++j) {
        b[i * columns + c] -= a[i * n + j] * b[j * columns + c];
      }
      b[i * columns + c] /= a[i * n + i];
    }
  }
}

// What is missed of the values by a . basis, as a sum of squares.
double missed(const Tokens& from, const std::vector<double>& basis) {
  double sum = 0;
  for (std::int64_t head = 0; head < from.heads; ++head) {
    for (std::int64_t t = 0; t < from.tokens; ++t) {
      for (std::int64_t d = 0; d < from.dim; ++d) {
        double value = from.values[from.value_row(head, t) + d];
        for (std::int64_t j = 0; j < from.rank; ++j) {
          value -= from.coefficients[(from.first + t) * from.rank + j] *
                   basis[static_cast<std::size_t>((head * from.rank + j) * from.dim + d)];
        }
        sum += value * value;
      }
    }
  }
  return sum;
}

// Row by row is least squares where the coefficients are those of a factorization, also as they are rounded: nearly as
// good as the solution of the normal equations. What is off their diagonal comes from the rounding of the basis that
// coefficients are taken with: it brings a part e of the longest column into the others, e^2 = u^2 / width on average,
// so that what is missed of the values grows by e^2 times the sum, over the columns, of (longest / own length)^2.
void check_least_squares(int type) {
  constexpr int kHeads = 2, kDim = 48, kRank = 24, kTokens = 700, kDirections = 30;
  Tokens from(type, kHeads, kDim, kRank, 0, kTokens);
  std::normal_distribution<double> normal;
  Array keys(type, static_cast<std::int64_t>(kTokens) * kHeads * kDim),
      directions(SKV_F32, kDirections * kHeads * kDim), follow(SKV_F32, kDirections * kHeads * kDim);
  directions.fill(generator);
  follow.fill(generator, 0.5);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    std::vector<double> strength;
    for (int j = 0; j < kDirections; ++j) {
      // The first is the mean of all keys.
      strength.push_back((j == 0 ? 4.0 : 2.0 * normal(generator)) / (1.0 + 0.5 * j));
    }
    for (std::int64_t i = 0; i < kHeads * kDim; ++i) {
      double key = 0.02 * normal(generator), value = 0.3 * normal(generator);
      for (int j = 0; j < kDirections; ++j) {
        key += strength[static_cast<std::size_t>(j)] * directions[j * kHeads * kDim + i];
        value += strength[static_cast<std::size_t>(j)] * follow[j * kHeads * kDim + i];
      }
      keys.set(t * kHeads * kDim + i, key);
      from.values.set(from.value_row(i / kDim, t) + i % kDim, value);
    }
  }
  Array basis(type, static_cast<std::int64_t>(kHeads) * kRank * kDim), value_basis(type, basis.count());
  skv_low_rank_factor_params f{};
  f.struct_size = sizeof(f);
  f.type = type;
  f.keys = keys.data();
  f.tokens = kTokens;
  f.key_value_heads = kHeads;
  f.head_dim = kDim;
  f.rank = kRank;
  f.coefficients = from.coefficients.data();
  f.basis = basis.data();
  RUN(low_rank_factor, f);
  RUN(value_fit, from.params(value_basis));
  const std::size_t rank = kRank, width = kHeads * kDim;
  std::vector<double> normal_matrix(rank * rank), right(rank * width), fitted, best(rank * width);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::size_t i = 0; i < rank; ++i) {
      const double a = from.coefficients[t * kRank + static_cast<std::int64_t>(i)];
      for (std::size_t j = 0; j < rank; ++j) {
        normal_matrix[i * rank + j] += a * from.coefficients[t * kRank + static_cast<std::int64_t>(j)];
      }
      for (std::size_t c = 0; c < width; ++c) {
        const std::int64_t column = static_cast<std::int64_t>(c);
        right[i * width + c] += a * from.values[from.value_row(column / kDim, t) + column % kDim];
      }
    }
  }
  std::vector<double> squares;
  for (std::size_t i = 0; i < rank; ++i) {
    squares.push_back(normal_matrix[i * rank + i]);
  }
  solve(normal_matrix, right, rank, width);
  for (std::size_t i = 0; i < rank; ++i) {
    for (std::size_t c = 0; c < width; ++c) {
      best[(c / kDim * rank + i) * kDim + c % kDim] = right[i * width + c];
    }
  }
  for (std::int64_t i = 0; i < value_basis.count(); ++i) {
    fitted.push_back(value_basis[i]);
  }
  const double least = missed(from, best), got = missed(from, fitted),
               nothing = missed(from, std::vector<double>(best.size()));
  double spread = 0;
  for (const double square : squares) {
    spread += *std::max_element(squares.begin(), squares.end()) / square;
  }
  const double off =
      std::pow(check::roundoff(type), 2) * spread / static_cast<double>(width) + kRank * std::pow(16 * kUnit, 2);
  std::printf("  type %d: least squares miss %.5f of the values, the fit %.1e of them more, %.1e is allowed\n", type,
              least / nothing, (got - least) / nothing, off);
  CHECK(least < 0.5 * nothing);
  CHECK(got <= least + off * nothing);
}

// --- What a rerank drops ----------------------------------------------------------------------

// Sessions that predict, but for the last.
void predict_but_last(Batch& b) {
  for (std::size_t i = 0; i + 1 < b.sessions.size(); ++i) {
    b.sessions[i]->predict();
  }
  b.refresh();
}

struct Shortlist {
  Shortlist(Batch& b, int places)
      : stride(places),
        list(b.sessions.size() * static_cast<std::size_t>(b.shape.heads * places), -7),
        count(b.sessions.size() * static_cast<std::size_t>(b.shape.heads)) {
    auto topk = topk_of(b, 0.5F);
    topk.select = places;
    topk.selected = list.data();
    topk.selected_count = count.data();
    topk.tail = b.tail.data();
    RUN(landmark_topk, topk);
  }
  std::vector<std::int32_t> dropped(const Batch& b, std::size_t session, int head) const {
    const std::vector<std::int32_t> chosen = b.chosen(session, head);
    const std::size_t pair = b.pair(session, head);
    std::vector<std::int32_t> chunks;
    for (std::int32_t i = 0; i < count[pair]; ++i) {
      const std::int32_t chunk = list[pair * static_cast<std::size_t>(stride) + static_cast<std::size_t>(i)];
      if (!std::binary_search(chosen.begin(), chosen.end(), chunk)) {
        chunks.push_back(chunk);
      }
    }
    return chunks;
  }

  int stride;
  std::vector<std::int32_t> list, count;
};

// Tokens of chunks with their rebuilt keys and the values that their coefficients predict, or the magnitudes of those
// values' terms.
std::vector<Token> predicted_tokens(const Session& from, const check::RopeTables& rope, int head,
                                    const std::vector<std::int32_t>& chunks, bool magnitudes) {
  const Shape& s = from.shape;
  std::vector<Token> tokens;
  for (const std::int32_t chunk : chunks) {
    for (std::int64_t p = static_cast<std::int64_t>(chunk) * s.chunk;
         p < (chunk + 1) * static_cast<std::int64_t>(s.chunk); ++p) {
      tokens.push_back(rebuilt_token(from, rope, head, p));
      std::vector<double>& value = tokens.back().value;
      for (int d = 0; d < s.dim; ++d) {
        value[static_cast<std::size_t>(d)] = 0;
        for (int j = 0; j < s.rank; ++j) {
          const double term = from.coefficients[p * s.rank + j] *
                              from.value_basis[(static_cast<std::int64_t>(head) * s.rank + j) * s.dim + d];
          value[static_cast<std::size_t>(d)] += magnitudes ? std::fabs(term) : term;
        }
      }
    }
  }
  return tokens;
}

// Weight and value of dropped tokens by definition; there are some.
struct Prediction {
  double log_weight, log_tolerance;
  std::vector<double> value, tolerance;
};

Prediction prediction_of(const Session& from, const check::RopeTables& rope, int head, const std::vector<double>& query,
                         const std::vector<std::int32_t>& chunks) {
  const Attention exact = attention(query, predicted_tokens(from, rope, head, chunks, false)),
                  magnitude = attention(query, predicted_tokens(from, rope, head, chunks, true));
  Prediction p{exact.log_sum_exp, exact.log_sum_exp_tolerance, exact.output, {}};
  for (const double size : magnitude.output) {
    // Weights as they may be off, and the sum over the rank.
    p.tolerance.push_back((2 * exact.log_sum_exp_tolerance + (from.shape.rank + 8) * kUnit) * size);
  }
  return p;
}

// deviation: of the queries. Small ones make all weights alike, and nearly free of what rounding does to logits.
void check_rerank(Batch& b, int places, double deviation) {
  const Shape& s = b.shape;
  predict_but_last(b);
  b.queries.fill(generator, deviation);
  const Shortlist shortlist(b, places);
  const std::vector<float> left = b.tail;
  skv_rerank_params p = rerank_of(b, shortlist.list, shortlist.count, places);
  p.tail = b.tail.data();
  RUN(rerank, p);
  const std::vector<std::int32_t> without = b.selected;
  const std::vector<float> joined = b.tail;
  b.tail = left;
  Array dropped(SKV_F32, static_cast<std::int64_t>(left.size())), values(SKV_F32, dropped.count() * s.dim);
  p.dropped = dropped.as<float>();
  p.dropped_values = values.as<float>();
  RUN(rerank, p);
  CHECK(without == b.selected);
  CHECK(dropped.guard_intact() && values.guard_intact());
  bool good = true;
  double worst = 0;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    const bool predicts = b.layers[session].value_basis != nullptr;
    for (int query = 0; query < s.query_heads(); ++query) {
      const int head = query / s.group;
      const std::size_t at = session * static_cast<std::size_t>(s.query_heads()) + static_cast<std::size_t>(query);
      const std::int64_t row = static_cast<std::int64_t>(at);
      CHECK(b.tail[at] == (predicts ? left[at] : joined[at]));
      const std::vector<std::int32_t> chunks = shortlist.dropped(b, session, head);
      if (!predicts || b.states[session].length == 0 || chunks.empty()) {
        CHECK(dropped[row] == static_cast<double>(kNothing));
        for (int d = 0; d < s.dim; ++d) {
          CHECK(values.untouched(row * s.dim + d));
        }
        continue;
      }
      const Prediction want = prediction_of(*b.sessions[session], b.rope, head, b.query(session, query), chunks);
      CHECK_NEAR(dropped[row], want.log_weight, want.log_tolerance);
      for (int d = 0; d < s.dim; ++d) {
        const double value = want.value[static_cast<std::size_t>(d)], got = values[row * s.dim + d];
        const double allowed = want.tolerance[static_cast<std::size_t>(d)] + kUnit * std::fabs(value);
        good = check::near(got, value, allowed) && good;
        worst = std::max(worst, std::fabs(got - value) / allowed);
      }
    }
  }
  if (!CHECK(good)) {
    std::fprintf(stderr, "  rerank, set %d, %s: %.2f of what is allowed\n", instruction_set, s.name().c_str(), worst);
  }
}

// --- Its part in attention --------------------------------------------------------------------

// Random weights and values beside a random tail; none of some.
void check_sparse(Batch& b, bool with_tail) {
  const Shape& s = b.shape;
  b.select_at_random();
  b.slots = b.selected;
  std::normal_distribution<float> normal(3, 4);
  std::vector<float> dropped(b.tail.size());
  for (std::size_t i = 0; i < b.tail.size(); ++i) {
    b.tail[i] = normal(generator);
    const auto kind = generator() % 8;
    dropped[i] = kind == 0 ? kNothing : kind == 1 ? std::nanf("") : normal(generator);
  }
  Array values(SKV_F32, b.queries.count());
  values.fill(generator);
  for (std::size_t i = 0; i < dropped.size(); ++i) {
    for (int d = 0; d < s.dim && !std::isfinite(dropped[i]); ++d) {
      values.set(static_cast<std::int64_t>(i) * s.dim + d, std::nan(""));
    }
  }
  Array output(s.output, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size(), std::nanf(""));
  auto p = attention_of(b, output, log_sum_exp);
  p.tail = with_tail ? b.tail.data() : nullptr;
  p.dropped = dropped.data();
  p.dropped_values = values.as<float>();
  RUN(sparse_attention, p);
  bool good = true;
  double worst = 0;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    const Session& from = *b.sessions[session];
    for (int query = 0; query < s.query_heads(); ++query) {
      const int head = query / s.group;
      const std::size_t at = session * static_cast<std::size_t>(s.query_heads()) + static_cast<std::size_t>(query);
      const std::vector<double> q = b.query(session, query);
      std::vector<Token> tokens;
      std::vector<Rest> rests;
      if (from.state.length > 0) {
        tokens = dense_tokens(from, head);
        for (const std::int32_t c : b.chosen(session, head)) {
          for (int t = 0; t < s.chunk; ++t) {
            tokens.push_back(rebuilt_token(from, b.rope, head, static_cast<std::int64_t>(c) * s.chunk + t));
          }
        }
        if (with_tail) {
          rests.push_back(rest_of(q, from.moments, head, b.tail[at]));
        }
        if (std::isfinite(dropped[at])) {
          rests.push_back({dropped[at], row(values, static_cast<std::int64_t>(at) * s.dim, s.dim),
                           std::vector<double>(static_cast<std::size_t>(s.dim))});
        }
      }
      const Attention expected = attention(q, tokens, 0, rests);
      good = near_output(s, expected, output, at, worst) && good;
      if (!tokens.empty()) {
        CHECK_NEAR(log_sum_exp[at], expected.log_sum_exp, expected.log_sum_exp_tolerance);
      }
    }
  }
  CHECK(output.guard_intact());
  if (!CHECK(good)) {
    std::fprintf(stderr, "  sparse_attention, set %d, %s: %.2f of what is allowed\n", instruction_set, s.name().c_str(),
                 worst);
  }
}

// --- A layer ----------------------------------------------------------------------------------

// A layer is its operations one after the other. The tables rotate by nothing, so that queries are the same in both.
void check_composition(Shape s, int places) {
  s.output = s.query;
  Batch b(s, rows_of(s));
  for (std::vector<float>* table : {&b.rope.coarse, &b.rope.fine}) {
    for (std::size_t i = 0; i < table->size(); ++i) {
      (*table)[i] = i % 2 == 0 ? 1.0F : 0.0F;
    }
  }
  Layer layer(b);
  auto p = layer.params(b);
  p.shortlist = places;
  p.tail = 1;
  RUN(decode_layer, p);
  const Array without = layer.output;
  predict_but_last(b);
  p = layer.params(b);
  p.shortlist = places;
  RUN(decode_layer, p);
  const Array plain = layer.output;
  p.tail = 1;
  RUN(decode_layer, p);
  CHECK(!(layer.output == without) && !(layer.output == plain));

  const Shortlist shortlist(b, places);
  std::vector<float> dropped(b.tail.size()), values(static_cast<std::size_t>(b.queries.count()));
  skv_rerank_params rerank = rerank_of(b, shortlist.list, shortlist.count, places);
  rerank.tail = b.tail.data();
  rerank.dropped = dropped.data();
  rerank.dropped_values = values.data();
  RUN(rerank, rerank);
  RUN(cache_plan, plan_of(b));
  Array output(s.output, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size());
  auto attention = attention_of(b, output, log_sum_exp);
  attention.tail = b.tail.data();
  attention.dropped = dropped.data();
  attention.dropped_values = values.data();
  RUN(sparse_attention, attention);
  CHECK(output == layer.output);
  // What no layer of a session predicts is as if none of the batch did.
  const std::int64_t last = (b.size() - 1) * static_cast<std::int64_t>(s.query_heads()) * s.dim;
  bool same = true;
  for (std::int64_t i = last; i < output.count(); ++i) {
    same = output[i] == without[i] && same;
  }
  CHECK(same);
}

// The same session gives the same bits: with any number of threads, alone or with others.
void check_one_answer(const Shape& s, int places) {
  Batch b(s, rows_of(s));
  predict_but_last(b);
  Layer layer(b);
  auto p = layer.params(b);
  p.shortlist = places;
  p.tail = 1;
  RUN(decode_layer, p, 1);
  const Array first = layer.output;
  for (const int threads : {2, 5}) {
    RUN(decode_layer, p, threads);
    CHECK(first == layer.output);
  }
  check_alone(s, p, first);
}

// --- What it is for ---------------------------------------------------------------------------

// Values that are what their coefficients say: with all chunks on the shortlist, a few of them selected, the answer is
// that of attention over everything.
void check_meaning() {
  Shape s = shape(4, 2, 64, 8, 24, SKV_F32, SKV_F32);
  s.select = 3;
  const std::int64_t chunks = 60;
  Batch b(s, {{chunks * s.chunk + 20, chunks * s.chunk, 2}});
  Session& session = *b.sessions[0];
  session.predict();
  b.refresh();
  std::vector<std::int32_t> all(static_cast<std::size_t>(chunks));
  for (std::size_t c = 0; c < all.size(); ++c) {
    all[c] = static_cast<std::int32_t>(c);
  }
  for (int head = 0; head < s.heads; ++head) {
    for (std::int64_t c = 0; c < chunks; ++c) {
      session.radius.set(head * session.capacity + c, 0.5);
    }
    const std::vector<Token> tokens = predicted_tokens(session, b.rope, head, all, false);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (int d = 0; d < s.dim; ++d) {
        session.values.set((head * session.capacity * s.chunk + static_cast<std::int64_t>(t)) * s.dim + d,
                           tokens[t].value[static_cast<std::size_t>(d)]);
      }
    }
  }
  const Shortlist shortlist(b, static_cast<int>(chunks));
  std::vector<float> dropped(b.tail.size()), values(static_cast<std::size_t>(b.queries.count()));
  skv_rerank_params rerank = rerank_of(b, shortlist.list, shortlist.count, static_cast<int>(chunks));
  rerank.dropped = dropped.data();
  rerank.dropped_values = values.data();
  RUN(rerank, rerank);
  b.slots = b.selected;
  Array output(SKV_F32, b.queries.count()), without(SKV_F32, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size());
  auto p = attention_of(b, without, log_sum_exp);
  RUN(sparse_attention, p);
  p.dropped = dropped.data();
  p.dropped_values = values.data();
  p.output = output.data();
  RUN(sparse_attention, p);
  bool good = true;
  double off = 0;
  for (int query = 0; query < s.query_heads(); ++query) {
    const int head = query / s.group;
    std::vector<Token> tokens = dense_tokens(session, head);
    for (std::int64_t t = 0; t < chunks * s.chunk; ++t) {
      tokens.push_back(rebuilt_token(session, b.rope, head, t));
    }
    const Attention exact = attention(b.query(0, query), tokens);
    const Prediction rest = prediction_of(session, b.rope, head, b.query(0, query), shortlist.dropped(b, 0, head));
    for (int d = 0; d < s.dim; ++d) {
      const std::size_t at = static_cast<std::size_t>(d);
      const std::int64_t i = static_cast<std::int64_t>(query) * s.dim + d;
      good = check::near(output[i], exact.output[at], exact.tolerance[at] + rest.tolerance[at]) && good;
      off = std::max(off, std::fabs(without[i] - exact.output[at]));
    }
    CHECK_NEAR(log_sum_exp[static_cast<std::size_t>(query)], exact.log_sum_exp, exact.log_sum_exp_tolerance);
  }
  CHECK(good);
  CHECK(off > 0.01);
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    test_fit(SKV_F32, 2, 64, 40, 0, 200);
    test_fit(SKV_BF16, 2, 128, 160, 11, 333);
    test_fit(SKV_BF16, 1, 128, 33, 0, 4999);  // more pieces than there may be
    test_fit(SKV_F16, 3, 96, 47, 5, 129);
    test_fit(SKV_BF16, 2, 70, 21, 1000, 77);
    test_fit(SKV_F32, 1, 2, 16, 3, 900);
    test_fit(SKV_BF16, 1, 256, 255, 1, 128);
    check_least_squares(SKV_F32);
    check_least_squares(SKV_BF16);
    check_least_squares(SKV_F16);
    std::vector<Shape> shapes = {
        shape(4, 2, 128, 8, 40, SKV_BF16, SKV_F32),   shape(1, 3, 64, 8, 16, SKV_F32, SKV_F32),
        shape(7, 2, 128, 16, 33, SKV_BF16, SKV_F16),  shape(8, 1, 96, 16, 64, SKV_F16, SKV_F16),
        shape(16, 1, 64, 8, 100, SKV_BF16, SKV_BF16), shape(3, 1, 256, 16, 256, SKV_BF16, SKV_F32),
        shape(2, 2, 2, 8, 16, SKV_F32, SKV_F32),      shape(5, 1, 70, 8, 21, SKV_BF16, SKV_F32)};
    shapes[2].landmark = SKV_I8;
    shapes[4].landmark = SKV_I8;
    shapes[4].value = SKV_F8_E4M3;
    shapes[7].pairing = SKV_INTERLEAVED;
    for (const Shape& s : shapes) {
      Batch b(s, rows_of(s));
      check_rerank(b, s.select * 3, 1);
      check_rerank(b, s.select * 3, 1e-3);
      b.queries.fill(generator);
      check_sparse(b, true);
      check_sparse(b, false);
      check_composition(s, 3 * s.select);
      check_one_answer(s, 4 * s.select);
    }
    check_meaning();
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
