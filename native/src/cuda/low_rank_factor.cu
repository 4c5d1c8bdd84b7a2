#include <algorithm>

#include "coefficient_columns.h"
#include "cuda/cublas.h"
#include "cuda/launch.h"
#include "cuda/launch_together.h"
#include "cuda/subspace.cuh"
#include "head_scales.h"
#include "random.h"

// Keys ~ coefficients . basis without a singular value decomposition of the keys:
//
//   G = keys^T . keys                            bf16 products summed in fp32, in slices of the tokens
//   Q = random; repeat: Q = orthonormal(G . Q)   block subspace iteration, `oversampling` directions too many
//   T = Q^T . G . Q = U . diag . U^T             Rayleigh-Ritz: the best directions within the subspace
//   basis = (Q . U)^T, coefficients = keys . basis^T with the basis as it is stored
//
// Heads are scaled in G, and never in the keys. I8 coefficients are rounded once the largest of each direction is
// known.
//
// Four iterations and 32 directions too many leave the error 0.41 % above the optimum where singular values fall as
// k^-0.3, 0.22 % for k^-0.5, 0.04 % for k^-1.5 and 0.19 % for exp(-k/200) (simulated in double precision, width
// 1024, rank 160; three leave 0.85 %, 0.53 %, 0.15 % and 0.50 %). Nothing waits for the device.
//
// 122880 x 1024, rank 160: the Gram matrix is 257 GFLOP, 0.33 ms at 783 TFLOP/s; reached 2.87 ms in all, of which
// Gram 0.29 and each iteration 0.27 (H200, 2026-11-24, bench_cuda_build).
namespace skv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDefaultIterations = 4;
constexpr int kDefaultOversampling = 32;
constexpr int kCommonBlock = 192;  // rank 160: kernels for blocks up to this hold less in registers
constexpr std::uint64_t kSeed = 0x5eed0fba51c5ULL;
// A direction with less than this share of what it had before those ahead of it were taken out is rounding.
constexpr double kDependent = 1e-13;
// Tokens whose coefficients are held in fp32 before they are rounded to I8.
constexpr std::int64_t kRoundedTokens = 16384;
// Between directions that hold less than this share of the largest one's energy, the projected Gram matrix is rounding:
// sums of tensor cores are cut off, 1e-7 of the largest eigenvalue at 1500 tokens, and what is cut off makes it
// indefinite. Nothing is lost with it: bf16 coefficients of the largest direction miss five times as much.
constexpr double kCoupled = 1e-6;
// A direction with no more than this share of the largest one's energy is rounding, as in value_fit.
constexpr float kRounding = 0x1p-20F;

struct Plan {
  std::int64_t width, key_stride;
  int block;  // columns of Q, a multiple of kPanel
  int iterations;
  int slices;  // of the tokens in the Gram matrix
  std::int64_t slice_tokens;
  int stored_rank;
  int usable;  // directions that exist
};

Plan plan_of(const skv_low_rank_factor_params& p, const DeviceTraits& traits) {
  Plan plan = {};
  plan.width = static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
  plan.key_stride = p.key_stride ? p.key_stride : plan.width;
  plan.stored_rank = p.stored_rank ? p.stored_rank : p.rank;
  plan.usable = static_cast<int>(std::min<std::int64_t>({p.rank, p.tokens, plan.width}));
  const int oversampling = p.oversampling ? p.oversampling : kDefaultOversampling;
  const std::int64_t wanted =
      std::min<std::int64_t>({static_cast<std::int64_t>(p.rank) + oversampling, plan.width, kMaximumBlock});
  plan.block = static_cast<int>((wanted + kPanel - 1) / kPanel * kPanel);
  // A block as wide as the keys holds every direction from the start.
  plan.iterations = plan.block >= plan.width ? 0 : p.iterations ? p.iterations : kDefaultIterations;
  // Slices fill the device where the matrix itself has few tiles, and shorten the sums.
  constexpr std::int64_t kTile = 128, kShortest = 1024, kMostSlices = 8;
  const std::int64_t tiles = (plan.width + kTile - 1) / kTile * ((plan.width + kTile - 1) / kTile);
  const std::int64_t filling = (4 * traits.multiprocessors + tiles - 1) / tiles;
  plan.slices = static_cast<int>(std::clamp<std::int64_t>(std::min(filling, p.tokens / kShortest), 1, kMostSlices));
  plan.slice_tokens = p.tokens / plan.slices;
  return plan;
}

