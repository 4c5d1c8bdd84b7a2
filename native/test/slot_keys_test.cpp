// Rebuilt keys that stay in slots, on the CPU: an answer is the same to the bit whatever was kept, over steps that
// select, evict, fold and rewind, on every instruction set of this processor; and what attention over rounded keys is,
// in double precision.
#include <cstdio>

#include "check.h"
#include "decode_batch.h"

namespace {

using namespace decode;

// Slots of the sessions of a batch. They begin empty, with nonsense in them.
struct Slots {
  Slots(const Shape& s, std::size_t sessions, int count) : shape(s), places(count) {
    for (std::size_t b = 0; b < sessions; ++b) {
      keys.emplace_back(s.storage, static_cast<std::int64_t>(s.heads) * std::max(count, 1) * s.chunk * s.dim);
      keys.back().fill(generator, 100);
      chunk.emplace_back(static_cast<std::size_t>(s.heads * count), -1);
      stamp.emplace_back(chunk.back().size(), 0);
    }
  }
  // The layers of a batch with these slots.
  std::vector<skv_shadow_layer> layers(const Batch& b) {
    std::vector<skv_shadow_layer> all = b.layers;
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].slot_keys = keys[i].data();
      all[i].slot_values = nullptr;
      all[i].slot_chunk = chunk[i].data();
      all[i].slot_stamp = stamp[i].data();
    }
    return all;
  }
  // Forgets chunks from `first` on.
  void forget(std::size_t session, std::int32_t first) {
    for (std::int32_t& c : chunk[session]) {
      c = c >= first ? -1 : c;
    }
  }

  Shape shape;
  int places;
  std::vector<Array> keys;
  std::vector<std::vector<std::int32_t>> chunk, stamp;
};

// Sessions in motion, and what a step of them answers with given slots.
struct Motion {
  Motion(const Shape& s, int list, const std::vector<Batch::Row>& rows)
      : batch(s, rows), layer(batch), shortlist(list) {
    for (auto& session : batch.sessions) {
      session->layer.slot_values = nullptr;
      session->predict();
    }
    batch.refresh();
  }

  int listed() const { return shortlist > 0 ? shortlist : batch.shape.select; }

  Array answer(Slots& slots, int threads) {
    const std::vector<skv_shadow_layer> layers = slots.layers(batch);
    auto p = layer.params(batch);
    p.layers = layers.data();
    p.geometry.slots = slots.places;
    p.shortlist = shortlist;
    p.tail = 1;
    layer.counters.assign(layer.counters.size(), {});
    layer.output.fill(generator);
    RUN(decode_layer, p, threads);
    CHECK(layer.output.guard_intact());
    for (const Array& keys : slots.keys) {
      CHECK(keys.guard_intact());
    }
    return layer.output;
  }

  // Queries go on a little; each session that is not idle has one token more, and a new step.
  void advance() {
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < batch.queries.count(); ++i) {
      batch.queries.set(i, 0.9 * batch.queries[i] + 0.43 * normal(generator));
    }
    layer.keys.fill(generator);
    layer.values.fill(generator);
    for (auto& session : batch.sessions) {
      session->state.step += 1;
      if (session->state.length > 0 && session->state.length - session->state.recent_begin < batch.shape.window) {
        session->state.length += 1;
      }
    }
    batch.refresh();
  }

  // The chunk behind the index joins it, with contents of its own.
  void fold(std::size_t number) {
    Session& s = *batch.sessions[number];
    write(s, s.state.indexed_chunks);
    s.state.indexed_chunks += 1;
    s.state.recent_begin += s.shape.chunk;
    s.state.length = std::max(s.state.length, s.state.recent_begin + 1);
    batch.refresh();
  }
  void rewind(std::size_t number, int chunks) {
    Session& s = *batch.sessions[number];
    s.state.indexed_chunks -= chunks;
    s.state.recent_begin -= static_cast<std::int64_t>(chunks) * s.shape.chunk;
    s.state.length = s.state.recent_begin + s.shape.chunk + 3;
    batch.refresh();
  }
  // New coefficients, and a radius that has the chunk selected.
  void write(Session& s, std::int64_t chunk) {
    std::normal_distribution<double> normal;
    const std::int64_t per_chunk = static_cast<std::int64_t>(s.shape.chunk) * s.shape.rank;
    for (std::int64_t i = chunk * per_chunk; i < (chunk + 1) * per_chunk; ++i) {
      s.set_coefficient(i, normal(generator));
    }
    for (int head = 0; head < s.shape.heads; ++head) {
      s.radius.set(head * s.capacity + chunk, 20);
    }
  }

  Batch batch;
  Layer layer;
  int shortlist;
};

