// The map from the coefficients of keys to values, by least squares.
#include <algorithm>

#include "coefficient_columns.h"
#include "cuda/cublas.h"
#include "cuda/elements.cuh"
#include "cuda/launch.h"
#include "cuda/mma.cuh"

namespace skv::cuda {
namespace {

constexpr int kFitThreads = 256;
constexpr std::int64_t kSquareBlocks = 128;
constexpr std::int64_t kWidenedTokens = 16384;  // whose I8 coefficients are bf16 at a time
// A column with no more than this share of the largest one's squares is rounding alone: the basis that coefficients are
// taken with is rounded to bf16, which brings some of the longest column into the others. I8 columns are as long as one
// another: those that are rounding were made zero.
constexpr float kLeastShare = 0x1p-20F;

// Sums of squares of the columns, a share of the tokens each block.
//
// coefficients [tokens][r] -> parts [blocks][r]. Floor: the coefficients read once; bound by memory.
template <class Coefficient>
__global__ void __launch_bounds__(kFitThreads)
    squares_kernel(const Coefficient* coefficients, std::int64_t tokens, int rank, float* parts) {
  __shared__ float rows[kFitThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int rows_at_once = max(1, kFitThreads / rank), row = thread / rank, column = thread % rank;
  float sum = 0;
  if (row < rows_at_once) {
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * rows_at_once;
#pragma unroll 4
    for (std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * rows_at_once + row; t < tokens; t += step) {
      const float x = to_float(coefficients[t * rank + column]);
      sum += x * x;
    }
  }
  rows[thread] = sum;
  __syncthreads();
  if (thread < rank) {
    for (int i = 1; i < rows_at_once; ++i) {
      sum += rows[i * rank + thread];
    }
    parts[static_cast<std::int64_t>(blockIdx.x) * rank + thread] = sum;
  }
}

// 1 / sum of squares of each column, 0 where that is no more than a share of the largest, and of refinements, if there
// are any: the values that they stand for are their directions'. One block.
__global__ void __launch_bounds__(kFitThreads)
    inverses_kernel(const float* parts, int blocks, int rank, float least_share, bool refined, float* inverses) {
  __shared__ float largest_of_warps[kFitThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; thread < rank && i < blocks; ++i) {
    sum += parts[static_cast<std::int64_t>(i) * rank + thread];
  }
  const float of_warp = warp_max(sum);
  if (thread % 32 == 0) {
    largest_of_warps[thread / 32] = of_warp;
  }
  __syncthreads();
  float largest = 0;
  for (const float x : largest_of_warps) {
    largest = fmaxf(largest, x);
  }
  if (thread < rank) {
    const bool wanted = sum > least_share * largest && !(refined && is_refinement(thread, rank));
    inverses[thread] = wanted ? 1.0F / sum : 0.0F;
  }
}

// products [K][r][D] f32, inverses [r] -> value_basis [K][r][D].
__global__ void __launch_bounds__(kFitThreads)
    store_fit_kernel(const float* products, const float* inverses, int rank, int dim, std::int64_t count,
                     __nv_bfloat16* value_basis) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kFitThreads + threadIdx.x;
  if (i < count) {
    const float inverse = inverses[i / dim % rank];
    value_basis[i] = __float2bfloat16_rn(inverse == 0.0F ? 0.0F : products[i] * inverse);
  }
}

// I8 coefficients as cuBLAS takes them.
__global__ void __launch_bounds__(kFitThreads)
    widen_kernel(const std::int8_t* from, std::int64_t count, __nv_bfloat16* to) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kFitThreads + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * kFitThreads) {
    to[i] = __float2bfloat16_rn(to_float(from[i]));
  }
}

std::uint64_t elements(const skv_value_fit_params& p) {
  return static_cast<std::uint64_t>(p.key_value_heads) * static_cast<std::uint64_t>(p.rank) *
         static_cast<std::uint64_t>(p.head_dim);
}

std::uint64_t widened_elements(const skv_value_fit_params& p) {
  return p.coefficient_type == SKV_I8
             ? static_cast<std::uint64_t>(std::min(p.tokens, kWidenedTokens)) * static_cast<std::uint64_t>(p.rank)
             : 0;
}

}  // namespace

