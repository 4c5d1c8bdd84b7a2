#include "cuda/launch.h"
#include "cuda/low_rank_products.cuh"

namespace skv::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 2;  // tiles of 16 tokens
constexpr int kTokens = 16 * kRows;

// Elements of a token that a lane writes next to each other.
template <bool kWide>
__device__ inline void store_keys(__nv_bfloat16* row, int begin, int dim, const float (&x)[4]) {
  if constexpr (kWide) {
    store_floats(row + begin, x);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (begin + i < dim) {
        row[begin + i] = from_float<__nv_bfloat16>(x[i]);
      }
    }
  }
}

// Rotated keys from coefficients, 32 tokens of one head a block. A warp makes 16 elements at a time, and with
// half-split pairs their 16 partners too, so that a rotation stays within a lane.
//
// coefficients [..][r], basis [K][r][D] -> rotated_keys [K][capacity][D]. Floor: keys written once and
// 2*count*r*K*D operations; not on the hot path.
template <class Coefficient, bool kWide, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rebuild_keys_kernel(const __grid_constant__ skv_rebuild_keys_params p) {
  using S = __nv_bfloat16;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTokens;
  const int tokens = static_cast<int>(min(static_cast<std::int64_t>(kTokens), p.count - first));
  const std::int64_t position = p.first_position + first;
  const std::int64_t head = blockIdx.y;
  const auto* const coefficients = static_cast<const Coefficient*>(p.coefficients) + position * p.rank;
  const S* const basis = static_cast<const S*>(p.basis) + head * p.rank * p.head_dim;
  S* const keys = static_cast<S*>(p.rotated_keys) + head * p.capacity * p.head_dim;
  const int rotary = p.rope.rotary_dim, half = rotary / 2;
  // Tiles that lead a rotation, then those that pass through.
  const int leading = ((kInterleaved ? rotary : half) + kKeyTile - 1) / kKeyTile;
  const int passing = (p.head_dim - rotary + kKeyTile - 1) / kKeyTile;
  for (int unit = warp; unit < leading + passing; unit += kWarps) {
    const bool rotated = unit < leading;
    const int begin = rotated ? unit * kKeyTile : rotary + (unit - leading) * kKeyTile;
    const int end = !rotated ? p.head_dim : kInterleaved ? rotary : half;
    float x[kRows][8], partner[kRows][8];
    make_keys<kRows, kWide>(x, coefficients, tokens, basis, p.rank, p.head_dim, begin);
    if (!kInterleaved && rotated) {
      make_keys<kRows, kWide>(partner, coefficients, tokens, basis, p.rank, p.head_dim, half + begin);
    }
#pragma unroll
    for (int q = 0; q < 2 * kRows; ++q) {
      const int token = 8 * q + g, at = begin + 4 * t;
      if (token >= tokens || at >= end) {
        continue;
      }
      S* const row = keys + (position + token) % p.capacity * p.head_dim;
      float low[4], high[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        low[i] = x[q / 2][q % 2 * 4 + i];
      }
      if (rotated && kInterleaved) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          if (at + i < end) {
            float cosine[1], sine[1];
            rotations<1>(p.rope, position + token, (at + i) / 2, cosine, sine);
            const float a = low[i], b = low[i + 1];
            low[i] = a * cosine[0] - b * sine[0];
            low[i + 1] = b * cosine[0] + a * sine[0];
          }
        }
      } else if (rotated) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (at + i < end) {
            float cosine[1], sine[1];
            rotations<1>(p.rope, position + token, at + i, cosine, sine);
            const float a = low[i], b = partner[q / 2][q % 2 * 4 + i];
            low[i] = a * cosine[0] - b * sine[0];
            high[i] = b * cosine[0] + a * sine[0];
          }
        }
        store_keys<kWide>(row, half + at, half + end, high);
      }
      store_keys<kWide>(row, at, end, low);
    }
  }
}

template <class Coefficient>
auto rebuild_kernel(bool wide, bool interleaved) {
  if (wide) {
    return interleaved ? rebuild_keys_kernel<Coefficient, true, true> : rebuild_keys_kernel<Coefficient, true, false>;
  }
  return interleaved ? rebuild_keys_kernel<Coefficient, false, true> : rebuild_keys_kernel<Coefficient, false, false>;
}

}  // namespace

std::uint64_t rebuild_keys_workspace(const skv_rebuild_keys_params&, const DeviceTraits&) {
  return 0;
}

void rebuild_keys(const skv_rebuild_keys_params& p, Launch& launch) {
  require_bf16(p.type, "rebuild_keys", "the type");
  require_coefficients(p.coefficient_type, "rebuild_keys");
  if (p.count == 0) {
    return;
  }
  // Vectors of four elements must not straddle the halves of a rotation, nor the end of the rotated part.
  const bool wide = aligned_16({p.coefficients, p.basis, p.rotated_keys},
                               {2 * p.head_dim, coefficient_bytes(p.coefficient_type) * p.rank}) &&
                    p.rope.rotary_dim % 8 == 0;
  const bool interleaved = p.rope.pairing == SKV_INTERLEAVED;
  const auto kernel = p.coefficient_type == SKV_I8 ? rebuild_kernel<std::int8_t>(wide, interleaved)
                                                   : rebuild_kernel<__nv_bfloat16>(wide, interleaved);
  launch_kernel("rebuild_keys", kernel, dim3(blocks_for(p.count, kTokens), static_cast<unsigned>(p.key_value_heads)),
                dim3(kThreads), 0, launch.stream, p);
}

}  // namespace skv::cuda