std::vector<Batch::Row> moving_rows(const Shape& s) {
  const std::int64_t w = s.window, c = s.chunk;
  return {{0, 0, 0}, {90 * c + w / 2, 90 * c, 3}, {5 * c + 1, 5 * c, 1}, {150 * c + 5, 150 * c, 7}};
}

std::int64_t fetched(const Motion& m) {
  std::int64_t sum = 0;
  for (const skv_decode_counters& c : m.layer.counters) {
    sum += c.fetched;
  }
  return sum;
}

// extra: slots beyond what a step may list.
void test_steps(const Shape& s, int shortlist, int extra) {
  Motion m(s, shortlist, moving_rows(s));
  const std::size_t sessions = m.batch.sessions.size();
  Slots kept(s, sessions, m.listed() + extra);
  std::int64_t first = 0, later = 0;
  for (int step = 0; step < 12; ++step) {
    m.advance();
    if (step == 3 || step == 4) {
      m.fold(3);
      m.fold(1);
    }
    if (step == 7) {
      // Two folded chunks and some before them go, and others come in their places.
      m.rewind(3, 4);
      kept.forget(3, m.batch.sessions[3]->state.indexed_chunks);
      m.fold(3);
      m.fold(3);
    }
    Slots empty(s, sessions, m.listed() + extra), none(s, sessions, 0);
    const Array rebuilt = m.answer(none, 2);
    CHECK_EQUAL(fetched(m), 0);
    const Array fresh = m.answer(empty, 2);
    const std::int64_t all = fetched(m);
    const Array with_kept = m.answer(kept, 1 + step % 3);
    (step == 0 ? first : later) += fetched(m);
    CHECK(step > 0 ? fetched(m) < all : fetched(m) == all);
    if (!CHECK(fresh == rebuilt && with_kept == rebuilt)) {
      std::fprintf(stderr, "  set %d, %s, shortlist %d, step %d: fresh %s, kept %s\n", instruction_set,
                   s.name().c_str(), shortlist, step, fresh == rebuilt ? "same" : "different",
                   with_kept == rebuilt ? "same" : "different");
    }
  }
  CHECK(first > 0 && later > 0);  // something was evicted and fetched

  // What is kept is what is attended to: nonsense in the slots shows.
  m.advance();
  Slots none(s, sessions, 0);
  const Array right = m.answer(none, 2);
  for (Array& keys : kept.keys) {
    keys.fill(generator, 3);
  }
  CHECK(!(m.answer(kept, 2) == right));
}

// Slots that remember chunks which a rewind took away answer with their keys: they must be forgotten.
void test_forgetting() {
  Shape s;
  Motion m(s, 0, moving_rows(s));
  Slots kept(s, m.batch.sessions.size(), s.select), none(s, m.batch.sessions.size(), 0);
  m.advance();
  m.fold(3);
  m.answer(kept, 2);
  m.rewind(3, 1);
  m.fold(3);
  const Slots remembering = kept;
  Slots wrong = remembering;
  kept.forget(3, m.batch.sessions[3]->state.indexed_chunks - 1);
  const Array right = m.answer(none, 2);
  CHECK(m.answer(kept, 2) == right);
  CHECK(!(m.answer(wrong, 2) == right));
}

// The operations on their own rebuild and round; values are read in place.
void test_operations(const Shape& s) {
  Batch b(s, rows_of(s));
  std::vector<Array> unused;
  for (auto& session : b.sessions) {
    unused.emplace_back(s.storage, 8);
    session->layer.slot_keys = unused.back().data();
  }
  b.refresh();
  b.select_at_random();
  b.slots = b.selected;
  Array output(s.output, b.queries.count());
  std::vector<float> log_sum_exp(b.tail.size(), std::nanf(""));
  RUN(sparse_attention, attention_of(b, output, log_sum_exp));
  bool good = true;
  double worst = 0;
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int query = 0; query < s.query_heads(); ++query) {
      const int head = query / s.group;
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
      const std::size_t at = session * static_cast<std::size_t>(s.query_heads()) + static_cast<std::size_t>(query);
      const Attention expected = attention(b.query(session, query), tokens);
      for (int d = 0; d < s.dim; ++d) {
        const double want = expected.output[static_cast<std::size_t>(d)];
        const double allowed = output_tolerance(s.output, want, expected.tolerance[static_cast<std::size_t>(d)]);
        const double got = output[static_cast<std::int64_t>(at) * s.dim + d];
        good = check::near(got, want, allowed) && good;
        worst = std::max(worst, std::fabs(got - want) / allowed);
      }
      if (!tokens.empty()) {
        CHECK_NEAR(log_sum_exp[at], expected.log_sum_exp, expected.log_sum_exp_tolerance);
      }
    }
  }
  if (!CHECK(good)) {
    std::fprintf(stderr, "  set %d, %s: %.2f of what is allowed\n", instruction_set, s.name().c_str(), worst);
  }
}