struct Scratch {
  float* slices;          // [slices + 1][width][width]; the last is what the slices leave over
  float* gram;            // [width][width]
  float* q;               // [width][block]
  float* y;               // [width][block]
  double* products;       // [block][block]
  double* transposed;     // [block][block]
  double* inverses;       // [block][32]
  float* columns;         // [block][block]
  unsigned* progress;     // [kJacobiWords]
  float* vectors;         // [rank][block]
  float* values;          // [rank]
  float* basis;           // [rank][width]
  __nv_bfloat16* packed;  // [stored_rank][width]
  float* exact;           // [kRoundedTokens][stored_rank]: I8 coefficients before rounding, where the slices were
  unsigned* largest;      // [stored_rank]: bits of their largest magnitudes
};

// Lays the scratch out; with no memory it only counts.
Scratch lay_out(const skv_low_rank_factor_params& p, const Plan& plan, std::byte* base, std::uint64_t& bytes) {
  std::uint64_t used = 0;
  const auto take = [&]<class T>(T*& pointer, std::int64_t count) {
    pointer = reinterpret_cast<T*>(base + used);
    used += Workspace::align(static_cast<std::uint64_t>(count) * sizeof(T));
  };
  const std::int64_t square = plan.width * plan.width;
  const std::int64_t block = plan.block;
  Scratch s = {};
  take(s.gram, square);
  const bool rounded = p.coefficient_type == SKV_I8;
  const std::int64_t exact = rounded ? std::min(p.tokens, kRoundedTokens) * plan.stored_rank : 0;
  take(s.slices, std::max(plan.slices > 1 ? (plan.slices + 1) * square : 0, exact));
  s.exact = s.slices;
  take(s.q, plan.width * block);
  take(s.y, plan.width * block);
  take(s.products, block * block);
  take(s.transposed, block * block);
  take(s.inverses, block * kPanel);
  take(s.columns, block * block);
  take(s.progress, kJacobiWords);
  take(s.vectors, p.rank * block);
  take(s.values, p.rank);
  take(s.basis, p.rank * plan.width);
  take(s.packed, plan.stored_rank * plan.width);
  take(s.largest, rounded ? plan.stored_rank : 0);
  bytes = used;
  return s;
}

// gram = sum of the slices.
__global__ void __launch_bounds__(kThreads)
    sum_slices_kernel(const float* slices, int count, std::int64_t square, float* gram) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < square;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    float sum = 0;
    for (int slice = 0; slice < count; ++slice) {
      sum += slices[slice * square + i];
    }
    gram[i] = sum;
  }
}

// scales [K] of the heads, from the squares on the diagonal of the Gram matrix. One block.
__global__ void __launch_bounds__(kThreads)
    head_scales_kernel(const float* gram, std::int64_t width, int head_dim, float* scales) {
  __shared__ float sums[SKV_MAX_KEY_VALUE_HEADS];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int heads = static_cast<int>(width / head_dim);
  for (int head = warp; head < heads; head += kThreads / 32) {
    float sum = 0;
    for (int d = lane; d < head_dim; d += 32) {
      const std::int64_t i = static_cast<std::int64_t>(head) * head_dim + d;
      sum += gram[i * width + i];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      sums[head] = sum;
    }
  }
  __syncthreads();
  const int head = static_cast<int>(threadIdx.x);
  if (head < heads) {
    float total = 0;
    for (int i = 0; i < heads; ++i) {
      total += sums[i];
    }
    scales[head] = head_scale(sums[head], total / static_cast<float>(heads));
  }
}

// The Gram matrix of the keys scaled by head.
__global__ void __launch_bounds__(kThreads)
    scale_gram_kernel(const float* scales, std::int64_t width, int head_dim, float* gram) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < width * width;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    gram[i] *= scales[i / width / head_dim] * scales[i % width / head_dim];
  }
}

