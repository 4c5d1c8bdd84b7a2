// One element of a run-time type, for the places where the type does not decide the speed.
#pragma once

#include <cstdint>

#include "cuda/vector.cuh"
#include "shadowkv_types.h"

namespace skv::cuda {

__device__ inline float load_element(const void* base, std::int32_t type, std::int64_t index) {
  if (type == SKV_BF16) {
    return to_float(static_cast<const __nv_bfloat16*>(base)[index]);
  }
  if (type == SKV_F16) {
    return to_float(static_cast<const __half*>(base)[index]);
  }
  return static_cast<const float*>(base)[index];
}

__device__ inline void store_element(void* base, std::int32_t type, std::int64_t index, float value) {
  if (type == SKV_BF16) {
    static_cast<__nv_bfloat16*>(base)[index] = from_float<__nv_bfloat16>(value);
  } else if (type == SKV_F16) {
    static_cast<__half*>(base)[index] = from_float<__half>(value);
  } else {
    static_cast<float*>(base)[index] = value;
  }
}

// Cosine and sine of a position for one pair of elements, times the table's scale.
__device__ inline float2 rotation(const skv_rope& rope, std::int64_t position, int pair) {
  float cosine[1], sine[1];
  rotations<1>(rope, position, pair, cosine, sine);
  return make_float2(cosine[0], sine[0]);
}

// The two elements of a head that pair number `pair` rotates.
__device__ inline int2 rotated_elements(const skv_rope& rope, int pair) {
  return rope.pairing == SKV_INTERLEAVED ? make_int2(2 * pair, 2 * pair + 1)
                                         : make_int2(pair, pair + rope.rotary_dim / 2);
}

}  // namespace skv::cuda
