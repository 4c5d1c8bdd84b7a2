#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/attention.h"
#include "cpu/elements.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kColumns = PrefillTile::kColumns;

std::uint64_t thread_bytes(const skv_geometry& g, const ExecutionTraits& traits) {
  const std::uint64_t rows = static_cast<std::uint64_t>(kColumns * padded_dim(g.head_dim));
  return 2 * Workspace::bytes_of<float>(rows) + Workspace::bytes_of<std::int32_t>(kColumns) +
         Workspace::align(attention_kernels(traits.set).prefill_scratch_bytes(g.head_dim));
}

}  // namespace

std::uint64_t prefill_attention_workspace(const skv_prefill_attention_params& p, const ExecutionTraits& traits) {
  return static_cast<std::uint64_t>(traits.threads) * thread_bytes(p.geometry, traits);
}

// Causal attention of consecutive tokens, in the manner of FlashAttention (Dao et al., 2022): a tile of queries goes
// over the keys once with a running softmax. Bound by 4 * D operations for each query head and pair of tokens; tiles of
// keys that no query of a tile sees are skipped.
void prefill_attention(const skv_prefill_attention_params& p, Execution& execution) {
  const skv_geometry& g = p.geometry;
  check_attention_geometry(g, p.query_type, "prefill_attention");
  check_attention_geometry(g, p.output_type, "prefill_attention");
  const std::int64_t end_position = p.first_position + p.count;
  if (end_position > p.capacity) {
    throw Error(SKV_INVALID_ARGUMENT, "prefill_attention: positions up to " + std::to_string(end_position) +
                                          " do not fit the capacity of " + std::to_string(p.capacity));
  }
  if (end_position > std::numeric_limits<std::int32_t>::max() - PrefillTile::kKeys) {
    throw Error(SKV_UNSUPPORTED, "prefill_attention: position " + std::to_string(end_position) + " is beyond 2^31");
  }
  const ExecutionTraits traits = execution.traits();
  execution.workspace.require(prefill_attention_workspace(p, traits), "prefill_attention");
  const std::int64_t group = group_size(g), dim = g.head_dim, width = padded_dim(dim), heads = g.key_value_heads;
  const std::int64_t query_stride = p.query_stride != 0 ? p.query_stride : g.query_heads * dim;
  const std::int64_t tile_tokens = kColumns / group, tiles = divide_up(p.count, tile_tokens);
  const Widen widen = widen_function(p.query_type, execution.set);
  const Narrow narrow = narrow_function(p.output_type, execution.set);
  const AttentionKernels& kernels = attention_kernels(execution.set);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  const std::uint64_t each = thread_bytes(g, traits);
  std::byte* const memory = execution.workspace.take<std::byte>(each * static_cast<std::uint64_t>(traits.threads));

  // The last tiles see the most keys and go first, so that the threads end together.
  execution.pool.parallel_for(tiles * heads, [&](std::int64_t unit, int thread) {
    const std::int64_t tile = tiles - 1 - unit / heads, head = unit % heads;
    const std::int64_t first = tile * tile_tokens, tokens = std::min(tile_tokens, p.count - first);
    Workspace workspace(memory + each * static_cast<std::uint64_t>(thread), each);
    float* const queries = workspace.take<float>(static_cast<std::uint64_t>(kColumns * width));
    float* const output = workspace.take<float>(static_cast<std::uint64_t>(kColumns * width));
    std::int32_t* const last_key = workspace.take<std::int32_t>(kColumns);
    const std::int64_t used = tokens * group;
    for (std::int64_t column = 0; column < kColumns; ++column) {
      float* const query = queries + column * width;
      const std::int64_t token = first + std::min(column / group, tokens - 1);
      last_key[column] = static_cast<std::int32_t>(p.first_position + token);
      if (column < used) {
        widen(element_at(p.queries, p.query_type, token * query_stride + (head * group + column % group) * dim), query,
              dim);
      }
      for (std::int64_t d = 0; d < width; ++d) {
        query[d] = column < used && d < dim ? query[d] * scale : 0.0F;
      }
    }
    const std::int64_t rows = head * p.capacity * dim;
    kernels.prefill({g.storage_type, g.head_dim, element_at(p.keys, g.storage_type, rows),
                     element_at(p.values, g.storage_type, rows), queries, last_key, p.first_position + first + 1,
                     p.first_position + first + tokens, output, workspace.take<std::byte>(workspace.remaining())});
    for (std::int64_t column = 0; column < used; ++column) {
      const std::int64_t token = first + column / group;
      narrow(output + column * width,
             element_at(p.output, p.output_type, (token * g.query_heads + head * group + column % group) * dim), dim);
    }
  });
}

}  // namespace skv::cpu
