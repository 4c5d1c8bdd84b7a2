// The basis that predicts values from coefficients, against its definition in double precision.
#include "build_fixture.h"
#include "coefficient_layout.h"

namespace {

using gpu::Array;
using gpu::at;
using gpu::check_all;
using gpu::Doubles;
using gpu::kBf16Epsilon;
using gpu::kF32Epsilon;

struct Case {
  std::int32_t head_dim, heads, rank;
  std::int64_t tokens, first_position;
  std::int64_t spare;  // rows of the ring that hold none of the tokens
  std::int32_t coefficient_type = SKV_BF16;
};

std::string label(const Case& c) {
  return gpu::label("value_fit", c.head_dim, c.heads, c.rank) + ", " + std::to_string(c.tokens) + " tokens from " +
         std::to_string(c.first_position) + (c.coefficient_type == SKV_I8 ? ", i8" : "");
}

// Columns of a falling spectrum; of the last four, one is as small as one that counts may be, one smaller than that,
// and two are zero.
double size_of_column(std::int64_t column, std::int64_t rank) {
  const std::int64_t from_last = rank - 1 - column;
  if (column > 0 && from_last < 4) {
    return from_last == 3 ? 64 * 0x1p-9 : from_last == 2 ? 64 * 0x1p-11 : 0;
  }
  return 64 / std::pow(static_cast<double>(column + 1), 0.8);
}

// [tokens][r]: orthogonal to bf16's rounding where there are more tokens than columns.
Doubles orthogonal_columns(std::mt19937_64& generator, std::int64_t tokens, std::int64_t rank) {
  std::normal_distribution<double> normal;
  std::vector<Doubles> columns(at(rank), Doubles(at(tokens)));
  for (std::int64_t j = 0; j < rank; ++j) {
    Doubles& column = columns[at(j)];
    for (double& x : column) {
      x = normal(generator);
    }
    for (std::int64_t i = 0; i < j && tokens > 2 * rank; ++i) {
      const Doubles& other = columns[at(i)];
      double dot = 0, squares = 0;
      for (std::size_t t = 0; t < column.size(); ++t) {
        dot += column[t] * other[t];
        squares += other[t] * other[t];
      }
      for (std::size_t t = 0; t < column.size(); ++t) {
        column[t] -= dot / squares * other[t];
      }
    }
  }
  Doubles rows(at(tokens * rank));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < rank; ++j) {
      rows[at(t * rank + j)] = columns[at(j)][at(t)] * size_of_column(j, rank);
    }
  }
  return rows;
}

// Columns of whole numbers, each as large as they may be.
Doubles whole_columns(const Doubles& rows, std::int64_t rank) {
  Doubles largest(at(rank), 0.0), whole(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double& most = largest[i % at(rank)];
    most = std::max(most, std::fabs(rows[i]));
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const double most = largest[i % at(rank)];
    whole[i] = most > 0 ? std::nearbyint(rows[i] / most * 127) : 0;
  }
  return whole;
}

// Coefficients by position and values in a ring. What belongs to no token is NaN, or what no I8 coefficient is.
struct Input {
  Input(const Case& c, std::mt19937_64& generator)
      : shape(c),
        capacity(c.tokens + c.spare),
        coefficients(at((c.first_position + c.tokens + 3) * c.rank), c.coefficient_type == SKV_I8 ? -128.0F : NAN),
        values(at(c.heads * capacity * c.head_dim), NAN) {
    Doubles rows = orthogonal_columns(generator, c.tokens, c.rank);
    if (c.coefficient_type == SKV_I8) {
      rows = whole_columns(rows, c.rank);
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      coefficients[at(c.first_position * c.rank) + i] = static_cast<float>(rows[i]);
    }
    coefficients = gpu::rounded(coefficients, c.coefficient_type);
    // Values that the coefficients explain in part.
    const auto truth = gpu::normals(generator, std::int64_t{c.heads} * c.rank * c.head_dim, 0.02F);
    std::normal_distribution<float> normal;
    for (std::int64_t head = 0; head < c.heads; ++head) {
      for (std::int64_t t = 0; t < c.tokens; ++t) {
        for (std::int64_t d = 0; d < c.head_dim; ++d) {
          float x = 0.3F + 0.5F * normal(generator);
          for (std::int64_t j = 0; j < c.rank; ++j) {
            x += coefficient(t, j) * truth[at((head * c.rank + j) * c.head_dim + d)];
          }
          values[value_at(head, t, d)] = x;
        }
      }
    }
    values = gpu::rounded(values, SKV_BF16);
  }

  float coefficient(std::int64_t token, std::int64_t j) const {
    return coefficients[at((shape.first_position + token) * shape.rank + j)];
  }
  std::size_t value_at(std::int64_t head, std::int64_t token, std::int64_t d) const {
    return at((head * capacity + (shape.first_position + token) % capacity) * shape.head_dim + d);
  }

  Case shape;
  std::int64_t capacity;
  std::vector<float> coefficients, values;
};

// [K][r][D]: the fit, and the sums of its terms' magnitudes, both over the column's sum of squares.
struct Fit {
  Doubles basis, size;
};

