#include <algorithm>
#include <cmath>

#include "cpu/elements.h"
#include "cpu/row_math.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kMaximumChunk = 16;

// Stores a landmark as bytes with one scale and puts what they mean in its place.
float store_bytes(float* mean, std::int64_t dim, std::int8_t* target) {
  float largest = 0;
  for (std::int64_t i = 0; i < dim; ++i) {
    largest = std::max(largest, std::fabs(mean[i]));
  }
  const float scale = largest / kLargestByte;
  for (std::int64_t i = 0; i < dim; ++i) {
    target[i] = from_float<std::int8_t>(scale > 0 ? mean[i] / scale : 0.0F);
    mean[i] = to_float(target[i]) * scale;
  }
  return scale;
}

}  // namespace

// rotated_keys [K][capacity][D] -> landmarks [K][chunk_capacity][D], radius and cosine [K][chunk_capacity].
// Floor: the keys through memory once; a chunk is in the nearest cache while it is looked at. Bound by memory.
void landmark_build(const skv_landmark_build_params& p, Execution& execution) {
  const std::int64_t dim = p.head_dim;
  const Widen widen = widen_function(p.storage_type, execution.set);
  const Narrow narrow = narrow_function(p.storage_type, execution.set);
  const RowMath& math = row_math(execution.set);
  constexpr std::int64_t kChunks = 32;
  execution.pool.parallel_ranges(p.key_value_heads * p.chunks, kChunks, [&](std::int64_t begin, std::int64_t end) {
    float members[kMaximumChunk * SKV_MAX_HEAD_DIM];
    float mean[SKV_MAX_HEAD_DIM];
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t head = index / p.chunks, chunk = p.first_chunk + index % p.chunks;
      const std::int64_t place = head * p.chunk_capacity + chunk;
      for (std::int64_t t = 0; t < p.chunk; ++t) {
        const std::int64_t row = (chunk * p.chunk + t) % p.capacity;
        widen(element_at(p.rotated_keys, p.storage_type, (head * p.capacity + row) * dim), members + t * dim, dim);
      }
      math.mean(members, p.chunk, dim, mean);
      if (p.cosine) {
        float with_itself, mean_squares, products[kMaximumChunk], squares[kMaximumChunk];
        math.products(mean, 1, dim, mean, &with_itself, &mean_squares);
        math.products(members, p.chunk, dim, mean, products, squares);
        float smallest = 1.0F;
        for (std::int64_t t = 0; t < p.chunk; ++t) {
          // Of a vector without direction: nothing is described.
          const float lengths = std::sqrt(squares[t]) * std::sqrt(mean_squares);
          const float cosine = lengths > 0 ? products[t] / lengths : 0.0F;
          smallest = t == 0 || !(cosine >= smallest) ? cosine : smallest;  // a NaN stays
        }
        p.cosine[place] = smallest;
      }
      if (p.landmark_type == SKV_I8) {
        p.landmark_scales[place] = store_bytes(mean, dim, static_cast<std::int8_t*>(p.landmarks) + place * dim);
      } else {
        void* const target = element_at(p.landmarks, p.storage_type, place * dim);
        narrow(mean, target, dim);
        widen(target, mean, dim);
      }
      p.radius[place] = std::sqrt(math.farthest(members, p.chunk, dim, mean));
    }
  });
}

std::uint64_t landmark_build_workspace(const skv_landmark_build_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
