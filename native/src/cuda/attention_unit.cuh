// A unit: 128 tokens of one key/value head against its G queries, by one block. What sparse_attention and
// rerank share: the keys rebuilt and rotated in registers, their scores, the softmax.
//
// On the tensor-core path every warp rebuilds 16 keys [16][D] = coefficients [16][r] . basis [r][D] as accumulators;
// rotated and rounded to bf16, as a dense cache would hold them, they are the operand of the scores as they are. A
// lane holds the two elements that rotate together: neighbouring columns, or (Turn::kHalves) columns half the head
// apart.
#pragma once

#include <cstdint>

#include "cuda/unit_staging.cuh"

namespace skv::cuda {

// Writes this warp's scores [16 heads][16 tokens] in log2 units; tokens that are not there get -infinity.
__device__ inline void write_scores(const float (&s)[2][4], const UnitRows& rows, int group, float scale,
                                    float* scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = lane / 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int token = warp * kWarpTokens + 8 * n + 2 * (lane % 4);
    const bool first = rows.key[token] != nullptr, second = rows.key[token + 1] != nullptr;
    if (group > 8) {
      *reinterpret_cast<float2*>(scores + row * kScoreStride + token) =
          make_float2(first ? s[n][0] * scale : -INFINITY, second ? s[n][1] * scale : -INFINITY);
      *reinterpret_cast<float2*>(scores + (row + 8) * kScoreStride + token) =
          make_float2(first ? s[n][2] * scale : -INFINITY, second ? s[n][3] * scale : -INFINITY);
    } else {
      *reinterpret_cast<float2*>(scores + row * kScoreStride + token) = make_float2(
          first ? (s[n][0] + s[n][2]) * scale : -INFINITY, second ? (s[n][1] + s[n][3]) * scale : -INFINITY);
    }
  }
}

