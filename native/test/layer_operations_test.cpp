// The operations around attention, against their definitions in double precision.
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/row_math.h"
#include "operands.h"
#include "random.h"

namespace {

using check::Array;
using check::Bench;

constexpr std::int32_t kTypes[] = {SKV_F32, SKV_BF16, SKV_F16};

template <class Params>
Params params() {
  Params p = {};
  p.struct_size = sizeof(Params);
  return p;
}

void expect(const Array& actual, std::int64_t i, double expected, double tolerance, const char* what) {
  if (!check::near(actual[i], expected, tolerance)) {
    std::fprintf(stderr, "%s, type %d, element %lld: %.9g, expected %.9g within %.3g\n", what, actual.type(),
                 static_cast<long long>(i), actual[i], expected, tolerance);
    CHECK(false);
  }
}

void test_add(Bench& bench, std::int32_t type, std::mt19937_64& random) {
  for (const std::int64_t count : {0, 1, 511, 513, 40001}) {
    Array a(type, count), b(type, count), out(type, count);
    a.fill(random);
    b.fill(random);
    auto p = params<skv_add_params>();
    p.type = type;
    p.a = a.data();
    p.b = b.data();
    p.output = out.data();
    p.count = count;
    auto execution = bench.with(0);
    skv::cpu::add(p, execution);
    for (std::int64_t i = 0; i < count; ++i) {
      expect(out, i, a[i] + b[i], check::tolerance(type, a[i] + b[i], 1, std::fabs(a[i] + b[i])), "add");
    }
    CHECK(out.guard_intact());
    p.output = a.data();  // in place
    skv::cpu::add(p, execution);
    CHECK(a == out || count == 0);
  }
}

void test_convert(Bench& bench, std::int32_t from, std::int32_t to, std::mt19937_64& random) {
  const std::int64_t count = 70001;
  Array in(from, count), out(to, count);
  in.fill(random, 100);
  auto p = params<skv_convert_params>();
  p.input_type = from;
  p.output_type = to;
  p.input = in.data();
  p.output = out.data();
  p.count = count;
  auto execution = bench.with(0);
  skv::cpu::convert(p, execution);
  Array expected(to, count);
  for (std::int64_t i = 0; i < count; ++i) {
    expected.set(i, in[i]);
  }
  CHECK(out == expected);
}

void test_embed(Bench& bench, std::int32_t from, std::int32_t to, std::mt19937_64& random) {
  const std::int64_t vocabulary = 97, width = 67, count = 33;
  Array table(from, vocabulary * width), out(to, count * width);
  table.fill(random);
  std::vector<std::int32_t> ids(count);
  for (auto& id : ids) {
    id = static_cast<std::int32_t>(random() % vocabulary);
  }
  ids[3] = -1;
  ids[7] = static_cast<std::int32_t>(vocabulary);
  auto p = params<skv_embed_params>();
  p.table_type = from;
  p.output_type = to;
  p.table = table.data();
  p.ids = ids.data();
  p.output = out.data();
  p.count = count;
  p.width = width;
  p.vocabulary = vocabulary;
  auto execution = bench.with(0);
  skv::cpu::embed(p, execution);
  for (std::int64_t i = 0; i < count * width; ++i) {
    const std::int64_t id = ids[static_cast<std::size_t>(i / width)];
    if (id < 0 || id >= vocabulary) {
      CHECK(std::isnan(out[i]));
    } else {
      const double expected = table[id * width + i % width];
      expect(out, i, expected, check::tolerance(to, expected, 0, 0), "embed");
    }
  }
  CHECK(out.guard_intact());
}

void test_argmax(Bench& bench, std::int32_t type, std::mt19937_64& random) {
  const std::int64_t rows = 9, width = 1531;
  Array in(type, rows * width);
  in.fill(random);
  in.set(2 * width + 700, std::nan(""));
  in.set(3 * width + 20, 50);
  in.set(3 * width + 1500, 50);  // a tie
  for (std::int64_t i = 0; i < width; ++i) {
    in.set(4 * width + i, -std::numeric_limits<double>::infinity());
  }
  in.set(5 * width + width - 1, 77);
  in.set(6 * width + 1, std::numeric_limits<double>::infinity());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows), -5);
  auto p = params<skv_argmax_params>();
  p.type = type;
  p.input = in.data();
  p.rows = rows;
  p.width = width;
  p.ids = ids.data();
  auto execution = bench.with(0);
  skv::cpu::argmax(p, execution);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t best = 0;
    bool nan = false;
    for (std::int64_t i = 0; i < width; ++i) {
      nan |= std::isnan(in[row * width + i]);
      if (in[row * width + i] > in[row * width + best]) {
        best = i;
      }
    }
    CHECK_EQUAL(ids[static_cast<std::size_t>(row)], nan ? -1 : best);
  }
}

