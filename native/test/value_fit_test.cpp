// The basis that predicts values from coefficients, on the CPU, against least squares in double precision, on every
// instruction set of this processor.
#include <cstdio>

#include "check.h"
#include "coefficient_layout.h"
#include "decode_batch.h"

namespace {

using namespace decode;

// Coefficients and a ring of values, of which [first, first + tokens) count; the rest of both is NaN, or what no I8
// coefficient is.
struct Tokens {
  Tokens(int type, int coefficient_type, int h, int d, int r, std::int64_t from, std::int64_t number)
      : heads(h),
        dim(d),
        rank(r),
        first(from),
        tokens(number),
        capacity(number + 9),
        coefficients(coefficient_type, (from + number + 3) * r),
        values(type, h * capacity * d) {
    for (std::int64_t i = 0; i < coefficients.count(); ++i) {
      coefficients.set(i, bytes() ? -128 : std::nan(""));
    }
    for (std::int64_t i = 0; i < values.count(); ++i) {
      values.set(i, std::nan(""));
    }
  }

  bool bytes() const { return coefficients.type() == SKV_I8; }
  std::int64_t value_row(std::int64_t head, std::int64_t t) const {
    return (head * capacity + (first + t) % capacity) * dim;
  }

  // Columns of a falling spectrum, the last three: zero, below what counts and above it; those of eight bits all have
  // steps of their own, and the last but one is as short as one may be. Values follow them in part.
  void fill() {
    std::normal_distribution<double> normal;
    Array map(SKV_F32, heads * rank * dim);
    map.fill(generator, 0.3);
    // As long as a column may be against the longest and still be rounding alone.
    const int type = values.type();
    const double edge = type == SKV_BF16 ? 0x1p-10 : 0x1p-12;
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<double> row;
      for (std::int64_t j = 0; j < rank; ++j) {
        const std::int64_t last = rank - 1 - j;
        const double size = last > 2    ? 3.0 / std::sqrt(1.0 + static_cast<double>(j))
                            : last == 2 ? 6.0 * edge
                            : last == 1 ? 1.5 * edge
                                        : 0;
        const double strength = normal(generator);
        const double whole = last == 0   ? 0
                             : last == 1 ? (t == tokens / 2 ? -1 : 0)
                                         : std::clamp(std::nearbyint(strength * 35), -127.0, 127.0);
        coefficients.set((first + t) * rank + j, bytes() ? whole : size * strength);
        row.push_back(size == 0 ? 0 : coefficients[(first + t) * rank + j] / (bytes() ? 35 : size));
      }
      for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t d = 0; d < dim; ++d) {
          double value = 0.5 * normal(generator);
          for (std::int64_t j = 0; j < rank; ++j) {
            value += row[static_cast<std::size_t>(j)] * map[(head * rank + j) * dim + d];
          }
          values.set(value_row(head, t) + d, value);
        }
      }
    }
  }

  skv_value_fit_params params(Array& value_basis) {
    skv_value_fit_params p{};
    p.struct_size = sizeof(p);
    p.storage_type = values.type();
    p.coefficient_type = coefficients.type();
    p.key_value_heads = static_cast<std::int32_t>(heads);
    p.head_dim = static_cast<std::int32_t>(dim);
    p.rank = static_cast<std::int32_t>(rank);
    p.coefficients = coefficients.data();
    p.values = values.data();
    p.capacity = capacity;
    p.first_position = first;
    p.tokens = tokens;
    p.value_basis = value_basis.data();
    return p;
  }

  std::int64_t heads, dim, rank, first, tokens, capacity;
  Array coefficients, values;
};

void check_fit(const Tokens& from, const Array& value_basis) {
  double worst = 0;
  bool good = true;
  for (std::int64_t j = 0; j < from.rank; ++j) {
    double squares = 0;
    for (std::int64_t t = 0; t < from.tokens; ++t) {
      squares += std::pow(from.coefficients[(from.first + t) * from.rank + j], 2);
    }
    for (std::int64_t i = 0; i < from.heads * from.dim; ++i) {
      const std::int64_t head = i / from.dim, d = i % from.dim;
      const double got = value_basis[(head * from.rank + j) * from.dim + d];
      if (j >= from.rank - (from.bytes() ? 1 : 2) || (from.bytes() && refined_column(j, from.rank) >= 0)) {
        good = got == 0 && good;
        continue;
      }
      double sum = 0, size = 0;
      for (std::int64_t t = 0; t < from.tokens; ++t) {
        const double term =
            from.coefficients[(from.first + t) * from.rank + j] * from.values[from.value_row(head, t) + d];
        sum += term;
        size += std::fabs(term);
      }
      // Blocks of 128 tokens, blocks of a piece and pieces one after the other, above the line and below it.
      const double roundings = 2 * (128 + static_cast<double>(from.tokens) / 128 / 16 + 16 + 4);
      const double allowed = check::tolerance(value_basis.type(), sum / squares, roundings, size / squares);
      good = check::near(got, sum / squares, allowed) && good;
      worst = std::max(worst, std::fabs(got - sum / squares) / allowed);
    }
  }
  CHECK(value_basis.guard_intact());
  if (!CHECK(good)) {
    std::fprintf(stderr, "  value_fit, set %d, type %d, D %d, r %d: %.2f of what is allowed\n", instruction_set,
                 value_basis.type(), static_cast<int>(from.dim), static_cast<int>(from.rank), worst);
  }
}

