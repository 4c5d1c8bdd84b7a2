#include "cpu/value_gather.h"

#include <algorithm>
#include <cstring>

#include "cpu/attention.h"
#include "cpu/slot_keys.h"
#include "value_types.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kUnitChunks = 32;

}  // namespace

std::uint64_t value_gather_workspace(const skv_value_gather_params&, const ExecutionTraits&) {
  return 0;
}

ValueGather::ValueGather(const skv_value_gather_params& p, InstructionSet set)
    : p_(p), unpack_(is_packed(p.geometry.value_type) ? unpack_function(p.geometry.value_type, set) : nullptr) {}

// Copies or unpacks chunks of C * D elements, each contiguous in values [K][chunk_capacity][C][D] and in slots
// [K][slots][C][D].
void ValueGather::fetch(std::int64_t pair, std::int64_t first, std::int64_t end) const {
  const skv_geometry& g = p_.geometry;
  const std::int64_t heads = g.key_value_heads, head = pair % heads;
  const std::int64_t elements = static_cast<std::int64_t>(g.chunk) * g.head_dim;
  const std::int64_t bytes = value_bytes(g.value_type, elements);
  const std::int64_t slot_bytes = value_bytes(slot_type(g.value_type), elements);
  const skv_shadow_layer& layer = p_.layers[pair / heads];
  if (values_in_place(g, layer)) {
    return;
  }
  end = std::min<std::int64_t>(end, p_.fetch_count[pair]);
  for (std::int64_t i = first; i < end; ++i) {
    const std::int64_t from = head * layer.chunk_capacity + p_.fetch_chunk[pair * p_.select + i];
    const std::int64_t to = head * g.slots + p_.fetch_slot[pair * p_.select + i];
    const char* const source = static_cast<const char*>(layer.values) + from * bytes;
    char* const target = static_cast<char*>(layer.slot_values) + to * slot_bytes;
    if (unpack_) {
      unpack_(source, layer.value_scales[from], target, elements);
    } else {
      std::memcpy(target, source, static_cast<std::size_t>(bytes));
    }
  }
}

void value_gather(const skv_value_gather_params& p, Execution& execution) {
  const ValueGather gather(p, execution.set);
  const std::int64_t units = divide_up(p.select, kUnitChunks);
  execution.pool.parallel_for(head_pairs(p.geometry, p.batch) * units, [&](std::int64_t i) {
    const std::int64_t first = i % units * kUnitChunks;
    gather.fetch(i / units, first, first + kUnitChunks);
  });
}

}  // namespace skv::cpu
