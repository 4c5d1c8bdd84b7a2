// Products of activations with weights, against sums in double precision; and that a row does not depend on
// the rows beside it.
#include <chrono>
#include <ctime>

#include "operands.h"

namespace {

using check::Array;
using check::Bench;

struct Shape {
  std::int64_t rows, columns, inner, input_padding, output_padding;
};

skv_matmul_params params_of(const Shape& s, const Array& input, const Array& weight, const Array* bias, Array& output,
                            bool accumulate) {
  skv_matmul_params p = {};
  p.struct_size = sizeof(p);
  p.input_type = input.type();
  p.weight_type = weight.type();
  p.output_type = output.type();
  p.input = input.data();
  p.weight = weight.data();
  p.bias = bias ? bias->data() : nullptr;
  p.output = output.data();
  p.rows = s.rows;
  p.columns = s.columns;
  p.inner = s.inner;
  p.input_stride = s.input_padding ? s.inner + s.input_padding : 0;
  p.output_stride = s.output_padding ? s.columns + s.output_padding : 0;
  p.accumulate = accumulate;
  return p;
}

void run(Bench& bench, const skv_matmul_params& p) {
  auto execution = bench.with(skv::cpu::matmul_workspace(p, bench.traits()));
  skv::cpu::matmul(p, execution);
}

void test(Bench& bench, const Shape& s, std::int32_t input_type, std::int32_t weight_type, std::int32_t output_type,
          bool with_bias, bool accumulate, std::mt19937_64& random) {
  const std::int64_t input_stride = s.inner + s.input_padding, output_stride = s.columns + s.output_padding;
  Array input(input_type, s.rows * input_stride), weight(weight_type, s.columns * s.inner),
      bias(weight_type, s.columns), output(output_type, s.rows * output_stride);
  input.fill(random, 1.0, 0.2);
  weight.fill(random, 0.05, 0.01);
  bias.fill(random);
  if (accumulate) {
    output.fill(random, 2);
  }
  const Array before = output;
  const skv_matmul_params p = params_of(s, input, weight, with_bias ? &bias : nullptr, output, accumulate);
  run(bench, p);
  bool right = true;
  for (std::int64_t i = 0; i < s.rows; ++i) {
    for (std::int64_t j = 0; j < s.columns; ++j) {
      double sum = 0, magnitude = 0;
      for (std::int64_t k = 0; k < s.inner; ++k) {
        const double product = input[i * input_stride + k] * weight[j * s.inner + k];
        sum += product;
        magnitude += std::fabs(product);
      }
      const double added = (with_bias ? bias[j] : 0) + (accumulate ? before[i * output_stride + j] : 0);
      const double bound =
          magnitude + std::fabs(with_bias ? bias[j] : 0) + std::fabs(accumulate ? before[i * output_stride + j] : 0);
      // The worst case of any order of the sum: its length times the roundoff of each product and addition.
      right &= check::near(output[i * output_stride + j], sum + added,
                           check::tolerance(output_type, sum + added, static_cast<double>(s.inner) + 2, bound));
    }
    for (std::int64_t j = s.columns; !accumulate && j < output_stride; ++j) {
      right &= output.untouched(i * output_stride + j);
    }
  }
  if (!CHECK(right)) {
    std::fprintf(stderr, "rows %lld columns %lld inner %lld types %d %d %d\n", static_cast<long long>(s.rows),
                 static_cast<long long>(s.columns), static_cast<long long>(s.inner), input_type, weight_type,
                 output_type);
  }
  CHECK(output.guard_intact());
}

void test_rows_are_independent(Bench& bench, Bench& other_threads, std::int32_t input_type, std::int32_t weight_type,
                               std::mt19937_64& random) {
  const Shape s{41, 53, 1500, 0, 0};
  Array input(input_type, s.rows * s.inner), weight(weight_type, s.columns * s.inner),
      whole(SKV_F32, s.rows * s.columns);
  input.fill(random);
  weight.fill(random);
  run(bench, params_of(s, input, weight, nullptr, whole, false));
  for (const std::int64_t rows : {1, 2, 3, 5, 8, 17, 40}) {
    const std::int64_t first = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(s.rows - rows + 1));
    Array part(SKV_F32, rows * s.columns);
    Shape few = s;
    few.rows = rows;
    skv_matmul_params p = params_of(few, input, weight, nullptr, part, false);
    p.input = skv::cpu::element_at(input.data(), input_type, first * s.inner);
    run(other_threads, p);
    bool same = true;
    for (std::int64_t i = 0; i < rows * s.columns; ++i) {
      same &= part[i] == whole[first * s.columns + i];
    }
    CHECK(same);
  }
}