void test_fit(int type, int coefficient_type, int heads, int dim, int rank, std::int64_t first, std::int64_t tokens) {
  Tokens from(type, coefficient_type, heads, dim, rank, first, tokens);
  from.fill();
  Array value_basis(type, static_cast<std::int64_t>(heads) * rank * dim);
  auto p = from.params(value_basis);
  RUN(value_fit, p);
  check_fit(from, value_basis);
  const Array before = value_basis;
  for (const int threads : {1, 3, 7}) {
    value_basis.fill(generator);
    RUN(value_fit, p, threads);
    CHECK(value_basis == before);
  }
  p.tokens = 0;
  p.coefficients = p.values = nullptr;
  RUN(value_fit, p);
  bool zero = true;
  for (std::int64_t i = 0; i < value_basis.count(); ++i) {
    zero = value_basis[i] == 0 && zero;
  }
  CHECK(zero);
}

// Solves a x = b for a symmetric positive a [n][n], b [n][columns], in place.
void solve(std::vector<double>& a, std::vector<double>& b, std::size_t n, std::size_t columns) {
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t row = i + 1; row < n; ++row) {
      const double factor = a[row * n + i] / a[i * n + i];
      for (std::size_t j = i; j < n; ++j) {
        a[row * n + j] -= factor * a[i * n + j];
      }
      for (std::size_t c = 0; c < columns; ++c) {
        b[row * columns + c] -= factor * b[i * columns + c];
      }
    }
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t c = 0; c < columns; ++c) {
      for (std::size_t j = i + 1; j < n; ++j) {
        b[i * columns + c] -= a[i * n + j] * b[j * columns + c];
      }
      b[i * columns + c] /= a[i * n + i];
    }
  }
}

// What is missed of the values by a . basis, as a sum of squares.
double missed(const Tokens& from, const std::vector<double>& basis) {
  double sum = 0;
  for (std::int64_t head = 0; head < from.heads; ++head) {
    for (std::int64_t t = 0; t < from.tokens; ++t) {
      for (std::int64_t d = 0; d < from.dim; ++d) {
        double value = from.values[from.value_row(head, t) + d];
        for (std::int64_t j = 0; j < from.rank; ++j) {
          value -= from.coefficients[(from.first + t) * from.rank + j] *
                   basis[static_cast<std::size_t>((head * from.rank + j) * from.dim + d)];
        }
        sum += value * value;
      }
    }
  }
  return sum;
}

