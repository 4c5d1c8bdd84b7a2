#include <algorithm>
#include <cmath>
#include <vector>

#include "blas/cpu_blas.h"
#include "coefficient_columns.h"
#include "cpu/basis.h"
#include "cpu/dot_products.h"
#include "cpu/subspace.h"
#include "head_scales.h"

// Keys ~ coefficients . basis without a singular value decomposition of the keys:
//
//   G = keys^T . keys                            products in fp32 over 512 tokens, summed in fp64
//   Q = random; repeat: Q = orthonormal(G . Q)   block subspace iteration, `oversampling` directions too many
//   T = Q . G . Q^T = U^T . diag . U             Rayleigh-Ritz: the best directions within the subspace
//   basis = U . Q, coefficients = keys . basis^T with the basis as it is stored
//
// Heads are scaled in G, and never in the keys. I8 coefficients are rounded once the largest of each direction is
// known.
namespace skv::cpu {
namespace {

constexpr std::int32_t kDefaultOversampling = 32;
constexpr std::int32_t kDefaultIterations = 6;
// Tokens of a partial Gram matrix: its fp32 sums stay short.
constexpr std::int64_t kTokens = 512;
// Rows and columns of G that one thread computes at a time; a multiple of every instruction set's tile.
constexpr std::int64_t kTile = 48;
constexpr std::int64_t kTokenStride = kTokens + 16;  // not a power of two: see basis.h

// G [width][width], both triangles. Floor: tokens * width^2 operations, half of them by symmetry; bound by the
// multipliers.
std::vector<double> gram_matrix(const skv_low_rank_factor_params& p, std::int64_t width, std::int64_t key_stride,
                                Execution& execution) {
  std::vector<double> gram(static_cast<std::size_t>(width * width), 0.0);
  std::vector<float> transposed(static_cast<std::size_t>(width * kTokenStride));  // [width][tokens]
  const Widen widen = widen_function(p.type, execution.set);
  const RowProducts products = row_products_function(SKV_F32, execution.set);
  const std::int64_t tiles = (width + kTile - 1) / kTile;
  for (std::int64_t first = 0; first < p.tokens; first += kTokens) {
    const std::int64_t tokens = std::min(kTokens, p.tokens - first);
    constexpr std::int64_t kWidened = 16;
    execution.pool.parallel_ranges(width, SKV_MAX_HEAD_DIM, [&](std::int64_t begin, std::int64_t end) {
      float rows[kWidened][SKV_MAX_HEAD_DIM];
      for (std::int64_t t = 0; t < tokens; t += kWidened) {
        const std::int64_t here = std::min(kWidened, tokens - t);
        for (std::int64_t i = 0; i < here; ++i) {
          widen(element_at(p.keys, p.type, (first + t + i) * key_stride + begin), rows[i], end - begin);
        }
        for (std::int64_t column = begin; column < end; ++column) {
          float* const target = transposed.data() + column * kTokenStride + t;
          for (std::int64_t i = 0; i < here; ++i) {
            target[i] = rows[i][column - begin];
          }
        }
      }
    });
    execution.pool.parallel_for(tiles * tiles, [&](std::int64_t index) {
      const std::int64_t row = index / tiles * kTile, column = index % tiles * kTile;
      if (column < row) {
        return;
      }
      const std::int64_t rows = std::min(kTile, width - row), columns = std::min(kTile, width - column);
      float part[kTile * kTile] = {};
      products(transposed.data() + row * kTokenStride, kTokenStride, rows, transposed.data() + column * kTokenStride,
               kTokenStride, columns, tokens, part, kTile);
      for (std::int64_t i = 0; i < rows; ++i) {
        double* const target = gram.data() + (row + i) * width + column;
        for (std::int64_t j = 0; j < columns; ++j) {
          target[j] += static_cast<double>(part[i * kTile + j]);
        }
      }
    });
  }
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = 0; j < i; ++j) {
      gram[static_cast<std::size_t>(i * width + j)] = gram[static_cast<std::size_t>(j * width + i)];
    }
  }
  return gram;
}

double trace(const std::vector<double>& gram, std::int64_t width, std::int64_t first, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = first; i < first + count; ++i) {
    sum += gram[static_cast<std::size_t>(i * width + i)];
  }
  return sum;
}

