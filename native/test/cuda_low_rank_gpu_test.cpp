// Low-rank keys: factorization, projection, rebuilding, against double precision.
#include "build_fixture.h"
#include "coefficient_layout.h"

namespace {

using gpu::Array;
using gpu::at;
using gpu::check_all;
using gpu::Doubles;
using gpu::kBf16Epsilon;
using gpu::keys_of;
using gpu::kF32Epsilon;
using gpu::label;
using gpu::rounded;

// Random orthonormal rows over the joint width, as [K][r][D].
std::vector<float> basis_of(std::mt19937_64& generator, std::int64_t heads, std::int64_t head_dim, std::int64_t rank) {
  const std::int64_t width = heads * head_dim;
  std::vector<Doubles> rows;
  std::normal_distribution<double> normal;
  for (std::int64_t j = 0; j < rank; ++j) {
    Doubles row(at(width));
    for (double& x : row) {
      x = normal(generator);
    }
    for (int pass = 0; pass < 2; ++pass) {
      for (const Doubles& other : rows) {
        double dot = 0;
        for (std::size_t i = 0; i < row.size(); ++i) {
          dot += row[i] * other[i];
        }
        for (std::size_t i = 0; i < row.size(); ++i) {
          row[i] -= dot * other[i];
        }
      }
      double squares = 0;
      for (const double x : row) {
        squares += x * x;
      }
      for (double& x : row) {
        x /= std::sqrt(squares);
      }
    }
    rows.push_back(row);
  }
  std::vector<float> basis(at(rank * width));
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t j = 0; j < rank; ++j) {
      for (std::int64_t d = 0; d < head_dim; ++d) {
        basis[at((head * rank + j) * head_dim + d)] = static_cast<float>(rows[at(j)][at(head * head_dim + d)]);
      }
    }
  }
  return rounded(basis, SKV_BF16);
}

// "... i8": what is made of coefficients of eight bits.
std::string named(const char* what, std::int32_t coefficient_type) {
  return std::string(what) + (coefficient_type == SKV_I8 ? " i8" : "");
}

void rebuild_keys(skv::Backend& backend, std::mt19937_64& generator, std::int32_t coefficient_type) {
  // Whole numbers of a deviation of 40, of which few are clipped.
  const float size = coefficient_type == SKV_I8 ? 40 : 1;
  for (const auto& [head_dim, rank, pairing] :
       {std::tuple{128, 160, SKV_HALF_SPLIT}, std::tuple{64, 40, SKV_INTERLEAVED}, std::tuple{96, 64, SKV_HALF_SPLIT},
        std::tuple{256, 256, SKV_HALF_SPLIT}, std::tuple{50, 17, SKV_HALF_SPLIT}, std::tuple{16, 16, SKV_HALF_SPLIT}}) {
    const std::int64_t heads = 2, count = 139, first = 61, capacity = 150;
    const std::int32_t rotary_dim = head_dim == 64 ? 32 : head_dim;
    const gpu::Rotation rotation(rotary_dim, pairing, 10000, 1, 512);
    Array coarse = Array::of(backend, rotation.coarse), fine = Array::of(backend, rotation.fine);
    auto a = rounded(gpu::normals(generator, (first + count) * rank, size), coefficient_type);
    std::transform(a.begin(), a.end(), a.begin(), [](float x) { return std::max(x, -127.0F); });
    const auto b = rounded(gpu::normals(generator, heads * rank * head_dim, 0.2F / size), SKV_BF16);
    Array coefficients(backend, a, coefficient_type), basis(backend, b, SKV_BF16),
        keys(backend, heads * capacity * head_dim * 2);
    skv_rebuild_keys_params p = {};
    p.type = SKV_BF16;
    p.coefficient_type = coefficient_type;
    p.coefficients = coefficients;
    p.basis = basis;
    p.key_value_heads = static_cast<std::int32_t>(heads);
    p.head_dim = head_dim;
    p.rank = rank;
    p.first_position = first;
    p.count = count;
    p.rotated_keys = keys;
    p.capacity = capacity;
    p.rope = rotation.on(coarse, fine);
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_REBUILD_KEYS, &p));
    backend.rebuild_keys(p);
    const auto all = keys.values(SKV_BF16);
    std::vector<float> actual;
    Doubles expected, allowed;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t token = first; token < first + count; ++token) {
        Doubles x(at(head_dim));
        double absolute = 0;
        for (std::int64_t d = 0; d < head_dim; ++d) {
          double terms = 0;
          for (std::int64_t j = 0; j < rank; ++j) {
            const double term = static_cast<double>(a[at(token * rank + j)]) *
                                static_cast<double>(b[at((head * rank + j) * head_dim + d)]);
            x[at(d)] += term;
            terms += std::fabs(term);
          }
          absolute = std::max(absolute, terms);
        }
        const std::vector<float> head_keys(x.begin(), x.end());
        const Doubles y = rotation.rotate(head_keys.data(), head_dim, token);
        for (std::int64_t d = 0; d < head_dim; ++d) {
          actual.push_back(all[at((head * capacity + token % capacity) * head_dim + d)]);
          expected.push_back(y[at(d)]);
          allowed.push_back(kBf16Epsilon / 2 * std::fabs(y[at(d)]) + 8 * std::sqrt(rank) * kF32Epsilon * absolute);
        }
      }
    }
    check_all(label(named("rebuild_keys", coefficient_type).c_str(), head_dim, rank, pairing), actual, expected,
              [&](std::size_t i) { return allowed[i]; });
  }
}

