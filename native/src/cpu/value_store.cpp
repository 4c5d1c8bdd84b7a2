#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/elements.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kMaximumChunk = 16;

}  // namespace

// source [K][capacity][D] -> values [K][chunk_capacity][C][D], as they are or as e4m3 with one scale a chunk and
// head. Floor: the values read and written once. Bound by memory; e4m3 by its rounding.
void value_store(const skv_value_store_params& p, Execution& execution) {
  const std::int64_t dim = p.head_dim, elements = p.chunk * dim;
  const bool quantize = p.value_type == SKV_F8_E4M3;
  const Widen widen = widen_function(p.storage_type, execution.set);
  const Narrow narrow = narrow_function(SKV_F8_E4M3, execution.set);
  const std::size_t row_bytes = static_cast<std::size_t>(dim * element_bytes(p.storage_type));
  constexpr std::int64_t kChunks = 32;
  execution.pool.parallel_ranges(p.key_value_heads * p.chunks, kChunks, [&](std::int64_t begin, std::int64_t end) {
    float members[kMaximumChunk * SKV_MAX_HEAD_DIM];
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t head = index / p.chunks, chunk = p.first_chunk + index % p.chunks;
      const std::int64_t place = head * p.chunk_capacity + chunk;
      for (std::int64_t t = 0; t < p.chunk; ++t) {
        const std::int64_t row = (chunk * p.chunk + t) % p.capacity;
        const void* const source = element_at(p.source, p.storage_type, (head * p.capacity + row) * dim);
        if (quantize) {
          widen(source, members + t * dim, dim);
        } else {
          std::memcpy(element_at(p.values, p.storage_type, place * elements + t * dim), source, row_bytes);
        }
      }
      if (quantize) {
        float largest = 0;
        for (std::int64_t i = 0; i < elements; ++i) {
          largest = std::max(largest, std::fabs(members[i]));
        }
        const float scale = largest / kLargestFloat8;
        for (std::int64_t i = 0; i < elements; ++i) {
          members[i] = scale > 0 ? members[i] / scale : 0.0F;
        }
        narrow(members, element_at(p.values, SKV_F8_E4M3, place * elements), elements);
        p.value_scales[place] = scale;
      }
    }
  });
}

std::uint64_t value_store_workspace(const skv_value_store_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
