// The CPU's decode path against definitions in double precision, on every instruction set of this processor; and that
// an answer depends on nothing but its session.
#include <cstdio>

#include "check.h"
#include "decode_batch.h"

namespace {

using namespace decode;

// The selection holds the best of scores [candidates] but for chunks that are as good within tolerance.
void check_best(const std::vector<std::int32_t>& chosen, const std::vector<double>& scores, int select,
                double tolerance) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const auto eligible = std::count_if(scores.begin(), scores.end(), [](double x) { return x > kNever; });
  CHECK_EQUAL(static_cast<std::int64_t>(chosen.size()), std::min<std::int64_t>(eligible, select));
  std::set<std::int32_t> in;
  double worst = std::numeric_limits<double>::infinity(), best_left = kNever;
  std::int32_t before = -1;
  for (const std::int32_t c : chosen) {
    if (!CHECK(c > before && c < static_cast<std::int32_t>(scores.size()))) {
      return;
    }
    before = c;
    in.insert(c);
    worst = std::min(worst, scores[static_cast<std::size_t>(c)]);
  }
  for (std::size_t c = 0; c < scores.size(); ++c) {
    if (in.count(static_cast<std::int32_t>(c)) == 0) {
      best_left = std::max(best_left, scores[c]);
    }
  }
  CHECK(chosen.empty() || worst >= best_left - 2 * tolerance);
  CHECK(worst > kNever);
}

void check_topk(Batch& b, float radius_weight) {
  RUN(landmark_topk, topk_of(b, radius_weight));
  const Shape& s = b.shape;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    const Session& from = *b.sessions[session];
    const std::int64_t chunks = from.state.length == 0 ? 0 : from.state.indexed_chunks;
    for (int head = 0; head < s.heads; ++head) {
      std::vector<double> scores(static_cast<std::size_t>(chunks), -std::numeric_limits<double>::infinity());
      double tolerance = 0, mass = 0;
      const std::vector<std::int32_t> chosen = b.chosen(session, head);
      for (int g = 0; g < s.group; ++g) {
        const std::vector<double> query = b.query(session, head * s.group + g);
        double norm = 0, sum = 0, most = -std::numeric_limits<double>::infinity();
        for (const double x : query) {
          norm += x * x;
        }
        norm = std::sqrt(norm);
        std::vector<double> logits;
        for (std::int64_t c = 0; c < chunks; ++c) {
          double logit = -std::numeric_limits<double>::infinity();
          if (from.indexed(head, c)) {
            double dot = 0, size = 0;
            const double scale = s.landmark == SKV_I8 ? from.landmark_scales[head * from.capacity + c] : 1.0;
            for (int d = 0; d < s.dim; ++d) {
              const double term =
                  query[static_cast<std::size_t>(d)] * from.landmarks[(head * from.capacity + c) * s.dim + d] * scale;
              dot += term;
              size += std::fabs(term);
            }
            const double extra = static_cast<double>(radius_weight) * norm * from.radius[head * from.capacity + c];
            logit = (dot + extra) / std::sqrt(s.dim);
            tolerance = std::max(
                tolerance, ((s.dim + 6) * size + 8 * extra) * kUnit / std::sqrt(s.dim) + 4 * kUnit * std::fabs(logit));
          }
          logits.push_back(logit);
          most = std::max(most, logit);
        }
        for (const double logit : logits) {
          sum += std::exp(logit - most);
        }
        const double log_sum = most + std::log(sum);
        for (std::size_t c = 0; c < logits.size(); ++c) {
          scores[c] = std::max(scores[c], logits[c] - log_sum);
        }
        for (const std::int32_t c : chosen) {
          mass += std::exp(logits[static_cast<std::size_t>(c)] - log_sum) / s.group;
        }
      }
      // Of the logit and of their sum, which has `chunks` terms.
      tolerance = 2 * tolerance + (static_cast<double>(chunks) + 32) * kUnit;
      check_best(chosen, scores, s.select, tolerance);
      CHECK_NEAR(b.mass[b.pair(session, head)], mass, 4 * tolerance * (1 + mass));
    }
  }
}

