#include <algorithm>

#include "coefficient_columns.h"
#include "cpu/basis.h"
#include "cpu/dot_products.h"
#include "cpu/sums.h"

namespace skv::cpu {
namespace {

// Tokens that one thread projects at a time.
constexpr std::int64_t kTokens = 32;

// Of coefficients in steps: refinements become what rounding takes from their directions.
void subtract_refined(int rank, const float* scales, float* row) {
  for (int j = 0; j < rank; ++j) {
    if (is_refinement(j, rank) && row[j] != 0.0F) {
      row[j] -= to_float(from_float<std::int8_t>(row[j - 1])) * (scales[j - 1] / scales[j]);
    }
  }
}

}  // namespace

void unpack_basis(const void* basis, std::int32_t type, std::int64_t heads, std::int64_t rank, std::int64_t dim,
                  const float* head_scales, float* rows, float* columns, Execution& execution) {
  const Widen widen = widen_function(type, execution.set);
  const std::int64_t row_stride = padded_row(heads * dim), column_stride = padded_row(rank);
  execution.pool.parallel_for(heads * rank, [&](std::int64_t index) {
    const std::int64_t head = index / rank, j = index % rank;
    float piece[SKV_MAX_HEAD_DIM];
    widen(element_at(basis, type, index * dim), piece, dim);
    if (rows) {
      const float square = head_scales ? head_scales[head] * head_scales[head] : 1.0F;
      std::transform(piece, piece + dim, rows + j * row_stride + head * dim, [&](float x) { return x * square; });
    }
    if (columns) {
      for (std::int64_t d = 0; d < dim; ++d) {
        columns[(head * dim + d) * column_stride + j] = piece[d];
      }
    }
  });
}

std::int64_t projection_scratch(std::int64_t width, std::int64_t rank) {
  return kTokens * (2 * padded_row(width) + padded_row(rank));
}

void project_keys(const Projection& p, float* scratch, Execution& execution) {
  const Widen widen = widen_function(p.type, execution.set);
  const Widen widen_coefficients = widen_function(p.coefficient_type, execution.set);
  const Narrow narrow = narrow_function(p.coefficient_type, execution.set);
  const RowProducts products = row_products_function(SKV_F32, execution.set);
  const std::int64_t width_stride = padded_row(p.width), rank_stride = padded_row(p.rank);
  // A fold has few tokens: every thread gets some. A row's result does not depend on how they are divided.
  const std::int64_t share = (p.count + execution.pool.threads() - 1) / execution.pool.threads();
  const std::int64_t grain = std::clamp<std::int64_t>((share + 3) / 4 * 4, 4, kTokens);
  execution.pool.parallel_ranges(p.count, grain, [&](std::int64_t begin, std::int64_t end, int thread) {
    const std::int64_t tokens = end - begin;
    float* const keys = scratch + thread * projection_scratch(p.width, p.rank);
    float* const rebuilt = keys + kTokens * width_stride;
    float* const coefficients = rebuilt + kTokens * width_stride;
    for (std::int64_t t = 0; t < tokens; ++t) {
      widen(element_at(p.keys, p.type, (begin + t) * p.key_stride), keys + t * width_stride, p.width);
    }
    std::fill_n(coefficients, tokens * rank_stride, 0.0F);
    products(keys, width_stride, tokens, p.rows, width_stride, p.rank, p.width, coefficients, rank_stride);
    for (std::int64_t t = 0; t < tokens; ++t) {
      void* const target = element_at(p.coefficients, p.coefficient_type, (begin + t) * p.coefficient_stride);
      float* const row = coefficients + t * rank_stride;
      for (std::int64_t j = 0; p.coefficient_scales && j < p.rank; ++j) {
        const float scale = p.coefficient_scales[j];
        row[j] = scale > 0 ? row[j] / (scale * scale) : 0.0F;
      }
      if (p.coefficient_scales) {
        subtract_refined(static_cast<int>(p.rank), p.coefficient_scales, row);
      }
      narrow(row, target, p.rank);
      if (p.residual) {
        widen_coefficients(target, row, p.rank);
      }
    }
    if (p.residual) {
      std::fill_n(rebuilt, tokens * width_stride, 0.0F);
      products(coefficients, rank_stride, tokens, p.columns, rank_stride, p.width, p.rank, rebuilt, width_stride);
      for (std::int64_t t = 0; t < tokens; ++t) {
        const float* const key = keys + t * width_stride;
        const float whole = dot(key, key, p.width);
        const float missed = squared_distance(key, rebuilt + t * width_stride, p.width);
        p.residual[begin + t] = whole > 0 ? missed / whole : 0.0F;
      }
    }
  });
}

// keys [count][K*D], basis [K][r][D] -> coefficients [count][r], residual [count]. Floor: 4*count*r*K*D operations
// with residual, half of that without, and the basis through memory once; a fold of a few chunks is bound by
// unpacking the basis.
void low_rank_project(const skv_low_rank_project_params& p, Execution& execution) {
  execution.workspace.require(low_rank_project_workspace(p, execution.traits()), "skv_low_rank_project");
  const std::int64_t width = static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
  float* const rows = execution.workspace.take<float>(static_cast<std::uint64_t>(p.rank * padded_row(width)));
  float* const columns =
      p.residual ? execution.workspace.take<float>(static_cast<std::uint64_t>(width * padded_row(p.rank))) : nullptr;
  float* const scratch = execution.workspace.take<float>(
      static_cast<std::uint64_t>(execution.pool.threads() * projection_scratch(width, p.rank)));
  unpack_basis(p.basis, p.type, p.key_value_heads, p.rank, p.head_dim, p.head_scales, rows, columns, execution);
  project_keys(
      {p.type, p.coefficient_type, p.keys, p.count, p.key_stride ? p.key_stride : width, width, p.rank, rows, columns,
       p.coefficients, p.rank, p.coefficient_type == SKV_I8 ? p.coefficient_scales : nullptr, p.residual},
      scratch, execution);
}

// Counted with a residual always: whoever asks without pointers may pass one later.
std::uint64_t low_rank_project_workspace(const skv_low_rank_project_params& p, const ExecutionTraits& traits) {
  const std::int64_t width = static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
  return Workspace::bytes_of<float>(static_cast<std::uint64_t>(p.rank * padded_row(width))) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(width * padded_row(p.rank))) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(traits.threads * projection_scratch(width, p.rank)));
}

}  // namespace skv::cpu