// q [width][block]: random directions, or all of them when the block is that wide.
__global__ void __launch_bounds__(kThreads) start_kernel(std::int64_t width, int block, float* q) {
  const bool complete = block >= width;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < width * block / 4;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const RandomNormals normals = random_normals(static_cast<std::uint64_t>(i), kSeed);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t at = 4 * i + j;
      q[at] = complete ? (at / block == at % block ? 1.0F : 0.0F) : normals.at[j];
    }
  }
}

// basis [K][stored_rank][D] and packed [stored_rank][K*D], which keys are projected on, bf16, from fp32 [rank][K*D];
// zero from `usable` on. With scales [K] of heads, the basis is divided by them and packed multiplied; with scales
// [stored_rank] of coefficients, the basis is multiplied by those.
__global__ void __launch_bounds__(kThreads)
    store_basis_kernel(const float* from, int usable, int rank, bool rounded, int stored_rank, std::int64_t width,
                       int head_dim, const float* scales, const float* coefficient_scales, __nv_bfloat16* basis,
                       __nv_bfloat16* packed) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < stored_rank * width;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const std::int64_t j = i / width, column = i % width;
    const std::int64_t direction = rounded ? direction_of(static_cast<int>(j), stored_rank) : j;
    const float value = j < rank && direction < usable ? from[direction * width + column] : 0.0F,
                scale = scales ? scales[column / head_dim] : 1.0F;
    packed[i] = __float2bfloat16_rn(value * scale);
    const float of_column = coefficient_scales ? coefficient_scales[j] : 1.0F;
    basis[(column / head_dim * stored_rank + j) * head_dim + column % head_dim] =
        __float2bfloat16_rn(value * of_column / scale);
  }
}

// largest [r] = bits of the largest magnitude so far of each column of coefficients [tokens][r].
__global__ void __launch_bounds__(kThreads)
    largest_kernel(const float* coefficients, std::int64_t tokens, int rank, unsigned* largest) {
  const int thread = static_cast<int>(threadIdx.x), column = thread % rank;
  const int rows_at_once = kThreads / rank, row = thread / rank;
  float most = 0;
  if (row < rows_at_once) {
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * rows_at_once;
#pragma unroll 4
    for (std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * rows_at_once + row; t < tokens; t += step) {
      most = fmaxf(most, fabsf(coefficients[t * rank + column]));
    }
    // Magnitudes are in the order of their bits.
    atomicMax(largest + column, __float_as_uint(most));
  }
}

// scales [r] by the largest of each direction; 0 of those that are rounding alone, by their energies
// [usable].
__global__ void __launch_bounds__(kThreads)
    coefficient_scales_kernel(const unsigned* largest, const float* energies, int usable, int rank, float* scales) {
  const int j = static_cast<int>(threadIdx.x), direction = direction_of(j, rank);
  if (j < rank) {
    const bool there = direction < usable && energies[direction] > kRounding * energies[0];
    scales[j] =
        there ? coefficient_scale(__uint_as_float(largest[j])) / (is_refinement(j, rank) ? kRefinementSteps : 1.0F)
              : 0.0F;
  }
}

// coefficients [tokens][r] f32 -> I8, by the scales [r] of the directions.
__global__ void __launch_bounds__(kThreads)
    round_coefficients_kernel(const float* from, std::int64_t count, int rank, const float* scales, std::int8_t* to) {
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads) {
    const int j = static_cast<int>(i % rank);
    const float scale = scales[j];
    float had = 0;
    if (is_refinement(j, rank) && scale > 0) {
      had = static_cast<float>(round_to_i8(from[i - 1] / scales[j - 1])) * kRefinementSteps;
    }
    to[i] = scale > 0 ? round_to_i8(from[i] / scale - had) : static_cast<std::int8_t>(0);
  }
}