// Scales of the heads, and the Gram matrix of the keys scaled by them.
void scale_heads(std::vector<double>& gram, std::int64_t heads, std::int64_t dim, float* scales) {
  const std::int64_t width = heads * dim;
  const double mean = trace(gram, width, 0, width) / static_cast<double>(heads);
  for (std::int64_t head = 0; head < heads; ++head) {
    scales[head] = head_scale(static_cast<float>(trace(gram, width, head * dim, dim)), static_cast<float>(mean));
  }
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = 0; j < width; ++j) {
      gram[static_cast<std::size_t>(i * width + j)] *= static_cast<double>(scales[i / dim]) * scales[j / dim];
    }
  }
}

// A direction and its opposite serve equally well: the element of largest magnitude becomes positive.
void fix_sign(double* direction, std::int64_t width) {
  const double* const largest =
      std::max_element(direction, direction + width, [](double a, double b) { return std::fabs(a) < std::fabs(b); });
  if (*largest < 0) {
    for (std::int64_t i = 0; i < width; ++i) {
      direction[i] = -direction[i];
    }
  }
}

// basis [K][stored_rank][D] from directions [usable][K*D], zero behind them; times the scale of the column, if given.
void store_basis(const skv_low_rank_factor_params& p, const Subspace& subspace, std::int64_t usable,
                 std::int64_t stored_rank, const float* coefficient_scales, const Execution& execution) {
  const Narrow narrow = narrow_function(p.type, execution.set);
  const std::int64_t dim = p.head_dim, width = p.key_value_heads * dim;
  float row[SKV_MAX_HEAD_DIM] = {};
  for (std::int64_t i = 0; i < p.key_value_heads * stored_rank; ++i) {
    const std::int64_t head = i / stored_rank, column = i % stored_rank;
    const std::int64_t j =
        p.coefficient_type == SKV_I8 ? direction_of(static_cast<int>(column), static_cast<int>(stored_rank)) : column;
    const bool there = column < p.rank && j < usable;
    const float scale = coefficient_scales ? coefficient_scales[column] : 1.0F;
    const float head_scale = p.head_scales ? p.head_scales[head] : 1.0F;  // a power of two
    for (std::int64_t d = 0; d < dim; ++d) {
      const auto at = static_cast<std::size_t>(j * width + head * dim + d);
      row[d] = there ? static_cast<float>(subspace.directions[at]) * scale / head_scale : 0.0F;
    }
    narrow(row, element_at(p.basis, p.type, i * dim), dim);
  }
}

// Scales of I8 coefficients, and those [tokens][stored_rank] rounded by them. What is rounding alone becomes zero: with
// a scale of its own it would be as large as any direction.
void scale_coefficients(const skv_low_rank_factor_params& p, const std::vector<float>& exact, const Subspace& subspace,
                        std::int64_t usable, std::int64_t stored_rank, Execution& execution) {
  constexpr std::int64_t kAtOnce = 256;
  const int rank = static_cast<int>(stored_rank);
  const std::int64_t blocks = (p.tokens + kAtOnce - 1) / kAtOnce;
  std::vector<float> parts(static_cast<std::size_t>(blocks * stored_rank), 0.0F);  // largest magnitudes of each block
  execution.pool.parallel_for(blocks, [&](std::int64_t block) {
    float* const largest = parts.data() + block * stored_rank;
    for (std::int64_t t = block * kAtOnce; t < std::min((block + 1) * kAtOnce, p.tokens); ++t) {
      const float* const row = exact.data() + t * stored_rank;
      for (std::int64_t j = 0; j < stored_rank; ++j) {
        largest[j] = std::max(largest[j], std::fabs(row[j]));
      }
    }
  });
  const double least = subspace.values[0] * static_cast<double>(rounding_share(p.type));
  for (int j = 0; j < rank; ++j) {
    float largest = 0;
    for (std::int64_t block = 0; block < blocks; ++block) {
      largest = std::max(largest, parts[static_cast<std::size_t>(block * stored_rank + j)]);
    }
    const int direction = direction_of(j, rank);
    const bool there = direction < usable && subspace.values[static_cast<std::size_t>(direction)] > least;
    p.coefficient_scales[j] =
        there ? coefficient_scale(largest) / (is_refinement(j, rank) ? kRefinementSteps : 1.0F) : 0.0F;
  }
  execution.pool.parallel_ranges(p.tokens, kAtOnce, [&](std::int64_t begin, std::int64_t end) {
    auto* const to = static_cast<std::int8_t*>(p.coefficients);
    for (std::int64_t t = begin; t < end; ++t) {
      const float* const from = exact.data() + t * stored_rank;
      std::int8_t* const row = to + t * stored_rank;
      for (int j = 0; j < rank; ++j) {
        const float scale = p.coefficient_scales[j];
        const float had = is_refinement(j, rank) ? static_cast<float>(row[j - 1]) * kRefinementSteps : 0.0F;
        row[j] = from_float<std::int8_t>(scale > 0 ? from[j] / scale - had : 0.0F);
      }
    }
  });
}

}  // namespace