// Alone or with others, a session's answer is the same.
void test_batch_mates(const Shape& s) {
  Motion m(s, 0, moving_rows(s));
  m.advance();
  Slots slots(s, m.batch.sessions.size(), s.select);
  const Array together = m.answer(slots, 2);
  const std::int64_t queries = static_cast<std::int64_t>(s.query_heads()) * s.dim,
                     keys = static_cast<std::int64_t>(s.heads) * s.dim;
  for (std::int64_t session = 0; session < m.batch.size(); ++session) {
    Slots own(s, m.batch.sessions.size(), s.select);
    const std::vector<skv_shadow_layer> layers = own.layers(m.batch);
    auto p = m.layer.params(m.batch);
    p.geometry.slots = s.select;
    p.tail = 1;
    p.batch = 1;
    p.layers = layers.data() + session;
    p.states = m.batch.states.data() + session;
    p.queries = skv::cpu::element_at(p.queries, s.query, session * queries);
    p.keys = skv::cpu::element_at(p.keys, s.query, session * keys);
    p.values = skv::cpu::element_at(p.values, s.query, session * keys);
    Array output(s.query, queries);
    p.output = output.data();
    RUN(decode_layer, p);
    bool same = true;
    for (std::int64_t i = 0; i < queries; ++i) {
      same = output[i] == together[session * queries + i] && same;
    }
    CHECK(same);
  }
}

void test_refusals() {
  Shape s;
  Motion m(s, 3 * s.select, moving_rows(s));
  Slots slots(s, m.batch.sessions.size(), 3 * s.select);
  std::vector<skv_shadow_layer> layers = slots.layers(m.batch);
  auto p = m.layer.params(m.batch);
  p.layers = layers.data();
  p.shortlist = 3 * s.select;
  p.geometry.slots = 3 * s.select;
  RUN(decode_layer, p);
  p.geometry.slots = 3 * s.select - 1;  // a shortlist does not fit
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] { RUN(decode_layer, p); }));
  p.geometry.slots = 3 * s.select;
  layers[0].slot_keys = nullptr;  // of an idle row
  RUN(decode_layer, p);
  layers[2].slot_keys = nullptr;
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] { RUN(decode_layer, p); }));
  check::Bench bench(2, instruction_set);
  layers = slots.layers(m.batch);
  CHECK(refused(SKV_INVALID_ARGUMENT, [&] {
    Execution little = bench.with(skv::cpu::decode_layer_workspace(p, bench.traits()) - 64);
    skv::cpu::decode_layer(p, little);
  }));
}

Shape selecting(int group, int heads, int dim, int chunk, int rank, int storage, int query) {
  Shape s = shape(group, heads, dim, chunk, rank, storage, query);
  s.select = 37;
  return s;
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    std::vector<Shape> shapes = {
        selecting(4, 2, 128, 8, 40, SKV_BF16, SKV_F32),   selecting(1, 3, 64, 8, 16, SKV_F32, SKV_F32),
        selecting(7, 2, 128, 16, 33, SKV_BF16, SKV_F16),  selecting(8, 1, 96, 16, 64, SKV_F16, SKV_F16),
        selecting(16, 1, 64, 8, 100, SKV_BF16, SKV_BF16), selecting(3, 1, 256, 16, 20, SKV_BF16, SKV_F32),
        selecting(2, 2, 2, 8, 16, SKV_F32, SKV_F32),      selecting(5, 1, 70, 8, 21, SKV_BF16, SKV_F32)};
    shapes[2].landmark = SKV_I8;
    shapes[3].value = SKV_F8_E4M3;
    shapes[4].value = SKV_F8_E4M3;
    shapes[7].pairing = SKV_INTERLEAVED;
    for (const int like : {0, 2, 3}) {
      Shape bytes = shapes[static_cast<std::size_t>(like)];
      bytes.coefficient = SKV_I8;
      shapes.push_back(bytes);
    }
    for (const Shape& s : shapes) {
      test_steps(s, 0, 0);
      test_steps(s, 0, 9);
      test_steps(s, 2 * s.select, 5);
      test_operations(s);
      test_batch_mates(s);
    }
    test_forgetting();
    test_refusals();
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