// singular_values [rank] and energy [2], of which the basis captures that of the directions it keeps; one block.
__global__ void __launch_bounds__(kThreads)
    report_kernel(const float* gram, std::int64_t width, const float* values, int rank, int usable, int kept,
                  float* singular_values, float* energy) {
  __shared__ double totals[kThreads], captures[kThreads];
  double total = 0, captured = 0;
  for (std::int64_t i = threadIdx.x; i < width; i += kThreads) {
    total += static_cast<double>(gram[i * width + i]);
  }
  for (int i = static_cast<int>(threadIdx.x); i < rank; i += kThreads) {
    const float value = i < usable ? values[i] : 0.0F;
    captured += i < kept ? static_cast<double>(value) : 0.0;
    if (singular_values) {
      singular_values[i] = sqrtf(value);
    }
  }
  totals[threadIdx.x] = total;
  captures[threadIdx.x] = captured;
  __syncthreads();
  for (int step = kThreads / 2; step; step >>= 1) {
    if (static_cast<int>(threadIdx.x) < step) {
      totals[threadIdx.x] += totals[threadIdx.x + step];
      captures[threadIdx.x] += captures[threadIdx.x + step];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && energy) {
    energy[0] = static_cast<float>(totals[0]);
    // Nothing of nothing is missed.
    energy[1] = totals[0] > 0 ? static_cast<float>(fmin(captures[0] / totals[0], 1.0)) : 1.0F;
  }
}

void gram_matrix(const skv_low_rank_factor_params& p, const Plan& plan, const Scratch& s, Launch& launch) {
  const auto* const keys = static_cast<const __nv_bfloat16*>(p.keys);
  const int width = static_cast<int>(plan.width);
  const Cublas::Matrix left{keys, SKV_BF16, plan.key_stride, true}, right{keys, SKV_BF16, plan.key_stride};
  if (plan.slices == 1) {
    launch.cublas.multiply(launch.stream, width, width, p.tokens, 1.0F, left, right, 0.0F, s.gram, SKV_F32, width);
    return;
  }
  const std::int64_t square = plan.width * plan.width;
  const std::int64_t step = plan.slice_tokens * plan.key_stride;
  launch.cublas.multiply_batched(launch.stream, plan.slices, width, width, plan.slice_tokens, 1.0F, left, step, right,
                                 step, 0.0F, s.slices, SKV_F32, width, square);
  const std::int64_t done = plan.slices * plan.slice_tokens;
  int parts = plan.slices;
  if (done < p.tokens) {
    const auto* const rest = keys + done * plan.key_stride;
    launch.cublas.multiply(launch.stream, width, width, p.tokens - done, 1.0F, {rest, SKV_BF16, plan.key_stride, true},
                           {rest, SKV_BF16, plan.key_stride}, 0.0F, s.slices + parts * square, SKV_F32, width);
    ++parts;
  }
  launch_kernel("low_rank_factor", sum_slices_kernel,
                dim3(striding_blocks(square, kThreads, launch.traits.multiprocessors)), dim3(kThreads), 0,
                launch.stream, s.slices, parts, square, s.gram);
}

void inner_products(const float* a, const float* b, const Plan& plan, const Scratch& s, const Launch& launch) {
  const unsigned tiles = static_cast<unsigned>(plan.block / kInnerTile);
  launch_kernel("low_rank_factor", inner_products_kernel, dim3(tiles, tiles), dim3(kInnerTile * kInnerTile), 0,
                launch.stream, a, b, static_cast<int>(plan.width), plan.block, s.products);
}

void cholesky(const Plan& plan, const Scratch& s, double own_share, double coupled_share, const Launch& launch) {
  const auto kernel =
      plan.block <= kCommonBlock ? cholesky_kernel<kCommonBlock / kPanel> : cholesky_kernel<kMaximumBlock / kPanel>;
  launch_kernel("low_rank_factor", kernel, dim3(1), dim3(kCholeskyThreads), cholesky_shared_bytes(plan.block),
                launch.stream, s.products, s.transposed, s.inverses, plan.block, own_share, coupled_share);
}

// to = an orthonormal basis of what the columns of from span.
void orthonormalize(const float* from, float* to, const Plan& plan, const Scratch& s, const Launch& launch) {
  inner_products(from, from, plan, s, launch);
  cholesky(plan, s, kDependent, 0.0, launch);
  launch_kernel("low_rank_factor", solve_kernel, dim3(blocks_for(plan.width, kSolveRows)), dim3(kSolveRows * 32), 0,
                launch.stream, from, s.transposed, s.inverses, static_cast<int>(plan.width), plan.block, to);
}

void store_basis(const skv_low_rank_factor_params& p, const Plan& plan, const Scratch& s, int usable,
                 const float* coefficient_scales, const Launch& launch) {
  launch_kernel("low_rank_factor", store_basis_kernel,
                dim3(striding_blocks(plan.stored_rank * plan.width, kThreads, launch.traits.multiprocessors)),
                dim3(kThreads), 0, launch.stream, s.basis, usable, p.rank, p.coefficient_type == SKV_I8,
                plan.stored_rank, plan.width, p.head_dim, p.head_scales, coefficient_scales,
                static_cast<__nv_bfloat16*>(p.basis), s.packed);
}

// Coefficients of `tokens` tokens from `first` on.
void multiply_keys(const skv_low_rank_factor_params& p, const Plan& plan, const Scratch& s, std::int64_t first,
                   std::int64_t tokens, void* to, std::int32_t type, Launch& launch) {
  launch.cublas.multiply(
      launch.stream, tokens, plan.stored_rank, plan.width, 1.0F,
      {static_cast<const __nv_bfloat16*>(p.keys) + first * plan.key_stride, SKV_BF16, plan.key_stride},
      {s.packed, SKV_BF16, plan.width, true}, 0.0F, to, type, plan.stored_rank);
}

// I8 coefficients, their scales and the basis that has them. Where there are many tokens, their products are made twice
// and not kept in between.
void store_bytes(const skv_low_rank_factor_params& p, const Plan& plan, const Scratch& s, int usable, Launch& launch) {
  const int rank = plan.stored_rank, multiprocessors = launch.traits.multiprocessors;
  const std::int64_t most = std::min(p.tokens, kRoundedTokens);
  check(cudaMemsetAsync(s.largest, 0, static_cast<std::size_t>(rank) * sizeof(unsigned), launch.stream),
        "low_rank_factor");
  for (std::int64_t first = 0; first < p.tokens; first += most) {
    const std::int64_t tokens = std::min(most, p.tokens - first);
    multiply_keys(p, plan, s, first, tokens, s.exact, SKV_F32, launch);
    launch_kernel("low_rank_factor", largest_kernel, dim3(striding_blocks(tokens * rank, kThreads, multiprocessors)),
                  dim3(kThreads), 0, launch.stream, s.exact, tokens, rank, s.largest);
  }
  launch_kernel("low_rank_factor", coefficient_scales_kernel, dim3(1), dim3(kThreads), 0, launch.stream, s.largest,
                s.values, usable, rank, p.coefficient_scales);
  for (std::int64_t first = 0; first < p.tokens; first += most) {
    const std::int64_t tokens = std::min(most, p.tokens - first);
    if (p.tokens > most) {
      multiply_keys(p, plan, s, first, tokens, s.exact, SKV_F32, launch);
    }
    launch_kernel("low_rank_factor", round_coefficients_kernel,
                  dim3(striding_blocks(tokens * rank, kThreads, multiprocessors)), dim3(kThreads), 0, launch.stream,
                  s.exact, tokens * rank, rank, p.coefficient_scales,
                  static_cast<std::int8_t*>(p.coefficients) + first * rank);
  }
  store_basis(p, plan, s, usable, p.coefficient_scales, launch);
}

void jacobi(const skv_low_rank_factor_params& p, const Plan& plan, const Scratch& s, const Launch& launch) {
  check(cudaMemsetAsync(s.progress, 0, kJacobiWords * sizeof(unsigned), launch.stream), "low_rank_factor");
  const auto kernel = plan.block <= kCommonBlock ? jacobi_kernel<kCommonBlock / 32> : jacobi_kernel<kMaximumBlock / 32>;
  launch_together("low_rank_factor", kernel, dim3(static_cast<unsigned>(plan.block / kJacobiColumns)),
                  dim3(kJacobiThreads), jacobi_shared_bytes(plan.block), launch.stream, s.transposed, plan.block,
                  std::min(p.rank, plan.block), s.columns, s.progress, s.vectors, s.values);
}

}  // namespace

