#include <algorithm>

#include "cuda/launch.h"
#include "cuda/mma.cuh"
#include "cuda/vector.cuh"
#include "moments.h"

namespace skv::cuda {
namespace {

using S = __nv_bfloat16;

constexpr int kStep = 32;  // tokens that a block takes at a time: whole chunks, and whole inner dimensions of an mma
constexpr int kMmaTokens = 16;
constexpr int kStages = 4;  // of which three are under way: 48 KB a block at D 128
constexpr int kBlocksPerMultiprocessor = 2;
constexpr std::int64_t kLeastSteps = 8;  // of a run: below, one more partial sum costs more than it saves

// How the tokens of a head are cut into runs, one a block: by the number of tokens and the size of the device alone.
struct Cut {
  std::int64_t steps;  // of a run; the last one may have fewer
  int runs;
};

Cut cut_of(const skv_moment_update_params& p, const DeviceTraits& traits) {
  const std::int64_t steps = (p.chunks * p.chunk + kStep - 1) / kStep;
  const std::int64_t blocks = std::int64_t{kBlocksPerMultiprocessor} * traits.multiprocessors;
  const std::int64_t most = std::max<std::int64_t>(1, blocks / p.key_value_heads);
  const std::int64_t run = std::max(kLeastSteps, (steps + most - 1) / most);
  return {run, static_cast<int>((steps + run - 1) / run)};
}

struct Work {
  skv_moment_update_params p;
  MomentLayout layout;
  Cut cut;
  float* partials;  // [K][runs][layout.floats], or null: the sums go to the moments
};

// The tokens of one run of one head.
struct Run {
  const S *keys, *values;  // [capacity][D] of the head
  const float* radius;     // of the run's first chunk, or null
  std::int64_t first_row, capacity;
  std::int64_t tokens;
  int chunk;

  __device__ Run(const Work& work, std::int64_t head, std::int64_t run)
      : keys(static_cast<const S*>(work.p.rotated_keys) + head * work.p.capacity * work.p.head_dim),
        values(static_cast<const S*>(work.p.values) + head * work.p.capacity * work.p.head_dim),
        capacity(work.p.capacity),
        chunk(work.p.chunk) {
    const skv_moment_update_params& p = work.p;
    const std::int64_t steps = work.cut.steps, before = run * steps * kStep;
    const std::int64_t first_chunk = p.first_chunk + before / p.chunk;
    radius = p.radius ? p.radius + head * p.chunk_capacity + first_chunk : nullptr;
    first_row = first_chunk * p.chunk % p.capacity;
    tokens = min(steps * kStep, p.chunks * p.chunk - before);
  }

  // The chunks of a call are no more than the ring holds, so a run wraps once at most.
  __device__ std::int64_t row(std::int64_t token) const {
    const std::int64_t row = first_row + token;
    return row < capacity ? row : row - capacity;
  }
  __device__ bool chunk_counts(std::int64_t index) const { return !radius || !(radius[index] < 0); }
  __device__ bool counts(std::int64_t token) const {
    return token < tokens && chunk_counts(static_cast<unsigned>(token) / static_cast<unsigned>(chunk));
  }

  // Tokens that count. By the whole block; contains barriers.
  __device__ std::int64_t count() const {
    const std::int64_t chunks = tokens / chunk;
    std::int64_t counted = 0;
    for (std::int64_t first = 0; first < chunks; first += blockDim.x) {
      const std::int64_t index = first + threadIdx.x;
      counted += __syncthreads_count(index < chunks && chunk_counts(index));
    }
    return counted * chunk;
  }
};

__device__ inline float settled(const skv_moment_update_params& p, float before, float sum) {
  return before + (p.subtract ? -sum : sum);
}

// Where the sums of a run go: into its part of the workspace or, where a head has no other run, to the moments.
struct Sink {
  const Work& work;
  float* to;  // [layout.floats]

  __device__ Sink(const Work& of, std::int64_t head, std::int64_t run)
      : work(of),
        to(of.partials ? of.partials + (head * of.cut.runs + run) * of.layout.floats
                       : of.p.moments + head * of.layout.floats) {}

  // Whether what is there is added to.
  __device__ bool keeps() const { return !work.partials && !work.p.replace; }
  __device__ float result(float before, float sum) const { return work.partials ? sum : settled(work.p, before, sum); }
  __device__ void put(std::int64_t at, float sum) const { to[at] = result(keeps() ? to[at] : 0.0F, sum); }

  // N pairs of sums, 8 floats apart. All are read before any is written, so that the reads overlap.
  template <int N>
  __device__ void put_pairs(std::int64_t at, const float2 (&sums)[N]) const {
    float2 before[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      before[n] = keeps() ? *reinterpret_cast<const float2*>(to + at + n * 8) : make_float2(0, 0);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      *reinterpret_cast<float2*>(to + at + n * 8) =
          make_float2(result(before[n].x, sums[n].x), result(before[n].y, sums[n].y));
    }
  }