void test_silu(Bench& bench, std::int32_t type, std::mt19937_64& random) {
  const std::int64_t rows = 5, width = 1037, stride = 2 * width + 3;
  Array both(type, rows * stride), out(type, rows * width);
  both.fill(random, 3);
  both.set(0, -200);  // exp overflows: the result is -0, not NaN
  both.set(1, 200);
  auto p = params<skv_silu_multiply_params>();
  p.type = type;
  p.gate = both.data();
  p.up = skv::cpu::element_at(both.data(), type, width);
  p.output = out.data();
  p.rows = rows;
  p.width = width;
  p.stride = stride;
  auto execution = bench.with(0);
  skv::cpu::silu_multiply(p, execution);
  for (std::int64_t i = 0; i < rows * width; ++i) {
    const double gate = both[i / width * stride + i % width], up = both[i / width * stride + width + i % width];
    const double expected = gate / (1 + std::exp(-gate)) * up;
    // The exponential's argument is exact; its own error, an addition, a division and a product.
    expect(out, i, expected, check::tolerance(type, expected, 8, std::fabs(expected)), "silu_multiply");
  }
  CHECK(out.guard_intact());
}

void test_rms_norm(Bench& bench, std::int32_t type, std::int32_t weight_type, std::int32_t output_type,
                   bool with_residual, std::mt19937_64& random) {
  const std::int64_t rows = 7, width = 1027;
  const float epsilon = 1e-5F;
  Array input(type, rows * width), residual(type, rows * width), weight(weight_type, width),
      out(output_type, rows * width);
  input.fill(random, 2);
  residual.fill(random);
  weight.fill(random, 0.1, 1);
  const Array before = input;
  auto p = params<skv_rms_norm_params>();
  p.type = type;
  p.weight_type = weight_type;
  p.output_type = output_type;
  p.input = input.data();
  p.residual = with_residual ? residual.data() : nullptr;
  p.weight = weight.data();
  p.output = out.data();
  p.rows = rows;
  p.width = width;
  p.epsilon = epsilon;
  auto execution = bench.with(0);
  skv::cpu::rms_norm(p, execution);
  for (std::int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (std::int64_t i = row * width; i < (row + 1) * width; ++i) {
      if (with_residual) {
        expect(input, i, before[i] + residual[i],
               check::tolerance(type, before[i] + residual[i], 1, std::fabs(before[i] + residual[i])),
               "rms_norm's sum");
      }
      sum += input[i] * input[i];
    }
    const double scale = 1 / std::sqrt(sum / static_cast<double>(width) + epsilon);
    for (std::int64_t i = row * width; i < (row + 1) * width; ++i) {
      const double expected = input[i] * scale * weight[i % width];
      // A sum of `width` squares in 16 lanes of 32: half of its relative error reaches the root.
      expect(out, i, expected, check::tolerance(output_type, expected, 3 + 0.5 * (512.0 / 16 + 1), std::fabs(expected)),
             "rms_norm");
    }
  }
  if (!with_residual) {
    CHECK(input == before);
  }
  CHECK(out.guard_intact());
}

void test_random(Bench& bench, std::int32_t type, std::mt19937_64& random) {
  const std::uint64_t seed = random();
  const std::int64_t count = 200003;
  Array whole(type, count), again(type, count);
  auto p = params<skv_random_fill_params>();
  p.type = type;
  p.output = whole.data();
  p.count = count;
  p.seed = seed;
  p.mean = 0.5F;
  p.deviation = 2.0F;
  auto execution = bench.with(0);
  skv::cpu::random_fill(p, execution);
  CHECK(whole.guard_intact());
  double sum = 0, squares = 0, cubes = 0, fourth = 0, neighbours = 0;
  std::int64_t within = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double x = (whole[i] - 0.5) / 2;
    sum += x;
    squares += x * x;
    cubes += x * x * x;
    fourth += x * x * x * x;
    within += std::fabs(x) < 1;
    neighbours += i > 0 ? x * (whole[i - 1] - 0.5) / 2 : 0;
  }
  // Six standard deviations of each statistic, and what rounding to the type adds.
  const double n = static_cast<double>(count), spread = 6 / std::sqrt(n);
  CHECK_NEAR(sum / n, 0, spread + check::roundoff(type));
  CHECK_NEAR(squares / n, 1, std::sqrt(2.0) * spread + 4 * check::roundoff(type));
  CHECK_NEAR(cubes / n, 0, std::sqrt(15.0) * spread + 8 * check::roundoff(type));
  CHECK_NEAR(fourth / n, 3, std::sqrt(96.0) * spread + 24 * check::roundoff(type));
  CHECK_NEAR(static_cast<double>(within) / n, 0.682689, 0.4655 * spread + check::roundoff(type));
  CHECK_NEAR(neighbours / n, 0, spread + 4 * check::roundoff(type));
  p.output = again.data();
  skv::cpu::random_fill(p, execution);
  CHECK(whole == again);
  p.seed = seed + 1;
  skv::cpu::random_fill(p, execution);
  CHECK(!(whole == again));
}