std::uint64_t low_rank_factor_workspace(const skv_low_rank_factor_params& p, const DeviceTraits& traits) {
  std::uint64_t bytes = 0;
  lay_out(p, plan_of(p, traits), nullptr, bytes);
  return bytes;
}

void low_rank_factor(const skv_low_rank_factor_params& p, Launch& launch) {
  require_bf16(p.type, "low_rank_factor", "the type");
  require_coefficients(p.coefficient_type, "low_rank_factor");
  const Plan plan = plan_of(p, launch.traits);
  std::uint64_t bytes = 0;
  lay_out(p, plan, nullptr, bytes);
  launch.workspace.require(bytes, "low_rank_factor");
  const Scratch s = lay_out(p, plan, launch.workspace.take<std::byte>(bytes), bytes);
  const int multiprocessors = launch.traits.multiprocessors;

  gram_matrix(p, plan, s, launch);
  if (p.head_scales) {
    launch_kernel("low_rank_factor", head_scales_kernel, dim3(1), dim3(kThreads), 0, launch.stream, s.gram, plan.width,
                  p.head_dim, p.head_scales);
    launch_kernel("low_rank_factor", scale_gram_kernel,
                  dim3(striding_blocks(plan.width * plan.width, kThreads, multiprocessors)), dim3(kThreads), 0,
                  launch.stream, p.head_scales, plan.width, p.head_dim, s.gram);
  }
  launch_kernel("low_rank_factor", start_kernel,
                dim3(striding_blocks(plan.width * plan.block / 4, kThreads, multiprocessors)), dim3(kThreads), 0,
                launch.stream, plan.width, plan.block, s.q);
  const auto multiply_gram = [&] {
    launch.cublas.multiply(launch.stream, plan.width, plan.block, plan.width, 1.0F, {s.gram, SKV_F32, plan.width},
                           {s.q, SKV_F32, plan.block}, 0.0F, s.y, SKV_F32, plan.block);
  };
  for (int iteration = 0; iteration < plan.iterations; ++iteration) {
    multiply_gram();
    orthonormalize(s.y, s.q, plan, s, launch);
  }
  if (plan.iterations) {
    // Once more: the first pass leaves an error that grows with the square of the columns' condition.
    orthonormalize(s.q, s.y, plan, s, launch);
    check(cudaMemcpyAsync(s.q, s.y, static_cast<std::size_t>(plan.width * plan.block) * sizeof(float),
                          cudaMemcpyDeviceToDevice, launch.stream),
          "low_rank_factor");
  }
  multiply_gram();
  inner_products(s.q, s.y, plan, s, launch);
  cholesky(plan, s, 0.0, kCoupled, launch);
  jacobi(p, plan, s, launch);
  const int found = std::min(p.rank, plan.block);
  launch.cublas.multiply(launch.stream, found, plan.width, plan.block, 1.0F, {s.vectors, SKV_F32, plan.block},
                         {s.q, SKV_F32, plan.block, true}, 0.0F, s.basis, SKV_F32, plan.width);
  const int usable = std::min(plan.usable, found);
  store_basis(p, plan, s, usable, nullptr, launch);
  launch_kernel("low_rank_factor", report_kernel, dim3(1), dim3(kThreads), 0, launch.stream, s.gram, plan.width,
                s.values, p.rank, usable,
                p.coefficient_type == SKV_I8 ? directions_of(p.rank, plan.stored_rank) : p.rank, p.singular_values,
                p.energy);
  if (p.coefficient_type == SKV_I8) {
    store_bytes(p, plan, s, usable, launch);
  } else {
    multiply_keys(p, plan, s, 0, p.tokens, p.coefficients, SKV_BF16, launch);
  }
}

}  // namespace skv::cuda
