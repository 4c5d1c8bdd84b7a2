// The factorization against a singular value decomposition in double precision by one-sided Jacobi rotations,
// with and without a BLAS.
#include <chrono>
#include <ctime>

#include "blas/cpu_blas.h"
#include "coefficient_layout.h"
#include "operands.h"

namespace {

using check::Array;
using check::Bench;

// Singular values of a [rows][columns], descending.
std::vector<double> singular_values(std::vector<double> a, std::int64_t rows, std::int64_t columns) {
  const auto column = [&](std::int64_t r, std::int64_t c) -> double& {
    return a[static_cast<std::size_t>(r * columns + c)];
  };
  for (int sweep = 0; sweep < 60; ++sweep) {
    double worst = 0;
    for (std::int64_t p = 0; p < columns; ++p) {
      for (std::int64_t q = p + 1; q < columns; ++q) {
        double pp = 0, qq = 0, pq = 0;
        for (std::int64_t r = 0; r < rows; ++r) {
          pp += column(r, p) * column(r, p);
          qq += column(r, q) * column(r, q);
          pq += column(r, p) * column(r, q);
        }
        const double off = std::fabs(pq) / std::sqrt(pp * qq + 1e-300);
        worst = std::max(worst, off);
        if (off < 1e-14) {
          continue;
        }
        const double zeta = (qq - pp) / (2 * pq);
        const double t = (zeta >= 0 ? 1.0 : -1.0) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta));
        const double c = 1 / std::sqrt(1 + t * t), s = c * t;
        for (std::int64_t r = 0; r < rows; ++r) {
          const double x = column(r, p), y = column(r, q);
          column(r, p) = c * x - s * y;
          column(r, q) = s * x + c * y;
        }
      }
    }
    if (worst < 1e-13) {
      break;
    }
  }
  std::vector<double> values;
  for (std::int64_t c = 0; c < columns; ++c) {
    double sum = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      sum += column(r, c) * column(r, c);
    }
    values.push_back(std::sqrt(sum));
  }
  std::sort(values.rbegin(), values.rend());
  return values;
}

// Keys as a model makes them: a strong common direction and a spectrum that falls as k^-decay.
void fill_keys(Array& keys, std::int64_t tokens, std::int64_t stride, std::int64_t width, std::int64_t true_rank,
               double decay, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> mixing(static_cast<std::size_t>(true_rank * width));
  for (double& x : mixing) {
    x = normal(random);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<double> key(static_cast<std::size_t>(width), 0.0);
    for (std::int64_t k = 0; k < true_rank; ++k) {
      const double weight = (normal(random) + (k == 0 ? 5.0 : 0.0)) * std::pow(static_cast<double>(k + 1), -decay);
      for (std::int64_t i = 0; i < width; ++i) {
        key[static_cast<std::size_t>(i)] += weight * mixing[static_cast<std::size_t>(k * width + i)];
      }
    }
    for (std::int64_t i = 0; i < width; ++i) {
      keys.set(t * stride + i, key[static_cast<std::size_t>(i)]);
    }
  }
}

struct Case {
  std::int32_t type;
  std::int64_t tokens;
  int heads, dim, rank, stored_rank;
  std::int64_t true_rank;
  double decay;
  bool bytes = false;   // coefficients of eight bits
  bool scaled = false;  // heads of unequal keys, brought to the same length
};

// What stays below this share of the largest direction's sum of squares is rounding alone.
double rounding_share(std::int32_t type) {
  return type == SKV_BF16 ? 0x1p-20 : 0x1p-24;
}

// The same keys projected on the basis give what the factorization gave, to a step and what moves their products, `off`
// steps.
void check_projected(Bench& bench, const skv_low_rank_factor_params& f, const Array& factored,
                     const std::vector<double>& off) {
  const std::int32_t stored = f.stored_rank ? f.stored_rank : f.rank;
  Array coefficients(SKV_I8, factored.count());
  skv_low_rank_project_params p = {};
  p.struct_size = sizeof(p);
  p.type = f.type;
  p.coefficient_type = f.coefficient_type;
  p.keys = f.keys;
  p.count = f.tokens;
  p.key_stride = f.key_stride;
  p.key_value_heads = f.key_value_heads;
  p.head_dim = f.head_dim;
  p.rank = stored;
  p.basis = f.basis;
  p.coefficients = coefficients.data();
  p.head_scales = f.head_scales;
  p.coefficient_scales = f.coefficient_scales;
  auto execution = bench.with(skv::cpu::low_rank_project_workspace(p, bench.traits()));
  skv::cpu::low_rank_project(p, execution);
  bool same = true;
  for (std::int64_t i = 0; i < factored.count(); ++i) {
    // A refinement with what it refines, in its steps.
    const std::int64_t refined = refined_column(i % stored, stored);
    const auto whole = [&](const Array& of) {
      return refined < 0 ? of[i] : of[i] + of[i - i % stored + refined] * 254;
    };
    same &= check::near(whole(coefficients), whole(factored), 1 + off[static_cast<std::size_t>(i)]);
  }
  CHECK(same);
  CHECK(coefficients.guard_intact());
}