void low_rank_project(skv::Backend& backend, std::mt19937_64& generator, std::int32_t coefficient_type) {
  const bool bytes = coefficient_type == SKV_I8;
  for (const auto& [heads, head_dim, rank, count, scaled] :
       {std::tuple{8, 128, 160, 100, true}, std::tuple{8, 128, 160, 100, false}, std::tuple{4, 64, 40, 8, true},
        std::tuple{2, 256, 256, 65, false}, std::tuple{3, 50, 17, 70, true}, std::tuple{3, 50, 17, 70, false},
        std::tuple{1, 16, 16, 5, false}, std::tuple{4, 96, 64, 16, true}}) {
    const std::int64_t width = heads * head_dim, stride = width + 16;
    auto x = rounded(gpu::normals(generator, count * stride), SKV_BF16);
    std::fill_n(x.begin() + 2 * stride, width, 0.0F);  // a key of zeros
    auto b = basis_of(generator, heads, head_dim, rank);
    std::vector<float> scales;
    for (int head = 0; head < heads; ++head) {
      scales.push_back(scaled ? std::ldexp(1.0F, static_cast<int>(generator() % 5) - 2) : 1.0F);
    }
    // Steps of which some make coefficients too large, and a direction that is not there.
    std::uniform_real_distribution<double> share(0.7, 4);
    std::vector<float> steps(at(rank), 1.0F);
    for (std::int64_t j = 0; j < rank && bytes; ++j) {
      double squares = 0;  // of the products' deviation
      for (std::int64_t i = 0; i < width; ++i) {
        const double scale = scales[at(i / head_dim)];
        squares += std::pow(b[at((i / head_dim * rank + j) * head_dim + i % head_dim)] * scale * scale, 2);
      }
      steps[at(j)] = j == 3 ? 0.0F : static_cast<float>(std::sqrt(squares) / 127 * share(generator));
      for (std::int64_t i = 0; i < width; ++i) {
        b[at((i / head_dim * rank + j) * head_dim + i % head_dim)] *= steps[at(j)];
      }
      if (const std::int64_t refined = refined_column(j, rank); refined >= 0) {
        steps[at(j)] = steps[at(refined)] / 254;
        for (std::int64_t i = 0; i < width; ++i) {
          const std::int64_t row = i / head_dim * rank;
          b[at((row + j) * head_dim + i % head_dim)] = b[at((row + refined) * head_dim + i % head_dim)] / 254;
        }
      }
    }
    b = rounded(b, SKV_BF16);
    Array keys(backend, x, SKV_BF16), basis(backend, b, SKV_BF16);
    Array coefficients(backend, count * rank * gpu::size_of(coefficient_type)), residual(backend, count * 4);
    Array head_scales(backend, scales, SKV_F32), coefficient_scales(backend, steps, SKV_F32);
    skv_low_rank_project_params p = {};
    p.type = SKV_BF16;
    p.coefficient_type = coefficient_type;
    p.coefficient_scales = bytes ? coefficient_scales.as<float>() : nullptr;
    p.head_scales = scaled ? head_scales.as<float>() : nullptr;
    p.keys = keys;
    p.count = count;
    p.key_stride = stride;
    p.key_value_heads = heads;
    p.head_dim = head_dim;
    p.rank = rank;
    p.basis = basis;
    p.coefficients = coefficients;
    p.residual = residual.as<float>();
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_LOW_RANK_PROJECT, &p));
    backend.low_rank_project(p);
    const auto actual = coefficients.values(coefficient_type);
    Doubles expected, allowed, missed;
    std::int64_t clamped = 0;
    for (std::int64_t token = 0; token < count; ++token) {
      Doubles rest(at(width));
      double whole = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        rest[at(i)] = x[at(token * stride + i)];
        whole += rest[at(i)] * rest[at(i)];
      }
      for (std::int64_t j = 0; j < rank; ++j) {
        double sum = 0, absolute = 0;
        for (std::int64_t i = 0; i < width; ++i) {
          const double scale = scales[at(i / head_dim)];
          const double term = static_cast<double>(x[at(token * stride + i)]) * scale * scale *
                              static_cast<double>(b[at((i / head_dim * rank + j) * head_dim + i % head_dim)]);
          sum += term;
          absolute += std::fabs(term);
        }
        const double roundings = 4 * std::sqrt(static_cast<double>(width)) * kF32Epsilon * absolute;
        const double unit = static_cast<double>(steps[at(j)]) * steps[at(j)];
        if (bytes) {
          double exact = unit > 0 ? sum / unit : 0;
          if (const std::int64_t refined = refined_column(j, rank); refined >= 0 && unit > 0) {
            exact -= static_cast<double>(actual[at(token * rank + refined)]) * steps[at(refined)] / steps[at(j)];
          }
          expected.push_back(std::min(std::max(exact, -127.0), 127.0));
          allowed.push_back(unit > 0 ? 0.5 + roundings / unit : 0);
          clamped += std::fabs(exact) > 130;
        } else {
          expected.push_back(sum);
          allowed.push_back(kBf16Epsilon / 2 * std::fabs(sum) + roundings);
        }
        // What the stored coefficient gives back.
        for (std::int64_t i = 0; i < width; ++i) {
          rest[at(i)] -= static_cast<double>(actual[at(token * rank + j)]) *
                         static_cast<double>(b[at((i / head_dim * rank + j) * head_dim + i % head_dim)]);
        }
      }
      double left = 0;
      for (const double r : rest) {
        left += r * r;
      }
      missed.push_back(whole > 0 ? left / whole : 0);
    }
    CHECK(clamped > 0 || !bytes);
    check_all(label(named("low_rank_project", coefficient_type).c_str(), width, rank, count), actual, expected,
              [&](std::size_t i) { return allowed[i]; });
    const std::string residual_name = named("low_rank_project residual", coefficient_type);
    check_all(label(residual_name.c_str(), width, rank, count), residual.values(SKV_F32), missed, [&](std::size_t i) {
      return 16 * std::sqrt(static_cast<double>(width)) * kF32Epsilon * (missed[i] + std::sqrt(missed[i]));
    });
  }
}

