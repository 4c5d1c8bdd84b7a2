#include "cuda/launch.h"
#include "cuda/low_rank_tile.cuh"

namespace skv::cuda {
namespace {

// Coefficients of new keys in an existing basis, and how much of each key they miss: 64 tokens a block, which
// goes over the heads twice, first for the coefficients, then to compare the key with what they give back.
//
// keys [count][K*D], basis [K][r][D] -> coefficients [count][r], residual [count]. Floor: keys and basis read
// once and 4*count*r*K*D operations. A fold has one block's worth of tokens: bound by latency.
template <int kTiles>
__global__ void __launch_bounds__(kTileThreads)
    low_rank_project_kernel(const __grid_constant__ skv_low_rank_project_params p) {
  using namespace nvcuda;
  using S = __nv_bfloat16;
  extern __shared__ __align__(128) unsigned char shared[];
  const TileShape shape(p.rank, p.head_dim);
  float* const sums = reinterpret_cast<float*>(shared);
  S* const coefficients = reinterpret_cast<S*>(sums + shape.sum_elements());
  S* const slice = coefficients + shape.coefficient_elements();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTileTokens;
  const int tokens = static_cast<int>(min(static_cast<std::int64_t>(kTileTokens), p.count - first));
  const S* const keys = static_cast<const S*>(p.keys) + first * p.key_stride;
  const S* const basis = static_cast<const S*>(p.basis);
  const S zero = __float2bfloat16_rn(0.0F);
  constexpr int kColumns = kTileSlice;
  constexpr int kPitch = kColumns + kTileSkew;
  // The tile of keys lies where the coefficients will be: they are at least 16 + 8 wide, the keys are taken
  // 64 columns at a time, so they have the sums' place instead, which is large enough.
  S* const key_tile = reinterpret_cast<S*>(sums);

  TileSums tile[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    wmma::fill_fragment(tile[n], 0.0F);
  }
  for (int head = 0; head < p.key_value_heads; ++head) {
    for (int begin = 0; begin < p.head_dim; begin += kColumns) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < kTileTokens * kColumns; i += kTileThreads) {
        const int token = i / kColumns, d = i % kColumns;
        key_tile[token * kPitch + d] =
            token < tokens && begin + d < p.head_dim
                ? keys[token * p.key_stride + static_cast<std::int64_t>(head) * p.head_dim + begin + d]
                : zero;
      }
      for (int i = static_cast<int>(threadIdx.x); i < shape.rank_padded * kColumns; i += kTileThreads) {
        const int j = i / kColumns, d = i % kColumns;
        slice[j * kPitch + d] = j < p.rank && begin + d < p.head_dim
                                    ? basis[(static_cast<std::int64_t>(head) * p.rank + j) * p.head_dim + begin + d]
                                    : zero;
      }
      __syncthreads();
      for (int k = 0; k < kColumns; k += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, S, wmma::row_major> a;
        wmma::load_matrix_sync(a, key_tile + warp * 16 * kPitch + k, kPitch);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          if (n * 16 < shape.rank_padded) {
            wmma::fragment<wmma::matrix_b, 16, 16, 16, S, wmma::col_major> b;
            wmma::load_matrix_sync(b, slice + n * 16 * kPitch + k, kPitch);
            wmma::mma_sync(tile[n], a, b, tile[n]);
          }
        }
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n * 16 < shape.rank_padded) {
      wmma::store_matrix_sync(sums + warp * 16 * shape.sum_pitch() + n * 16, tile[n],
                              static_cast<unsigned>(shape.sum_pitch()), wmma::mem_row_major);
    }
  }
  __syncthreads();
  S* const to = static_cast<S*>(p.coefficients) + first * p.rank;
  for (int i = static_cast<int>(threadIdx.x); i < kTileTokens * shape.rank_padded; i += kTileThreads) {
    const int token = i / shape.rank_padded, j = i % shape.rank_padded;
    const S value = from_float<S>(sums[token * shape.sum_pitch() + j]);
    coefficients[token * shape.coefficient_pitch() + j] = value;
    if (token < tokens && j < p.rank) {
      to[static_cast<std::int64_t>(token) * p.rank + j] = value;
    }
  }
  if (!p.residual) {
    return;
  }
  // Two threads a token, neighbours, each with every second element.
  static_assert(kTileThreads == 2 * kTileTokens);
  const int token = static_cast<int>(threadIdx.x) / 2, part = static_cast<int>(threadIdx.x) % 2;
  float missed = 0, whole = 0;
  for (int head = 0; head < p.key_value_heads; ++head) {
    multiply_basis<kTileMost>(shape, coefficients, slice, sums,
                              basis + static_cast<std::int64_t>(head) * p.rank * p.head_dim);
    if (token < tokens) {
      const S* const key = keys + token * p.key_stride + static_cast<std::int64_t>(head) * p.head_dim;
      for (int d = part; d < p.head_dim; d += 2) {
        const float x = to_float(key[d]), off = x - sums[token * shape.sum_pitch() + d];
        whole = fmaf(x, x, whole);
        missed = fmaf(off, off, missed);
      }
    }
  }
  whole += __shfl_xor_sync(0xffffffffU, whole, 1);
  missed += __shfl_xor_sync(0xffffffffU, missed, 1);
  if (token < tokens && part == 0) {
    p.residual[first + token] = whole > 0 ? missed / whole : 0.0F;
  }
}

}  // namespace

std::uint64_t low_rank_project_workspace(const skv_low_rank_project_params&, const DeviceTraits&) { return 0; }

void low_rank_project(const skv_low_rank_project_params& params, Launch& launch) {
  skv_low_rank_project_params p = params;
  require_bf16(p.type, "low_rank_project", "the type");
  if (p.count == 0) {
    return;
  }
  p.key_stride = p.key_stride ? p.key_stride : static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
  const TileShape shape(p.rank, p.head_dim);
  launch_kernel("low_rank_project", low_rank_project_kernel<kTileMost>, dim3(blocks_for(p.count, kTileTokens)),
                dim3(kTileThreads), shape.bytes(), launch.stream, p);
}

}  // namespace skv::cuda