  // The tokens, and zeros behind them where the moments need not have been written. By one thread.
  __device__ void put_count(std::int64_t tokens) const {
    const MomentLayout& layout = work.layout;
    put(layout.count, static_cast<float>(tokens));
    for (std::int64_t i = layout.count + 1; i < layout.floats; ++i) {
      if (!keeps()) {
        to[i] = 0;
      }
    }
  }
};

// Copies 16 bytes, or makes 16 bytes of zeros without reading.
__device__ inline void copy_async_16_or_zeros(void* shared, const void* global, bool copy) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(copy ? 16 : 0)
               : "memory");
}

// Tiles of a block: [D][D] over warps of 32 values by D/2 keys.
template <int D>
struct Tiles {
  static constexpr int kRowWarps = D / 32, kColumnWarps = 2;
  static constexpr int kThreads = kRowWarps * kColumnWarps * 32;
  static constexpr int kColumns = D / kColumnWarps;     // keys of a warp
  static constexpr int kPairs = kColumns / kMmaTokens;  // of B fragments, by one load
  static constexpr int kStride = D + 8;                 // of a row in shared memory: eight rows in different banks
  static constexpr int kRows = kStep * kStride;         // elements of the keys, or values, of a stage
  static constexpr int kSharedBytes = kStages * 2 * kRows * static_cast<int>(sizeof(S));
  static constexpr int kPieces = D / 8;                 // of 16 bytes, of a row
  static constexpr int kCopyRows = kThreads / kPieces;  // rows that the threads copy at once
  static_assert(kPairs == kRowWarps && kStep % kCopyRows == 0 && kThreads % kPieces == 0);
};

// Sums over tokens of v k^T, k, v and 1 of one run of one head. The sums of k and v are products with ones: each warp
// adds up a share of its own fragments. Tokens that do not count are rows of zeros.
//
// rotated_keys and values [K][capacity][D] -> partials [K][runs][D*D + 2*D + 4], or moments [K][D*D + 2*D + 4].
// Floor: keys and values read once, 2 * D * D operations a token (122880 tokens x 8 heads x 128: 503 MB, 0.12 ms at the
// 4.1 TB/s that a copy reaches on an H200; 32 GFLOP, 0.03 ms of its tensor cores); meant to be bound by memory. Partial
// sums come on top: 17.6 MB written here and read by settle_kernel, within the L2 cache.
template <int D>
__global__ void __launch_bounds__(Tiles<D>::kThreads, kBlocksPerMultiprocessor)
    moment_kernel(const __grid_constant__ Work work) {
  using T = Tiles<D>;
  extern __shared__ __align__(16) S staged[];  // [kStages][keys, values][kStep][kStride]
  const std::int64_t head = blockIdx.y;
  const Run run(work, head, blockIdx.x);
  const int steps = static_cast<int>((run.tokens + kStep - 1) / kStep);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int row_warp = warp / T::kColumnWarps, column_warp = warp % T::kColumnWarps;

  const int copy_row = thread / T::kPieces, copy_column = thread % T::kPieces * 8;
  const auto fetch = [&](int step) {
    S* const keys = staged + step % kStages * (2 * T::kRows);
#pragma unroll
    for (int i = 0; i < kStep; i += T::kCopyRows) {
      const std::int64_t token = static_cast<std::int64_t>(step) * kStep + i + copy_row;
      const bool counts = run.counts(token);
      const std::int64_t from = counts ? run.row(token) * D + copy_column : 0;
      S* const to = keys + (i + copy_row) * T::kStride + copy_column;
      copy_async_16_or_zeros(to, run.keys + from, counts);
      copy_async_16_or_zeros(to + T::kRows, run.values + from, counts);
    }
  };
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) {
      fetch(step);
    }
    copy_async_end_group();
  }
  const std::int64_t counted = run.count();

  // The rows that a lane points at, of tokens, and the elements in them: A takes eight elements of v for tokens 0..7,
  // the next eight, and both for tokens 8..15; B eight of k for tokens 0..7, for tokens 8..15, and the next eight.
  const int value_at = (lane / 16 * 8 + lane % 8) * T::kStride + lane / 8 % 2 * 8 + row_warp * 32;
  const int key_at = (lane / 8 % 2 * 8 + lane % 8) * T::kStride + lane / 16 * 8 + column_warp * T::kColumns;
  constexpr std::uint32_t kOnes = 0x3f803f80U;  // two of bf16
  float products[2][2 * T::kPairs][4] = {}, key_sums[2][4] = {}, value_sums[4] = {};
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    // Also: all warps are done with the stage that is filled next.
    __syncthreads();
    if (step + kStages - 1 < steps) {
      fetch(step + kStages - 1);
    }
    copy_async_end_group();
    const S* const keys = staged + step % kStages * (2 * T::kRows);
    const S* const values = keys + T::kRows;