// Row by row is least squares where the coefficients are those of a factorization, also as they are rounded: nearly as
// good as the solution of the normal equations. What is off their diagonal comes from the rounding of the basis that
// coefficients are taken with: it brings a part e of the longest column into the others, e^2 = u^2 / width on average,
// so that what is missed of the values grows by e^2 times the sum, over the columns, of (longest / own length)^2. Whole
// numbers are off by a twelfth of a unit squared on average, which brings a part of 1 / (12 * tokens) (1/a^2 + 1/b^2)
// of one column, squared, into another, where a and b are the mean magnitudes of their numbers: for every column, that
// sum over the others at most. What a refinement stands for is not fitted: of its direction a twelfth of a unit
// squared.
void check_least_squares(int type, int coefficient_type) {
  constexpr int kHeads = 2, kDim = 48, kRank = 24, kTokens = 700, kDirections = 30;
  Tokens from(type, coefficient_type, kHeads, kDim, kRank, 0, kTokens);
  std::normal_distribution<double> normal;
  Array keys(type, static_cast<std::int64_t>(kTokens) * kHeads * kDim),
      directions(SKV_F32, kDirections * kHeads * kDim), follow(SKV_F32, kDirections * kHeads * kDim);
  directions.fill(generator);
  follow.fill(generator, 0.5);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    std::vector<double> strength;
    for (int j = 0; j < kDirections; ++j) {
      // The first is the mean of all keys.
      strength.push_back((j == 0 ? 4.0 : 2.0 * normal(generator)) / (1.0 + 0.5 * j));
    }
    for (std::int64_t i = 0; i < kHeads * kDim; ++i) {
      double key = 0.02 * normal(generator), value = 0.3 * normal(generator);
      for (int j = 0; j < kDirections; ++j) {
        key += strength[static_cast<std::size_t>(j)] * directions[j * kHeads * kDim + i];
        value += strength[static_cast<std::size_t>(j)] * follow[j * kHeads * kDim + i];
      }
      keys.set(t * kHeads * kDim + i, key);
      from.values.set(from.value_row(i / kDim, t) + i % kDim, value);
    }
  }
  Array basis(type, static_cast<std::int64_t>(kHeads) * kRank * kDim), value_basis(type, basis.count());
  skv_low_rank_factor_params f{};
  f.struct_size = sizeof(f);
  Array steps(SKV_F32, kRank);
  f.type = type;
  f.coefficient_type = coefficient_type;
  f.coefficient_scales = from.bytes() ? steps.as<float>() : nullptr;
  f.keys = keys.data();
  f.tokens = kTokens;
  f.key_value_heads = kHeads;
  f.head_dim = kDim;
  f.rank = kRank;
  f.coefficients = from.coefficients.data();
  f.basis = basis.data();
  RUN(low_rank_factor, f);
  RUN(value_fit, from.params(value_basis));
  const std::size_t rank = kRank, width = kHeads * kDim;
  std::vector<double> normal_matrix(rank * rank), right(rank * width), fitted, best(rank * width);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::size_t i = 0; i < rank; ++i) {
      const double a = from.coefficients[t * kRank + static_cast<std::int64_t>(i)];
      for (std::size_t j = 0; j < rank; ++j) {
        normal_matrix[i * rank + j] += a * from.coefficients[t * kRank + static_cast<std::int64_t>(j)];
      }
      for (std::size_t c = 0; c < width; ++c) {
        const std::int64_t column = static_cast<std::int64_t>(c);
        right[i * width + c] += a * from.values[from.value_row(column / kDim, t) + column % kDim];
      }
    }
  }
  std::vector<double> squares;
  double bytes_spread = 0;  // of the longest row of the sum
  double unrefined = 0;
  for (std::size_t i = 0; i < rank; ++i) {
    const double step = from.bytes() ? steps[static_cast<std::int64_t>(i)] : 1;
    squares.push_back(normal_matrix[i * rank + i] * step * step);
    double row_sum = 0;
    for (std::size_t j = 0; j < rank && from.bytes(); ++j) {
      row_sum += (1 / normal_matrix[i * rank + i] + 1 / normal_matrix[j * rank + j]) / 12;
    }
    bytes_spread = std::max(bytes_spread, row_sum);
    if (const std::int64_t of = refined_column(static_cast<std::int64_t>(i), kRank); from.bytes() && of >= 0) {
      unrefined += kTokens / normal_matrix[static_cast<std::size_t>(of) * (rank + 1)] / 12;
    }
  }
  solve(normal_matrix, right, rank, width);
  for (std::size_t i = 0; i < rank; ++i) {
    for (std::size_t c = 0; c < width; ++c) {
      best[(c / kDim * rank + i) * kDim + c % kDim] = right[i * width + c];
    }
  }
  for (std::int64_t i = 0; i < value_basis.count(); ++i) {
    fitted.push_back(value_basis[i]);
  }
  const double least = missed(from, best), got = missed(from, fitted),
               nothing = missed(from, std::vector<double>(best.size()));
  double spread = 0;
  for (const double square : squares) {
    spread += *std::max_element(squares.begin(), squares.end()) / square;
  }
  // Chance makes the sum of a row's squares no more than three times its mean: six deviations of rank of them.
  const double off = std::pow(check::roundoff(type), 2) * spread / static_cast<double>(width) +
                     kRank * std::pow(16 * kUnit, 2) + 3 * bytes_spread + unrefined;
  std::printf(
      "  type %d, coefficients %d: least squares miss %.5f of the values, the fit %.1e of them more, %.1e is "
      "allowed\n",
      type, coefficient_type, least / nothing, (got - least) / nothing, off);
  CHECK(least < 0.5 * nothing);
  CHECK(got <= least + off * nothing);
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  for (instruction_set = 1; instruction_set <= static_cast<int>(skv::cpu::best_instruction_set()); ++instruction_set) {
    for (const bool bytes : {false, true}) {
      const auto coefficient = [&](int type) { return bytes ? static_cast<int>(SKV_I8) : type; };
      const auto fit = [&](int type, auto... shape) { test_fit(type, coefficient(type), shape...); };
      fit(SKV_F32, 2, 64, 40, 0, 200);
      fit(SKV_BF16, 2, 128, 160, 11, 333);
      fit(SKV_BF16, 1, 128, 33, 0, 4999);  // more pieces than there may be
      fit(SKV_F16, 3, 96, 47, 5, 129);
      fit(SKV_BF16, 2, 70, 21, 1000, 77);
      fit(SKV_F32, 1, 2, 16, 3, 900);
      fit(SKV_BF16, 1, 256, 255, 1, 128);
      for (const int type : {SKV_F32, SKV_BF16, SKV_F16}) {
        check_least_squares(type, coefficient(type));
      }
    }
    std::printf("instruction set %d done\n", instruction_set);
  }
  return check::verdict();
}
