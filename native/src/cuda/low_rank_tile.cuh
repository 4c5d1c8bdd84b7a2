// Products of coefficients and basis on tensor cores, 64 tokens a block: what rebuild_keys and
// low_rank_project share. Plain and small; the decode path has kernels of its own.
#pragma once

#include <mma.h>

#include "cuda/vector.cuh"

namespace skv::cuda {

constexpr int kTileTokens = 64;
constexpr int kTileWarps = kTileTokens / 16;
constexpr int kTileThreads = kTileWarps * 32;
constexpr int kTileSlice = 64;    // rows of the basis held at a time
constexpr int kTileSkew = 8;      // elements; keeps rows off each other's banks
constexpr int kTileMost = SKV_MAX_HEAD_DIM / 16;  // 16-wide tiles of a head

static_assert(SKV_MAX_RANK == SKV_MAX_HEAD_DIM);

// Shared memory, in elements: coefficients [64][rank], a slice [64][head dim] or [rank][64], and fp32 sums.
struct TileShape {
  int rank, rank_padded;  // to 16
  int dim, dim_padded;    // to 16
  __host__ __device__ TileShape(int rank_, int dim_)
      : rank(rank_), rank_padded((rank_ + 15) / 16 * 16), dim(dim_), dim_padded((dim_ + 15) / 16 * 16) {}
  __host__ __device__ int wide() const { return rank_padded > dim_padded ? rank_padded : dim_padded; }
  __host__ __device__ int coefficient_pitch() const { return rank_padded + kTileSkew; }
  __host__ __device__ int dim_pitch() const { return dim_padded + kTileSkew; }
  // At least 64: a projection keeps its tile of keys in the same place.
  __host__ __device__ int sum_pitch() const { return (wide() > kTileSlice ? wide() : kTileSlice) + 4; }
  __host__ __device__ int coefficient_elements() const { return kTileTokens * coefficient_pitch(); }
  // Phase one of a projection holds 16 columns of the basis for all ranks, phase two 64 rows of it.
  __host__ __device__ int slice_elements() const {
    const int rows = kTileSlice * dim_pitch();
    const int columns = rank_padded * (kTileSlice + kTileSkew);
    return rows > columns ? rows : columns;
  }
  __host__ __device__ int sum_elements() const { return kTileTokens * sum_pitch(); }
  __host__ std::size_t bytes() const {
    return sizeof(__nv_bfloat16) * static_cast<std::size_t>(coefficient_elements() + slice_elements()) +
           sizeof(float) * static_cast<std::size_t>(sum_elements());
  }
};

using TileSums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;

// sums [64][dim] = coefficients (shared) . basis of one head (global, [rank][dim]). Begins and ends with a barrier.
template <int kTiles>
__device__ void multiply_basis(const TileShape& shape, const __nv_bfloat16* coefficients, __nv_bfloat16* slice,
                               float* sums, const __nv_bfloat16* basis) {
  using namespace nvcuda;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  TileSums tile[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    wmma::fill_fragment(tile[n], 0.0F);
  }
  for (int first = 0; first < shape.rank_padded; first += kTileSlice) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTileSlice * shape.dim_padded; i += kTileThreads) {
      const int row = i / shape.dim_padded, d = i % shape.dim_padded;
      const bool inside = first + row < shape.rank && d < shape.dim;
      slice[row * shape.dim_pitch() + d] =
          inside ? basis[static_cast<std::int64_t>(first + row) * shape.dim + d] : __float2bfloat16_rn(0.0F);
    }
    __syncthreads();
    for (int k = 0; k < kTileSlice && first + k < shape.rank_padded; k += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> a;
      wmma::load_matrix_sync(a, coefficients + warp * 16 * shape.coefficient_pitch() + first + k,
                             static_cast<unsigned>(shape.coefficient_pitch()));
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if (n * 16 < shape.dim_padded) {
          wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> b;
          wmma::load_matrix_sync(b, slice + k * shape.dim_pitch() + n * 16, static_cast<unsigned>(shape.dim_pitch()));
          wmma::mma_sync(tile[n], a, b, tile[n]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (n * 16 < shape.dim_padded) {
      wmma::store_matrix_sync(sums + warp * 16 * shape.sum_pitch() + n * 16, tile[n],
                              static_cast<unsigned>(shape.sum_pitch()), wmma::mem_row_major);
    }
  }
  __syncthreads();
}

}  // namespace skv::cuda