// Numbers of counters [first, first + counters) against Box and Muller's formula in double precision.
void test_normals(skv::cpu::InstructionSet set, std::uint64_t first, std::int64_t counters, std::mt19937_64& random) {
  const std::uint64_t seed = random();
  constexpr float kMean = -0.25F, kDeviation = 3.0F, kGuard = 12345.0F;
  std::vector<float> numbers(static_cast<std::size_t>(4 * counters) + 1, kGuard);
  skv::cpu::row_math(set).normals(first, seed, kMean, kDeviation, counters, numbers.data());
  CHECK(numbers.back() == kGuard);
  for (std::int64_t i = 0; i < counters; ++i) {
    const skv::RandomWords words = skv::philox(first + static_cast<std::uint64_t>(i), seed);
    for (int j = 0; j < 4; ++j) {
      const double u = (std::floor(words.at[j / 2 * 2] / 256.0) + 1) * 0x1p-24;
      const double angle = std::floor(words.at[j / 2 * 2 + 1] / 256.0) * 0x1p-24 * 2 * std::acos(-1.0);
      const double length = std::sqrt(-2 * std::log(u)) * kDeviation;
      const double expected = kMean + length * (j % 2 == 0 ? std::cos(angle) : std::sin(angle));
      // An angle of up to 2 pi is rounded where it is taken as a float; the other steps round a number or two each.
      const double allowed = check::tolerance(SKV_F32, expected, 16, length + std::fabs(kMean));
      if (!CHECK(check::near(numbers[static_cast<std::size_t>(4 * i + j)], expected, allowed))) {
        std::fprintf(stderr, "  counter %llu, number %d: %.9g, expected %.9g\n",
                     static_cast<unsigned long long>(first + static_cast<std::uint64_t>(i)), j,
                     static_cast<double>(numbers[static_cast<std::size_t>(4 * i + j)]), expected);
        return;
      }
    }
  }
}

// Where the exponential leaves the range of a float.
void test_silu_extremes(skv::cpu::InstructionSet set) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float x : {0.0F, -0.0F, 1e-30F, 20.0F, -20.0F, 87.0F, -80.0F, 1e30F, -1e30F, kInfinity}) {
    // Alone, and in a whole vector.
    for (const std::int64_t count : {1, 16, 19}) {
      std::vector<float> gate(static_cast<std::size_t>(count), x), up(gate.size(), 2.0F);
      skv::cpu::row_math(set).silu_multiply(gate.data(), up.data(), count, gate.data());
      const double expected = static_cast<double>(x) / (1 + std::exp(-static_cast<double>(x))) * 2;
      for (const float got : gate) {
        CHECK(static_cast<double>(got) == expected ||
              check::near(got, expected, check::tolerance(SKV_F32, expected, 8, std::fabs(expected))));
      }
    }
  }
  float gate = std::nanf("");
  const float up = 1;
  skv::cpu::row_math(set).silu_multiply(&gate, &up, 1, &gate);
  CHECK(std::isnan(gate));
}

// Philox4x32-10's published test vectors, as far as a 64-bit counter reaches: an all-zero counter and key.
void test_philox() {
  const skv::RandomWords words = skv::philox(0, 0);
  CHECK_EQUAL(words.at[0], 0x6627e8d5U);
  CHECK_EQUAL(words.at[1], 0xe169c58dU);
  CHECK_EQUAL(words.at[2], 0xbc57ac4cU);
  CHECK_EQUAL(words.at[3], 0x9b00dbd8U);
}

}  // namespace

int main() {
  std::mt19937_64 random = check::fresh_generator();
  test_philox();
  const int best = static_cast<int>(skv::cpu::best_instruction_set());
  for (int set = 1; set <= best; ++set) {
    Bench bench(1 + set, set);
    const auto instructions = static_cast<skv::cpu::InstructionSet>(set);
    test_normals(instructions, random() % 1000, 20003, random);
    test_normals(instructions, 0x7fffffff0ULL, 64, random);  // the counter's low word overflows
    test_normals(instructions, 0xffffffd3ULL, 100, random);
    test_silu_extremes(instructions);
    for (const std::int32_t type : kTypes) {
      test_add(bench, type, random);
      test_argmax(bench, type, random);
      test_silu(bench, type, random);
      test_random(bench, type, random);
      for (const std::int32_t other : kTypes) {
        test_convert(bench, type, other, random);
        test_embed(bench, type, other, random);
        for (const std::int32_t output : {type, other}) {
          test_rms_norm(bench, type, other, output, false, random);
          test_rms_norm(bench, type, other, output, true, random);
        }
      }
    }
  }
  return check::verdict();
}