// Keys [16][D] of a warp before rotation = coefficients . basis, as accumulators of D/8 tiles. Everything staged.
template <int kHeadDim>
__device__ inline void rebuild(int rank, const unsigned char* coefficients, const unsigned char* basis,
                               float (&keys)[kHeadDim / 8][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int steps = directions(rank) / 16;
  const int token_block = token_block_bytes(rank), column_block = column_block_bytes(rank);
  constexpr int kTiles = kHeadDim / 8;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    keys[j][0] = keys[j][1] = keys[j][2] = keys[j][3] = 0.0F;
  }
  // Of four matrices, a lane addresses a row of matrix lane / 8: of coefficients, 8 tokens further down or 8 directions
  // to the right; of the basis, 8 directions further down or 8 columns to the right.
  const int lane = static_cast<int>(threadIdx.x) % 32, in_block = lane % 8 * 16;
  const unsigned char* const a_lane =
      coefficients + (2 * warp + lane / 8 % 2) * token_block + lane / 16 * kCoefficientBlockBytes + in_block;
  const unsigned char* const b_lane = basis + lane / 16 * column_block + lane / 8 % 2 * kBlockBytes + in_block;
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
    std::uint32_t a[4];
    load_matrices(a, a_lane + step * 2 * kCoefficientBlockBytes);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      std::uint32_t b[4];
      load_matrices_transposed(b, b_lane + j * column_block + step * 2 * kBlockBytes);
      mma_bf16(keys[j], a[0], a[1], a[2], a[3], b[0], b[1]);
      mma_bf16(keys[j + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
}

// Where the rotations of a lane's two tokens are: those of their chunks [D/2], and of their places in a chunk.
struct TokenRotations {
  const float2 *upper_base, *lower_base, *upper_fine, *lower_fine;
};

// Scores of a warp's 16 keys, rotated and rounded to bf16 on the way, as accumulators [16 heads][16 tokens]. kOneBase:
// the two bases are the same.
template <int kHeadDim, Turn kTurn, bool kOneBase = false>
__device__ inline void rotated_scores(const float (&keys)[kHeadDim / 8][4], const TokenRotations& turn,
                                      const __nv_bfloat16* queries, float (&s)[2][4]) {
  constexpr int kStride = kHeadDim + kRowPadding;
  constexpr int kTiles = kHeadDim / 8;
  const int lane = unit_thread() % 32, quad_lane = lane % 4;
  const __nv_bfloat16* const query_lane = queries + (lane % 16) * kStride + lane / 16 * 8;
  const auto add_scores = [&](int tile, const std::uint32_t(&upper)[2], const std::uint32_t(&lower)[2]) {
    std::uint32_t q[4];
    load_matrices(q, query_lane + 8 * tile);
    mma_bf16(s[0], q[0], q[1], q[2], q[3], upper[0], upper[1]);
    mma_bf16(s[1], q[0], q[1], q[2], q[3], lower[0], lower[1]);
  };
  if constexpr (kTurn == Turn::kHalves) {
    constexpr int kHalf = kTiles / 2;
    static_assert(kHalf % 2 == 0);
    // Two neighbouring pairs of a token: elements first[0..1] with second[0..1].
    const auto rotate = [](const float4& x, const float2* fine_pair, const float* first, const float* second,
                           std::uint32_t& low, std::uint32_t& high) {
      const float4 y = *reinterpret_cast<const float4*>(fine_pair);
      const float cosine0 = x.x * y.x - x.y * y.y, sine0 = x.x * y.y + x.y * y.x;
      const float cosine1 = x.z * y.z - x.w * y.w, sine1 = x.z * y.w + x.w * y.z;
      low = pack_bf16(first[0] * cosine0 - second[0] * sine0, first[1] * cosine1 - second[1] * sine1);
      high = pack_bf16(second[0] * cosine0 + first[0] * sine0, second[1] * cosine1 + first[1] * sine1);
    };
#pragma unroll
    for (int j = 0; j < kHalf; j += 2) {
      std::uint32_t upper_low[2], upper_high[2], lower_low[2], lower_high[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 8 * (j + i) + 2 * quad_lane;
        const float* const first = keys[j + i];
        const float* const second = keys[j + i + kHalf];
        const float4 upper = *reinterpret_cast<const float4*>(turn.upper_base + at);
        const float4 lower = kOneBase ? upper : *reinterpret_cast<const float4*>(turn.lower_base + at);
        rotate(upper, turn.upper_fine + at, first, second, upper_low[i], upper_high[i]);
        rotate(lower, turn.lower_fine + at, first + 2, second + 2, lower_low[i], lower_high[i]);
      }
      add_scores(j, upper_low, lower_low);
      add_scores(j + kHalf, upper_high, lower_high);
    }
  } else {
    const auto rotate = [](float2 x, float2 y, float first, float second) {
      const float cosine = x.x * y.x - x.y * y.y, sine = x.x * y.y + x.y * y.x;
      return pack_bf16(first * cosine - second * sine, second * cosine + first * sine);
    };
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      std::uint32_t upper[2], lower[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 4 * (j + i) + quad_lane;
        const float2 upper_base = turn.upper_base[at], lower_base = kOneBase ? upper_base : turn.lower_base[at];
        upper[i] = rotate(upper_base, turn.upper_fine[at], keys[j + i][0], keys[j + i][1]);
        lower[i] = rotate(lower_base, turn.lower_fine[at], keys[j + i][2], keys[j + i][3]);
      }
      add_scores(j, upper, lower);
    }
  }
}

// Scores of rebuilt keys. Everything staged; calls rebuilt() when this warp's coefficients are no longer needed.
template <int kHeadDim, Turn kTurn, class Rebuilt>
__device__ inline void rebuilt_scores(const UnitRows& rows, int rank, int chunk, int group,
                                      const unsigned char* coefficients, const unsigned char* basis, const float2* base,
                                      const float2* fine, const __nv_bfloat16* queries, float* scores,
                                      Rebuilt&& rebuilt) {
  constexpr int kPairs = kHeadDim / 2, kFineStride = kPairs + kFinePadding<kTurn>;
  const int thread = unit_thread(), lane = thread % 32, warp = thread / 32;
  float keys[kHeadDim / 8][4];
  rebuild<kHeadDim>(rank, coefficients, basis, keys);
  rebuilt();
  const int upper = warp * kWarpTokens + lane / 4, lower = upper + 8;
  float s[2][4] = {};
  rotated_scores<kHeadDim, kTurn>(keys,
                                  {base + upper / chunk * kPairs, base + lower / chunk * kPairs,
                                   fine + upper % chunk * kFineStride, fine + lower % chunk * kFineStride},
                                  queries, s);
  write_scores(s, rows, group, rsqrtf(static_cast<float>(kHeadDim)) * kLog2E, scores);
}

// Scores of keys that are stored rotated.
template <int kHeadDim>
__device__ inline void dense_scores(const UnitRows& rows, int group, const __nv_bfloat16* queries, float* scores) {
  constexpr int kStride = kHeadDim + kRowPadding;
  constexpr int kSpans = kHeadDim / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = lane / 4, quad_lane = lane % 4;
  uint4 keys[2][kSpans];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const auto* const from = static_cast<const __nv_bfloat16*>(rows.key[warp * kWarpTokens + 8 * n + row]);
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
      keys[n][s] = from ? *reinterpret_cast<const uint4*>(from + 32 * s + 8 * quad_lane) : make_uint4(0, 0, 0, 0);
    }
  }
  float s[2][4] = {};
#pragma unroll
  for (int span = 0; span < kSpans; ++span) {
    const auto* const at = queries + row * kStride + 32 * span + 8 * quad_lane;
    const uint4 q = *reinterpret_cast<const uint4*>(at);
    const uint4 r = *reinterpret_cast<const uint4*>(at + 8 * kStride);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      mma_bf16(s[n], q.x, r.x, q.y, r.y, keys[n][span].x, keys[n][span].y);
      mma_bf16(s[n], q.z, r.z, q.w, r.w, keys[n][span].z, keys[n][span].w);
    }
  }
  write_scores(s, rows, group, rsqrtf(static_cast<float>(kHeadDim)) * kLog2E, scores);
}

