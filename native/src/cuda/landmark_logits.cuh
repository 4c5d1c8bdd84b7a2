// Logits of landmarks on tensor cores: what the kernels that score a cache's index share.
//
// A warp's queries are fragments in registers, and the lanes of a quad take 64 consecutive bytes of a landmark, which
// are fragments as they are. Queries keep f32 accuracy: the 16 rows of a fragment hold G <= 8 heads and, 8 rows below,
// what their rounding left (kWide: G > 8, a second set of fragments). Int8 landmarks take f16 fragments of queries
// scaled to [-1, 1].
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/mma.cuh"

namespace skv::cuda {

constexpr int kTileChunks = 8;  // chunks of one tensor-core instruction

// What a session's row of the batch has in its index.
__device__ inline int indexed_chunks(const skv_landmark_topk_params& p, int session) {
  const skv_session_state& state = p.states[session];
  return state.length <= 0 ? 0
                           : static_cast<int>(min(static_cast<long long>(state.indexed_chunks),
                                                  static_cast<long long>(p.max_chunks)));
}

// Four int8 as two pairs of f16, exactly: 0x6400 + byte is 1024 + byte.
__device__ inline uint2 f16_of_int8(std::uint32_t four) {
  const std::uint32_t shifted = four ^ 0x80808080U;
  std::uint32_t low = __byte_perm(shifted, 0x64646464U, 0x4140), high = __byte_perm(shifted, 0x64646464U, 0x4342);
  const __half2 offset = __float2half2_rn(1152.0F);
  const __half2 a = __hsub2(*reinterpret_cast<__half2*>(&low), offset);
  const __half2 b = __hsub2(*reinterpret_cast<__half2*>(&high), offset);
  return make_uint2(*reinterpret_cast<const std::uint32_t*>(&a), *reinterpret_cast<const std::uint32_t*>(&b));
}

// The G <= 16 queries of a pair in shared memory, as tensor-core operands.
template <int kHeadDim>
struct alignas(16) LandmarkQueries {
  std::uint16_t high[SKV_MAX_GROUP][kHeadDim];  // rounded to 16 bits
  std::uint16_t low[SKV_MAX_GROUP][kHeadDim];   // what that left, rounded
  float factor[SKV_MAX_GROUP];                  // of products
  float radius_factor[SKV_MAX_GROUP];
};

template <int kHeadDim, bool kInt8, bool kWide>
class LandmarkLogits {
 public:
  static constexpr int kSpans = kHeadDim / 32;  // a lane takes 8 elements of each 32
  static constexpr int kHalves = kWide ? 2 : 1;
  static constexpr int kElementBytes = kInt8 ? 1 : 2;