void test(Bench& bench, const Case& c, std::mt19937_64& random) {
  const std::int64_t width = static_cast<std::int64_t>(c.heads) * c.dim, stride = width + 5;
  const std::int64_t stored = c.stored_rank ? c.stored_rank : c.rank;
  const std::int32_t coefficient_type = c.bytes ? SKV_I8 : c.type;
  Array keys(c.type, c.tokens * stride), coefficients(coefficient_type, c.tokens * stored),
      basis(c.type, c.heads * stored * c.dim), values(SKV_F32, c.rank), energy(SKV_F32, 2), steps(SKV_F32, stored),
      head_scales(SKV_F32, c.heads);
  fill_keys(keys, c.tokens, stride, width, c.true_rank, c.decay, random);
  for (std::int64_t i = 0; i < c.tokens * width && c.scaled; ++i) {
    const std::int64_t at = i / width * stride + i % width;
    keys.set(at, std::ldexp(keys[at], -3 * static_cast<int>(i % width / c.dim)));
  }
  skv_low_rank_factor_params p = {};
  p.struct_size = sizeof(p);
  p.type = c.type;
  p.coefficient_type = coefficient_type;
  p.coefficient_scales = c.bytes ? steps.as<float>() : nullptr;
  p.head_scales = c.scaled ? head_scales.as<float>() : nullptr;
  p.keys = keys.data();
  p.tokens = c.tokens;
  p.key_stride = stride;
  p.key_value_heads = c.heads;
  p.head_dim = c.dim;
  p.rank = c.rank;
  p.stored_rank = c.stored_rank;
  p.coefficients = coefficients.data();
  p.basis = basis.data();
  p.singular_values = values.as<float>();
  p.energy = energy.as<float>();
  auto execution = bench.with(skv::cpu::low_rank_factor_workspace(p, bench.traits()));
  skv::cpu::low_rank_factor(p, execution);

  const auto head_scale = [&](std::int64_t i) { return c.scaled ? head_scales[i / c.dim] : 1.0; };
  const auto step = [&](std::int64_t j) { return c.bytes ? steps[j] : 1.0; };
  // What is factored are the scaled keys.
  std::vector<double> dense, head_squares(static_cast<std::size_t>(c.heads));
  double total = 0;
  for (std::int64_t i = 0; i < c.tokens * width; ++i) {
    dense.push_back(keys[i / width * stride + i % width] * head_scale(i % width));
    total += dense.back() * dense.back();
    head_squares[static_cast<std::size_t>(i % width / c.dim)] += dense.back() * dense.back();
  }
  for (int head = 0; head < c.heads && c.scaled; ++head) {
    int exponent = 0;
    CHECK(std::frexp(head_scales[head], &exponent) == 0.5);
    // Each scale is the power of two next to what its head lacks of the mean of all.
    CHECK(head_squares[static_cast<std::size_t>(head)] <= 4.01 * head_squares[0] &&
          head_squares[0] <= 4.01 * head_squares[static_cast<std::size_t>(head)]);
  }
  const std::vector<double> exact = singular_values(dense, c.tokens, width);
  const std::int64_t found = std::min<std::int64_t>({c.rank, c.tokens, width});
  const std::int64_t directions = std::min(found, c.bytes ? column_directions(c.rank, stored) : c.rank);
  const auto direction = [&](std::int64_t j) { return c.bytes ? column_direction(j, stored) : j; };
  double kept = 0, dropped = 0;
  for (std::int64_t i = 0; i < width; ++i) {
    (i < directions ? kept : dropped) += exact[static_cast<std::size_t>(i)] * exact[static_cast<std::size_t>(i)];
  }
  // Rows that the coefficients belong to, of the scaled keys.
  const auto basis_at = [&](std::int64_t j, std::int64_t i) {
    return basis[(i / c.dim * stored + j) * c.dim + i % c.dim] * head_scale(i);
  };
  // Directions that are there; of eight bits, not those that are rounding alone.
  const double largest = exact[0] * exact[0];
  std::vector<bool> there;
  double steps_squared = 0;
  for (std::int64_t j = 0; j < stored; ++j) {
    there.push_back(j < c.rank && direction(j) < directions && (!c.bytes || steps[j] != 0));
    steps_squared += c.bytes ? steps[j] * steps[j] : 0;
    if (c.bytes) {
      const double length = j < c.rank && direction(j) < directions ? exact[static_cast<std::size_t>(direction(j))] : 0;
      const double own = length * length;
      CHECK(steps[j] >= 0 && std::isfinite(steps[j]));
      CHECK(!there.back() || own >= 0.5 * rounding_share(c.type) * largest);
      CHECK(there.back() || own <= 2 * rounding_share(c.type) * largest);
    }
  }

  // Within 1 % of the optimum; the stored coefficients and basis each add their type's rounding of the whole, those of
  // eight bits half a step each.
  double missed = 0;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    for (std::int64_t i = 0; i < width; ++i) {
      double rebuilt = 0;
      for (std::int64_t j = 0; j < stored; ++j) {
        rebuilt += coefficients[t * stored + j] * basis_at(j, i);
      }
      const double off = dense[static_cast<std::size_t>(t * width + i)] - rebuilt;
      missed += off * off;
    }
  }
  const double u = check::roundoff(c.type);
  const double accumulated = 0x1p-24 * std::sqrt(static_cast<double>(width));
  const double halves = 0.5 * std::sqrt(static_cast<double>(c.tokens) * steps_squared) * (1 + u);
  if (!CHECK(std::sqrt(missed) <= 1.01 * std::sqrt(dropped) + (3 * u + accumulated) * std::sqrt(total) + halves)) {
    std::fprintf(stderr, "type %d, %lld x %lld, rank %d: error %.6g, optimum %.6g of %.6g\n", c.type,
                 static_cast<long long>(c.tokens), static_cast<long long>(width), c.rank, std::sqrt(missed),
                 std::sqrt(dropped), std::sqrt(total));
  }
  // Orthonormal rows, to the rounding of their elements; zeros behind them.
  bool orthonormal = true, coefficients_right = true;
  for (std::int64_t j = 0; j < stored; ++j) {
    for (std::int64_t l = j; l < stored; ++l) {
      double product = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        product += basis_at(j, i) * basis_at(l, i);
      }
      orthonormal &= there[static_cast<std::size_t>(j)] && there[static_cast<std::size_t>(l)]
                         ? check::near(product / (step(j) * step(l)), direction(j) == direction(l), 2 * u + 1e-6)
                     : j == l ? product == 0
                              : true;
    }
    // The element of largest magnitude is positive; rounding may have made others as large.
    double most = 0, least = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      most = std::max(most, basis_at(j, i));
      least = std::min(least, basis_at(j, i));
    }
    orthonormal &= most >= -least;
  }
  CHECK(orthonormal);
  // Coefficients belong to the basis as it is stored. Those of eight bits are taken with the directions as they are
  // rounded before their steps come in, which moves a product by two roundings of each term: independent, a root of
  // three smaller than their bound on average.
  std::vector<double> off(static_cast<std::size_t>(c.tokens * stored));  // in steps, what that may come to
  for (std::int64_t j = 0; j < stored; ++j) {
    double most = 0, most_off = 0, most_stored = 0;
    for (std::int64_t t = 0; t < c.tokens; ++t) {
      double sum = 0, bound = 0, squares = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        const double term = dense[static_cast<std::size_t>(t * width + i)] * basis_at(j, i);
        sum += term;
        bound += std::fabs(term);
        squares += term * term;
      }
      const double got = coefficients[t * stored + j];
      if (!c.bytes) {
        coefficients_right &= check::near(got, sum, check::tolerance(c.type, sum, static_cast<double>(width), bound));
        continue;
      }
      if (!there[static_cast<std::size_t>(j)]) {
        coefficients_right &= got == 0;
        continue;
      }
      const double unit = step(j) * step(j), accumulation = static_cast<double>(width + 4) * 0x1p-24 * bound;
      double& moved = off[static_cast<std::size_t>(t * stored + j)];
      moved = (6 * u * std::sqrt(2.0 / 3 * squares) + accumulation) / unit;
      const std::int64_t refined = refined_column(j, stored);
      const double coarse = refined < 0 ? 0 : coefficients[t * stored + refined] * step(refined) / step(j);
      coefficients_right &= check::near(got, sum / unit - coarse, 0.5 + moved);
      most = std::max(most, std::fabs(sum / unit));
      most_off = std::max(most_off, moved);
      most_stored = std::max(most_stored, std::fabs(got));
    }
    if (c.bytes && there[static_cast<std::size_t>(j)] && refined_column(j, stored) < 0) {
      coefficients_right &= (most_stored == 63 || most_stored == 64) && check::near(most, 63.5, most_off);
    }
  }
  CHECK(coefficients_right);
  if (c.bytes) {
    check_projected(bench, p, coefficients, off);
  }
  CHECK_NEAR(energy[0], total, 2e-7 * total * 4);
  CHECK_NEAR(energy[1], kept / total, 0.01 * (dropped / total) + 1e-6);
  bool values_right = true;
  for (std::int64_t j = 0; j < c.rank; ++j) {
    const double expected = j < found ? exact[static_cast<std::size_t>(j)] : 0;
    // Of the square, what the subspace misses (1 % of what is dropped) and the Gram matrix rounds.
    const double slack = 0.01 * dropped + 1e-6 * total;
    values_right &= check::near(values[j] * values[j], expected * expected, slack + 1e-6 * expected * expected);
    values_right &= j == 0 || values[j] <= values[j - 1];
  }
  CHECK(values_right);
  CHECK(coefficients.guard_intact() && basis.guard_intact() && values.guard_intact() && energy.guard_intact());
  CHECK(steps.guard_intact() && head_scales.guard_intact());

  // The same again: the same to the bit.
  const Array first_coefficients = coefficients, first_basis = basis;
  auto again = bench.with(0);
  skv::cpu::low_rank_factor(p, again);
  CHECK(coefficients == first_coefficients && basis == first_basis);
}

