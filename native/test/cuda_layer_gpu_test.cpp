// The operations of a transformer layer around attention, against double precision.
#include "gpu_test.h"

namespace {

using gpu::Array;
using gpu::check_all;
using gpu::epsilon_of;
using gpu::rounded;

const std::int32_t kTypes[] = {SKV_F32, SKV_BF16, SKV_F16};
const char* name_of(std::int32_t type) {
  return type == SKV_F32 ? "f32" : type == SKV_BF16 ? "bf16" : "f16";
}

// What one rounding of an fp32 number may change: half an epsilon, or half of f16's smallest step.
double once(std::int32_t type, double x) {
  return (epsilon_of(type) / 2 + (type == SKV_F32 ? 0 : gpu::kF32Epsilon)) * std::fabs(x) +
         (type == SKV_F16 ? 0x1p-25 : 0x1p-140);
}

void convert(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t from : kTypes) {
    for (const std::int32_t to : kTypes) {
      for (const std::int64_t count : {1, 7, 4097, 100'003}) {
        auto values = rounded(gpu::normals(generator, count, 3.0F), from);
        values[static_cast<std::size_t>(count / 2)] = count % 2 ? 0.0F : -0.0F;
        Array input(backend, values, from), output(backend, count * gpu::size_of(to));
        skv_convert_params p = {};
        p.input_type = from;
        p.output_type = to;
        p.input = input;
        p.output = output;
        p.count = count;
        backend.convert(p);
        const auto exact = rounded(values, to);
        check_all(std::string("convert ") + name_of(from) + " to " + name_of(to), output.values(to),
                  std::vector<double>(exact.begin(), exact.end()), [](std::size_t) { return 0.0; });
      }
    }
  }
}

void add(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : kTypes) {
    const std::int64_t count = 33'331;
    const auto a = rounded(gpu::normals(generator, count), type), b = rounded(gpu::normals(generator, count), type);
    Array left(backend, a, type), right(backend, b, type);
    skv_add_params p = {};
    p.type = type;
    p.a = left;
    p.b = right;
    p.output = right;
    p.count = count;
    backend.add(p);
    std::vector<double> expected;
    for (std::size_t i = 0; i < a.size(); ++i) {
      expected.push_back(static_cast<double>(a[i]) + static_cast<double>(b[i]));
    }
    check_all(std::string("add ") + name_of(type), right.values(type), expected,
              [&](std::size_t i) { return once(type, expected[i]); });
  }
}

void silu(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : kTypes) {
    for (const std::int64_t width : {64, 333, 1000}) {
      const std::int64_t rows = 37, stride = 2 * width;
      const auto both = rounded(gpu::normals(generator, rows * stride, 4.0F), type);
      Array input(backend, both, type), output(backend, rows * width * gpu::size_of(type));
      skv_silu_multiply_params p = {};
      p.type = type;
      p.gate = input;
      p.up = input.as<std::uint8_t>() + width * gpu::size_of(type);
      p.output = output;
      p.rows = rows;
      p.width = width;
      p.stride = stride;
      backend.silu_multiply(p);
      std::vector<double> expected;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t i = 0; i < width; ++i) {
          const double gate = both[static_cast<std::size_t>(row * stride + i)];
          expected.push_back(gate / (1 + std::exp(-gate)) * both[static_cast<std::size_t>(row * stride + width + i)]);
        }
      }
      check_all(std::string("silu_multiply ") + name_of(type), output.values(type), expected, [&](std::size_t i) {
        return once(type, expected[i]) + 16 * gpu::kF32Epsilon * std::fabs(expected[i]);
      });
    }
  }
}

