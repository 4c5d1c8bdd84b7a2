// The CPU's exact attention, for one token a session and for prefill, against its definition in double precision.
#include <cstdio>

#include "check.h"
#include "decode_fixture.h"

namespace {

using namespace decode;
using skv::cpu::Execution;
using skv::cpu::ExecutionTraits;

std::mt19937_64 generator;
int instruction_set = 1;

template <class Params>
void run(void (*operation)(const Params&, Execution&),
         std::uint64_t (*workspace)(const Params&, const ExecutionTraits&), const Params& p, int threads = 2) {
  check::Bench bench(threads, instruction_set);
  Execution execution = bench.with(workspace(p, bench.traits()));
  operation(p, execution);
}

#define RUN(operation, ...) run(skv::cpu::operation, skv::cpu::operation##_workspace, __VA_ARGS__)

struct Heads {
  int group, heads, dim, storage, input;
  int query_heads() const { return group * heads; }
  skv_geometry geometry() const { return {query_heads(), heads, dim, 8, 16, storage, storage, storage, storage, 8, 0}; }
};

struct DenseSession {
  DenseSession(const Heads& h, std::int64_t length, std::int64_t room)
      : length(length),
        capacity(length + room),
        keys(h.storage, h.heads * (length + room) * h.dim),
        values(h.storage, keys.count()) {
    keys.fill(generator);
    values.fill(generator);
  }
  std::vector<Token> tokens(const Heads& h, int head, std::int64_t count) const {
    std::vector<Token> result;
    for (std::int64_t t = 0; t < count; ++t) {
      result.push_back(stored_token(keys, values, head * capacity + t, h.dim));
    }
    return result;
  }
  std::int64_t length, capacity;
  Array keys, values;
};

struct DenseBatch {
  DenseBatch(const Heads& h, const std::vector<std::int64_t>& lengths)
      : heads(h),
        queries(h.input, static_cast<std::int64_t>(lengths.size()) * h.query_heads() * h.dim),
        output(h.input, queries.count()) {
    queries.fill(generator, 1.5);
    for (const std::int64_t length : lengths) {
      sessions.push_back(std::make_unique<DenseSession>(h, length, 3));
      DenseSession& s = *sessions.back();
      layers.push_back({s.keys.data(), s.values.data(), s.capacity});
      states.push_back({length, 0, 0, 0, 1, 0});
      longest = std::max(longest, length);
    }
    log_sum_exp.assign(lengths.size() * static_cast<std::size_t>(h.query_heads()), std::nanf(""));
  }
  skv_dense_attention_params params() {
    skv_dense_attention_params p{};
    p.struct_size = sizeof(p);
    p.query_type = p.output_type = heads.input;
    p.geometry = heads.geometry();
    p.batch = static_cast<std::int32_t>(sessions.size());
    p.queries = queries.data();
    p.layers = layers.data();
    p.states = states.data();
    p.max_length = longest;
    p.output = output.data();
    p.log_sum_exp = log_sum_exp.data();
    return p;
  }
  Heads heads;
  Array queries, output;
  std::vector<std::unique_ptr<DenseSession>> sessions;
  std::vector<skv_dense_layer> layers;
  std::vector<skv_session_state> states;
  std::vector<float> log_sum_exp;
  std::int64_t longest = 0;
};

// Counts as one check: every element within its tolerance.
void check_row(const Array& output, std::int64_t first, const Attention& expected, const char* what, const Heads& h) {
  for (std::size_t d = 0; d < expected.output.size(); ++d) {
    const double want = expected.output[d];
    const double allowed = output_tolerance(output.type(), want, expected.tolerance[d]);
    if (!check::near(output[first + static_cast<std::int64_t>(d)], want, allowed)) {
      std::fprintf(stderr,
                   "%s, set %d, G%d K%d D%d types %d %d: element %d of row %lld: %.9g, expected %.9g within %.3g\n",
                   what, instruction_set, h.group, h.heads, h.dim, h.storage, h.input, static_cast<int>(d),
                   static_cast<long long>(first / h.dim), output[first + static_cast<std::int64_t>(d)], want, allowed);
      CHECK(false);
      return;
    }
  }
  CHECK(true);
}

void check_dense(const Heads& h, const std::vector<std::int64_t>& lengths) {
  DenseBatch b(h, lengths);
  RUN(dense_attention, b.params());
  for (std::size_t session = 0; session < b.sessions.size(); ++session) {
    for (int head = 0; head < h.heads; ++head) {
      const std::vector<Token> tokens = b.sessions[session]->tokens(h, head, b.sessions[session]->length);
      for (int g = 0; g < h.group; ++g) {
        const std::int64_t at = static_cast<std::int64_t>(session) * h.query_heads() + head * h.group + g;
        const Attention expected = attention(row(b.queries, at * h.dim, h.dim), tokens);
        check_row(b.output, at * h.dim, expected, "dense", h);
        if (tokens.empty()) {
          CHECK(b.log_sum_exp[static_cast<std::size_t>(at)] == -std::numeric_limits<float>::infinity());
        } else {
          CHECK_NEAR(b.log_sum_exp[static_cast<std::size_t>(at)], expected.log_sum_exp, expected.log_sum_exp_tolerance);
        }
      }
    }
  }
  CHECK(b.output.guard_intact());
  // The same bits with other threads, and alone, where no longer session asks for more room.
  const std::size_t one = lengths.size() - 2;
  const Array first = b.output;
  RUN(dense_attention, b.params(), 5);
  CHECK(first == b.output);
  auto alone = b.params();
  alone.batch = 1;
  alone.layers += one;
  alone.states += one;
  alone.max_length = lengths[one];
  const std::int64_t row_elements = static_cast<std::int64_t>(h.query_heads()) * h.dim;
  const std::int64_t first_element = static_cast<std::int64_t>(one) * row_elements;
  alone.queries = skv::cpu::element_at(alone.queries, h.input, first_element);
  Array output(h.input, row_elements);
  alone.output = output.data();
  RUN(dense_attention, alone, 1);
  for (std::int64_t i = 0; i < row_elements; ++i) {
    if (!CHECK(output[i] == first[first_element + i])) {
      break;
    }
  }
}

void check_dense_layer(const Heads& h, int pairing) {
  DenseBatch b(h, {5, 0, 700});
  const check::RopeTables rope(h.dim, pairing, 2048, 10000, 1);
  Array keys(h.input, 3 * (h.heads * h.dim + 6)), values(h.input, 3 * (h.heads * h.dim + 2));
  keys.fill(generator);
  values.fill(generator);
  skv_dense_decode_layer_params p{};
  p.struct_size = sizeof(p);
  p.input_type = h.input;
  p.geometry = h.geometry();
  p.batch = 3;
  p.queries = b.queries.data();
  p.keys = keys.data();
  p.values = values.data();
  p.key_stride = h.heads * h.dim + 6;
  p.value_stride = h.heads * h.dim + 2;
  p.layers = b.layers.data();
  p.states = b.states.data();
  p.rope = rope.table;
  p.max_length = b.longest;
  p.output = b.output.data();
  RUN(dense_decode_layer, p);
  for (std::int64_t session = 0; session < 3; ++session) {
    const DenseSession& s = *b.sessions[static_cast<std::size_t>(session)];
    for (int head = 0; head < h.heads; ++head) {
      if (s.length > 0) {
        const std::vector<double> key =
            rope.rotate(row(keys, session * p.key_stride + head * h.dim, h.dim), s.length - 1);
        for (int d = 0; d < h.dim; ++d) {
          const std::int64_t at = (head * s.capacity + s.length - 1) * h.dim + d;
          CHECK_NEAR(s.keys[at], key[static_cast<std::size_t>(d)],
                     check::tolerance(h.storage, key[static_cast<std::size_t>(d)], 12, 6));
          const double value = values[session * p.value_stride + head * h.dim + d];
          CHECK_NEAR(s.values[at], value, check::tolerance(h.storage, value, 0, 0));
        }
      }
      const std::vector<Token> tokens = s.tokens(h, head, s.length);
      for (int g = 0; g < h.group; ++g) {
        const std::int64_t at = session * h.query_heads() + head * h.group + g;
        const std::vector<double> raw = row(b.queries, at * h.dim, h.dim);
        constexpr double kRotation = 16;
        check_row(b.output, at * h.dim,
                  attention(s.length > 0 ? rope.rotate(raw, s.length - 1) : raw, tokens, 4 * kRotation * kUnit),
                  "dense layer", h);
      }
    }
  }
}

void check_prefill(const Heads& h, std::int64_t count, std::int64_t first_position) {
  const std::int64_t total = first_position + count;
  DenseSession s(h, total, 5);
  const std::int64_t stride = static_cast<std::int64_t>(h.query_heads()) * h.dim + 4;
  Array queries(h.input, count * stride), output(h.input, count * h.query_heads() * h.dim);
  queries.fill(generator, 1.5);
  skv_prefill_attention_params p{};
  p.struct_size = sizeof(p);
  p.query_type = p.output_type = h.input;
  p.geometry = h.geometry();
  p.queries = queries.data();
  p.query_stride = stride;
  p.count = count;
  p.first_position = first_position;
  p.keys = s.keys.data();
  p.values = s.values.data();
  p.capacity = s.capacity;
  p.output = output.data();
  // What a query must not see: the future, and what lies behind the tokens.
  for (int head = 0; head < h.heads; ++head) {
    for (std::int64_t t = total; t < s.capacity; ++t) {
      s.keys.set((head * s.capacity + t) * h.dim, std::nan(""));
      s.values.set((head * s.capacity + t) * h.dim, std::nan(""));
    }
  }
  RUN(prefill_attention, p);
  CHECK(output.guard_intact());
  for (int head = 0; head < h.heads; ++head) {
    const std::vector<Token> all = s.tokens(h, head, total);
    for (std::int64_t t = 0; t < count; t += count < 40 ? 1 : 1 + static_cast<std::int64_t>(generator() % 23)) {
      const std::vector<Token> tokens(all.begin(), all.begin() + first_position + t + 1);
      for (int g = 0; g < h.group; ++g) {
        const std::int64_t in = t * stride + (head * h.group + g) * h.dim,
                           out = (t * h.query_heads() + head * h.group + g) * h.dim;
        check_row(output, out, attention(row(queries, in, h.dim), tokens), "prefill", h);
      }
    }
  }
  const Array first = output;
  RUN(prefill_attention, p, 3);
  CHECK(first == output);
}

void check_nan(int storage) {
  const Heads h = {4, 2, 64, storage, SKV_F32};
  DenseBatch b(h, {100});
  b.sessions[0]->values.set(70 * h.dim + 5, std::nan(""));
  b.sessions[0]->keys.set((b.sessions[0]->capacity + 20) * h.dim + 3, std::nan(""));
  RUN(dense_attention, b.params());
  CHECK(std::isnan(b.output[5]) && !std::isnan(b.output[4]));
  CHECK(std::isnan(b.output[h.group * h.dim]) && std::isnan(b.log_sum_exp[static_cast<std::size_t>(h.group)]));

  constexpr std::int64_t kCount = 90, kBad = 70;
  DenseSession s(h, kCount, 0);
  s.keys.set(kBad * h.dim, std::nan(""));
  Array queries(SKV_F32, kCount * h.query_heads() * h.dim), output(SKV_F32, queries.count());
  queries.fill(generator);
  skv_prefill_attention_params p{};
  p.query_type = p.output_type = h.input;
  p.geometry = h.geometry();
  p.queries = queries.data();
  p.count = kCount;
  p.keys = s.keys.data();
  p.values = s.values.data();
  p.capacity = s.capacity;
  p.output = output.data();
  RUN(prefill_attention, p);
  for (std::int64_t t = 0; t < kCount; ++t) {
    CHECK_EQUAL(std::isnan(output[t * h.query_heads() * h.dim]), t >= kBad);
    CHECK(!std::isnan(output[(t * h.query_heads() + h.group) * h.dim]));
  }
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    const Heads shapes[] = {
        {4, 2, 128, SKV_BF16, SKV_F32}, {1, 3, 64, SKV_F32, SKV_F32},   {7, 1, 128, SKV_BF16, SKV_BF16},
        {8, 1, 96, SKV_F16, SKV_F32},   {16, 1, 64, SKV_BF16, SKV_F16}, {2, 32, 16, SKV_F32, SKV_BF16},
        {3, 2, 256, SKV_BF16, SKV_F32}, {5, 1, 2, SKV_F32, SKV_F32},    {6, 2, 70, SKV_F16, SKV_F32},
        {2, 2, 80, SKV_F32, SKV_F32},   {5, 2, 96, SKV_BF16, SKV_F32}};
    int number = 0;
    for (const Heads& h : shapes) {
      check_dense(h, {0, 1, 63, 200, 1300, 2049});
      check_dense_layer(h, number % 2 == 0 ? SKV_HALF_SPLIT : SKV_INTERLEAVED);
      check_prefill(h, 1, 0);
      check_prefill(h, 37, 0);
      check_prefill(h, 150, 93);
      ++number;
    }
    // Long sessions are cut into larger parts.
    check_dense({2, 1, 64, SKV_BF16, SKV_F32}, {65535, 69633, 65536, 3000, 70001});
    check_prefill(shapes[0], 1, 700);
    check_prefill(shapes[1], 400, 61);
    for (const int storage : {SKV_F32, SKV_BF16, SKV_F16}) {
      check_nan(storage);
    }
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