void test_not_finite(Bench& bench) {
  Array keys(SKV_F32, 20 * 32), coefficients(SKV_F32, 20 * 16), basis(SKV_F32, 32 * 16), values(SKV_F32, 16),
      energy(SKV_F32, 2);
  for (std::int64_t i = 0; i < keys.count(); ++i) {
    keys.set(i, 1);
  }
  keys.set(5, std::nan(""));
  skv_low_rank_factor_params p = {};
  p.struct_size = sizeof(p);
  p.type = p.coefficient_type = SKV_F32;
  p.keys = keys.data();
  p.tokens = 20;
  p.key_value_heads = 1;
  p.head_dim = 32;
  p.rank = 16;
  p.coefficients = coefficients.data();
  p.basis = basis.data();
  skv_status status = SKV_OK;
  try {
    auto execution = bench.with(0);
    skv::cpu::low_rank_factor(p, execution);
  } catch (const skv::Error& error) {
    status = error.status();
  }
  CHECK_EQUAL(status, SKV_INVALID_ARGUMENT);
}

// Not part of the test: one layer of an 8B Llama, bf16.
void measure(Bench& bench, std::int64_t tokens, std::mt19937_64& random) {
  const int heads = 8, dim = 128, rank = 160;
  const std::int64_t width = heads * dim;
  Array keys(SKV_BF16, tokens * width), coefficients(SKV_BF16, tokens * rank), basis(SKV_BF16, width * rank),
      values(SKV_F32, rank), energy(SKV_F32, 2);
  std::vector<float> mixed(static_cast<std::size_t>(width));
  std::normal_distribution<float> normal;
  // Scaled coordinates: the spectrum is that of the scales; a rotation would change no error.
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < width; ++i) {
      keys.set(t * width + i, normal(random) * std::pow(static_cast<float>(i + 1), -0.75F));
    }
  }
  skv_low_rank_factor_params p = {};
  p.struct_size = sizeof(p);
  p.type = p.coefficient_type = SKV_BF16;
  p.keys = keys.data();
  p.tokens = tokens;
  p.key_value_heads = heads;
  p.head_dim = dim;
  p.rank = rank;
  p.coefficients = coefficients.data();
  p.basis = basis.data();
  p.singular_values = values.as<float>();
  p.energy = energy.as<float>();
  auto execution = bench.with(0);
  const auto begin = std::chrono::steady_clock::now();
  const std::clock_t processor_begin = std::clock();
  skv::cpu::low_rank_factor(p, execution);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double processor = static_cast<double>(std::clock() - processor_begin) / static_cast<double>(CLOCKS_PER_SEC);
  double missed = 0, optimum = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < width; ++i) {
      const double x = keys[t * width + i];
      optimum += i >= rank ? x * x : 0;  // of cutting coordinates: at most a little above the true optimum
    }
  }
  const std::int64_t sampled = std::min<std::int64_t>(tokens, 2000);
  double sampled_optimum = 0;
  for (std::int64_t s = 0; s < sampled; ++s) {
    const std::int64_t t = s * (tokens / sampled);
    for (std::int64_t i = 0; i < width; ++i) {
      double rebuilt = 0;
      for (int j = 0; j < rank; ++j) {
        rebuilt += coefficients[t * rank + j] * basis[(i / dim * rank + j) * dim + i % dim];
      }
      const double x = keys[t * width + i];
      missed += (x - rebuilt) * (x - rebuilt);
      sampled_optimum += i >= rank ? x * x : 0;
    }
  }
  std::printf(
      "%lld x %lld bf16, rank %d: %.2f s, %.2f processor seconds; error of %lld tokens %.4f of cutting "
      "coordinates; energy captured %.5f, by cutting %.5f\n",
      static_cast<long long>(tokens), static_cast<long long>(width), rank, seconds, processor,
      static_cast<long long>(sampled), std::sqrt(missed / sampled_optimum), energy[1], 1 - optimum / energy[0]);
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937_64 random = check::fresh_generator();
  const int best = static_cast<int>(skv::cpu::best_instruction_set());
  const char* const blas = std::getenv("SHADOWKV_TEST_BLAS");
  // "none" is a path where nothing is: what is installed is then found all the same, so name a file of another kind.
  if (argc > 1 && std::string(argv[1]) == "speed") {
    Bench bench(skv::cpu::ThreadPool::processors(), best);
    bench.blas_path = blas ? blas : "";
    const auto library = skv::blas::find_cpu(bench.blas_path);
    std::printf("BLAS: %s\n", library ? library->describe().c_str() : "none");
    measure(bench, argc > 2 ? std::atoll(argv[2]) : 122880, random);
    return 0;
  }
  const Case cases[] = {{SKV_F32, 300, 3, 32, 24, 0, 96, 0.7},
                        {SKV_BF16, 300, 2, 64, 40, 48, 128, 1.0},
                        {SKV_F16, 257, 1, 96, 17, 0, 96, 0.5},
                        {SKV_F32, 200, 2, 40, 80, 0, 80, 1.2},  // full rank
                        {SKV_F32, 20, 2, 32, 40, 64, 64, 0.5},  // fewer tokens than directions
                        {SKV_F32, 700, 4, 32, 30, 0, 9, 0.3},   // of lower rank than asked for
                        {SKV_BF16, 1100, 2, 38, 16, 16, 76, 0.75},
                        {SKV_F32, 1, 1, 16, 16, 16, 3, 0.1},
                        {SKV_F32, 300, 3, 32, 24, 0, 96, 0.7, false, true},
                        {SKV_F32, 300, 3, 32, 24, 0, 96, 0.7, true},
                        {SKV_BF16, 300, 2, 64, 40, 48, 128, 1.0, true},
                        {SKV_F16, 257, 1, 96, 17, 0, 96, 0.5, true},
                        {SKV_F32, 20, 2, 32, 40, 64, 64, 0.5, true},
                        {SKV_F32, 700, 4, 32, 30, 0, 9, 0.3, true},
                        {SKV_BF16, 500, 2, 48, 40, 48, 12, 0.4, true},
                        {SKV_BF16, 400, 3, 40, 33, 40, 120, 0.6, true, true},
                        {SKV_F32, 1, 1, 16, 16, 16, 3, 0.1, true}};
  for (int set = 1; set <= best; ++set) {
    Bench bench(set, set);
    bench.blas_path = blas ? blas : "";
    for (const Case& c : cases) {
      test(bench, c, random);
    }
    test_not_finite(bench);
  }
  return check::verdict();
}