void check_sparse(Batch& b, const char* what) {
  const Shape& s = b.shape;
  Array output(s.output, static_cast<std::int64_t>(b.sessions.size()) * s.query_heads() * s.dim);
  std::vector<float> log_sum_exp(b.sessions.size() * static_cast<std::size_t>(s.query_heads()), std::nanf(""));
  RUN(sparse_attention, attention_of(b, output, log_sum_exp));
  double worst = 0;
  bool good = true;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int head = 0; head < s.heads; ++head) {
      std::vector<Token> tokens;
      if (b.states[session].length > 0) {
        tokens = dense_tokens(*b.sessions[session], head);
        for (const std::int32_t c : b.chosen(session, head)) {
          for (int t = 0; t < s.chunk; ++t) {
            tokens.push_back(
                rebuilt_token(*b.sessions[session], b.rope, head, static_cast<std::int64_t>(c) * s.chunk + t));
          }
        }
      }
      for (int g = 0; g < s.group; ++g) {
        const std::size_t at =
            session * static_cast<std::size_t>(s.query_heads()) + static_cast<std::size_t>(head * s.group + g);
        const Attention expected = attention(b.query(session, head * s.group + g), tokens);
        for (int d = 0; d < s.dim; ++d) {
          const double want = expected.output[static_cast<std::size_t>(d)];
          const double allowed = output_tolerance(s.output, want, expected.tolerance[static_cast<std::size_t>(d)]);
          const double got = output[static_cast<std::int64_t>(at) * s.dim + d];
          good = check::near(got, want, allowed) && good;
          worst = std::max(worst, std::fabs(got - want) / allowed);
        }
        if (tokens.empty()) {
          CHECK(log_sum_exp[at] == -std::numeric_limits<float>::infinity());
        } else {
          CHECK_NEAR(log_sum_exp[at], expected.log_sum_exp, expected.log_sum_exp_tolerance);
        }
      }
    }
  }
  CHECK(output.guard_intact());
  if (!CHECK(good)) {
    std::fprintf(stderr, "  %s, set %d, %s: %.2f of what is allowed\n", what, instruction_set, s.name().c_str(), worst);
  }
}

void check_plan(Batch& b) {
  const Shape& s = b.shape;
  std::vector<std::vector<std::int32_t>> chunk_before, stamp_before;
  for (const auto& session : b.sessions) {
    chunk_before.push_back(session->slot_chunk);
    stamp_before.push_back(session->slot_stamp);
  }
  RUN(cache_plan, plan_of(b));
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int head = 0; head < s.heads; ++head) {
      const std::vector<std::int32_t> chosen = b.chosen(session, head);
      const std::size_t pair = b.pair(session, head), first = static_cast<std::size_t>(head) * s.slots;
      // The definition, slot by slot.
      std::vector<std::int32_t> chunk(chunk_before[session].begin() + static_cast<std::ptrdiff_t>(first),
                                      chunk_before[session].begin() + static_cast<std::ptrdiff_t>(first) + s.slots);
      std::vector<std::int32_t> stamp(stamp_before[session].begin() + static_cast<std::ptrdiff_t>(first),
                                      stamp_before[session].begin() + static_cast<std::ptrdiff_t>(first) + s.slots);
      std::vector<bool> taken(chunk.size());
      std::vector<std::int32_t> slot_of, fetches;
      for (const std::int32_t c : chosen) {
        const auto at = std::find(chunk.begin(), chunk.end(), c);
        slot_of.push_back(at == chunk.end() ? -1 : static_cast<std::int32_t>(at - chunk.begin()));
        if (at != chunk.end()) {
          taken[static_cast<std::size_t>(slot_of.back())] = true;
        }
      }
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        if (slot_of[i] < 0) {
          std::size_t oldest = chunk.size();
          for (std::size_t slot = 0; slot < chunk.size(); ++slot) {
            if (!taken[slot] && (oldest == chunk.size() || stamp[slot] < stamp[oldest])) {
              oldest = slot;
            }
          }
          taken[oldest] = true;
          chunk[oldest] = chosen[i];
          slot_of[i] = static_cast<std::int32_t>(oldest);
          fetches.push_back(static_cast<std::int32_t>(i));
        }
        stamp[static_cast<std::size_t>(slot_of[i])] = b.states[session].step;
      }
      CHECK_EQUAL(b.fetch_count[pair], static_cast<std::int32_t>(fetches.size()));
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        CHECK_EQUAL(b.slots[pair * static_cast<std::size_t>(s.select) + i], slot_of[i]);
      }
      for (std::size_t i = 0; i < fetches.size(); ++i) {
        const std::size_t at = pair * static_cast<std::size_t>(s.select) + i;
        CHECK_EQUAL(b.fetch_chunk[at], chosen[static_cast<std::size_t>(fetches[i])]);
        CHECK_EQUAL(b.fetch_slot[at], slot_of[static_cast<std::size_t>(fetches[i])]);
      }
      const Session& now = *b.sessions[session];
      CHECK(std::equal(chunk.begin(), chunk.end(), now.slot_chunk.begin() + static_cast<std::ptrdiff_t>(first)));
      CHECK(std::equal(stamp.begin(), stamp.end(), now.slot_stamp.begin() + static_cast<std::ptrdiff_t>(first)));
    }
  }
}

