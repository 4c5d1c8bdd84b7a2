#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

// Causal attention of consecutive query tokens, in the manner of FlashAttention-2 (Dao, 2023): a block keeps a tile
// of queries and its sums in registers while it goes over the keys, and never writes a score.
namespace skv::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr float kLog2E = 1.4426950408889634F;

// Fragments of mma.m16n8k16, with g = lane / 4, t = lane % 4: C holds (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline std::uint32_t shared_word(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices; lanes 8i to 8i+7 give the rows of matrix i.
__device__ inline void load_tiles(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ inline void load_tiles_transposed(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// Bytes copied behind the thread's back; the rest of the kBytes become zero.
template <int kBytes>
__device__ inline void copy_behind(std::uint32_t to, const void* from, int bytes) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  }
}

__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kLeft>
__device__ inline void wait_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ inline float exp2_of(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// D: head dim, padded with zeros; M: tiles of 16 queries a warp; N: keys a step.
template <int D, int M, int N>
struct Shape {
  static constexpr int kQueries = kWarps * 16 * M;
  static constexpr int kPitch = D + 8;  // an odd number of 16-byte pieces: eight rows lie on different banks
  static constexpr std::size_t kBytes = sizeof(__nv_bfloat16) * static_cast<std::size_t>((kQueries + 2 * N) * kPitch);
};

// One tile of queries of one head a block. Keys and values each have one place in shared memory: values arrive
// while scores are made, the next keys while values are summed; two blocks an SM fill each other's gaps.
//
// queries [count][H][D], keys and values [K][capacity][D] -> output [count][H][D]. Floor: 4*D operations for each
// query and key it sees, on tensor cores; bound by them. Reached: 310 TFLOP/s of 741 that a matrix product reaches
// (H200, 2026-11-24, JMH, 32 heads, D 128, 32768 tokens).
template <class X, class Y, int D, int M, int N, int kPiece>
__global__ void __launch_bounds__(kThreads, 2)
    prefill_attention_kernel(const __grid_constant__ skv_prefill_attention_params p, float scale) {
  using S = __nv_bfloat16;
  using Tile = Shape<D, M, N>;
  constexpr int kPitch = Tile::kPitch;
  constexpr int kScoreTiles = N / 8, kSumTiles = D / 8;
  extern __shared__ __align__(128) unsigned char shared[];
  S* const query_tile = reinterpret_cast<S*>(shared);
  S* const key_tile = query_tile + Tile::kQueries * kPitch;
  S* const value_tile = key_tile + N * kPitch;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int head_dim = p.geometry.head_dim;
  const std::int64_t head = blockIdx.x;
  const std::int64_t group = p.geometry.query_heads / p.geometry.key_value_heads;
  // The longest rows first: what is left at the end is short.
  const std::int64_t first_query = static_cast<std::int64_t>(gridDim.y - 1 - blockIdx.y) * Tile::kQueries;
  const std::int64_t last_query = min(first_query + Tile::kQueries, p.count) - 1;
  const std::int64_t last_key = p.first_position + last_query;
  const std::int64_t head_offset = head / group * p.capacity * head_dim;
  const S* const keys = static_cast<const S*>(p.keys) + head_offset;
  const S* const values = static_cast<const S*>(p.values) + head_offset;

  // Keys and values that nobody may see become zeros: what memory holds there could be anything.
  const auto fetch = [&](S* tile, const S* from, std::int64_t first_key) {
    constexpr int kElements = kPiece / static_cast<int>(sizeof(S));
    constexpr int kRowPieces = D / kElements;
    for (int i = static_cast<int>(threadIdx.x); i < N * kRowPieces; i += kThreads) {
      const int row = i / kRowPieces, column = i % kRowPieces * kElements;
      const bool inside = first_key + row <= last_key && column < head_dim;
      const S* const source = inside ? from + (first_key + row) * head_dim + column : from;
      copy_behind<kPiece>(shared_word(tile + row * kPitch + column), source, inside ? kPiece : 0);
    }
    end_group();
  };

  std::int64_t step = last_key / N;
  fetch(key_tile, keys, step * N);
  const X* const queries = static_cast<const X*>(p.queries) + head * head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kQueries * (D / 2); i += kThreads) {
    const int row = i / (D / 2), column = i % (D / 2) * 2;
    const std::int64_t query = first_query + row;
    std::uint32_t pair = 0;
    if (query < p.count && column < head_dim) {
      const X* const source = queries + query * p.query_stride + column;
      pair = pack(to_float(source[0]), to_float(source[1]));
    }
    *reinterpret_cast<std::uint32_t*>(query_tile + row * kPitch + column) = pair;
  }

  // Where this lane's rows of ldmatrix begin.
  const std::uint32_t query_rows =
      shared_word(query_tile + (warp * 16 * M + lane % 16) * kPitch + lane / 16 * 8);
  const std::uint32_t key_rows = shared_word(key_tile + (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8);
  const std::uint32_t value_rows = shared_word(value_tile + lane % 16 * kPitch + lane / 16 * 8);
  constexpr int kSize = static_cast<int>(sizeof(S));

  float sums[M][kSumTiles][4];
  float largest[M][2], denominator[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m) {
    largest[m][0] = largest[m][1] = -INFINITY;
    denominator[m][0] = denominator[m][1] = 0;
#pragma unroll
    for (int d = 0; d < kSumTiles; ++d) {
      sums[m][d][0] = sums[m][d][1] = sums[m][d][2] = sums[m][d][3] = 0;
    }
  }
  const std::int64_t first_row = p.first_position + first_query + warp * 16 * M + lane / 4;

  for (; step >= 0; --step) {
    wait_groups<0>();
    __syncthreads();
    fetch(value_tile, values, step * N);

    float scores[M][kScoreTiles][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
        scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      std::uint32_t a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        load_tiles(a[m], query_rows + static_cast<std::uint32_t>((m * 16 * kPitch + k * 16) * kSize));
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles; n += 2) {
        std::uint32_t b[4];
        load_tiles(b, key_rows + static_cast<std::uint32_t>((n * 8 * kPitch + k * 16) * kSize));
#pragma unroll
        for (int m = 0; m < M; ++m) {
          multiply_add(scores[m][n], a[m], b[0], b[1]);
          multiply_add(scores[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    // Only the steps near the diagonal hide keys from some rows.
    if (step * N + N - 1 > p.first_position + first_query) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const std::int64_t key = step * N + n * 8 + lane % 4 * 2 + i % 2;
            const std::int64_t row = first_row + m * 16 + i / 2 * 8;
            scores[m][n][i] = key <= row ? scores[m][n][i] : -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = largest[m][half];
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
          top = fmaxf(top, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, 2));
        // A row that has seen nothing yet keeps zeros.
        const float offset = top == -INFINITY ? 0.0F : top * scale;
        const float shrink = exp2_of(largest[m][half] * scale - offset);
        largest[m][half] = top;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            scores[m][n][i] = exp2_of(fmaf(scores[m][n][i], scale, -offset));
            sum += scores[m][n][i];
          }
        }
        denominator[m][half] = fmaf(denominator[m][half], shrink, sum);
#pragma unroll
        for (int d = 0; d < kSumTiles; ++d) {
          sums[m][d][2 * half] *= shrink;
          sums[m][d][2 * half + 1] *= shrink;
        }
      }
    }
    wait_groups<0>();
    __syncthreads();
    if (step > 0) {
      fetch(key_tile, keys, (step - 1) * N);
    }
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
      std::uint32_t a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        a[m][0] = pack(scores[m][2 * k][0], scores[m][2 * k][1]);
        a[m][1] = pack(scores[m][2 * k][2], scores[m][2 * k][3]);
        a[m][2] = pack(scores[m][2 * k + 1][0], scores[m][2 * k + 1][1]);
        a[m][3] = pack(scores[m][2 * k + 1][2], scores[m][2 * k + 1][3]);
      }
#pragma unroll
      for (int d = 0; d < kSumTiles; d += 2) {
        std::uint32_t b[4];
        load_tiles_transposed(b, value_rows + static_cast<std::uint32_t>((k * 16 * kPitch + d * 8) * kSize));
#pragma unroll
        for (int m = 0; m < M; ++m) {
          multiply_add(sums[m][d], a[m], b[0], b[1]);
          multiply_add(sums[m][d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  Y* const output = static_cast<Y*>(p.output) + head * head_dim;
  const std::int64_t output_stride = static_cast<std::int64_t>(p.geometry.query_heads) * head_dim;
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = denominator[m][half];
      sum += __shfl_xor_sync(0xffffffffU, sum, 1);
      sum += __shfl_xor_sync(0xffffffffU, sum, 2);
      const float over = 1.0F / sum;
      const std::int64_t query = first_query + warp * 16 * M + m * 16 + half * 8 + lane / 4;
      if (query >= p.count) {
        continue;
      }
#pragma unroll
      for (int d = 0; d < kSumTiles; ++d) {
        const int column = d * 8 + lane % 4 * 2;
        if (column < head_dim) {
          const float pair[2] = {sums[m][d][2 * half] * over, sums[m][d][2 * half + 1] * over};
          store_floats(output + query * output_stride + column, pair);
        }
      }
    }
  }
}

template <class X, class Y, int D, int M, int N>
void run(const skv_prefill_attention_params& p, const Launch& launch) {
  using Tile = Shape<D, M, N>;
  const bool wide = aligned_16({p.keys, p.values}, {}) && p.geometry.head_dim % 8 == 0;
  const float scale = kLog2E / sqrtf(static_cast<float>(p.geometry.head_dim));
  const dim3 grid(static_cast<unsigned>(p.geometry.query_heads), blocks_for(p.count, Tile::kQueries));
  const auto kernel =
      wide ? prefill_attention_kernel<X, Y, D, M, N, 16> : prefill_attention_kernel<X, Y, D, M, N, 4>;
  launch_kernel("prefill_attention", kernel, grid, dim3(kThreads), Tile::kBytes, launch.stream, p, scale);
}

template <class X, class Y>
void dispatch(const skv_prefill_attention_params& p, const Launch& launch) {
  const int head_dim = p.geometry.head_dim;
  if (head_dim <= 64) {
    run<X, Y, 64, 2, 64>(p, launch);
  } else if (head_dim <= 96) {
    run<X, Y, 96, 2, 64>(p, launch);
  } else if (head_dim <= 128) {
    run<X, Y, 128, 2, 64>(p, launch);
  } else {
    run<X, Y, SKV_MAX_HEAD_DIM, 1, 32>(p, launch);
  }
}

}  // namespace

std::uint64_t prefill_attention_workspace(const skv_prefill_attention_params&, const DeviceTraits&) { return 0; }

void prefill_attention(const skv_prefill_attention_params& params, Launch& launch) {
  skv_prefill_attention_params p = params;
  require_bf16(p.geometry.storage_type, "prefill_attention", "the storage type");
  if (p.geometry.head_dim % 2 || p.geometry.head_dim > SKV_MAX_HEAD_DIM) {
    throw Error(SKV_UNSUPPORTED, "prefill_attention takes even head dims up to 256, not " +
                                     std::to_string(p.geometry.head_dim));
  }
  if (p.count == 0) {
    return;
  }
  p.query_stride =
      p.query_stride ? p.query_stride : static_cast<std::int64_t>(p.geometry.query_heads) * p.geometry.head_dim;
  // Output in the queries' type, or F32 of BF16 queries: what the runtimes of this library ask for.
  if (p.query_type == SKV_BF16 && p.output_type == SKV_BF16) {
    dispatch<__nv_bfloat16, __nv_bfloat16>(p, launch);
  } else if (p.query_type == SKV_BF16 && p.output_type == SKV_F32) {
    dispatch<__nv_bfloat16, float>(p, launch);
  } else if (p.query_type == SKV_F32 && p.output_type == SKV_F32) {
    dispatch<float, float>(p, launch);
  } else if (p.query_type == SKV_F16 && p.output_type == SKV_F16) {
    dispatch<__half, __half>(p, launch);
  } else {
    throw Error(SKV_UNSUPPORTED, "prefill_attention on CUDA takes queries and output of one type, or BF16 into F32");
  }
}

}  // namespace skv::cuda