void test_small_workspace(Bench& bench) {
  const Shape s{24, 30, 64, 0, 0};
  Array input(SKV_BF16, s.rows * s.inner), weight(SKV_BF16, s.columns * s.inner), out(SKV_F32, s.rows * s.columns);
  const skv_matmul_params p = params_of(s, input, weight, nullptr, out, false);
  const std::uint64_t needed = skv::cpu::matmul_workspace(p, bench.traits());
  std::string message;
  try {
    auto execution = bench.with(needed - 1);
    skv::cpu::matmul(p, execution);
  } catch (const skv::Error& error) {
    CHECK_EQUAL(error.status(), SKV_INVALID_ARGUMENT);
    message = error.what();
  }
  CHECK(message.find(std::to_string(needed)) != std::string::npos);
  CHECK(message.find(std::to_string(needed - 1)) != std::string::npos);
}

// With the argument "speed": how fast, beside what memory and multipliers give. Not part of the test.
void measure(Bench& bench, const Shape& s, std::int32_t weight_type, std::mt19937_64& random) {
  Array input(SKV_F32, s.rows * s.inner), weight(weight_type, s.columns * s.inner), out(SKV_F32, s.rows * s.columns);
  input.fill(random);
  std::memset(weight.data(), 0x3c,
              static_cast<std::size_t>(s.columns * s.inner * skv::element_bytes(weight_type)));
  const skv_matmul_params p = params_of(s, input, weight, nullptr, out, false);
  auto execution = bench.with(skv::cpu::matmul_workspace(p, bench.traits()));
  double best = 1e9, best_processor = 1e9;
  for (int round = 0; round < 5; ++round) {
    auto fresh = execution;
    const std::clock_t processor_begin = std::clock();
    const auto begin = std::chrono::steady_clock::now();
    skv::cpu::matmul(p, fresh);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    // On a machine that others use as well, this says more.
    best_processor = std::min(
        best_processor, static_cast<double>(std::clock() - processor_begin) / static_cast<double>(CLOCKS_PER_SEC));
  }
  const double products = static_cast<double>(s.rows) * static_cast<double>(s.columns) * static_cast<double>(s.inner);
  const double bytes = static_cast<double>(s.columns * s.inner * skv::element_bytes(weight_type));
  std::printf(
      "rows %lld, weights %lld x %lld type %d: %.3f ms, %.1f GFLOP/s, weights at %.1f GB/s; %.1f GFLOP a processor "
      "second\n",
      static_cast<long long>(s.rows), static_cast<long long>(s.columns), static_cast<long long>(s.inner), weight_type,
      best * 1e3, 2e-9 * products / best, 1e-9 * bytes / best, 2e-9 * products / best_processor);
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937_64 random = check::fresh_generator();
  const int best = static_cast<int>(skv::cpu::best_instruction_set());
  if (argc > 1 && std::string(argv[1]) == "speed") {
    Bench bench(skv::cpu::ThreadPool::processors(), best);
    for (const std::int32_t type : {SKV_F32, SKV_BF16}) {
      for (const std::int64_t rows : {1, 4, 8, 16, 512}) {
        measure(bench, {rows, 8192, 4096, 0, 0}, type, random);
      }
    }
    return 0;
  }
  for (int set = 1; set <= best; ++set) {
    Bench bench(3, set), alone(1, set);
    for (const std::int32_t type : {SKV_F32, SKV_BF16, SKV_F16}) {
      for (const std::int32_t weight_type : {SKV_F32, SKV_BF16, SKV_F16}) {
        test(bench, {1, 100, 1100, 0, 0}, type, weight_type, SKV_F32, false, false, random);
        test(bench, {8, 25, 67, 3, 5}, type, weight_type, type, true, false, random);
        test(bench, {37, 49, 130, 1, 2}, type, weight_type, weight_type, true, true, random);
        test_rows_are_independent(bench, alone, type, weight_type, random);
      }
    }
    test(bench, {3, 1, 1, 0, 0}, SKV_F32, SKV_F32, SKV_F32, false, false, random);
    test(bench, {300, 31, 2049, 0, 0}, SKV_BF16, SKV_BF16, SKV_BF16, true, false, random);
    test(bench, {0, 31, 20, 0, 0}, SKV_F32, SKV_F32, SKV_F32, true, false, random);
    test_small_workspace(bench);
  }
  return check::verdict();
}