void check_rerank(Batch& b, int shortlist) {
  const Shape& s = b.shape;
  const std::size_t pairs = b.sessions.size() * static_cast<std::size_t>(s.heads);
  std::vector<std::int32_t> list(pairs * static_cast<std::size_t>(shortlist), -7), list_count(pairs);
  auto topk = topk_of(b, 0.0F);
  topk.select = shortlist;
  topk.selected = list.data();
  topk.selected_count = list_count.data();
  RUN(landmark_topk, topk);
  const skv_rerank_params p = rerank_of(b, list, list_count, shortlist);
  RUN(rerank, p);
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int head = 0; head < s.heads; ++head) {
      const Session& from = *b.sessions[session];
      std::vector<double> scores(static_cast<std::size_t>(from.state.indexed_chunks),
                                 -std::numeric_limits<double>::infinity());
      double tolerance = 0;
      const std::size_t pair = b.pair(session, head);
      for (int g = 0; g < s.group; ++g) {
        const std::vector<double> query = b.query(session, head * s.group + g);
        std::vector<double> sums;
        for (std::int32_t i = 0; i < list_count[pair]; ++i) {
          std::vector<Token> tokens;
          for (int t = 0; t < s.chunk; ++t) {
            tokens.push_back(
                rebuilt_token(from, b.rope, head,
                              static_cast<std::int64_t>(
                                  list[pair * static_cast<std::size_t>(shortlist) + static_cast<std::size_t>(i)]) *
                                      s.chunk +
                                  t));
          }
          const Attention chunk = attention(query, tokens);
          sums.push_back(chunk.log_sum_exp);
          tolerance = std::max(tolerance, chunk.log_sum_exp_tolerance);
        }
        double most = -std::numeric_limits<double>::infinity(), total = 0;
        for (const double x : sums) {
          most = std::max(most, x);
        }
        for (const double x : sums) {
          total += std::exp(x - most);
        }
        for (std::size_t i = 0; i < sums.size(); ++i) {
          double& score = scores[static_cast<std::size_t>(list[pair * static_cast<std::size_t>(shortlist) + i])];
          score = std::max(score, sums[i] - most - std::log(total));
        }
      }
      check_best(b.chosen(session, head), scores, s.select, 2 * tolerance + (shortlist + 32) * kUnit);
    }
  }
}

void check_shape(const Shape& s) {
  Batch b(s, rows_of(s));
  check_topk(b, 0.0F);
  check_topk(b, 0.5F);
  if (s.slots == 0) {
    b.slots = b.selected;
    check_sparse(b, "topk");
    check_rerank(b, s.select * 3);
  } else {
    for (int step = 0; step < 3; ++step) {
      fill_slots(b, 0.4 * step);
      for (auto& session : b.sessions) {
        session->state.step = 10 + step;
      }
      b.refresh();
      b.select_at_random();
      check_plan(b);
      RUN(value_gather, gather_of(b));
      check_sparse(b, "slots");
    }
  }
}