// keys [tokens][K*D] -> coefficients [tokens][r], basis [K][r][D]. Floor: (width^2 + 2*rank*width) operations a
// token. Not part of the decode path: allocates (8*width^2 bytes and a few blocks of directions; of I8 coefficients
// 4*tokens*r bytes too).
void low_rank_factor(const skv_low_rank_factor_params& p, Execution& execution) {
  const std::int64_t dim = p.head_dim, width = p.key_value_heads * dim;
  const std::int64_t key_stride = p.key_stride ? p.key_stride : width;
  const std::int64_t stored_rank = p.stored_rank ? p.stored_rank : p.rank;
  const std::int64_t usable = std::min<std::int64_t>({p.rank, p.tokens, width});
  const std::int64_t oversampling = p.oversampling ? p.oversampling : kDefaultOversampling;
  const std::int64_t block = std::min<std::int64_t>(usable + oversampling, width);
  const std::shared_ptr<const blas::Cpu> library = blas::find_cpu(execution.blas_path);

  std::vector<double> gram = gram_matrix(p, width, key_stride, execution);
  if (!std::isfinite(trace(gram, width, 0, width))) {
    throw Error(SKV_INVALID_ARGUMENT, "skv_low_rank_factor: keys hold a number that is not finite");
  }
  if (p.head_scales) {
    scale_heads(gram, p.key_value_heads, dim, p.head_scales);
  }
  const double energy = trace(gram, width, 0, width);
  Subspace subspace = dominant_subspace(gram, width, usable, block, p.iterations ? p.iterations : kDefaultIterations,
                                        execution, library.get());

  // The basis as it is stored, then in floats again as the coefficients are taken with.
  for (std::int64_t j = 0; j < usable; ++j) {
    fix_sign(subspace.directions.data() + j * width, width);
  }
  store_basis(p, subspace, usable, stored_rank, nullptr, execution);
  std::vector<float> rows(static_cast<std::size_t>(stored_rank * padded_row(width)));
  std::vector<float> scratch(
      static_cast<std::size_t>(execution.pool.threads() * projection_scratch(width, stored_rank)));
  unpack_basis(p.basis, p.type, p.key_value_heads, stored_rank, dim, p.head_scales, rows.data(), nullptr, execution);
  const bool bytes = p.coefficient_type == SKV_I8;
  std::vector<float> exact(bytes ? static_cast<std::size_t>(p.tokens * stored_rank) : 0);
  project_keys({p.type, bytes ? SKV_F32 : p.coefficient_type, p.keys, p.tokens, key_stride, width, stored_rank,
                rows.data(), nullptr, bytes ? exact.data() : p.coefficients, stored_rank, nullptr, nullptr},
               scratch.data(), execution);
  if (bytes) {
    scale_coefficients(p, exact, subspace, usable, stored_rank, execution);
    store_basis(p, subspace, usable, stored_rank, p.coefficient_scales, execution);
  }

  const std::int64_t kept = bytes ? directions_of(p.rank, static_cast<int>(stored_rank)) : p.rank;
  double captured = 0;
  for (std::int64_t j = 0; j < p.rank; ++j) {
    const double value = j < usable ? subspace.values[static_cast<std::size_t>(j)] : 0.0;
    captured += j < kept ? value : 0.0;
    if (p.singular_values) {
      p.singular_values[j] = static_cast<float>(std::sqrt(value));
    }
  }
  if (p.energy) {
    p.energy[0] = static_cast<float>(energy);
    // Nothing of nothing is missed.
    p.energy[1] = energy > 0 ? static_cast<float>(std::min(captured / energy, 1.0)) : 1.0F;
  }
}

std::uint64_t low_rank_factor_workspace(const skv_low_rank_factor_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
