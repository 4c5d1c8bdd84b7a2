// Tokens that a selection leaves out, on the CPU: their weight and their part in attention, against definitions in
// double precision, on every instruction set of this processor.
#include <cstdio>
#include <numeric>

#include "check.h"
#include "decode_batch.h"

namespace {

using namespace decode;

constexpr double kNothing = -std::numeric_limits<double>::infinity();

// --- The weight of what is left out -----------------------------------------------------------

struct Logarithm {
  double value = kNothing, tolerance = 0;
};

// log of the sum of e^logit, each logit off by as much as said.
Logarithm log_of(const std::vector<double>& logits, const std::vector<double>& off) {
  Logarithm log;
  if (logits.empty()) {
    return log;
  }
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0, error = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sum += std::exp(logits[i] - most);
    error = std::max(error, off[i]);
  }
  log.value = most + std::log(sum);
  // Besides: an exponential's few roundings, those of the sum, and the last ones of the logarithm.
  log.tolerance = error + (static_cast<double>(logits.size()) + 32 + 2 * std::fabs(most)) * kUnit +
                  4 * kUnit * std::fabs(log.value);
  return log;
}

// The landmarks of a head's indexed chunks that are not in `chosen`, for a query.
Logarithm left_out(const Session& from, int head, const std::vector<double>& query,
                   const std::vector<std::int32_t>& chosen, float radius_weight) {
  const Shape& s = from.shape;
  const double root = std::sqrt(static_cast<double>(s.dim));
  const double norm = std::sqrt(std::inner_product(query.begin(), query.end(), query.begin(), 0.0));
  std::vector<double> logits, off;
  for (std::int64_t c = 0; from.state.length > 0 && c < from.state.indexed_chunks; ++c) {
    const std::int64_t at = head * from.capacity + c;
    if (!from.indexed(head, c) || std::binary_search(chosen.begin(), chosen.end(), static_cast<std::int32_t>(c))) {
      continue;
    }
    const double scale = s.landmark == SKV_I8 ? from.landmark_scales[at] : 1.0;
    double dot = 0, size = 0;
    for (int d = 0; d < s.dim; ++d) {
      const double term = query[static_cast<std::size_t>(d)] * from.landmarks[at * s.dim + d] * scale;
      dot += term;
      size += std::fabs(term);
    }
    // A backend may take the radius term off a logit that has it.
    const double radius = std::fabs(static_cast<double>(radius_weight)) * norm * from.radius[at];
    logits.push_back(dot / root + std::log(s.chunk));
    off.push_back(((s.dim + 8) * size + 8 * (std::fabs(dot) + radius)) * kUnit / root);
  }
  return log_of(logits, off);
}

void check_weight(float got, const Logarithm& want) {
  if (want.value == kNothing) {
    CHECK(got == -std::numeric_limits<float>::infinity());
  } else {
    CHECK_NEAR(got, want.value, want.tolerance);
  }
}

void check_topk_tail(Batch& b, float radius_weight) {
  auto p = topk_of(b, radius_weight);
  RUN(landmark_topk, p);
  const std::vector<std::int32_t> without = b.selected;
  const std::vector<float> mass = b.mass;
  std::fill(b.tail.begin(), b.tail.end(), std::nanf(""));
  p.tail = b.tail.data();
  RUN(landmark_topk, p);
  CHECK(without == b.selected && mass == b.mass);
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int query = 0; query < b.shape.query_heads(); ++query) {
      const int head = query / b.shape.group;
      check_weight(
          b.tail[session * static_cast<std::size_t>(b.shape.query_heads()) + static_cast<std::size_t>(query)],
          left_out(*b.sessions[session], head, b.query(session, query), b.chosen(session, head), radius_weight));
    }
  }
}