#pragma unroll
    for (int t = 0; t < kStep; t += kMmaTokens) {
      std::uint32_t a[2][4], own[4] = {};
      load_matrices_transposed(a[0], values + t * T::kStride + value_at);
      load_matrices_transposed(a[1], values + t * T::kStride + value_at + 16);
#pragma unroll
      for (int pair = 0; pair < T::kPairs; ++pair) {
        std::uint32_t b[4];
        load_matrices_transposed(b, keys + t * T::kStride + key_at + pair * 16);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(products[m][2 * pair], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
          mma_bf16(products[m][2 * pair + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          own[i] = pair == row_warp ? b[i] : own[i];
        }
      }
      mma_bf16(key_sums[0], kOnes, kOnes, kOnes, kOnes, own[0], own[1]);
      mma_bf16(key_sums[1], kOnes, kOnes, kOnes, kOnes, own[2], own[3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        own[i] = column_warp ? a[1][i] : a[0][i];
      }
      mma_bf16(value_sums, own[0], own[1], own[2], own[3], kOnes, kOnes);
    }
  }

  const Sink sink(work, head, blockIdx.x);
  const int group = lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 sums[2 * T::kPairs];
#pragma unroll
      for (int n = 0; n < 2 * T::kPairs; ++n) {
        sums[n] = make_float2(products[m][n][2 * half], products[m][n][2 * half + 1]);
      }
      const int row = row_warp * 32 + m * 16 + half * 8 + group;
      sink.put_pairs(row * D + column_warp * T::kColumns + pair, sums);
    }
  }
  if (group == 0) {  // all rows of the product are the same
    const float2 sums[2] = {make_float2(key_sums[0][0], key_sums[0][1]), make_float2(key_sums[1][0], key_sums[1][1])};
    sink.put_pairs(work.layout.keys + column_warp * T::kColumns + row_warp * 16 + pair, sums);
  }
  if (pair == 0) {  // all columns are
    const int row = row_warp * 32 + column_warp * 16 + group;
    sink.put(work.layout.values + row, value_sums[0]);
    sink.put(work.layout.values + row + 8, value_sums[2]);
  }
  if (thread == 0) {
    sink.put_count(counted);
  }
}

constexpr int kTile = 64, kTileThreads = 256;
constexpr int kPerThread = 4;  // rows, and columns, of a thread
constexpr int kTileLanes = kTile / kPerThread;

// The same for any head dim and alignment, on the multipliers: a block makes one [64][64] tile of the products of one
// run, those of the first row and column of tiles the sums of k and v. Tokens are added up by 16, those sums by runs.
__global__ void __launch_bounds__(kTileThreads) any_head_dim_kernel(const __grid_constant__ Work work) {
  __shared__ float keys[kMmaTokens][kTile], values[kMmaTokens][kTile];
  const std::int64_t head = blockIdx.z;
  const Run run(work, head, blockIdx.y);
  const int dim = work.p.head_dim, tiles = (dim + kTile - 1) / kTile;
  const int value_tile = static_cast<int>(blockIdx.x) / tiles * kTile;
  const int key_tile = static_cast<int>(blockIdx.x) % tiles * kTile;
  const int thread = static_cast<int>(threadIdx.x);
  // Rows and columns kTileLanes apart: neighbours read neighbours.
  const int value_lane = thread / kTileLanes, key_lane = thread % kTileLanes;
  float products[kPerThread][kPerThread] = {}, key_sum = 0, value_sum = 0;
  for (std::int64_t first = 0; first < run.tokens; first += kMmaTokens) {
    __syncthreads();
    for (int i = thread; i < kMmaTokens * kTile; i += kTileThreads) {
      const int t = i / kTile, d = i % kTile;
      const bool counts = run.counts(first + t);
      const std::int64_t from = counts ? run.row(first + t) * dim : 0;
      keys[t][d] = counts && key_tile + d < dim ? to_float(run.keys[from + key_tile + d]) : 0.0F;
      values[t][d] = counts && value_tile + d < dim ? to_float(run.values[from + value_tile + d]) : 0.0F;
    }
    __syncthreads();
    float some[kPerThread][kPerThread] = {};
#pragma unroll
    for (int t = 0; t < kMmaTokens; ++t) {
      float k[kPerThread];
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        k[j] = keys[t][key_lane + j * kTileLanes];
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        const float v = values[t][value_lane + i * kTileLanes];
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          some[i][j] = fmaf(v, k[j], some[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        products[i][j] += some[i][j];
      }
    }
    if (thread < kTile) {
      float some_keys = 0, some_values = 0;
#pragma unroll
      for (int t = 0; t < kMmaTokens; ++t) {
        some_keys += keys[t][thread];
        some_values += values[t][thread];
      }
      key_sum += some_keys;
      value_sum += some_values;
    }
  }

  const Sink sink(work, head, blockIdx.y);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int row = value_tile + value_lane + i * kTileLanes, column = key_tile + key_lane + j * kTileLanes;
      if (row < dim && column < dim) {
        sink.put(row * dim + column, products[i][j]);
      }
    }
  }
  if (thread < kTile && value_tile == 0 && key_tile + thread < dim) {
    sink.put(work.layout.keys + key_tile + thread, key_sum);
  }
  if (thread < kTile && key_tile == 0 && value_tile + thread < dim) {
    sink.put(work.layout.values + value_tile + thread, value_sum);
  }
  if (blockIdx.x == 0) {
    const std::int64_t counted = run.count();
    if (thread == 0) {
      sink.put_count(counted);
    }
  }
}