// Landmarks that are all alike: the lowest ids win. Pairs alike: the lower id of each.
void check_ties(int type) {
  Shape s;
  s.storage = s.value = s.landmark = s.coefficient = type;
  s.select = 21;
  Batch b(s, {{150 * 8 + 30, 150 * 8, 0}});
  Session& session = *b.sessions[0];
  const auto copy_chunk = [&](int head, std::int64_t to, std::int64_t from) {
    for (int d = 0; d < s.dim; ++d) {
      session.landmarks.set((head * session.capacity + to) * s.dim + d,
                            session.landmarks[(head * session.capacity + from) * s.dim + d]);
    }
    session.radius.set(head * session.capacity + to, 0.25);
  };
  for (int head = 0; head < s.heads; ++head) {
    for (std::int64_t c = 0; c < session.capacity; ++c) {
      copy_chunk(head, c, 0);
    }
    session.radius.set(head * session.capacity + 4, -1);
  }
  RUN(landmark_topk, topk_of(b, 0.5F));
  for (int head = 0; head < s.heads; ++head) {
    const std::vector<std::int32_t> chosen = b.chosen(0, head);
    CHECK_EQUAL(chosen.size(), static_cast<std::size_t>(s.select));
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      CHECK_EQUAL(chosen[i], static_cast<std::int32_t>(i < 4 ? i : i + 1));
    }
  }
  session.landmarks.fill(generator);
  for (int head = 0; head < s.heads; ++head) {
    for (std::int64_t c = 0; c < session.capacity; ++c) {
      copy_chunk(head, c, c % 75);
    }
  }
  RUN(landmark_topk, topk_of(b, 0.5F));
  for (int head = 0; head < s.heads; ++head) {
    const std::vector<std::int32_t> chosen = b.chosen(0, head);
    const std::set<std::int32_t> in(chosen.begin(), chosen.end());
    int alone = 0;
    for (const std::int32_t c : chosen) {
      CHECK(c < 75 || in.count(c - 75) == 1);
      alone += c < 75 && in.count(c + 75) == 0;
    }
    CHECK_EQUAL(alone, 1);  // 21 is odd
  }
}

// Whole layers whose selection takes everything: the answer is then attention over all tokens.
void check_layer(Shape s, int shortlist) {
  s.output = s.query;
  s.select = 160;
  s.slots = s.slots == 0 ? 0 : 170;
  Batch b(s, rows_of(s));
  Layer layer(b);
  auto p = layer.params(b);
  p.shortlist = shortlist;
  RUN(decode_layer, p);
  double worst = 0;
  bool good = true;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    Session& at = *b.sessions[session];
    std::int64_t indexed = 0;
    for (int head = 0; head < s.heads; ++head) {
      std::vector<Token> tokens;
      const std::int64_t position = at.state.length - 1,
                         kv = (static_cast<std::int64_t>(session) * s.heads + head) * s.dim;
      if (at.state.length > 0) {
        // The new token is where the window keeps it, rotated and rounded once.
        const std::int64_t place = (static_cast<std::int64_t>(head) * s.window + position % s.window) * s.dim;
        const std::vector<double> key = b.rope.rotate(row(layer.keys, kv, s.dim), position);
        for (int d = 0; d < s.dim; ++d) {
          CHECK_NEAR(at.recent_keys[place + d], key[static_cast<std::size_t>(d)],
                     check::tolerance(s.storage, key[static_cast<std::size_t>(d)], 12, 6));
          CHECK_NEAR(at.recent_values[place + d], layer.values[kv + d],
                     check::tolerance(s.storage, layer.values[kv + d], 0, 0));
        }
        tokens = dense_tokens(at, head);
        for (std::int64_t t = 0; t < at.state.recent_begin; ++t) {
          if (at.indexed(head, t / s.chunk)) {
            tokens.push_back(rebuilt_token(at, b.rope, head, t));
            indexed += t % s.chunk == 0;
          }
        }
      }
      for (int g = 0; g < s.group; ++g) {
        const std::vector<double> raw = b.query(session, head * s.group + g);
        const std::vector<double> query = position < 0 ? raw : b.rope.rotate(raw, position);
        constexpr double kRotation = 16;
        // A rotated element errs relative to its pair: all the more reason to count the largest element.
        const Attention expected = attention(query, tokens, 4 * kRotation * kUnit);
        for (int d = 0; d < s.dim; ++d) {
          const double want = expected.output[static_cast<std::size_t>(d)];
          const double allowed = output_tolerance(s.output, want, expected.tolerance[static_cast<std::size_t>(d)]);
          const double got =
              layer.output[(static_cast<std::int64_t>(session) * s.query_heads() + head * s.group + g) * s.dim + d];
          good = check::near(got, want, allowed) && good;
          worst = std::max(worst, std::fabs(got - want) / allowed);
        }
      }
    }
    CHECK_EQUAL(layer.counters[session].selected, indexed);
    CHECK_EQUAL(layer.counters[session].fetched, s.slots == 0 ? 0 : indexed);
    if (at.state.length > 0 && indexed > 0) {
      CHECK_NEAR(layer.counters[session].mass, s.heads, 1e3 * kUnit * s.heads);
    }
  }
  if (!CHECK(good)) {
    std::fprintf(stderr, "  layer, set %d, %s: %.2f of what is allowed\n", instruction_set, s.name().c_str(), worst);
  }
}