// Eigenvalues of a symmetric matrix, descending, by cyclic two-sided Jacobi.
Doubles eigenvalues(Doubles a, std::int64_t n) {
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0, diagonal = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        (i == j ? diagonal : off) += a[at(i * n + j)] * a[at(i * n + j)];
      }
    }
    if (off <= 1e-22 * diagonal) {
      break;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j) {
        const double x = a[at(i * n + j)];
        if (x == 0) {
          continue;
        }
        const double zeta = (a[at(j * n + j)] - a[at(i * n + i)]) / (2 * x);
        const double t = std::copysign(1.0, zeta) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta));
        const double c = 1 / std::sqrt(1 + t * t), s = c * t;
        // Rows only, then the symmetric columns from them: the matrix stays symmetric in memory.
        for (std::int64_t k = 0; k < n; ++k) {
          const double u = a[at(i * n + k)], v = a[at(j * n + k)];
          a[at(i * n + k)] = c * u - s * v;
          a[at(j * n + k)] = s * u + c * v;
        }
        for (std::int64_t k = 0; k < n; ++k) {
          const double u = a[at(k * n + i)], v = a[at(k * n + j)];
          a[at(k * n + i)] = c * u - s * v;
          a[at(k * n + j)] = s * u + c * v;
        }
      }
    }
  }
  Doubles values;
  for (std::int64_t i = 0; i < n; ++i) {
    values.push_back(a[at(i * n + i)]);
  }
  std::sort(values.rbegin(), values.rend());
  return values;
}

