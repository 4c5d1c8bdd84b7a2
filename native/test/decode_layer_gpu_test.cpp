// Whole decode layers on CUDA: against a double-precision oracle over a long generation, and bit for bit the same in
// every company.
#include "decode_gpu_fixture.h"

namespace {

using namespace decode_gpu;

// Steps of a generation with every chunk selected, so that the oracle knows what is attended: far beyond the window,
// which wraps and whose oldest chunks move to the index.
void test_generation(int coefficient_type) {
  Shape s;
  s.coefficient_type = coefficient_type;
  std::printf("generation%s\n", s.coefficient_name());
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
        if (state.indexed_chunks == 0) {
          b.table[i] = b.sessions[i]->layer();
          b.write_table();
        }
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
    const auto queries = rotated_queries(b, in);
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

enum class Tail { kNone, kMoments, kPredicted };

// Bit for bit the same, whatever is resident, however the batch is cut, whoever else is in it, and from a graph.
void test_independence(int value_type, int shortlist, int slots, Tail with, int coefficient_type = SKV_BF16) {
  const int tail = with == Tail::kNone ? 0 : 1;
  Shape s;
  s.coefficient_type = coefficient_type;
  std::printf("independence, value type %d, shortlist %d, %d slots, tail %d%s%s\n", value_type, shortlist, slots, tail,
              with == Tail::kPredicted ? ", predicted values" : "", s.coefficient_name());
  s.key_value_heads = 4;
  s.query_heads = 16;
  s.value_type = value_type;
  s.select = 30;
  s.slots = slots;
  Batch b(s, {{501 * 8 + 5, 500 * 8, 3, 520}, {0, 0, 0, 9}, {77 * 8, 75 * 8, 0, 77}, {300 * 8 + 60, 300 * 8, 7, 520}});
  if (with == Tail::kPredicted) {
    add_value_bases(b, 3);
  }
  Memory output(*backend, b.queries.size() * 2);
  const StepInput in(b);
  const auto reference = decode(decode_params(b, in, output, 1, shortlist, tail), output);
  bool idle_is_zero = true;
  const std::size_t row = static_cast<std::size_t>(s.query_heads) * s.head_dim;
  for (std::size_t i = row; i < 2 * row; ++i) {
    idle_is_zero &= reference[i] == 0;
  }
  CHECK(idle_is_zero);
  // All of it is resident now.
  CHECK(decode(decode_params(b, in, output, 1, shortlist, tail), output) == reference);
  for (const int groups : check::cases({0, 2, 3, 5, 16})) {
    for (std::size_t i = 0; i < b.sessions.size(); ++i) {
      b.sessions[i]->fill_slots(generator, 0.4, std::max(1, b.states[i].indexed_chunks));
    }
    CHECK(decode(decode_params(b, in, output, groups, shortlist, tail), output) == reference);
  }
  // Alone in its batch.
  for (std::size_t i = 0; i < b.sessions.size(); ++i) {
    auto p = decode_params(b, in, output, 0, shortlist, tail);
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
  auto p = decode_params(b, in, output, 0, shortlist, tail);
  p.counters = counters->as<skv_decode_counters>();
  CHECK(decode(p, output) == reference);
  const auto counted = counters->read<skv_decode_counters>();
  CHECK_EQUAL(counted[0].selected, 4 * 30);
  CHECK_EQUAL(counted[1].selected, 0);
  CHECK(counted[0].fetched >= 0 && counted[0].fetched <= counted[0].selected);
  CHECK(counted[0].mass > 0 && counted[0].mass <= 4 * (1 + 1e-4));
  if (on_cpu()) {
    return;
  }
  // A graph, replayed after the sessions have moved on and one has joined.
  const auto captured = decode_params(b, in, output, 3, shortlist, tail);
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

}  // namespace

int main() {
  return run([] {
    test_generation(SKV_BF16);
    test_generation(SKV_I8);
    test_independence(SKV_BF16, 0, 50, Tail::kNone);
    test_independence(SKV_BF16, 0, 0, Tail::kNone);
    test_independence(SKV_F8_E4M3, 0, 50, Tail::kNone);
    test_independence(SKV_BF16, 60, 50, Tail::kNone);
    test_independence(SKV_F8_E4M3, 60, 0, Tail::kNone);
    test_independence(SKV_BF16, 0, 50, Tail::kMoments);
    test_independence(SKV_F8_E4M3, 60, 50, Tail::kMoments);
    test_independence(SKV_BF16, 60, 0, Tail::kMoments);
    test_independence(SKV_F8_E4M3, 60, 50, Tail::kPredicted);
    test_independence(SKV_BF16, 60, 0, Tail::kPredicted);
    test_independence(SKV_BF16, 75, 40, Tail::kPredicted);
    test_independence(SKV_F12_E4M7, 0, 50, Tail::kNone);
    test_independence(SKV_F12_E4M7, 60, 50, Tail::kPredicted);
    test_independence(SKV_F6_E2M3, 0, 50, Tail::kNone);
    test_independence(SKV_F6_E2M3, 60, 40, Tail::kMoments);
    test_independence(SKV_BF16, 0, 0, Tail::kNone, SKV_I8);
    test_independence(SKV_BF16, 60, 50, Tail::kPredicted, SKV_I8);
    test_independence(SKV_F8_E4M3, 60, 50, Tail::kPredicted, SKV_I8);
    test_independence(SKV_F8_E4M3, 0, 50, Tail::kMoments, SKV_I8);
    test_independence(SKV_F12_E4M7, 60, 50, Tail::kMoments, SKV_I8);
    test_independence(SKV_F6_E2M3, 60, 40, Tail::kPredicted, SKV_I8);
  });
}
