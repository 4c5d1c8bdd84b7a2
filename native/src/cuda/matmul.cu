#include <algorithm>

#include "cuda/cublas.h"
#include "cuda/launch.h"
#include "cuda/mma.cuh"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

// Products of bf16 are cuBLAS's, also of few rows: the products of a layer of an 8B Llama take 0.149 ms for 1 to 17
// rows, 0.19 to 0.20 by the kernels below, the output projection 0.25 and 0.33 to 0.44 (H200, 2026-11-29, launches
// included). Where there is no cuBLAS, and for a few rows of fp32, kernels of our own read the weight once.
constexpr std::int64_t kFewRows = 8;    // on the cores, for any type and alignment; 4 times as many without cuBLAS
constexpr std::int64_t kTileRows = 16;  // on tensor cores, bf16 with aligned rows
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// One column of the output for up to R rows a warp: the column's row of the weight is read once, the inputs
// come from the caches.
//
// input [rows][inner], weight [columns][inner], output [rows][columns]. Floor: columns*inner elements of the
// weight read once; bound by memory.
template <class X, class W, class Y, int R, int N>
__global__ void __launch_bounds__(kThreads)
    few_rows_kernel(const __grid_constant__ skv_matmul_params p, std::int64_t first_row) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (column >= p.columns) {
    return;
  }
  const W* const weight = static_cast<const W*>(p.weight) + column * p.inner;
  const X* const input = static_cast<const X*>(p.input) + first_row * p.input_stride;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(R), p.rows - first_row));
  float sums[R] = {};
#pragma unroll 2
  for (std::int64_t i = static_cast<std::int64_t>(lane) * N; i < p.inner; i += 32 * N) {
    float w[N];
    load_floats(w, weight + i);
#pragma unroll
    for (int row = 0; row < R; ++row) {
      if (row < rows) {
        float x[N];
        load_floats(x, input + row * p.input_stride + i);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          sums[row] = fmaf(x[j], w[j], sums[row]);
        }
      }
    }
  }
#pragma unroll
  for (int row = 0; row < R; ++row) {
    const float sum = warp_sum(sums[row]);
    if (lane == 0 && row < rows) {
      Y* const to = static_cast<Y*>(p.output) + (first_row + row) * p.output_stride + column;
      float result = sum;
      if (p.bias) {
        result += to_float(static_cast<const W*>(p.bias)[column]);
      }
      if (p.accumulate) {
        result += to_float(*to);
      }
      *to = from_float<Y>(result);
    }
  }
}

constexpr int kTileColumns = 16;  // of a block
constexpr int kTileDepth = 64;    // elements of the sum that a warp takes at a time

// 16 columns of the output for up to 8 or 16 rows a block, whose warps share the sum. The weight is the left operand
// of the tensor cores and goes straight to their registers. How a row comes out does not depend on the other rows,
// nor on how many there are.
//
// input [rows][inner], weight [columns][inner], output [rows][columns]. Floor: columns*inner elements of the weight
// read once; bound by memory.
template <class Y, int kTiles>
__global__ void __launch_bounds__(kThreads) tile_kernel(const __grid_constant__ skv_matmul_params p) {
  using W = __nv_bfloat16;
  __shared__ float parts[kWarps][8 * kTiles][kTileColumns];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, t = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTileColumns;
  // Behind the last column, the last one is read again.
  const W* const low = static_cast<const W*>(p.weight) + min(first + g, p.columns - 1) * p.inner;
  const W* const high = static_cast<const W*>(p.weight) + min(first + g + 8, p.columns - 1) * p.inner;
  const W* const input = static_cast<const W*>(p.input) + g * p.input_stride;
  const uint4 zero = make_uint4(0, 0, 0, 0);
  float sums[kTiles][4] = {};
#pragma unroll 2
  for (std::int64_t k = warp * kTileDepth + 8 * t; k < p.inner + 8 * t; k += kWarps * kTileDepth) {
    uint4 a[2], b[2], x[kTiles][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t at = k + 32 * half;
      const bool inside = at < p.inner;
      a[half] = inside ? load_once_16(low + at) : zero;
      b[half] = inside ? load_once_16(high + at) : zero;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        x[n][half] =
            inside && 8 * n + g < p.rows ? *reinterpret_cast<const uint4*>(input + 8 * n * p.input_stride + at) : zero;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        mma_bf16(sums[n], a[half].x, b[half].x, a[half].y, b[half].y, x[n][half].x, x[n][half].y);
        mma_bf16(sums[n], a[half].z, b[half].z, a[half].w, b[half].w, x[n][half].z, x[n][half].w);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][8 * n + 2 * t + i % 2][g + i / 2 * 8] = sums[n][i];
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) / kTileColumns, place = static_cast<int>(threadIdx.x) % kTileColumns;
  const std::int64_t column = first + place;
  if (row >= p.rows || column >= p.columns) {
    return;
  }
  float result = 0;
#pragma unroll
  for (int part = 0; part < kWarps; ++part) {
    result += parts[part][row][place];
  }
  Y* const to = static_cast<Y*>(p.output) + row * p.output_stride + column;
  if (p.bias) {
    result += to_float(static_cast<const W*>(p.bias)[column]);
  }
  if (p.accumulate) {
    result += to_float(*to);
  }
  *to = from_float<Y>(result);
}