std::uint64_t value_fit_workspace(const skv_value_fit_params& p, const DeviceTraits&) {
  const auto rank = static_cast<std::uint64_t>(p.rank);
  return Workspace::align(widened_elements(p) * sizeof(__nv_bfloat16)) + Workspace::align(elements(p) * sizeof(float)) +
         Workspace::align(static_cast<std::uint64_t>(kSquareBlocks) * rank * sizeof(float)) +
         Workspace::align(rank * sizeof(float));
}

// coefficients [T][r], values [K][T][D] -> value_basis [K][r][D]. Floor: coefficients and values read once (bytes
// 2*T*(r + K*D), with I8 coefficients T*(r + 2*K*D)), 2*T*r*K*D operations on tensor cores, by cuBLAS.
void value_fit(const skv_value_fit_params& p, Launch& launch) {
  require_bf16(p.storage_type, "value_fit", "the storage type");
  require_coefficients(p.coefficient_type, "value_fit");
  launch.workspace.require(value_fit_workspace(p, launch.traits), "value_fit");
  const std::uint64_t count = elements(p);
  if (p.tokens == 0) {
    check(cudaMemsetAsync(p.value_basis, 0, count * sizeof(__nv_bfloat16), launch.stream), "clearing a value basis");
    return;
  }
  Workspace workspace = launch.workspace;
  auto* const products = workspace.take<float>(count);
  auto* const parts =
      workspace.take<float>(static_cast<std::uint64_t>(kSquareBlocks) * static_cast<std::uint64_t>(p.rank));
  auto* const inverses = workspace.take<float>(static_cast<std::uint64_t>(p.rank));
  auto* const widened = workspace.take<__nv_bfloat16>(widened_elements(p));
  const bool bytes = p.coefficient_type == SKV_I8;
  const auto* const coefficients =
      static_cast<const char*>(p.coefficients) + p.first_position * p.rank * coefficient_bytes(p.coefficient_type);
  const auto* const values = static_cast<const __nv_bfloat16*>(p.values);
  // The tokens lie in the ring in one piece or two.
  const std::int64_t first_row = p.first_position % p.capacity;
  std::int64_t done = 0;
  while (done < p.tokens) {
    const std::int64_t row = (first_row + done) % p.capacity;
    const std::int64_t piece = std::min({p.tokens - done, p.capacity - row, bytes ? kWidenedTokens : p.tokens});
    const auto* rows = reinterpret_cast<const __nv_bfloat16*>(coefficients) + done * p.rank;
    if (bytes) {
      launch_kernel("value_fit", widen_kernel,
                    dim3(striding_blocks(piece * p.rank, kFitThreads, launch.traits.multiprocessors)),
                    dim3(kFitThreads), 0, launch.stream,
                    reinterpret_cast<const std::int8_t*>(coefficients) + done * p.rank, piece * p.rank, widened);
      rows = widened;
    }
    launch.cublas.multiply_batched(launch.stream, p.key_value_heads, p.rank, p.head_dim, piece, 1.0F,
                                   {rows, SKV_BF16, p.rank, true}, 0, {values + row * p.head_dim, SKV_BF16, p.head_dim},
                                   p.capacity * p.head_dim, done == 0 ? 0.0F : 1.0F, products, SKV_F32, p.head_dim,
                                   static_cast<std::int64_t>(p.rank) * p.head_dim);
    done += piece;
  }
  const int blocks = static_cast<int>(std::min(kSquareBlocks, p.tokens));
  const auto add_squares = [&]<class Coefficient>(const Coefficient* from) {
    launch_kernel("value_fit", squares_kernel<Coefficient>, dim3(static_cast<unsigned>(blocks)), dim3(kFitThreads), 0,
                  launch.stream, from, p.tokens, p.rank, parts);
  };
  if (bytes) {
    add_squares(reinterpret_cast<const std::int8_t*>(coefficients));
  } else {
    add_squares(reinterpret_cast<const __nv_bfloat16*>(coefficients));
  }
  launch_kernel("value_fit", inverses_kernel, dim3(1), dim3(kFitThreads), 0, launch.stream, parts, blocks, p.rank,
                bytes ? 0.0F : kLeastShare, bytes, inverses);
  launch_kernel("value_fit", store_fit_kernel, dim3(blocks_for(static_cast<std::int64_t>(count), kFitThreads)),
                dim3(kFitThreads), 0, launch.stream, products, inverses, p.rank, p.head_dim,
                static_cast<std::int64_t>(count), static_cast<__nv_bfloat16*>(p.value_basis));
}

}  // namespace skv::cuda