constexpr int kSettleThreads = 256;

// Adds the runs of a head in their order and settles the moments; without runs, clears them.
//
// partials [K][runs][D*D + 2*D + 4] -> moments [K][D*D + 2*D + 4]. Floor: the partials, which lie in the L2 cache, read
// once (33 runs x 8 heads x 128: 17.6 MB).
__global__ void __launch_bounds__(kSettleThreads) settle_kernel(const __grid_constant__ Work work) {
  const std::int64_t floats = work.layout.floats, head = blockIdx.y;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSettleThreads + threadIdx.x;
  if (i >= floats) {
    return;
  }
  const int runs = work.cut.runs;
  const float* const from = work.partials + head * runs * floats + i;
  float sum = 0;
#pragma unroll 8
  for (int run = 0; run < runs; ++run) {
    sum += from[run * floats];
  }
  float& moment = work.p.moments[head * floats + i];
  moment = settled(work.p, work.p.replace ? 0.0F : moment, sum);
}

template <int D>
void sum_runs(const Work& work, const Launch& launch) {
  const dim3 grid(static_cast<unsigned>(work.cut.runs), static_cast<unsigned>(work.p.key_value_heads));
  launch_kernel("moment_update", moment_kernel<D>, grid, dim3(Tiles<D>::kThreads), Tiles<D>::kSharedBytes,
                launch.stream, work);
}

void sum_runs(const Work& work, const Launch& launch) {
  const skv_moment_update_params& p = work.p;
  const bool wide = aligned_16({p.rotated_keys, p.values, p.moments}, {});
  if (wide && p.head_dim == 64) {
    sum_runs<64>(work, launch);
  } else if (wide && p.head_dim == 96) {
    sum_runs<96>(work, launch);
  } else if (wide && p.head_dim == 128) {
    sum_runs<128>(work, launch);
  } else {
    const unsigned tiles = blocks_for(p.head_dim, kTile);
    const dim3 grid(tiles * tiles, static_cast<unsigned>(work.cut.runs), static_cast<unsigned>(p.key_value_heads));
    launch_kernel("moment_update", any_head_dim_kernel, grid, dim3(kTileThreads), 0, launch.stream, work);
  }
}

// None where a head has one run: its sums go to the moments at once.
std::uint64_t partial_floats(const skv_moment_update_params& p, const Cut& cut) {
  return cut.runs > 1 ? static_cast<std::uint64_t>(p.key_value_heads * cut.runs * MomentLayout(p.head_dim).floats) : 0;
}

}  // namespace

std::uint64_t moment_update_workspace(const skv_moment_update_params& p, const DeviceTraits& traits) {
  return Workspace::align(partial_floats(p, cut_of(p, traits)) * sizeof(float));
}

void moment_update(const skv_moment_update_params& p, Launch& launch) {
  require_bf16(p.storage_type, "moment_update", "the storage type");
  if (p.chunks == 0 && p.replace == 0) {
    return;
  }
  launch.workspace.require(moment_update_workspace(p, launch.traits), "moment_update");
  Work work = {p, MomentLayout(p.head_dim), cut_of(p, launch.traits), nullptr};
  if (work.cut.runs > 1) {
    work.partials = launch.workspace.take<float>(partial_floats(p, work.cut));
  }
  if (work.cut.runs > 0) {
    sum_runs(work, launch);
  }
  if (work.cut.runs != 1) {
    const dim3 grid(blocks_for(work.layout.floats, kSettleThreads), static_cast<unsigned>(p.key_value_heads));
    launch_kernel("moment_update", settle_kernel, grid, dim3(kSettleThreads), 0, launch.stream, work);
  }
}

}  // namespace skv::cuda