static_assert(kThreads == kTileRows * kTileColumns);

template <class Y>
void tile(const skv_matmul_params& p, const Launch& launch) {
  launch_kernel("matmul", p.rows <= 8 ? tile_kernel<Y, 1> : tile_kernel<Y, 2>,
                dim3(blocks_for(p.columns, kTileColumns)), dim3(kThreads), 0, launch.stream, p);
}

// Adds a bias to every row. Follows a product of cuBLAS, whose output is still in the cache when it is small.
template <class W>
__global__ void __launch_bounds__(kThreads) bias_kernel(const __grid_constant__ skv_matmul_params p) {
  const std::int64_t items = p.rows * p.columns;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const std::int64_t row = i / p.columns, column = i % p.columns;
    static_cast<float*>(p.output)[row * p.output_stride + column] += to_float(static_cast<const W*>(p.bias)[column]);
  }
}

// output = sums (+ bias) (+ output), rounded once.
//
// sums [rows][columns] of fp32, output [rows][columns] strided. Floor: the sums read, the output written (and read, to
// accumulate) once; bound by memory.
__global__ void __launch_bounds__(kThreads)
    round_kernel(const __grid_constant__ skv_matmul_params p, const float* const sums) {
  using T = __nv_bfloat16;
  const std::int64_t items = p.rows * p.columns;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const std::int64_t row = i / p.columns, column = i % p.columns;
    T* const to = static_cast<T*>(p.output) + row * p.output_stride + column;
    float sum = sums[i];
    if (p.bias) {
      sum += to_float(static_cast<const T*>(p.bias)[column]);
    }
    if (p.accumulate) {
      sum += to_float(*to);
    }
    *to = from_float<T>(sum);
  }
}

// cuBLAS rounds a product to the output's type before it adds what the output holds, and a bias can only follow it. So
// sums that something is added to stay in fp32 until then, a strip of rows at a time: enough to keep the device busy.
constexpr std::int64_t kStripBytes = std::int64_t{32} << 20;

std::int64_t strip_rows(const skv_matmul_params& p) {
  const std::int64_t row = p.columns * static_cast<std::int64_t>(sizeof(float));
  return std::clamp<std::int64_t>(kStripBytes / row, 1, p.rows);
}

template <class X, class W, class Y>
void few_rows(const skv_matmul_params& p, const Launch& launch) {
  const bool wide = aligned_16({p.input, p.weight}, {p.inner * static_cast<std::int64_t>(sizeof(W)),
                                                     p.input_stride * static_cast<std::int64_t>(sizeof(X))}) &&
                    p.inner % 8 == 0;
  const dim3 grid(blocks_for(p.columns, kWarps));
  const auto run = [&]<int R>(std::integral_constant<int, R>) {
    const auto kernel = wide ? few_rows_kernel<X, W, Y, R, 8> : few_rows_kernel<X, W, Y, R, 1>;
    for (std::int64_t row = 0; row < p.rows; row += R) {
      launch_kernel("matmul", kernel, grid, dim3(kThreads), 0, launch.stream, p, row);
    }
  };
  if (p.rows == 1) {
    run(std::integral_constant<int, 1>{});
  } else if (p.rows == 2) {
    run(std::integral_constant<int, 2>{});
  } else if (p.rows <= 4) {
    run(std::integral_constant<int, 4>{});
  } else {
    run(std::integral_constant<int, 8>{});
  }
}