void rms_norm(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : kTypes) {
    for (const bool with_residual : {false, true}) {
      for (const std::int64_t width : {64, 250, 4096, 5119}) {
        const std::int64_t rows = 19;
        // Every other width into another type.
        const std::int32_t output_type = width % 4096 == 0 || width == 250 ? kTypes[(type + 1) % 3] : type;
        const float epsilon = 1e-5F;
        const auto x = rounded(gpu::normals(generator, rows * width, 2.0F), type);
        const auto residual = rounded(gpu::normals(generator, rows * width), type);
        const auto weight = rounded(gpu::normals(generator, width), type);
        Array input(backend, x, type), rest(backend, residual, type), scale(backend, weight, type);
        Array output(backend, rows * width * gpu::size_of(output_type));
        skv_rms_norm_params p = {};
        p.type = p.weight_type = type;
        p.output_type = output_type;
        p.input = input;
        p.residual = with_residual ? rest.get() : nullptr;
        p.weight = scale;
        p.output = output;
        p.rows = rows;
        p.width = width;
        p.epsilon = epsilon;
        backend.rms_norm(p);
        std::vector<double> sums, expected;
        for (std::int64_t row = 0; row < rows; ++row) {
          double squares = 0;
          for (std::int64_t i = 0; i < width; ++i) {
            const auto at = static_cast<std::size_t>(row * width + i);
            sums.push_back(static_cast<double>(x[at]) + (with_residual ? static_cast<double>(residual[at]) : 0.0));
            squares += sums[at] * sums[at];
          }
          for (std::int64_t i = 0; i < width; ++i) {
            expected.push_back(sums[static_cast<std::size_t>(row * width + i)] /
                               std::sqrt(squares / static_cast<double>(width) + static_cast<double>(epsilon)) *
                               static_cast<double>(weight[static_cast<std::size_t>(i)]));
          }
        }
        const std::string what = std::string("rms_norm ") + name_of(type) + (with_residual ? " with residual" : "");
        // The result is rounded once. A sum is rounded before it is normalized, and with it, by no more, the root
        // of the mean square.
        const double before = with_residual ? epsilon_of(type) : 0.0;
        check_all(what, output.values(output_type), expected, [&](std::size_t i) {
          return once(output_type, expected[i]) + (before + 1e-6) * std::fabs(expected[i]) + 1e-6;
        });
        check_all(what + ", its input", input.values(type), sums,
                  [&](std::size_t i) { return with_residual ? once(type, sums[i]) : 0.0; });
      }
    }
  }
}

void embed(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t from : kTypes) {
    for (const std::int64_t width : {64, 77}) {
      const std::int64_t vocabulary = 101;
      const auto values = rounded(gpu::normals(generator, vocabulary * width), from);
      const std::vector<std::int32_t> ids = {0, 100, 17, -1, 101, 5, 17};
      Array table(backend, values, from), rows = Array::of(backend, ids);
      Array output(backend, static_cast<std::int64_t>(ids.size()) * width * 2);
      skv_embed_params p = {};
      p.table_type = from;
      p.output_type = SKV_BF16;
      p.table = table;
      p.ids = rows.as<std::int32_t>();
      p.output = output;
      p.count = static_cast<std::int64_t>(ids.size());
      p.width = width;
      p.vocabulary = vocabulary;
      backend.embed(p);
      const auto result = output.values(SKV_BF16);
      const auto exact = rounded(values, SKV_BF16);
      bool matches = true;
      for (std::size_t row = 0; row < ids.size(); ++row) {
        for (std::int64_t i = 0; i < width; ++i) {
          const float actual = result[row * static_cast<std::size_t>(width) + static_cast<std::size_t>(i)];
          matches = matches && (ids[row] < 0 || ids[row] >= vocabulary
                                    ? std::isnan(actual)
                                    : actual == exact[static_cast<std::size_t>(ids[row] * width + i)]);
        }
      }
      CHECK(matches);
    }
  }
}

void argmax(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : kTypes) {
    for (const std::int64_t width : {1, 31, 1000, 128'256}) {
      const std::int64_t rows = 5;
      auto values = rounded(gpu::normals(generator, rows * width), type);
      std::vector<std::int32_t> expected;
      for (std::int64_t row = 0; row < rows; ++row) {
        float* const x = &values[static_cast<std::size_t>(row * width)];
        if (row == 1) {
          std::fill(x, x + width, -INFINITY);
        } else if (row == 2 && width > 10) {
          x[width / 2] = x[width - 1] = x[3] = 1000;  // ties
        } else if (row == 3) {
          x[width - 1] = NAN;
        }
        std::int32_t best = 0;
        for (std::int32_t i = 0; i < width; ++i) {
          best = x[i] > x[best] ? i : best;
        }
        expected.push_back(row == 3 ? -1 : best);
      }
      Array input(backend, values, type), ids(backend, rows * 4);
      skv_argmax_params p = {};
      p.type = type;
      p.input = input;
      p.rows = rows;
      p.width = width;
      p.ids = ids.as<std::int32_t>();
      backend.argmax(p);
      CHECK(ids.download<std::int32_t>() == expected);
    }
  }
}

