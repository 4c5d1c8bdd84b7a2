#include <cstring>

#include "cpu/elements.h"

namespace skv::cpu {

// source [K][capacity][D], ids [K][count] -> target [K][target_capacity][C][D]. Floor: what is copied, read and
// written once. Bound by memory.
void chunk_gather(const skv_chunk_gather_params& p, Execution& execution) {
  const std::int64_t row_elements = p.head_dim;
  const std::size_t row_bytes = static_cast<std::size_t>(row_elements * element_bytes(p.type));
  constexpr std::int64_t kChunks = 16;
  execution.pool.parallel_ranges(
      static_cast<std::int64_t>(p.key_value_heads) * p.count, kChunks, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t index = begin; index < end; ++index) {
          const std::int64_t head = index / p.count, place = p.target_first + index % p.count;
          const std::int64_t id = p.ids[index];
          if (id < 0) {
            throw Error(SKV_INVALID_ARGUMENT, "skv_chunk_gather: ids holds " + std::to_string(id));
          }
          for (std::int64_t t = 0; t < p.chunk; ++t) {
            const std::int64_t row = (id * p.chunk + t) % p.capacity;
            const std::int64_t target_row = (head * p.target_capacity + place) * p.chunk + t;
            std::memcpy(element_at(p.target, p.type, target_row * row_elements),
                        element_at(p.source, p.type, (head * p.capacity + row) * row_elements), row_bytes);
          }
        }
      });
}

std::uint64_t chunk_gather_workspace(const skv_chunk_gather_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
