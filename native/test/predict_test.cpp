// Values of the tokens that a rerank drops, predicted from their coefficients, on the CPU: the weight and value of what
// is dropped, and its part in attention, against definitions in double precision, on every instruction set of this
// processor.
#include <cstdio>

#include "check.h"
#include "decode_batch.h"

namespace {

using namespace decode;

constexpr float kNothing = -std::numeric_limits<float>::infinity();

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
void check_meaning(int coefficient) {
  Shape s = shape(4, 2, 64, 8, 24, SKV_F32, SKV_F32);
  s.coefficient = coefficient;
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
    std::vector<Shape> shapes = {
        shape(4, 2, 128, 8, 40, SKV_BF16, SKV_F32),   shape(1, 3, 64, 8, 16, SKV_F32, SKV_F32),
        shape(7, 2, 128, 16, 33, SKV_BF16, SKV_F16),  shape(8, 1, 96, 16, 64, SKV_F16, SKV_F16),
        shape(16, 1, 64, 8, 100, SKV_BF16, SKV_BF16), shape(3, 1, 256, 16, 256, SKV_BF16, SKV_F32),
        shape(2, 2, 2, 8, 16, SKV_F32, SKV_F32),      shape(5, 1, 70, 8, 21, SKV_BF16, SKV_F32)};
    shapes[2].landmark = SKV_I8;
    shapes[4].landmark = SKV_I8;
    shapes[4].value = SKV_F8_E4M3;
    shapes[7].pairing = SKV_INTERLEAVED;
    for (const int like : {0, 1, 2, 3, 4, 5, 7}) {
      Shape bytes = shapes[static_cast<std::size_t>(like)];
      bytes.coefficient = SKV_I8;
      shapes.push_back(bytes);
    }
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
    check_meaning(SKV_F32);
    check_meaning(SKV_I8);
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