// Powers of two that bring the heads to the same mean square within a factor of two.
void check_scales(const std::vector<float>& keys, std::int64_t tokens, std::int64_t stride, std::int64_t heads,
                  std::int64_t dim, const std::vector<float>& scales) {
  Doubles squares(at(heads));
  double mean = 0;
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t i = 0; i < heads * dim; ++i) {
      const double x = keys[at(token * stride + i)];
      squares[at(i / dim)] += x * x;
      mean += x * x / static_cast<double>(heads);
    }
  }
  for (std::int64_t head = 0; head < heads; ++head) {
    const double scale = scales[at(head)];
    int exponent = 0;
    CHECK(std::frexp(scale, &exponent) == 0.5);
    const double after = squares[at(head)] * scale * scale;
    CHECK(mean == 0 ? scale == 1 : after <= 2.001 * mean && after >= mean / 2.001);
  }
}

// Coefficients a [tokens][r] of eight bits against keys and basis b, of which rows hold their steps. They are taken
// with the directions as they are rounded before their steps come in, which moves a product by two roundings of each
// term: independent, a root of three smaller than their bound on average.
void check_bytes(const std::string& what, const std::vector<float>& keys, std::int64_t tokens, std::int64_t stride,
                 std::int64_t heads, std::int64_t dim, const std::vector<float>& a, const std::vector<float>& b,
                 const std::vector<float>& steps) {
  const std::int64_t width = heads * dim, rank = static_cast<std::int64_t>(steps.size());
  std::vector<float> actual, largest(at(rank));
  Doubles expected, allowed;
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t j = 0; j < rank; ++j) {
      const float got = a[at(token * rank + j)];
      largest[at(j)] = std::max(largest[at(j)], std::fabs(got));
      if (token % 7 != 0) {
        continue;
      }
      double sum = 0, absolute = 0, squares = 0;
      for (std::int64_t i = 0; i < width; ++i) {
        const double term = static_cast<double>(keys[at(token * stride + i)]) *
                            static_cast<double>(b[at((i / dim * rank + j) * dim + i % dim)]);
        sum += term;
        absolute += std::fabs(term);
        squares += term * term;
      }
      const double unit = static_cast<double>(steps[at(j)]) * steps[at(j)];
      const double moved = 6 * kBf16Epsilon / 2 * std::sqrt(2.0 / 3 * squares) +
                           4 * std::sqrt(static_cast<double>(width)) * kF32Epsilon * absolute;
      const std::int64_t refined = refined_column(j, rank);
      const double coarse = refined < 0 || unit == 0 ? 0
                                                     : static_cast<double>(a[at(token * rank + refined)]) *
                                                           steps[at(refined)] / steps[at(j)];
      actual.push_back(got);
      expected.push_back(unit > 0 ? sum / unit - coarse : 0);
      allowed.push_back(unit > 0 ? 0.5 + moved / unit : 0);
    }
  }
  check_all(what + " coefficients", actual, expected, [&](std::size_t i) { return allowed[i]; });
  bool full = true;
  for (std::int64_t j = 0; j < rank; ++j) {
    const float most = largest[at(j)];
    full &= refined_column(j, rank) >= 0 ? most <= 127 : steps[at(j)] > 0 ? most == 63 || most == 64 : most == 0;
  }
  CHECK(full);
}