void random_fill(skv::Backend& backend, std::mt19937_64& generator) {
  for (const std::int32_t type : kTypes) {
    const std::int64_t count = 1'000'003;
    Array output(backend, count * gpu::size_of(type)), part(backend, 1001 * gpu::size_of(type));
    skv_random_fill_params p = {};
    p.type = type;
    p.output = output;
    p.count = count;
    p.seed = generator();
    p.mean = 0.5F;
    p.deviation = 2.0F;
    backend.random_fill(p);
    const auto values = output.values(type);
    double sum = 0, squares = 0, cubes = 0, neighbours = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double z = (static_cast<double>(values[i]) - 0.5) / 2;
      sum += z;
      squares += z * z;
      cubes += z * z * z;
      neighbours += i ? z * (static_cast<double>(values[i - 1]) - 0.5) / 2 : 0;
    }
    const double n = static_cast<double>(count);
    // Six standard deviations of each moment.
    CHECK_NEAR(sum / n, 0.0, 6 / std::sqrt(n));
    CHECK_NEAR(squares / n, 1.0, 6 * std::sqrt(2 / n) + 1e-4);
    CHECK_NEAR(cubes / n, 0.0, 6 * std::sqrt(15 / n));
    CHECK_NEAR(neighbours / n, 0.0, 6 / std::sqrt(n));
    p.output = part;
    p.count = 1001;
    backend.random_fill(p);
    const auto beginning = part.values(type);
    CHECK(std::equal(beginning.begin(), beginning.end(), values.begin()));
    ++p.seed;
    backend.random_fill(p);
    CHECK(part.values(type) != beginning);
  }
}

// A row comes out the same, to the bit, whatever is in the others, and without cuBLAS also however many they are.
void matmul_alone(skv::Backend& backend, std::mt19937_64& generator, bool blas) {
  constexpr std::int64_t columns = 201, inner = 1240, most = 16;
  const Array weight(backend, rounded(gpu::normals(generator, columns * inner), SKV_BF16), SKV_BF16);
  const auto product = [&](const std::vector<float>& x, std::int64_t rows) {
    const Array input(backend, x, SKV_BF16);
    Array output(backend, rows * columns * 4);
    skv_matmul_params p = {};
    p.input_type = p.weight_type = SKV_BF16;
    p.output_type = SKV_F32;
    p.input = input;
    p.weight = weight;
    p.output = output;
    p.rows = rows;
    p.columns = columns;
    p.inner = inner;
    backend.matmul(p);
    return output.values(SKV_F32);
  };
  const auto x = rounded(gpu::normals(generator, most * inner), SKV_BF16);
  std::vector<float> all;
  for (const std::int64_t rows : {most, std::int64_t{9}, std::int64_t{8}, std::int64_t{3}, std::int64_t{1}}) {
    const auto some = product(x, rows);
    all = all.empty() || blas ? some : all;
    CHECK(std::equal(some.begin(), some.end(), all.begin()));
    auto others = rounded(gpu::normals(generator, most * inner, 3.0F), SKV_BF16);
    const std::int64_t kept = rows / 2;
    std::copy_n(x.begin() + kept * inner, inner, others.begin() + kept * inner);
    const auto among_others = product(others, rows);
    CHECK(std::equal(some.begin() + kept * columns, some.begin() + (kept + 1) * columns,
                     among_others.begin() + kept * columns));
  }
}

