// Rotation, and storing tokens in rings, against their definitions in double precision.
#include "operands.h"

namespace {

using check::Array;
using check::Bench;
using check::RopeTables;

// Of one rotated element: the float tables' rounding (three roundings each in two of them, multiplied), the
// rotation's own, and the final rounding.
double rope_tolerance(std::int32_t type, double expected, double magnitude) {
  constexpr double kOperations = 8;
  return check::tolerance(type, expected, kOperations, magnitude);
}

std::vector<double> head_of(const Array& array, std::int64_t at, int dim) {
  std::vector<double> head(static_cast<std::size_t>(dim));
  for (int i = 0; i < dim; ++i) {
    head[static_cast<std::size_t>(i)] = array[at + i];
  }
  return head;
}

double norm(const std::vector<double>& head) {
  double sum = 0;
  for (const double x : head) {
    sum += x * x;
  }
  return std::sqrt(sum);
}

void test_rope(Bench& bench, std::int32_t type, int dim, int rotary_dim, int pairing, double scale,
               std::mt19937_64& random) {
  const RopeTables tables(rotary_dim, pairing, 5000, 10000.0, scale);
  const int heads = 3;
  const std::int64_t count = 37, stride = heads * dim + 5, first = static_cast<std::int64_t>(random() % 4900);
  Array in(type, count * stride), out(type, count * heads * dim);
  in.fill(random);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(count));
  for (const bool explicit_positions : {false, true}) {
    for (std::int64_t t = 0; t < count; ++t) {
      positions[static_cast<std::size_t>(t)] =
          explicit_positions ? static_cast<std::int64_t>(random() % 5000) : first + t;
    }
    skv_rope_params p = {};
    p.struct_size = sizeof(p);
    p.type = type;
    p.input = in.data();
    p.output = out.data();
    p.count = count;
    p.input_stride = stride;
    p.heads = heads;
    p.head_dim = dim;
    p.first_position = explicit_positions ? 0 : first;
    p.positions = explicit_positions ? positions.data() : nullptr;
    p.rope = tables.table;
    auto execution = bench.with(0);
    skv::cpu::rope(p, execution);
    bool right = true;
    for (std::int64_t t = 0; t < count; ++t) {
      for (int h = 0; h < heads; ++h) {
        const auto head = head_of(in, t * stride + h * dim, dim);
        const auto expected = tables.rotate(head, positions[static_cast<std::size_t>(t)]);
        for (int i = 0; i < dim; ++i) {
          const double e = expected[static_cast<std::size_t>(i)];
          right &= check::near(out[(t * heads + h) * dim + i], e, rope_tolerance(type, e, scale * norm(head)));
        }
      }
    }
    CHECK(right);
    CHECK(out.guard_intact());
    // Back again, in place.
    p.input = out.data();
    p.output = out.data();
    p.input_stride = 0;
    p.inverse = 1;
    skv::cpu::rope(p, execution);
    right = true;
    for (std::int64_t i = 0; i < count * heads * dim; ++i) {
      const std::int64_t at = i / (heads * dim) * stride + i % (heads * dim);
      const double magnitude = norm(head_of(in, at - at % stride % dim, dim));
      // Both roundings to the type count, the first one for two elements of a pair.
      right &= check::near(
          out[i], in[at],
          3 * check::roundoff(type) * magnitude + 16 * 0x1p-24 * magnitude + 2 * check::smallest_step(type));
    }
    CHECK(right);
  }
}

void test_store(Bench& bench, std::int32_t input_type, std::int32_t storage_type, int dim, int heads,
                std::mt19937_64& random) {
  const RopeTables tables(dim, SKV_HALF_SPLIT, 3000, 500000.0, 1.0);
  const std::int64_t capacity = 40, count = 29, first = 1000 + static_cast<std::int64_t>(random() % 1000);
  const std::int64_t width = static_cast<std::int64_t>(heads) * dim, key_stride = width + 7, value_stride = width + 2;
  Array keys(input_type, count * key_stride), values(input_type, count * value_stride);
  keys.fill(random, 2);
  values.fill(random);
  Array rotated(storage_type, heads * capacity * dim), raw(storage_type, capacity * width),
      stored(storage_type, heads * capacity * dim);
  skv_store_tokens_params p = {};
  p.struct_size = sizeof(p);
  p.input_type = input_type;
  p.storage_type = storage_type;
  p.key_value_heads = heads;
  p.head_dim = dim;
  p.count = count;
  p.first_position = first;
  p.keys = keys.data();
  p.values = values.data();
  p.key_stride = key_stride;
  p.value_stride = value_stride;
  p.rotated_keys = rotated.data();
  p.raw_keys = raw.data();
  p.stored_values = stored.data();
  p.capacity = capacity;
  p.rope = tables.table;
  auto execution = bench.with(0);
  skv::cpu::store_tokens(p, execution);
  bool right = true;
  std::vector<bool> written(static_cast<std::size_t>(capacity), false);
  for (std::int64_t t = 0; t < count; ++t) {
    const std::int64_t row = (first + t) % capacity;
    written[static_cast<std::size_t>(row)] = true;
    for (int h = 0; h < heads; ++h) {
      const auto head = head_of(keys, t * key_stride + h * dim, dim);
      const auto expected = tables.rotate(head, first + t);
      for (int i = 0; i < dim; ++i) {
        const double e = expected[static_cast<std::size_t>(i)], k = head[static_cast<std::size_t>(i)];
        const double v = values[t * value_stride + h * dim + i];
        right &= check::near(rotated[(h * capacity + row) * dim + i], e, rope_tolerance(storage_type, e, norm(head)));
        right &= check::near(raw[row * width + h * dim + i], k, check::tolerance(storage_type, k, 0, 0));
        right &= check::near(stored[(h * capacity + row) * dim + i], v, check::tolerance(storage_type, v, 0, 0));
      }
    }
  }
  CHECK(right);
  bool untouched = true;
  for (std::int64_t row = 0; row < capacity; ++row) {
    if (!written[static_cast<std::size_t>(row)]) {
      for (std::int64_t i = 0; i < width; ++i) {
        untouched &= raw.untouched(row * width + i);
        untouched &= rotated.untouched((i / dim * capacity + row) * dim + i % dim);
      }
    }
  }
  CHECK(untouched);
  CHECK(rotated.guard_intact() && raw.guard_intact() && stored.guard_intact());
  // Each target is optional.
  Array values_only(storage_type, heads * capacity * dim);
  p.rotated_keys = p.raw_keys = nullptr;
  p.keys = nullptr;
  p.stored_values = values_only.data();
  skv::cpu::store_tokens(p, execution);
  CHECK(values_only == stored);
}

