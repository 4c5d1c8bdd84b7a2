// Exact decode attention over dense caches on CUDA, and its whole layers, against a double-precision oracle.
#include "decode_gpu_fixture.h"

namespace {

using namespace decode_gpu;

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

}  // namespace

int main() {
  return run([] { test_dense(); });
}