// What landmark_topk left of a shortlist joined by what rerank dropped of it.
void check_rerank_tail(Batch& b, int shortlist) {
  const Shape& s = b.shape;
  const std::size_t pairs = b.sessions.size() * static_cast<std::size_t>(s.heads),
                    width = static_cast<std::size_t>(shortlist);
  std::vector<std::int32_t> list(pairs * width, -7), list_count(pairs);
  auto topk = topk_of(b, 0.5F);
  topk.select = shortlist;
  topk.selected = list.data();
  topk.selected_count = list_count.data();
  topk.tail = b.tail.data();
  RUN(landmark_topk, topk);
  const std::vector<float> left = b.tail;
  skv_rerank_params p = rerank_of(b, list, list_count, shortlist);
  RUN(rerank, p);
  const std::vector<std::int32_t> without = b.selected;
  p.tail = b.tail.data();
  RUN(rerank, p);
  CHECK(without == b.selected);
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int query = 0; query < s.query_heads(); ++query) {
      const int head = query / s.group;
      const std::size_t pair = b.pair(session, head),
                        at = session * static_cast<std::size_t>(s.query_heads()) + static_cast<std::size_t>(query);
      const std::vector<std::int32_t> chosen = b.chosen(session, head);
      std::vector<double> logits, off;
      if (left[at] > -std::numeric_limits<float>::infinity()) {
        logits.push_back(left[at]);
        off.push_back(0);
      }
      for (std::int32_t i = 0; i < list_count[pair]; ++i) {
        const std::int32_t chunk = list[pair * width + static_cast<std::size_t>(i)];
        if (std::binary_search(chosen.begin(), chosen.end(), chunk)) {
          continue;
        }
        std::vector<Token> tokens;
        for (int t = 0; t < s.chunk; ++t) {
          tokens.push_back(
              rebuilt_token(*b.sessions[session], b.rope, head, static_cast<std::int64_t>(chunk) * s.chunk + t));
        }
        const Attention mass = attention(b.query(session, query), tokens);
        logits.push_back(mass.log_sum_exp);
        off.push_back(mass.log_sum_exp_tolerance);
      }
      check_weight(b.tail[at], log_of(logits, off));
    }
  }
}

// --- Its part in attention --------------------------------------------------------------------