// Heads that lie apart, as in a ring [K][capacity][D], give what heads side by side give.
void test_heads_apart(Bench& bench, std::int32_t type, int pairing, std::mt19937_64& random) {
  constexpr int kHeads = 3, kDim = 64;
  constexpr std::int64_t kTokens = 21, kCapacity = 29;
  const RopeTables tables(kDim, pairing, 4096, 10000.0, 1.0);
  Array together(type, kTokens * kHeads * kDim), apart(type, kHeads * kCapacity * kDim);
  Array expected(type, kTokens * kHeads * kDim), out(type, kTokens * kHeads * kDim);
  together.fill(random);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kDim; ++i) {
        apart.set((h * kCapacity + t) * kDim + i, together[(t * kHeads + h) * kDim + i]);
      }
    }
  }
  skv_rope_params p = {};
  p.struct_size = sizeof(p);
  p.type = type;
  p.count = kTokens;
  p.heads = kHeads;
  p.head_dim = kDim;
  p.first_position = 1000;
  p.inverse = 1;
  p.rope = tables.table;
  p.input = together.data();
  p.output = expected.data();
  auto execution = bench.with(0);
  skv::cpu::rope(p, execution);
  p.input = apart.data();
  p.output = out.data();
  p.input_stride = kDim;
  p.input_head_stride = kCapacity * kDim;
  skv::cpu::rope(p, execution);
  CHECK(out == expected);
  CHECK(!(out == together));
}

void test_outside(Bench& bench) {
  const RopeTables tables(64, SKV_HALF_SPLIT, 128, 10000.0, 1.0);
  std::vector<float> head(64, 1.0F);
  for (const std::int64_t position : {std::int64_t{-1}, std::int64_t{128}, std::int64_t{1} << 40}) {
    skv_rope_params p = {};
    p.struct_size = sizeof(p);
    p.type = SKV_F32;
    p.input = p.output = head.data();
    p.count = 1;
    p.heads = 1;
    p.head_dim = 64;
    p.positions = &position;
    p.rope = tables.table;
    skv_status status = SKV_OK;
    try {
      auto execution = bench.with(0);
      skv::cpu::rope(p, execution);
    } catch (const skv::Error& error) {
      status = error.status();
    }
    CHECK_EQUAL(status, SKV_INVALID_ARGUMENT);
  }
}

}  // namespace

int main() {
  std::mt19937_64 random = check::fresh_generator();
  const int best = static_cast<int>(skv::cpu::best_instruction_set());
  for (int set = 1; set <= best; ++set) {
    Bench bench(2, set);
    for (const std::int32_t type : {SKV_F32, SKV_BF16, SKV_F16}) {
      test_rope(bench, type, 128, 128, SKV_HALF_SPLIT, 1.0, random);
      test_rope(bench, type, 96, 48, SKV_HALF_SPLIT, 1.25, random);
      test_rope(bench, type, 64, 32, SKV_INTERLEAVED, 1.0, random);
      test_rope(bench, type, 50, 50, SKV_INTERLEAVED, 1.1, random);
      test_rope(bench, type, 6, 0, SKV_HALF_SPLIT, 1.0, random);
      test_rope(bench, type, 256, 254, SKV_HALF_SPLIT, 1.0, random);
      test_heads_apart(bench, type, SKV_HALF_SPLIT, random);
      test_heads_apart(bench, type, SKV_INTERLEAVED, random);
      for (const std::int32_t storage : {SKV_F32, SKV_BF16, SKV_F16}) {
        test_store(bench, type, storage, 128, 2, random);
        test_store(bench, type, storage, 38, 5, random);
      }
    }
    test_outside(bench);
  }
  return check::verdict();
}