  // To be called by the whole block; the caller sees to the barrier behind it.
  static __device__ void stage_queries(const skv_landmark_topk_params& p, int session, int head, int group,
                                       LandmarkQueries<kHeadDim>& queries) {
    constexpr int kOwn = kHeadDim / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const std::int64_t first = (static_cast<std::int64_t>(session) * p.geometry.query_heads + head * group) * kHeadDim;
    const float inverse_root = rsqrtf(static_cast<float>(kHeadDim));
    for (int row = warp; row < (kWide ? 16 : 8); row += static_cast<int>(blockDim.x) / 32) {
      float x[kOwn], squares = 0, largest = 0;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        x[i] = row < group ? load_element(p.queries, p.query_type, first + row * kHeadDim + 32 * i + lane) : 0.0F;
        squares += x[i] * x[i];
        largest = fmaxf(largest, fabsf(x[i]));
      }
      squares = warp_sum(squares);
      float inverse = 1.0F, factor = inverse_root;
      if constexpr (kInt8) {
        largest = warp_max(largest);
        factor *= largest;
        inverse = largest > 0 ? 1.0F / largest : 0.0F;
      }
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        split(x[i] * inverse, queries.high[row][32 * i + lane], queries.low[row][32 * i + lane]);
      }
      if (lane == 0) {
        queries.factor[row] = factor;
        queries.radius_factor[row] = p.radius_weight * sqrtf(squares) * inverse_root;
      }
    }
  }

  __device__ explicit LandmarkLogits(const LandmarkQueries<kHeadDim>& queries) {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, quad_lane = lane % 4;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      factor_[half] = queries.factor[row + 8 * half];
      radius_factor_[half] = queries.radius_factor[row + 8 * half];
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
        const int at = 32 * s + 8 * quad_lane;
        const uint4 high = *reinterpret_cast<const uint4*>(&queries.high[row + 8 * half][at]);
        const uint4 low = *reinterpret_cast<const uint4*>(&queries.low[row + 8 * half][at]);
        a_[s][0][half] = high.x;
        a_[s][0][2 + half] = high.y;
        a_[s][1][half] = high.z;
        a_[s][1][2 + half] = high.w;
        if constexpr (kWide) {
          rest_[s][0][half] = low.x;
          rest_[s][0][2 + half] = low.y;
          rest_[s][1][half] = low.z;
          rest_[s][1][2 + half] = low.w;
        } else {
          a_[s][0][1] = low.x;
          a_[s][0][3] = low.y;
          a_[s][1][1] = low.z;
          a_[s][1][3] = low.w;
        }
      }
    }
  }

  // A logit of head lane / 4 (+ 8 * half) without what the chunk's radius has added.
  __device__ float without_radius(int half, float logit, float radius) const {
    return logit - radius_factor_[half] * radius;
  }

  // Logits of kTiles tiles of 8 chunks for heads lane / 4 (+ 8 * half), of chunks 2 * (lane % 4) + e, at [2 * half +
  // e]. data: of chunk lane / 4, 8 elements at 32 * span + 8 * (lane % 4) for every span (int8: in x and y). radius,
  // scale: of the lane's two chunks; a negative radius makes -infinity. The tiles' chains of products run side by side.
  template <int kTiles>
  __device__ void tiles(const uint4 (&data)[kTiles][kSpans], const float (&radius)[kTiles][2],
                        const float (&scale)[kTiles][2], float (&logits)[kTiles][2 * kHalves]) const {
    float c[kTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint4 b = data[t][s];
        if constexpr (kInt8) {
          const uint2 first = f16_of_int8(b.x), second = f16_of_int8(b.y);
          b = make_uint4(first.x, first.y, second.x, second.y);
        }
        multiply(c[t], a_[s][0], b.x, b.y);
        multiply(c[t], a_[s][1], b.z, b.w);
        if constexpr (kWide) {
          multiply(c[t], rest_[s][0], b.x, b.y);
          multiply(c[t], rest_[s][1], b.z, b.w);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool indexed = radius[t][e] >= 0;
        if constexpr (kWide) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float x = c[t][2 * half + e] * scale[t][e] * factor_[half] + radius_factor_[half] * radius[t][e];
            logits[t][2 * half + e] = indexed ? x : -INFINITY;
          }
        } else {
          const float x = (c[t][e] + c[t][2 + e]) * scale[t][e] * factor_[0] + radius_factor_[0] * radius[t][e];
          logits[t][e] = indexed ? x : -INFINITY;
        }
      }
    }
  }

 private:
  // A float as 16 bits, and what those leave, rounded.
  static __device__ void split(float x, std::uint16_t& high, std::uint16_t& low) {
    if constexpr (kInt8) {
      const __half h = __float2half_rn(x);
      high = __half_as_ushort(h);
      low = __half_as_ushort(__float2half_rn(x - __half2float(h)));
    } else {
      const __nv_bfloat16 h = __float2bfloat16_rn(x);
      high = __bfloat16_as_ushort(h);
      low = __bfloat16_as_ushort(__float2bfloat16_rn(x - __bfloat162float(h)));
    }
  }

  static __device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    if constexpr (kInt8) {
      mma_f16(c, a[0], a[1], a[2], a[3], b0, b1);
    } else {
      mma_bf16(c, a[0], a[1], a[2], a[3], b0, b1);
    }
  }

  std::uint32_t a_[kSpans][2][4];
  std::uint32_t rest_[kWide ? kSpans : 1][2][4];
  float factor_[kHalves], radius_factor_[kHalves];
};

}  // namespace skv::cuda