// Random weights, in the range of those of the tokens; none of some, and one session without moments.
void check_sparse_tail(Batch& b) {
  const Shape& s = b.shape;
  b.select_at_random();
  b.slots = b.selected;
  std::normal_distribution<float> normal(3, 4);
  for (std::size_t i = 0; i < b.tail.size(); ++i) {
    b.tail[i] = generator() % 5 == 0 ? -std::numeric_limits<float>::infinity() : normal(generator);
  }
  b.layers.back().moments = nullptr;
  // Of a head none of whose tokens is in the index.
  Session& empty = *b.sessions[b.sessions.size() - 2];
  const skv::MomentLayout layout(s.dim);
  for (std::int64_t i = 0; i < layout.floats; ++i) {
    empty.moments.set((s.heads - 1) * layout.floats + i, 0);
  }
  Array output(s.output, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size(), std::nanf(""));
  auto p = attention_of(b, output, log_sum_exp);
  p.tail = b.tail.data();
  RUN(sparse_attention, p);
  bool good = true;
  double worst = 0;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    const Session& from = *b.sessions[session];
    for (int query = 0; query < s.query_heads(); ++query) {
      const int head = query / s.group;
      const std::size_t at = session * static_cast<std::size_t>(s.query_heads()) + static_cast<std::size_t>(query);
      std::vector<Token> tokens;
      bool has_rest = false;
      if (from.state.length > 0) {
        tokens = dense_tokens(from, head);
        for (const std::int32_t c : b.chosen(session, head)) {
          for (int t = 0; t < s.chunk; ++t) {
            tokens.push_back(rebuilt_token(from, b.rope, head, static_cast<std::int64_t>(c) * s.chunk + t));
          }
        }
        has_rest = b.layers[session].moments != nullptr && std::isfinite(b.tail[at]) &&
                   from.moments[head * layout.floats + layout.count] > 0;
      }
      const std::vector<double> q = b.query(session, query);
      std::vector<Rest> rests;
      if (has_rest) {
        rests.push_back(rest_of(q, from.moments, head, b.tail[at]));
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
    std::fprintf(stderr, "  set %d, %s: %.2f of what is allowed\n", instruction_set, s.name().c_str(), worst);
  }
}

// --- A layer ----------------------------------------------------------------------------------

// Where all is selected nothing is left: the same bits with a tail and without.
void check_nothing_left(Shape s) {
  s.output = s.query;
  s.select = 160;
  s.slots = s.slots == 0 ? 0 : 170;
  Batch b(s, rows_of(s));
  Layer layer(b);
  auto p = layer.params(b);
  RUN(decode_layer, p);
  const Array without = layer.output;
  p.tail = 1;
  RUN(decode_layer, p);
  CHECK(layer.output == without);
}

// A layer is its operations one after the other. The tables rotate by nothing, so that queries are the same in both.
void check_composition(Shape s, int shortlist) {
  s.output = s.query;
  Batch b(s, rows_of(s));
  std::fill(b.rope.coarse.begin(), b.rope.coarse.end(), 0.0F);
  std::fill(b.rope.fine.begin(), b.rope.fine.end(), 0.0F);
  for (std::size_t i = 0; i < b.rope.coarse.size(); i += 2) {
    b.rope.coarse[i] = 1;
  }
  for (std::size_t i = 0; i < b.rope.fine.size(); i += 2) {
    b.rope.fine[i] = 1;
  }
  Layer layer(b);
  auto p = layer.params(b);
  p.shortlist = shortlist;
  RUN(decode_layer, p);
  const Array without = layer.output;
  p.tail = 1;
  RUN(decode_layer, p);
  CHECK(!(layer.output == without));

  auto topk = topk_of(b, p.radius_weight);
  topk.tail = b.tail.data();
  if (shortlist == 0) {
    RUN(landmark_topk, topk);
  } else {
    const std::size_t pairs = b.sessions.size() * static_cast<std::size_t>(s.heads);
    std::vector<std::int32_t> list(pairs * static_cast<std::size_t>(shortlist)), list_count(pairs);
    topk.select = shortlist;
    topk.selected = list.data();
    topk.selected_count = list_count.data();
    RUN(landmark_topk, topk);
    skv_rerank_params rerank = rerank_of(b, list, list_count, shortlist);
    rerank.tail = b.tail.data();
    RUN(rerank, rerank);
  }
  RUN(cache_plan, plan_of(b));
  Array output(s.output, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size());
  auto attention = attention_of(b, output, log_sum_exp);
  attention.tail = b.tail.data();
  RUN(sparse_attention, attention);
  CHECK(output == layer.output);
  const std::int64_t queries = static_cast<std::int64_t>(s.query_heads()) * s.dim;
  for (std::int64_t i = 0; i < queries; ++i) {
    CHECK(output[i] == 0);  // the first session is idle
  }
}

// The same session gives the same bits: with any number of threads, alone or with others.
void check_one_answer(const Shape& s) {
  Batch b(s, rows_of(s));
  Layer layer(b);
  auto p = layer.params(b);
  p.shortlist = 2 * s.select;
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

// Keys and values that are jointly normal, in chunks of one key: what stands for those left out is then what they are,
// but for their number being finite. Nothing is selected but the strongest, and the answer is near the exact one.
void check_meaning() {
  Shape s;
  s.heads = 1;
  s.dim = 32;
  s.rotary = 2;
  s.storage = s.value = s.landmark = s.coefficient = SKV_F32;
  s.rank = 32;
  s.select = 8;
  const std::int64_t chunks = 4000, tokens = chunks * s.chunk;
  Batch b(s, {{tokens + 1, tokens, 0}}, tokens + 64);
  Session& session = *b.sessions[0];
  std::normal_distribution<double> normal;
  Array follow(SKV_F32, s.dim * s.dim), mean(SKV_F32, s.dim);
  follow.fill(generator, 0.2);
  mean.fill(generator, 0.4);
  // A basis that hands coefficients on as they are; nothing rotates (see the tables).
  for (int i = 0; i < s.rank; ++i) {
    for (int d = 0; d < s.dim; ++d) {
      session.basis.set(static_cast<std::int64_t>(i) * s.dim + d, i == d ? 1 : 0);
    }
  }
  for (std::size_t i = 0; i < b.rope.coarse.size(); ++i) {
    b.rope.coarse[i] = i % 2 == 0 ? 1.0F : 0.0F;
  }
  for (std::size_t i = 0; i < b.rope.fine.size(); ++i) {
    b.rope.fine[i] = i % 2 == 0 ? 1.0F : 0.0F;
  }
  Array keys(SKV_F32, tokens * s.dim), values(SKV_F32, tokens * s.dim);
  for (std::int64_t c = 0; c < chunks; ++c) {
    Array key(SKV_F32, s.dim);
    for (int d = 0; d < s.dim; ++d) {
      key.set(d, mean[d] + 0.8 * normal(generator));
      session.landmarks.set(c * s.dim + d, key[d]);
    }
    session.radius.set(c, 0);
    for (std::int64_t t = c * s.chunk; t < (c + 1) * s.chunk; ++t) {
      for (int d = 0; d < s.dim; ++d) {
        double value = normal(generator);
        for (int j = 0; j < s.dim; ++j) {
          value += follow[d * s.dim + j] * key[j];
        }
        session.coefficients.set(t * s.rank + d, key[d]);
        keys.set(t * s.dim + d, key[d]);
        values.set(t * s.dim + d, value);
        session.values.set(t * s.dim + d, value);
      }
    }
  }
  skv_moment_update_params m{};
  m.struct_size = sizeof(m);
  m.key_value_heads = 1;
  m.head_dim = s.dim;
  m.chunk = s.chunk;
  m.rotated_keys = keys.data();
  m.values = values.data();
  m.capacity = tokens;
  m.chunks = chunks;
  m.radius = session.radius.as<float>();
  m.chunk_capacity = session.capacity;
  m.replace = 1;
  m.moments = session.moments.as<float>();
  RUN(moment_update, m);
  auto topk = topk_of(b, 0.5F);
  topk.tail = b.tail.data();
  RUN(landmark_topk, topk);
  b.slots = b.selected;
  Array output(SKV_F32, b.queries.count()), without(SKV_F32, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size());
  auto p = attention_of(b, without, log_sum_exp);
  RUN(sparse_attention, p);
  p.tail = b.tail.data();
  p.output = output.data();
  RUN(sparse_attention, p);
  std::vector<Token> all = dense_tokens(session, 0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    all.push_back(rebuilt_token(session, b.rope, 0, t));
  }
  double off = 0, off_without = 0;
  for (int query = 0; query < s.group; ++query) {
    // Exact keys are the rebuilt ones: the oracle's own rotation is not asked.
    std::vector<Token> plain = all;
    for (std::int64_t t = 0; t < tokens; ++t) {
      plain[plain.size() - static_cast<std::size_t>(tokens - t)].key = row(keys, t * s.dim, s.dim);
    }
    const Attention exact = attention(b.query(0, query), plain);
    for (int d = 0; d < s.dim; ++d) {
      const std::int64_t at = static_cast<std::int64_t>(query) * s.dim + d;
      off += std::pow(output[at] - exact.output[static_cast<std::size_t>(d)], 2);
      off_without += std::pow(without[at] - exact.output[static_cast<std::size_t>(d)], 2);
    }
    CHECK_NEAR(log_sum_exp[static_cast<std::size_t>(query)], exact.log_sum_exp, 1e-3);
  }
  std::printf("  mean error %.4f with what is left out, %.4f without\n", std::sqrt(off / (s.group * s.dim)),
              std::sqrt(off_without / (s.group * s.dim)));
  CHECK(off < 0.05 * off_without);
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    std::vector<Shape> shapes = {
        shape(4, 2, 128, 8, 40, SKV_BF16, SKV_F32),   shape(1, 3, 64, 8, 16, SKV_F32, SKV_F32),
        shape(7, 2, 128, 16, 33, SKV_BF16, SKV_F16),  shape(8, 1, 96, 16, 64, SKV_F16, SKV_F16),
        shape(16, 1, 64, 8, 100, SKV_BF16, SKV_BF16), shape(3, 1, 256, 16, 20, SKV_BF16, SKV_F32),
        shape(2, 2, 2, 8, 16, SKV_F32, SKV_F32),      shape(5, 1, 70, 8, 21, SKV_BF16, SKV_F32)};
    shapes[2].landmark = SKV_I8;
    shapes[4].landmark = SKV_I8;
    shapes[4].value = SKV_F8_E4M3;
    shapes[7].pairing = SKV_INTERLEAVED;
    for (const int like : {0, 1, 2}) {
      Shape bytes = shapes[static_cast<std::size_t>(like)];
      bytes.coefficient = SKV_I8;
      shapes.push_back(bytes);
    }
    for (const Shape& s : shapes) {
      for (const float radius_weight : {0.0F, 0.5F, -0.3F}) {
        Batch b(s, rows_of(s));
        check_topk_tail(b, radius_weight);
      }
      Batch b(s, rows_of(s));
      check_rerank_tail(b, s.select * 3);
      check_sparse_tail(b);
      check_nothing_left(s);
      check_composition(s, 0);
      check_composition(s, 3 * s.select);
      check_one_answer(s);
    }
    check_meaning();
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