void low_rank_factor(skv::Backend& backend, std::mt19937_64& generator, std::int32_t coefficient_type) {
  const bool bytes = coefficient_type == SKV_I8;
  struct Case {
    std::int32_t heads, head_dim, rank, stored_rank;
    std::int64_t tokens, gap;
    double power;             // of the spectrum
    std::int64_t directions;  // 0: keys of zeros
    bool scaled = false;      // heads of unequal keys, brought to the same length
  };
  const Case cases[] = {
      {3, 96, 64, 0, 3001, 0, 0.7, 288},        {4, 64, 40, 48, 2500, 64, 1.0, 256},
      {2, 128, 160, 0, 1999, 0, 0.5, 256},      {2, 64, 64, 0, 40, 0, 0.7, 128},
      {3, 64, 64, 0, 1500, 0, 0.3, 20},         {2, 32, 64, 0, 900, 0, 0.7, 64},
      {2, 64, 32, 0, 1000, 0, 0.7, 0},          {1, 50, 17, 24, 777, 6, 1.5, 50},
      {5, 64, 256, 0, 2100, 0, 0.6, 320},       {4, 64, 40, 0, 1800, 64, 0.8, 256, true},
      {3, 50, 20, 24, 1003, 6, 0.7, 150, true}, {2, 64, 32, 0, 500, 0, 0.7, 0, true},
  };
  for (const Case& c : cases) {
    const std::int64_t width = static_cast<std::int64_t>(c.heads) * c.head_dim, stride = width + c.gap;
    const std::int64_t r = c.stored_rank ? c.stored_rank : c.rank;
    const auto x = keys_of(generator, c.tokens, width, c.power, c.directions);
    std::vector<float> strided(at(c.tokens * stride), 77.0F);
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      for (std::int64_t i = 0; i < width; ++i) {
        const float length = c.scaled ? std::ldexp(1.0F, -2 * static_cast<int>(i / c.head_dim)) : 1.0F;
        strided[at(token * stride + i)] = c.directions ? x[at(token * width + i)] * length : 0.0F;
      }
    }
    Array keys(backend, strided, SKV_BF16), basis(backend, width * r * 2);
    Array coefficients(backend, c.tokens * r * gpu::size_of(coefficient_type)), coefficient_scales(backend, r * 4);
    Array values(backend, c.rank * 4), energy(backend, 8), scales(backend, c.heads * 4);
    skv_low_rank_factor_params p = {};
    p.head_scales = c.scaled ? scales.as<float>() : nullptr;
    p.type = SKV_BF16;
    p.coefficient_type = coefficient_type;
    p.coefficient_scales = bytes ? coefficient_scales.as<float>() : nullptr;
    p.keys = keys;
    p.tokens = c.tokens;
    p.key_stride = stride;
    p.key_value_heads = c.heads;
    p.head_dim = c.head_dim;
    p.rank = c.rank;
    p.stored_rank = c.stored_rank;
    p.coefficients = coefficients;
    p.basis = basis;
    p.singular_values = values.as<float>();
    p.energy = energy.as<float>();
    backend.reserve_workspace(backend.workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &p));
    backend.low_rank_factor(p);
    auto a = coefficients.values(coefficient_type), b = basis.values(SKV_BF16), singular = values.values(SKV_F32);
    auto steps = bytes ? coefficient_scales.values(SKV_F32) : std::vector<float>(at(r), 1.0F);
    if (c.scaled) {
      // What is factored are the scaled keys, with the basis before its division.
      const auto scale = scales.values(SKV_F32);
      check_scales(strided, c.tokens, stride, c.heads, c.head_dim, scale);
      for (std::int64_t i = 0; i < width; ++i) {
        for (std::int64_t token = 0; token < c.tokens; ++token) {
          strided[at(token * stride + i)] *= scale[at(i / c.head_dim)];
        }
        for (std::int64_t j = 0; j < r; ++j) {
          b[at((i / c.head_dim * r + j) * c.head_dim + i % c.head_dim)] *= scale[at(i / c.head_dim)];
        }
      }
    }
    auto captured = energy.values(SKV_F32);
    const std::string what = label(named("low_rank_factor", coefficient_type).c_str(), c.tokens, width, c.rank);
    bool finite = true;
    for (auto* list : {&a, &b, &singular, &captured, &steps}) {
      for (const float value : *list) {
        finite = finite && std::isfinite(value);
      }
    }
    CHECK(finite);

    Doubles gram(at(width * width));
    double whole = 0;
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      for (std::int64_t i = 0; i < width; ++i) {
        const double u = strided[at(token * stride + i)];
        whole += u * u;
        for (std::int64_t j = 0; j < width; ++j) {
          gram[at(i * width + j)] += u * static_cast<double>(strided[at(token * stride + j)]);
        }
      }
    }
    const Doubles exact = whole > 0 ? eigenvalues(gram, width) : Doubles(at(width));
    double optimum = 0;
    const std::int64_t kept = bytes ? column_directions(c.rank, r) : c.rank;
    for (std::int64_t i = kept; i < width; ++i) {
      optimum += std::max(exact[at(i)], 0.0);
    }
    // Keys against what the stored factors give back.
    double missed = 0;
    for (std::int64_t token = 0; token < c.tokens; ++token) {
      Doubles rest(at(width));
      for (std::int64_t i = 0; i < width; ++i) {
        rest[at(i)] = strided[at(token * stride + i)];
      }
      for (std::int64_t j = 0; j < r; ++j) {
        const double coefficient = a[at(token * r + j)];
        for (std::int64_t i = 0; i < width; ++i) {
          rest[at(i)] -=
              coefficient * static_cast<double>(b[at((i / c.head_dim * r + j) * c.head_dim + i % c.head_dim)]);
        }
      }
      for (const double u : rest) {
        missed += u * u;
      }
    }
    // 1 % above the optimum, and the rounding of both factors to bf16: errors of up to half an epsilon, evenly
    // spread, have a mean square of a third of that for each factor.
    const double rounding = 2.0 / 3 * kBf16Epsilon * kBf16Epsilon / 4 * whole;
    std::printf("%s: error %.6g, optimum %.6g, rounding %.3g, keys %.6g\n", what.c_str(), std::sqrt(missed),
                std::sqrt(optimum), std::sqrt(rounding), std::sqrt(whole));
    // Of eight bits, half a step each at most.
    double halves = 0;
    for (const float step : steps) {
      halves += bytes ? static_cast<double>(c.tokens) * step * step / 4 : 0;
    }
    CHECK(std::sqrt(missed) <=
          std::sqrt(1.01 * 1.01 * optimum + 1.5 * rounding) + (1 + kBf16Epsilon) * std::sqrt(halves));

    const std::int64_t usable = std::min<std::int64_t>({kept, c.tokens, width});
    const auto direction = [&](std::int64_t j) { return bytes ? column_direction(j, r) : j; };
    const auto absent = [&](std::int64_t j) { return j >= c.rank || direction(j) >= usable; };
    bool orthonormal = true, zero_behind = true;
    for (std::int64_t j = 0; j < r; ++j) {
      for (std::int64_t k = 0; k <= j; ++k) {
        double dot = 0;
        for (std::int64_t i = 0; i < width; ++i) {
          dot += static_cast<double>(b[at((i / c.head_dim * r + j) * c.head_dim + i % c.head_dim)]) *
                 static_cast<double>(b[at((i / c.head_dim * r + k) * c.head_dim + i % c.head_dim)]);
        }
        if (absent(j) || absent(k)) {
          zero_behind = zero_behind && dot == 0 && (!bytes || !absent(j) || steps[at(j)] == 0);
          continue;
        }
        if (steps[at(j)] > 0 && steps[at(k)] > 0) {
          dot /= static_cast<double>(steps[at(j)]) * steps[at(k)];
        }
        const bool same = direction(k) == direction(j);
        if (same && singular[at(direction(j))] <= 1e-3F * singular[0]) {
          orthonormal = orthonormal && (std::fabs(dot - 1) <= kBf16Epsilon / 2 || dot == 0);
        } else {
          orthonormal = orthonormal && std::fabs(dot - (same ? 1 : 0)) <= kBf16Epsilon / 2;
        }
      }
      for (std::int64_t token = 0; absent(j) && token < c.tokens; ++token) {
        zero_behind = zero_behind && a[at(token * r + j)] == 0;
      }
    }
    double total = 0;
    for (std::int64_t j = 0; j < c.rank; ++j) {
      const double mine = singular[at(j)], best = std::sqrt(std::max(exact[at(j)], 0.0));
      const double before = j == 0 ? INFINITY : static_cast<double>(singular[at(j - 1)]);
      // No subspace holds more; the strong half is converged. What is small beside the largest is blurred by fp32: the
      // Gram matrix has rounding errors that grow with the root of the number of tokens.
      const double blur = std::sqrt(kF32Epsilon * std::sqrt(static_cast<double>(c.tokens)) * exact[0]);
      const double most = best * (1 + 1e-4) + blur;
      const bool converged = j < c.rank / 2 && best > 1e-2 * std::sqrt(exact[0]);
      const double least = converged ? best * (1 - 1e-3) : 0.0;
      if (!CHECK(mine <= before && mine <= most && mine >= least)) {
        std::fprintf(stderr, "%s: singular value %lld is %.9g, the one before %.9g, between %.9g and %.9g expected\n",
                     what.c_str(), static_cast<long long>(j), mine, before, least, most);
      }
      total += j < kept ? mine * mine : 0;
    }
    CHECK(orthonormal);
    CHECK(zero_behind);
    if (bytes) {
      check_bytes(what, strided, c.tokens, stride, c.heads, c.head_dim, a, b, steps);
    }
    CHECK_NEAR(captured[0], whole, whole * 1e-4);
    CHECK_NEAR(captured[1], whole > 0 ? total / whole : 1.0, 1e-4);
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
  for (const std::int32_t coefficient_type : {SKV_BF16, SKV_I8}) {
    rebuild_keys(*backend, generator, coefficient_type);
    low_rank_project(*backend, generator, coefficient_type);
  }
  const std::string blas = backend->describe_blas();
  std::printf("%s\n", blas.c_str());
  if (blas.rfind("cuBLAS was", 0) == 0) {
    skv_low_rank_factor_params p = {};
    p.type = p.coefficient_type = SKV_BF16;
    p.tokens = 1000;
    p.key_value_heads = 2;
    p.head_dim = 64;
    p.rank = 16;
    backend->reserve_workspace(backend->workspace_bytes(SKV_OP_LOW_RANK_FACTOR, &p));
    CHECK(gpu::throws(SKV_NOT_AVAILABLE, [&] { backend->low_rank_factor(p); }));
  } else {
    low_rank_factor(*backend, generator, SKV_BF16);
    low_rank_factor(*backend, generator, SKV_I8);
  }
  return check::verdict();
}
