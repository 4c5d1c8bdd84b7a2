#include <algorithm>

#include "coefficient_columns.h"
#include "cuda/launch.h"
#include "cuda/low_rank_products.cuh"

namespace skv::cuda {
namespace {

constexpr int kProjectWarps = 8;
constexpr int kProjectThreads = kProjectWarps * 32;
constexpr int kProjectRanks = 16;  // of a block
constexpr int kProjectTiles = 4;   // of 8 tokens
constexpr int kProjectTokens = 8 * kProjectTiles;
constexpr int kDepth = 32;  // elements of a head that a warp takes at a time

__device__ std::uint32_t scaled(std::uint32_t pair, __nv_bfloat162 scale) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair), scale);
  return *reinterpret_cast<const std::uint32_t*>(&product);
}

// Coefficients of keys: 16 of them for 32 tokens a block, whose warps share the sum over the width.
//
// keys [count][K*D], basis [K][r][D], scales [r] of I8 -> coefficients [count][r]. Floor: keys and basis read once,
// 2*count*r*K*D operations. A fold has 64 tokens: bound by the latency of one block.
template <bool kWide>
__global__ void __launch_bounds__(kProjectThreads)
    low_rank_project_kernel(const __grid_constant__ Several<skv_low_rank_project_params> all) {
  using S = __nv_bfloat16;
  const skv_low_rank_project_params& p = all.of[blockIdx.z];
  __shared__ float parts[kProjectWarps][kProjectTokens][kProjectRanks];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const int first_rank = static_cast<int>(blockIdx.x) * kProjectRanks;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kProjectTokens;
  const int tokens = static_cast<int>(min(static_cast<std::int64_t>(kProjectTokens), p.count - first));
  const S* const keys = static_cast<const S*>(p.keys) + first * p.key_stride;
  const int low_rank = first_rank + g, high_rank = first_rank + g + 8;
  const int pieces = (p.head_dim + kDepth - 1) / kDepth;
  float sums[kProjectTiles][4] = {};
#pragma unroll 2
  for (int unit = warp; unit < pieces * p.key_value_heads; unit += kProjectWarps) {
    const int head = unit / pieces, d = unit % pieces * kDepth + 8 * t;
    const S* const basis = static_cast<const S*>(p.basis) + static_cast<std::int64_t>(head) * p.rank * p.head_dim;
    std::uint32_t low[4] = {}, high[4] = {};
    if (low_rank < p.rank) {
      load_pairs<8, kWide>(low, basis + static_cast<std::int64_t>(low_rank) * p.head_dim, d, p.head_dim);
    }
    if (high_rank < p.rank) {
      load_pairs<8, kWide>(high, basis + static_cast<std::int64_t>(high_rank) * p.head_dim, d, p.head_dim);
    }
    if (p.head_scales) {
      // The basis of scaled keys has been divided by the scale. A power of two changes no digit.
      const __nv_bfloat162 square = __float2bfloat162_rn(p.head_scales[head] * p.head_scales[head]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        low[i] = scaled(low[i], square);
        high[i] = scaled(high[i], square);
      }
    }
#pragma unroll
    for (int n = 0; n < kProjectTiles; ++n) {
      std::uint32_t x[4] = {};
      if (8 * n + g < tokens) {
        load_pairs<8, kWide>(x, keys + (8 * n + g) * p.key_stride + static_cast<std::int64_t>(head) * p.head_dim, d,
                             p.head_dim);
      }
      mma_bf16(sums[n], low[0], high[0], low[1], high[1], x[0], x[1]);
      mma_bf16(sums[n], low[2], high[2], low[3], high[3], x[2], x[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kProjectTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][8 * n + 2 * t + i % 2][g + i / 2 * 8] = sums[n][i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < tokens * kProjectRanks; i += kProjectThreads) {
    const int token = i / kProjectRanks, rank = i % kProjectRanks;
    const auto total = [&](int column) {
      float sum = 0;
#pragma unroll
      for (int part = 0; part < kProjectWarps; ++part) {
        sum += parts[part][token][column];
      }
      return sum;
    };
    if (first_rank + rank < p.rank) {
      const std::int64_t at = (first + token) * p.rank + first_rank + rank;
      if (p.coefficient_type == SKV_I8) {
        // The scale is in the basis, so in the sum, and the coefficient is to be divided by it.
        const auto steps = [&](int column) {
          const float scale = p.coefficient_scales[first_rank + column];
          return scale > 0 ? total(column) / (scale * scale) : 0.0F;
        };
        float exact = steps(rank);
        if (const int column = first_rank + rank; is_refinement(column, p.rank) && exact != 0.0F) {
          static_assert(kProjectRanks % 2 == 0, "this block has what is refined");
          exact -= static_cast<float>(round_to_i8(steps(rank - 1))) *
                   (p.coefficient_scales[column - 1] / p.coefficient_scales[column]);
        }
        static_cast<std::int8_t*>(p.coefficients)[at] = round_to_i8(exact);
      } else {
        static_cast<S*>(p.coefficients)[at] = from_float<S>(total(rank));
      }
    }
  }
}

constexpr int kResidualWarps = 16;
constexpr int kResidualThreads = kResidualWarps * 32;
constexpr int kResidualRows = 2;  // tiles of 16 tokens
constexpr int kResidualTokens = 16 * kResidualRows;

// How much of each key its stored coefficients miss: 32 tokens a block, whose warps share the width.
//
// keys [count][K*D], basis [K][r][D], coefficients [count][r] -> residual [count]. Floor: all read once,
// 2*count*r*K*D operations. A fold has 64 tokens: bound by the latency of one block.
template <class Coefficient, bool kWide>
__global__ void __launch_bounds__(kResidualThreads)
    residual_kernel(const __grid_constant__ Several<skv_low_rank_project_params> all) {
  using S = __nv_bfloat16;
  const skv_low_rank_project_params& p = all.of[blockIdx.z];
  __shared__ float parts[kResidualWarps][2][kResidualTokens];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kResidualTokens;
  const int tokens = static_cast<int>(min(static_cast<std::int64_t>(kResidualTokens), p.count - first));
  const S* const keys = static_cast<const S*>(p.keys) + first * p.key_stride;
  const auto* const coefficients = static_cast<const Coefficient*>(p.coefficients) + first * p.rank;
  const int pieces = (p.head_dim + kKeyTile - 1) / kKeyTile;
  float whole[2 * kResidualRows] = {}, missed[2 * kResidualRows] = {};
  for (int unit = warp; unit < pieces * p.key_value_heads; unit += kResidualWarps) {
    const int head = unit / pieces, begin = unit % pieces * kKeyTile;
    float made[kResidualRows][8];
    make_keys<kResidualRows, kWide>(
        made, coefficients, tokens,
        static_cast<const S*>(p.basis) + static_cast<std::int64_t>(head) * p.rank * p.head_dim, p.rank, p.head_dim,
        begin);
#pragma unroll
    for (int q = 0; q < 2 * kResidualRows; ++q) {
      const int token = 8 * q + g;
      std::uint32_t x[2] = {};
      if (token < tokens) {
        load_pairs<4, kWide>(x, keys + token * p.key_stride + static_cast<std::int64_t>(head) * p.head_dim,
                             begin + 4 * t, p.head_dim);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float key = i % 2 ? bf16_high(x[i / 2]) : bf16_low(x[i / 2]);
        const float off = key - made[q / 2][q % 2 * 4 + i];
        whole[q] = fmaf(key, key, whole[q]);
        missed[q] = fmaf(off, off, missed[q]);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < 2 * kResidualRows; ++q) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      whole[q] += __shfl_xor_sync(0xffffffffU, whole[q], step);
      missed[q] += __shfl_xor_sync(0xffffffffU, missed[q], step);
    }
    if (t == 0) {
      parts[warp][0][8 * q + g] = whole[q];
      parts[warp][1][8 * q + g] = missed[q];
    }
  }
  __syncthreads();
  const int token = static_cast<int>(threadIdx.x);
  if (token < tokens) {
    float all = 0, off = 0;
    for (int part = 0; part < kResidualWarps; ++part) {
      all += parts[part][0][token];
      off += parts[part][1][token];
    }
    p.residual[first + token] = all > 0 ? off / all : 0.0F;
  }
}

template <class Coefficient>
auto residual(bool wide) {
  return wide ? residual_kernel<Coefficient, true> : residual_kernel<Coefficient, false>;
}

// Calls that differ in addresses alone.
void project(Several<skv_low_rank_project_params> all, int together, Launch& launch) {
  const skv_low_rank_project_params whole = all.of[0];
  require_bf16(whole.type, "low_rank_project", "the type");
  require_coefficients(whole.coefficient_type, "low_rank_project");
  const int bytes = coefficient_bytes(whole.coefficient_type);
  if (whole.count == 0) {
    return;
  }
  bool wide = true;
  for (int i = 0; i < together; ++i) {
    skv_low_rank_project_params& p = all.of[i];
    p.key_stride = p.key_stride ? p.key_stride : static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
    wide &= aligned_16({p.keys, p.basis, p.coefficients}, {2 * p.key_stride, 2 * p.head_dim, bytes * p.rank});
  }
  // Tokens are the grid's second dimension, which ends at 65535.
  constexpr std::int64_t kMostTokens = std::int64_t{65'535} * kProjectTokens;
  for (std::int64_t done = 0; done < whole.count; done += kMostTokens) {
    const std::int64_t count = std::min(whole.count - done, kMostTokens);
    Several<skv_low_rank_project_params> part = all;
    for (int i = 0; i < together; ++i) {
      skv_low_rank_project_params& p = part.of[i];
      p.count = count;
      p.keys = static_cast<const __nv_bfloat16*>(p.keys) + done * p.key_stride;
      p.coefficients = static_cast<char*>(p.coefficients) + done * p.rank * bytes;
      p.residual = p.residual ? p.residual + done : nullptr;
    }
    const auto each = static_cast<unsigned>(together);
    launch_kernel("low_rank_project", wide ? low_rank_project_kernel<true> : low_rank_project_kernel<false>,
                  dim3(blocks_for(whole.rank, kProjectRanks), blocks_for(count, kProjectTokens), each),
                  dim3(kProjectThreads), 0, launch.stream, part);
    if (whole.residual) {
      launch_kernel("low_rank_project",
                    whole.coefficient_type == SKV_I8 ? residual<std::int8_t>(wide) : residual<__nv_bfloat16>(wide),
                    dim3(blocks_for(count, kResidualTokens), 1, each), dim3(kResidualThreads), 0, launch.stream, part);
    }
  }
}

}  // namespace

std::uint64_t low_rank_project_workspace(const skv_low_rank_project_params&, const DeviceTraits&) {
  return 0;
}

void low_rank_project_each(const skv_low_rank_project_params* all, int count, Launch& launch) {
  using P = skv_low_rank_project_params;
  const auto alike = [](const P& a, const P& b) {
    return !a.residual == !b.residual && !a.head_scales == !b.head_scales &&
           alike_but_for(a, b, &P::keys, &P::basis, &P::coefficients, &P::residual, &P::head_scales,
                         &P::coefficient_scales);
  };
  in_groups(all, count, alike, [&](const Several<P>& group, int together) { project(group, together, launch); });
}

void low_rank_project(const skv_low_rank_project_params& p, Launch& launch) {
  project(only(p), 1, launch);
}

}  // namespace skv::cuda