// Scores without tensor cores, for every shape. queries [G][D] f32, key: a row of SKV_MAX_HEAD_DIM floats a warp.
// coefficient_type: of keys that are to be rebuilt.
__device__ inline void any_scores(const UnitRows& rows, bool rebuilt, int coefficient_type, const __nv_bfloat16* basis,
                                  int dim, int rank, const skv_rope& rope, int group, const float* queries, float* keys,
                                  float* scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float* const key = keys + warp * SKV_MAX_HEAD_DIM;
  const float scale = rsqrtf(static_cast<float>(dim)) * kLog2E;
  for (int token = warp * kWarpTokens; token < (warp + 1) * kWarpTokens; ++token) {
    const auto* const row = static_cast<const __nv_bfloat16*>(rows.key[token]);
    if (row) {
      for (int d = lane; d < dim; d += 32) {
        float x = 0;
        if (rebuilt) {
          for (int i = 0; i < rank; ++i) {
            const float coefficient = coefficient_type == SKV_I8
                                          ? static_cast<float>(reinterpret_cast<const signed char*>(row)[i])
                                          : __bfloat162float(row[i]);
            x += coefficient * __bfloat162float(basis[static_cast<std::int64_t>(i) * dim + d]);
          }
        } else {
          x = __bfloat162float(row[d]);
        }
        key[d] = x;
      }
      __syncwarp();
      if (rebuilt) {
        for (int pair = lane; pair < rope.rotary_dim / 2; pair += 32) {
          const float2 turn = rotation(rope, rows.position[token], pair);
          const int2 at = rotated_elements(rope, pair);
          const float x = key[at.x], y = key[at.y];
          key[at.x] = x * turn.x - y * turn.y;
          key[at.y] = y * turn.x + x * turn.y;
        }
        __syncwarp();
      }
      for (int g = 0; g < group; ++g) {
        float dot = 0;
        for (int d = lane; d < dim; d += 32) {
          dot += round_to_bf16(key[d]) * queries[g * dim + d];
        }
        dot = warp_sum(dot);
        if (lane == 0) {
          scores[g * kScoreStride + token] = dot * scale;
        }
      }
      __syncwarp();
    } else {
      for (int g = lane; g < group; g += 32) {
        scores[g * kScoreStride + token] = -INFINITY;
      }
    }
  }
}

// Log2 of the summed exponentials of a chunk whose tokens have these log2 scores.
__device__ inline float log_mass(const float* scores, int chunk) {
  float largest = scores[0];
  for (int t = 1; t < chunk; ++t) {
    largest = fmaxf(largest, scores[t]);
  }
  float sum = 0;
  for (int t = 0; t < chunk; ++t) {
    sum += exp2_fast(scores[t] - largest);
  }
  return largest + log2f(sum);
}

// Statistics of a block's softmax so far, one a head.
struct Statistics {
  float largest[SKV_MAX_GROUP];
  float sum[SKV_MAX_GROUP];
  float factor[SKV_MAX_GROUP];  // what earlier sums are to be multiplied by
  float largest_scale;          // of the e4m3 values of the unit
};
static_assert(sizeof(Statistics) <= 4 * SKV_MAX_GROUP * 4);

// One step of an online softmax over the unit's scores; gives every weight to write(head, token, weight).
template <class Write>
__device__ inline void softmax_step(const float* scores, int group, Statistics& statistics, Write&& write) {
  const int thread = unit_thread(), lane = thread % 32, warp = thread / 32;
  for (int head = warp; head < group; head += kUnitWarps) {
    float x[kUnitTokens / 32];
    float largest = statistics.largest[head];
    const float before = largest;
#pragma unroll
    for (int i = 0; i < kUnitTokens / 32; ++i) {
      x[i] = scores[head * kScoreStride + 32 * i + lane];
      largest = fmaxf(largest, x[i]);
    }
    largest = warp_max(largest);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kUnitTokens / 32; ++i) {
      const float weight = largest > -INFINITY ? exp2_fast(x[i] - largest) : 0.0F;
      sum += weight;
      write(head, 32 * i + lane, weight);
    }
    sum = warp_sum(sum);
    // Every lane has read the largest so far before it is replaced: shuffles alone do not order memory.
    __syncwarp();
    if (lane == 0) {
      const float factor = before > -INFINITY ? exp2_fast(before - largest) : 0.0F;
      statistics.largest[head] = largest;
      statistics.factor[head] = factor;
      statistics.sum[head] = statistics.sum[head] * factor + sum;
    }
  }
}

}  // namespace skv::cuda