// The same session gives the same bits: with any number of threads, alone or with others, whatever is resident.
void check_one_answer(const Shape& s) {
  Batch b(s, rows_of(s));
  fill_slots(b, 0.0);
  b.refresh();
  Layer layer(b);
  auto p = layer.params(b);
  p.shortlist = 2 * s.select;
  RUN(decode_layer, p, 1);
  const Array first = layer.output;
  for (const int threads : {2, 3, 7}) {
    fill_slots(b, 0.3 * threads);
    b.refresh();
    layer.output.fill(generator);
    RUN(decode_layer, p, threads);
    CHECK(first == layer.output);
  }
  check_alone(s, p, first);
}

void check_nan() {
  for (const int type : {SKV_F32, SKV_BF16, SKV_F16}) {
    Shape s;
    s.storage = s.value = s.landmark = s.coefficient = type;
    Batch b(s, {{10 * 8 + 20, 10 * 8, 1}});
    b.select_at_random();
    b.slots = b.selected;
    b.sessions[0]->recent_keys.set(7, std::nan(""));
    Array output(s.output, b.queries.count());
    std::vector<float> log_sum_exp(static_cast<std::size_t>(s.query_heads()));
    // Row 80 % 64 = 16 and on are attended; element 7 is not, element 16 * 128 + 7 is.
    RUN(sparse_attention, attention_of(b, output, log_sum_exp));
    CHECK(!std::isnan(output[0]));
    b.sessions[0]->recent_keys.set(16 * 128 + 7, std::nan(""));
    RUN(sparse_attention, attention_of(b, output, log_sum_exp));
    CHECK(std::isnan(output[0]) && std::isnan(log_sum_exp[0]));
    CHECK(!std::isnan(output[static_cast<std::int64_t>(s.group) * s.dim]));
  }
}

// A query that is no number, infinite or zero says nothing about chunks, and disturbs no other head.
void check_odd_queries(int landmark) {
  Shape s;
  s.storage = s.value = SKV_BF16;
  s.landmark = landmark;
  Batch b(s, {{301 * 8 + 30, 301 * 8, 0}});
  for (std::int64_t c = 0; c < b.sessions[0]->capacity; ++c) {
    b.sessions[0]->radius.set(c, 0.5);
  }
  const skv_landmark_topk_params p = topk_of(b, 0.5F);
  RUN(landmark_topk, p);
  const std::vector<std::int32_t> other = b.chosen(0, 1);
  const float other_mass = p.mass[1];
  for (const double odd : {std::nan(""), HUGE_VAL, 0.0, 1e-38}) {
    for (std::int64_t d = 0; d < s.dim; ++d) {
      for (int g = 0; g < s.group; ++g) {
        b.queries.set(g * s.dim + d, std::isfinite(odd) || d == 77 ? odd : 1.0);
      }
    }
    RUN(landmark_topk, p);
    CHECK(b.chosen(0, 1) == other && p.mass[1] == other_mass);
    CHECK_EQUAL(b.chosen(0, 0).size(), static_cast<std::size_t>(s.select));
    CHECK_EQUAL(std::isnan(p.mass[0]), !std::isfinite(odd));
    if (odd == 0.0) {
      CHECK_EQUAL(b.chosen(0, 0).back(), s.select - 1);
      CHECK_NEAR(p.mass[0], s.select / 301.0, 1e-5);
    }
  }
}

