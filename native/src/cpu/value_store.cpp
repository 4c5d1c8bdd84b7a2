#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/elements.h"
#include "value_types.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kMaximumChunk = 16;

// The scale of a chunk of a head. Bits of magnitudes are in the order of magnitudes, and a NaN is the largest: what is
// not finite makes the scale so, and with it the chunk.
float value_scale(const float* members, std::int64_t elements, std::int32_t type) {
  constexpr std::uint32_t kMagnitude = 0x7fffffff;
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < elements; ++i) {
    largest = std::max(largest, std::bit_cast<std::uint32_t>(members[i]) & kMagnitude);
  }
  const float magnitude = std::bit_cast<float>(largest);
  return type == SKV_F12_E4M7 ? std::bit_cast<float>(twelve_bit_scale(from_float<BFloat16>(magnitude).bits))
                              : magnitude / largest_number(type);
}

}  // namespace

// source [K][capacity][D] -> values [K][chunk_capacity][C][D], as they are or in fewer bits with one scale a
// chunk and head. Floor: the values read and written once. Bound by memory; fewer bits by their rounding.
void value_store(const skv_value_store_params& p, Execution& execution) {
  const std::int64_t dim = p.head_dim, elements = p.chunk * dim;
  const bool quantize = is_scaled(p.value_type), packs = is_packed(p.value_type);
  const Widen widen = widen_function(p.storage_type, execution.set);
  const Narrow narrow = narrow_function(SKV_F8_E4M3, execution.set);
  const Pack pack = packs ? pack_function(p.value_type, execution.set) : nullptr;
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
        const float scale = value_scale(members, elements, p.value_type);
        for (std::int64_t i = 0; i < elements; ++i) {
          members[i] = scale > 0 ? members[i] / scale : 0.0F;
        }
        void* const target = static_cast<char*>(p.values) + place * value_bytes(p.value_type, elements);
        if (packs) {
          pack(members, target, elements);
        } else {
          narrow(members, target, elements);
        }
        p.value_scales[place] = scale;
      }
    }
  });
}

std::uint64_t value_store_workspace(const skv_value_store_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
