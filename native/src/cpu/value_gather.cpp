#include <algorithm>
#include <cstring>

#include "cpu/attention.h"
#include "cpu/elements.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kUnitChunks = 32;

}  // namespace

std::uint64_t value_gather_workspace(const skv_value_gather_params&, const ExecutionTraits&) {
  return 0;
}

// Copies chunks of C * D elements, each contiguous in values [K][chunk_capacity][C][D] and in slots [K][slots][C][D].
void value_gather(const skv_value_gather_params& p, Execution& execution) {
  const skv_geometry& g = p.geometry;
  const std::int64_t heads = g.key_value_heads, units = divide_up(p.select, kUnitChunks);
  const std::int64_t bytes = static_cast<std::int64_t>(g.chunk) * g.head_dim * element_bytes(g.value_type);
  execution.pool.parallel_for(head_pairs(g, p.batch) * units, [&](std::int64_t unit) {
    const std::int64_t pair = unit / units, head = pair % heads, first = unit % units * kUnitChunks;
    const std::int64_t end = std::min<std::int64_t>(first + kUnitChunks, p.fetch_count[pair]);
    const skv_shadow_layer& layer = p.layers[pair / heads];
    for (std::int64_t i = first; i < end; ++i) {
      const std::int64_t from = head * layer.chunk_capacity + p.fetch_chunk[pair * p.select + i];
      const std::int64_t to = head * g.slots + p.fetch_slot[pair * p.select + i];
      std::memcpy(static_cast<char*>(layer.slot_values) + to * bytes,
                  static_cast<const char*>(layer.values) + from * bytes, static_cast<std::size_t>(bytes));
    }
  });
}

}  // namespace skv::cpu