Fit fit_of(const Input& in) {
  const Case& c = in.shape;
  Doubles squares(at(c.rank), 0.0);
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    for (std::int64_t j = 0; j < c.rank; ++j) {
      squares[at(j)] += static_cast<double>(in.coefficient(t, j)) * in.coefficient(t, j);
    }
  }
  const double largest = *std::max_element(squares.begin(), squares.end());
  Fit fit{Doubles(at(std::int64_t{c.heads} * c.rank * c.head_dim)), {}};
  fit.size = fit.basis;
  for (std::int64_t head = 0; head < c.heads; ++head) {
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      for (std::int64_t j = 0; j < c.rank; ++j) {
        const bool bytes = c.coefficient_type == SKV_I8;
        if (squares[at(j)] <= (bytes ? 0 : 0x1p-20 * largest) || (bytes && refined_column(j, c.rank) >= 0)) {
          continue;
        }
        const double factor = in.coefficient(t, j) / squares[at(j)];
        double* const row = &fit.basis[at((head * c.rank + j) * c.head_dim)];
        double* const sizes = &fit.size[at((head * c.rank + j) * c.head_dim)];
        const float* const value = &in.values[in.value_at(head, t, 0)];
        for (std::int64_t d = 0; d < c.head_dim; ++d) {
          row[d] += factor * value[d];
          sizes[d] += std::fabs(factor * value[d]);
        }
      }
    }
  }
  return fit;
}

void value_fit(skv::Backend& backend, std::mt19937_64& generator, const Case& c) {
  const Input in(c, generator);
  const Fit expected = fit_of(in);
  Array coefficients(backend, in.coefficients, c.coefficient_type), values(backend, in.values, SKV_BF16);
  // Poison behind the result.
  constexpr std::size_t kGuard = 64;
  const std::size_t count = expected.basis.size();
  Array basis(backend, static_cast<std::int64_t>(count + kGuard) * 2);
  skv_value_fit_params p = {};
  p.struct_size = sizeof p;
  p.storage_type = SKV_BF16;
  p.coefficient_type = c.coefficient_type;
  p.key_value_heads = c.heads;
  p.head_dim = c.head_dim;
  p.rank = c.rank;
  p.coefficients = coefficients;
  p.values = values;
  p.capacity = in.capacity;
  p.first_position = c.first_position;
  p.tokens = c.tokens;
  p.value_basis = basis;
  const auto run = [&] {
    backend.fill(basis, 0xff, (count + kGuard) * 2);
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_VALUE_FIT, &p));
    backend.value_fit(p);
    return basis.bytes();
  };
  const auto bits = run();
  auto actual = gpu::decode(bits, SKV_BF16);
  CHECK(std::all_of(actual.begin() + static_cast<std::ptrdiff_t>(count), actual.end(),
                    [](float x) { return std::isnan(x); }));
  actual.resize(count);
  // A tensor core adds 8 or 16 products at once and may cut the sum off instead of rounding it: an epsilon of it. The
  // sum of squares errs no more. Then one rounding to bf16.
  const double roundings = static_cast<double>(c.tokens) / 8 + 8;
  check_all(label(c), actual, expected.basis, [&](std::size_t i) {
    return roundings * kF32Epsilon * (expected.size[i] + std::fabs(expected.basis[i])) +
           kBf16Epsilon / 2 * std::fabs(expected.basis[i]);
  });
  for (int repeat = 0; repeat < 3; ++repeat) {
    CHECK(run() == bits);
  }
  // No tokens: rows of zeros.
  p.tokens = 0;
  const auto none = gpu::decode(run(), SKV_BF16);
  CHECK(std::all_of(none.begin(), none.begin() + static_cast<std::ptrdiff_t>(count), [](float x) { return x == 0; }));
}

void refusals(skv::Backend& backend) {
  skv_value_fit_params p = {};
  p.key_value_heads = 1;
  p.head_dim = 64;
  p.rank = 32;
  for (const std::int32_t type : {SKV_F32, SKV_F16}) {
    p.storage_type = p.coefficient_type = type;
    CHECK(gpu::throws(SKV_UNSUPPORTED, [&] { backend.value_fit(p); }));
  }
  p.storage_type = SKV_BF16;
  for (const std::int32_t type : {SKV_F32, SKV_F16, SKV_F8_E4M3}) {
    p.coefficient_type = type;
    CHECK(gpu::throws(SKV_UNSUPPORTED, [&] { backend.value_fit(p); }));
  }
}

}  // namespace

int main() {
  std::string reason;
  auto backend = gpu::open(reason);
  if (!backend) {
    return check::skip(reason.c_str());
  }
  const std::string blas = backend->describe_blas();
  if (blas.rfind("cuBLAS was", 0) == 0) {
    return check::skip(blas.c_str());
  }
  auto generator = check::fresh_generator();
  for (const Case& c : check::cases<Case>({
           {128, 8, 160, 5003, 0, 0},
           {128, 2, 160, 5003, 7777, 61},  // wraps around the ring
           {128, 1, 160, 40961, 13, 5},    // several runs, the last one short
           {128, 2, 40, 1000, 123, 0},
           {128, 2, 250, 1000, 5001, 24},
           {64, 4, 72, 1000, 3, 1},
           {64, 2, 40, 7, 10, 2},
           {96, 3, 100, 5003, 1, 100},
           {96, 2, 32, 1, 99, 4},
           {128, 2, 160, 1, 0, 0},
           {128, 2, 160, 7, 16, 9},
           {256, 1, 256, 1000, 40, 8},
           {80, 3, 33, 1000, 500, 17},
           {34, 2, 20, 333, 5, 3},
           {2, 1, 16, 100, 9, 0},
       })) {
    value_fit(*backend, generator, c);
    Case bytes = c;
    bytes.coefficient_type = SKV_I8;
    value_fit(*backend, generator, bytes);
  }
  if (!gpu::on_cpu()) {
    refusals(*backend);
  }
  return check::verdict();
}
