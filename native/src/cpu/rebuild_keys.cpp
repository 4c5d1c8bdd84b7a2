#include <algorithm>

#include "cpu/basis.h"
#include "cpu/dot_products.h"
#include "cpu/rotation.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kTokens = 32;

std::int64_t scratch_elements(const skv_rebuild_keys_params& p) {
  return kTokens * (padded_row(p.rank) + padded_row(p.head_dim));
}

}  // namespace

// coefficients [..][r], basis [K][r][D] -> rotated_keys [K][capacity][D]. Floor: 2*count*r*K*D operations, the
// coefficients read and the keys written once. Bound by the multipliers.
void rebuild_keys(const skv_rebuild_keys_params& p, Execution& execution) {
  execution.workspace.require(rebuild_keys_workspace(p, execution.traits()), "skv_rebuild_keys");
  const std::int64_t dim = p.head_dim, width = p.key_value_heads * dim;
  const std::int64_t rank_stride = padded_row(p.rank), dim_stride = padded_row(dim);
  float* const columns = execution.workspace.take<float>(static_cast<std::uint64_t>(width * rank_stride));
  float* const scratch =
      execution.workspace.take<float>(static_cast<std::uint64_t>(execution.pool.threads() * scratch_elements(p)));
  unpack_basis(p.basis, p.type, p.key_value_heads, p.rank, dim, nullptr, nullptr, columns, execution);
  const Widen widen = widen_function(p.coefficient_type, execution.set);
  const Narrow narrow = narrow_function(p.type, execution.set);
  const RowProducts products = row_products_function(SKV_F32, execution.set);
  execution.pool.parallel_ranges(p.count, kTokens, [&](std::int64_t begin, std::int64_t end, int thread) {
    const std::int64_t tokens = end - begin;
    float* const coefficients = scratch + thread * scratch_elements(p);
    float* const keys = coefficients + kTokens * rank_stride;
    for (std::int64_t t = 0; t < tokens; ++t) {
      widen(element_at(p.coefficients, p.coefficient_type, (p.first_position + begin + t) * p.rank),
            coefficients + t * rank_stride, p.rank);
    }
    for (std::int64_t head = 0; head < p.key_value_heads; ++head) {
      std::fill_n(keys, tokens * dim_stride, 0.0F);
      products(coefficients, rank_stride, tokens, columns + head * dim * rank_stride, rank_stride, dim, p.rank, keys,
               dim_stride);
      for (std::int64_t t = 0; t < tokens; ++t) {
        const std::int64_t position = p.first_position + begin + t;
        Rotation(p.rope, position).apply(keys + t * dim_stride);
        narrow(keys + t * dim_stride,
               element_at(p.rotated_keys, p.type, (head * p.capacity + position % p.capacity) * dim), dim);
      }
    }
  });
}

std::uint64_t rebuild_keys_workspace(const skv_rebuild_keys_params& p, const ExecutionTraits& traits) {
  const std::int64_t width = static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
  return Workspace::bytes_of<float>(static_cast<std::uint64_t>(width * padded_row(p.rank))) +
         Workspace::bytes_of<float>(static_cast<std::uint64_t>(traits.threads * scratch_elements(p)));
}

}  // namespace skv::cpu