// Whether tensor cores take the product without cuBLAS.
bool tiles(const skv_matmul_params& p) {
  const std::int64_t stride = p.input_stride ? p.input_stride : p.inner;
  return p.rows <= kTileRows && p.input_type == SKV_BF16 && p.weight_type == SKV_BF16 &&
         aligned_16({p.input, p.weight}, {2 * p.inner, 2 * stride});
}

// Whether a product of cuBLAS needs its sums in the workspace.
bool needs_sums(const skv_matmul_params& p) {
  return p.output_type == SKV_BF16 && (p.bias || p.accumulate);
}

void multiply(const skv_matmul_params& p, bool accumulate, void* output, std::int32_t output_type,
              std::int64_t output_stride, Launch& launch) {
  launch.cublas.multiply(launch.stream, p.rows, p.columns, p.inner, 1.0F, {p.input, p.input_type, p.input_stride},
                         {p.weight, p.weight_type, p.inner, true}, accumulate ? 1.0F : 0.0F, output, output_type,
                         output_stride);
}

void multiply_and_round(const skv_matmul_params& params, Launch& launch) {
  launch.workspace.require(matmul_workspace(params, launch.traits), "matmul");
  const std::int64_t rows = strip_rows(params);
  float* const sums = Workspace(launch.workspace).take<float>(static_cast<std::uint64_t>(rows * params.columns));
  for (std::int64_t first = 0; first < params.rows; first += rows) {
    skv_matmul_params p = params;
    p.rows = std::min(rows, params.rows - first);
    p.input = static_cast<const __nv_bfloat16*>(params.input) + first * p.input_stride;
    p.output = static_cast<__nv_bfloat16*>(params.output) + first * p.output_stride;
    multiply(p, false, sums, SKV_F32, p.columns, launch);
    const unsigned blocks = striding_blocks(p.rows * p.columns, kThreads, launch.traits.multiprocessors);
    launch_kernel("matmul", round_kernel, dim3(blocks), dim3(kThreads), 0, launch.stream, p, sums);
  }
}

}  // namespace

std::uint64_t matmul_workspace(const skv_matmul_params& p, const DeviceTraits&) {
  return needs_sums(p) ? Workspace::align(static_cast<std::uint64_t>(strip_rows(p) * p.columns) * sizeof(float)) : 0;
}

void matmul(const skv_matmul_params& params, Launch& launch) {
  skv_matmul_params p = params;
  if (p.rows == 0 || p.columns == 0) {
    return;
  }
  p.input_stride = p.input_stride ? p.input_stride : p.inner;
  p.output_stride = p.output_stride ? p.output_stride : p.columns;
  const bool bf16 = p.input_type == SKV_BF16 && p.weight_type == SKV_BF16;
  const bool f32 = p.input_type == SKV_F32 && p.weight_type == SKV_F32;
  if (!(bf16 && (p.output_type == SKV_BF16 || p.output_type == SKV_F32)) && !(f32 && p.output_type == SKV_F32)) {
    throw Error(SKV_UNSUPPORTED, "matmul on CUDA takes BF16 by BF16 into BF16 or F32, or F32 throughout; not types " +
                                     std::to_string(p.input_type) + " by " + std::to_string(p.weight_type) + " into " +
                                     std::to_string(p.output_type));
  }
  const bool own = !launch.cublas.available();
  if (own && tiles(p)) {
    if (p.output_type == SKV_F32) {
      tile<float>(p, launch);
    } else {
      tile<__nv_bfloat16>(p, launch);
    }
    return;
  }
  if (own ? p.rows <= 4 * kFewRows : f32 && p.rows <= kFewRows) {
    if (f32) {
      few_rows<float, float, float>(p, launch);
    } else if (p.output_type == SKV_F32) {
      few_rows<__nv_bfloat16, __nv_bfloat16, float>(p, launch);
    } else {
      few_rows<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16>(p, launch);
    }
    return;
  }
  if (needs_sums(p)) {
    multiply_and_round(p, launch);
    return;
  }
  multiply(p, p.accumulate, p.output, p.output_type, p.output_stride, launch);
  if (p.bias) {
    const unsigned blocks = striding_blocks(p.rows * p.columns, kThreads, launch.traits.multiprocessors);
    const auto kernel = f32 ? bias_kernel<float> : bias_kernel<__nv_bfloat16>;
    launch_kernel("matmul", kernel, dim3(blocks), dim3(kThreads), 0, launch.stream, p);
  }
}

}  // namespace skv::cuda