void check_refusals() {
  Shape s;
  Batch b(s, rows_of(s));
  Array output(s.output, b.queries.count());
  std::vector<float> log_sum_exp(b.sessions.size() * static_cast<std::size_t>(s.query_heads()));
  const auto sparse = attention_of(b, output, log_sum_exp);
  const auto topk = topk_of(b, 0.0F);
  check::Bench bench(2, instruction_set);
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] {
    Execution little = bench.with(skv::cpu::sparse_attention_workspace(sparse, bench.traits()) - 64);
    skv::cpu::sparse_attention(sparse, little);
  }));
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] {
    Execution little = bench.with(skv::cpu::landmark_topk_workspace(topk, bench.traits()) - 64);
    skv::cpu::landmark_topk(topk, little);
  }));
  const auto with_geometry = [&](auto&& change) {
    auto p = topk;
    change(p.geometry);
    return refused(SKV_UNSUPPORTED, [&] { RUN(landmark_topk, p); });
  };
  CHECK(with_geometry([](skv_geometry& g) { g.head_dim = 258; }));
  CHECK(with_geometry([](skv_geometry& g) { g.head_dim = 127; }));
  CHECK(with_geometry([](skv_geometry& g) { g.chunk = 12; }));
  CHECK(with_geometry([](skv_geometry& g) { g.rank = 257; }));
  CHECK(with_geometry([](skv_geometry& g) { g.query_heads = 3; }));
  CHECK(with_geometry([](skv_geometry& g) { g.landmark_type = SKV_F8_E4M3; }));
  CHECK(with_geometry([](skv_geometry& g) { g.coefficient_type = SKV_F8_E4M3; }));
  CHECK(with_geometry([](skv_geometry& g) { g.coefficient_type = SKV_F32; }));
  CHECK(with_geometry([](skv_geometry& g) { g.value_type = SKV_I8; }));
  auto too_many = topk;
  too_many.max_chunks = 10;
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] { RUN(landmark_topk, too_many); }));
  auto plan = plan_of(b);
  plan.geometry.slots = s.select - 1;
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] { RUN(cache_plan, plan); }));
  Layer layer(b);
  b.states[1].length = s.window + 1;
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] { RUN(decode_layer, layer.params(b)); }));
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    std::vector<Shape> shapes = {
        shape(4, 2, 128, 8, 160, SKV_BF16, SKV_F32),    shape(4, 2, 128, 8, 40, SKV_BF16, SKV_BF16, 15),
        shape(1, 3, 64, 8, 16, SKV_F32, SKV_F32),       shape(7, 2, 128, 16, 33, SKV_BF16, SKV_F16, 20),
        shape(8, 1, 96, 16, 64, SKV_F16, SKV_F16),      shape(16, 1, 64, 8, 100, SKV_BF16, SKV_F32, 12),
        shape(2, 32, 32, 8, 17, SKV_F32, SKV_BF16, 30), shape(3, 2, 256, 16, 256, SKV_BF16, SKV_F32),
        shape(4, 1, 2, 8, 16, SKV_F32, SKV_F32),        shape(5, 1, 70, 8, 21, SKV_BF16, SKV_F32, 14),
        shape(6, 2, 80, 16, 31, SKV_F16, SKV_F32),      shape(5, 2, 96, 8, 25, SKV_BF16, SKV_F32)};
    shapes[1].value = SKV_F8_E4M3;
    shapes[1].landmark = SKV_I8;
    shapes[2].pairing = SKV_INTERLEAVED;
    shapes[3].value = SKV_F8_E4M3;
    shapes[4].landmark = SKV_I8;
    shapes[5].rotary = 48;
    shapes[5].rope_scale = 1.1;
    shapes[6].window = 192;
    shapes[7].value = SKV_F8_E4M3;
    shapes[9].value = SKV_F8_E4M3;
    shapes[9].landmark = SKV_I8;
    shapes[9].pairing = SKV_INTERLEAVED;
    shapes[9].rotary = 34;
    shapes[10].window = 640;
    for (const int type : {SKV_F12_E4M7, SKV_F6_E2M3}) {
      for (const int like : {1, 2, 3, 4, 7, 9, 11}) {
        Shape packed = shapes[static_cast<std::size_t>(like)];
        packed.value = type;
        shapes.push_back(packed);
      }
    }
    for (const int like : {0, 1, 2, 3, 4, 5, 7, 9, 10, 20}) {
      Shape bytes = shapes[static_cast<std::size_t>(like)];
      bytes.coefficient = SKV_I8;
      shapes.push_back(bytes);
    }
    for (const Shape& s : shapes) {
      check_shape(s);
      check_layer(s, 0);
    }
    check_layer(shapes[0], 170);
    check_one_answer(shapes[1]);
    check_one_answer(shapes[3]);
    check_one_answer(shapes[10]);
    check_one_answer(shapes[12]);
    check_one_answer(shapes[19]);
    for (const std::size_t bytes : {1, 2, 4, 8}) {
      check_one_answer(shapes[shapes.size() - bytes]);
    }
    for (const int type : {SKV_F32, SKV_BF16, SKV_F16}) {
      check_ties(type);
    }
    check_nan();
    check_odd_queries(SKV_BF16);
    check_odd_queries(SKV_I8);
    check_refusals();
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