void matmul(skv::Backend& backend, std::mt19937_64& generator, bool blas) {
  struct Case {
    std::int32_t input, output;
    std::int64_t rows, columns, inner, input_gap, output_gap;
    bool bias, accumulate;
  };
  std::vector<Case> cases = {
      {SKV_BF16, SKV_BF16, 1, 4096, 4096, 0, 0, false, false}, {SKV_BF16, SKV_F32, 2, 1000, 512, 8, 3, true, false},
      {SKV_BF16, SKV_BF16, 3, 77, 250, 0, 1, true, true},      {SKV_F32, SKV_F32, 5, 129, 333, 2, 0, true, true},
      {SKV_BF16, SKV_F32, 8, 500, 1024, 0, 0, false, true},    {SKV_BF16, SKV_BF16, 16, 333, 1000, 8, 3, true, true},
      {SKV_BF16, SKV_F32, 13, 50, 40, 0, 0, false, false},     {SKV_BF16, SKV_BF16, 7, 17, 8, 0, 0, false, false},
  };
  if (blas) {
    cases.push_back({SKV_BF16, SKV_BF16, 17, 512, 1024, 0, 0, true, false});
    cases.push_back({SKV_BF16, SKV_F32, 200, 333, 264, 8, 5, true, true});
    cases.push_back({SKV_F32, SKV_F32, 67, 129, 333, 3, 0, true, true});
    cases.push_back({SKV_BF16, SKV_BF16, 129, 128, 512, 0, 0, false, true});
    // More columns than a strip of the sums has room for in one go.
    cases.push_back({SKV_BF16, SKV_BF16, 301, 40'009, 40, 8, 3, true, true});
  }
  for (const Case& c : cases) {
    const std::int64_t input_stride = c.inner + c.input_gap, output_stride = c.columns + c.output_gap;
    const auto x = rounded(gpu::normals(generator, c.rows * input_stride), c.input);
    const auto w = rounded(gpu::normals(generator, c.columns * c.inner, 0.1F), c.input);
    const auto b = rounded(gpu::normals(generator, c.columns), c.input);
    const auto y = rounded(gpu::normals(generator, c.rows * output_stride), c.output);
    Array input(backend, x, c.input), weight(backend, w, c.input), bias(backend, b, c.input);
    Array output(backend, y, c.output);
    if (!c.accumulate) {
      backend.fill(output, 0xff, static_cast<std::uint64_t>(c.rows * output_stride * gpu::size_of(c.output)));
    }
    skv_matmul_params p = {};
    p.input_type = p.weight_type = c.input;
    p.output_type = c.output;
    p.input = input;
    p.weight = weight;
    p.bias = c.bias ? bias.get() : nullptr;
    p.output = output;
    p.rows = c.rows;
    p.columns = c.columns;
    p.inner = c.inner;
    p.input_stride = input_stride;
    p.output_stride = output_stride;
    p.accumulate = c.accumulate;
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_MATMUL, &p));
    backend.matmul(p);
    const auto all = output.values(c.output);
    std::vector<float> actual;
    std::vector<double> expected, magnitude;
    bool gaps_kept = true;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      for (std::int64_t column = 0; column < output_stride; ++column) {
        const auto at = static_cast<std::size_t>(row * output_stride + column);
        if (column >= c.columns) {
          gaps_kept = gaps_kept && (c.accumulate ? all[at] == y[at] : std::isnan(all[at]));
          continue;
        }
        double sum = 0, absolute = 0;
        for (std::int64_t i = 0; i < c.inner; ++i) {
          const double term = static_cast<double>(x[static_cast<std::size_t>(row * input_stride + i)]) *
                              static_cast<double>(w[static_cast<std::size_t>(column * c.inner + i)]);
          sum += term;
          absolute += std::fabs(term);
        }
        double outside = 0;
        if (c.bias) {
          sum += static_cast<double>(b[static_cast<std::size_t>(column)]);
          outside += std::fabs(static_cast<double>(b[static_cast<std::size_t>(column)]));
        }
        if (c.accumulate) {
          sum += static_cast<double>(y[at]);
          outside += std::fabs(static_cast<double>(y[at]));
        }
        actual.push_back(all[at]);
        expected.push_back(sum);
        // fp32 sums of `inner` terms; the output is rounded once, behind the bias and what it held.
        magnitude.push_back(gpu::kF32Epsilon * std::sqrt(static_cast<double>(c.inner)) * 4 * (absolute + outside) +
                            once(c.output, sum));
      }
    }
    CHECK(gaps_kept);
    check_all("matmul " + std::to_string(c.rows) + "x" + std::to_string(c.columns) + "x" + std::to_string(c.inner),
              actual, expected, [&](std::size_t i) { return magnitude[i]; });
  }
}

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  auto generator = check::fresh_generator();
  convert(*backend, generator);
  add(*backend, generator);
  silu(*backend, generator);
  rms_norm(*backend, generator);
  embed(*backend, generator);
  argmax(*backend, generator);
  random_fill(*backend, generator);
  const auto without = gpu::open(reason, "none");
  for (skv::Backend* const each : {backend.get(), without.get()}) {
    const std::string library = each->describe_blas();
    std::printf("%s\n", library.c_str());
    const bool blas = library.rfind("cuBLAS ", 0) == 0 && library.find("not found") == std::string::npos;
    CHECK(each != without.get() || !blas);
    matmul(*each, generator, blas);
    matmul_alone(*each, generator, blas);
  }
  return check::verdict();
}
