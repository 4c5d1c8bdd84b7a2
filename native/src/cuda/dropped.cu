// The tokens that a rerank drops, as a part of the softmax of each query head: their weights are known from their keys,
// and their values are predicted from the coefficients of those keys.
#include "cuda/decode.h"
#include "cuda/elements.cuh"
#include "cuda/mma.cuh"
#include "cuda/plan_slots.cuh"

namespace skv::cuda {
namespace {

constexpr int kDroppedThreads = kDroppedTokens;
constexpr int kDroppedWarps = kDroppedThreads / 32;
constexpr int kHeadsTogether = 4;

struct DroppedKernelParams {
  DroppedParams p;
  int first_pair;
  int group;
};

__device__ const void* value_basis_of(const DroppedParams& p, int session) {
  return p.states[session].length <= 0 ? nullptr : p.layers[session].value_basis;
}

// Two neighbouring coefficients as they are stored, at a column below `rank`; else zeros. kEven: ranks are even, so
// that pairs are aligned.
template <bool kEven>
__device__ std::uint32_t load_pair(const __nv_bfloat16* row, int column, int rank) {
  if constexpr (kEven) {
    return column < rank ? *reinterpret_cast<const std::uint32_t*>(row + column) : 0U;
  } else {
    const auto* const bits = reinterpret_cast<const std::uint16_t*>(row);
    const std::uint32_t first = column < rank ? bits[column] : 0U, second = column + 1 < rank ? bits[column + 1] : 0U;
    return first | second << 16;
  }
}

// Weighted sums of the coefficients of dropped tokens, 256 tokens of a shortlist a block, 32 of them a warp.
// kPairs: pairs of coefficients of a lane, 64 coefficients of a row each.
//
// coefficients [..][r], scores [B*K][G][shortlist*C] -> statistics [B*K][units][G], sums [B*K][units][G][r].
// Floor: the coefficients of the dropped tokens read once; bound by memory.
template <int kPairs, bool kEven>
__global__ void __launch_bounds__(kDroppedThreads, 2)
    dropped_sums_kernel(const __grid_constant__ DroppedKernelParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const DroppedParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int chunk_tokens = p.geometry.chunk, rank = p.geometry.rank, heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.y), session = pair / heads;
  const int unit = static_cast<int>(blockIdx.x), first = unit * kDroppedTokens;
  if (value_basis_of(p, session) == nullptr) {
    return;
  }
  const int count = min(p.listed_count[pair], p.listed_stride);
  if (first >= count * chunk_tokens) {
    return;
  }
  auto* const parts = reinterpret_cast<float*>(shared);  // [warps][heads together][r]
  auto* const statistics = reinterpret_cast<float2*>(parts + kDroppedWarps * kHeadsTogether * rank);
  const int token = first + thread, place = token / chunk_tokens;
  std::int64_t position = 0;
  bool dropped = false;
  if (place < count) {
    const int chunk = p.listed[static_cast<std::int64_t>(pair) * p.listed_stride + place];
    position = static_cast<std::int64_t>(chunk) * chunk_tokens + token % chunk_tokens;
    dropped = rank_in(p.selected + static_cast<std::int64_t>(pair) * p.select, p.selected_count[pair], chunk) < 0;
  }
  const unsigned whole = __ballot_sync(0xffffffffU, dropped);
  const std::int64_t score_stride = static_cast<std::int64_t>(p.listed_stride) * chunk_tokens;
  const auto* const coefficients = static_cast<const __nv_bfloat16*>(p.layers[session].coefficients);
  for (int first_head = 0; first_head < q.group; first_head += kHeadsTogether) {
    float weight[kHeadsTogether];
    float2 sums[kHeadsTogether][kPairs] = {};
#pragma unroll
    for (int h = 0; h < kHeadsTogether; ++h) {
      const int g = first_head + h;
      const float score = dropped && g < q.group
                              ? p.scores[(static_cast<std::int64_t>(pair) * q.group + g) * score_stride + token]
                              : -INFINITY;
      const float largest = warp_max(score);
      weight[h] = largest > -INFINITY && dropped ? exp2_fast(score - largest) : 0.0F;
      const float sum = warp_sum(weight[h]);
      if (lane == 0) {
        statistics[warp * kHeadsTogether + h] = make_float2(largest, sum);
      }
    }
    constexpr int kTokensTogether = 8;  // a chunk or half of one
#pragma unroll 1
    for (int base = 0; base < 32; base += kTokensTogether) {
      if (!(whole >> base & 1U)) {
        continue;
      }
      // All loads are under way before the first is used.
      std::uint32_t x[kTokensTogether][kPairs];
#pragma unroll
      for (int t = 0; t < kTokensTogether; ++t) {
        const auto* const row = coefficients + __shfl_sync(0xffffffffU, position, base + t) * rank;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          x[t][i] = load_pair<kEven>(row, 2 * lane + 64 * i, rank);
        }
      }
#pragma unroll
      for (int t = 0; t < kTokensTogether; ++t) {
        float w[kHeadsTogether];
#pragma unroll
        for (int h = 0; h < kHeadsTogether; ++h) {
          w[h] = __shfl_sync(0xffffffffU, weight[h], base + t);
        }
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
          const float low = bf16_low(x[t][i]), high = bf16_high(x[t][i]);
#pragma unroll
          for (int h = 0; h < kHeadsTogether; ++h) {
            sums[h][i].x = fmaf(w[h], low, sums[h][i].x);
            sums[h][i].y = fmaf(w[h], high, sums[h][i].y);
          }
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeadsTogether; ++h) {
      float* const part = parts + (warp * kHeadsTogether + h) * rank;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int column = 2 * lane + 64 * i;
        if (column < rank) {
          part[column] = sums[h][i].x;
        }
        if (column + 1 < rank) {
          part[column + 1] = sums[h][i].y;
        }
      }
    }
    __syncthreads();
    const int together = min(kHeadsTogether, q.group - first_head);
    const std::int64_t row = (static_cast<std::int64_t>(pair) * p.scratch.units + unit) * q.group + first_head;
    for (int h = 0; h < together; ++h) {
      float largest = -INFINITY, weights = 0, factors[kDroppedWarps];
#pragma unroll
      for (int w = 0; w < kDroppedWarps; ++w) {
        largest = fmaxf(largest, statistics[w * kHeadsTogether + h].x);
      }
#pragma unroll
      for (int w = 0; w < kDroppedWarps; ++w) {
        const float2 of_warp = statistics[w * kHeadsTogether + h];
        factors[w] = of_warp.x > -INFINITY ? exp2_fast(of_warp.x - largest) : 0.0F;
        weights += factors[w] * of_warp.y;
      }
      if (thread < rank) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kDroppedWarps; ++w) {
          sum += factors[w] * parts[(w * kHeadsTogether + h) * rank + thread];
        }
        p.scratch.sums[(row + h) * rank + thread] = sum;
      }
      if (thread == 0) {
        p.scratch.statistics[row + h] = make_float2(largest, weights);
      }
    }
    __syncthreads();
  }
}

template <bool kEven>
auto dropped_sums(int rank) {
  switch ((rank + 63) / 64) {
    case 1:
      return dropped_sums_kernel<1, kEven>;
    case 2:
      return dropped_sums_kernel<2, kEven>;
    case 3:
      return dropped_sums_kernel<3, kEven>;
    default:
      return dropped_sums_kernel<4, kEven>;
  }
}
static_assert(SKV_MAX_RANK <= 256 && SKV_MAX_RANK <= kDroppedThreads);

// The part of a query head out of the units' sums: its weight, and the sums through the value basis. One block a head.
//
// sums [units][r], value_basis [r][D] -> a part [D]. Floor: the value basis and the sums, mostly from the L2 cache;
// latency bounds it.
__global__ void __launch_bounds__(kDroppedThreads) dropped_part_kernel(const __grid_constant__ DroppedKernelParams q) {
  __shared__ float sums[SKV_MAX_RANK];
  __shared__ float rows[kDroppedThreads];
  __shared__ float factors[kDroppedThreads];
  const DroppedParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int rank = p.geometry.rank, dim = p.geometry.head_dim, heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x), g = static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  const std::int64_t query = static_cast<std::int64_t>(pair) * q.group + g;
  const auto* const basis = static_cast<const __nv_bfloat16*>(value_basis_of(p, session));
  const int count = basis ? min(p.listed_count[pair], p.listed_stride) : 0;
  const int units = (count * p.geometry.chunk + kDroppedTokens - 1) / kDroppedTokens;
  const auto row_of = [&](int unit) {
    return (static_cast<std::int64_t>(pair) * p.scratch.units + unit) * q.group + g;
  };
  // Every warp for itself: units are few.
  float largest = -INFINITY;
  for (int unit = lane; unit < units; unit += 32) {
    largest = fmaxf(largest, p.scratch.statistics[row_of(unit)].x);
  }
  largest = warp_max(largest);
  float weights = 0;
  for (int unit = lane; unit < units; unit += 32) {
    const float2 of_unit = p.scratch.statistics[row_of(unit)];
    weights += of_unit.x > -INFINITY ? of_unit.y * exp2_fast(of_unit.x - largest) : 0.0F;
  }
  weights = warp_sum(weights);
  const bool any = largest > -INFINITY;
  const float log_weight = any ? largest + log2f(weights) : -INFINITY;
  const std::int64_t part = (static_cast<std::int64_t>(pair) * p.partials.splits + p.split) * q.group + g;
  if (thread == 0) {
    if (p.weight) {
      p.weight[query] = log_weight * kLn2;
    }
    if (p.partials.statistics) {
      p.partials.statistics[part] = any ? make_float2(log_weight, 1.0F) : make_float2(-INFINITY, 0.0F);
    }
  }
  if (!any) {
    return;
  }
  float sum = 0;
  for (int begin = 0; begin < units; begin += kDroppedThreads) {
    const int unit = begin + thread;
    const float most = unit < units ? p.scratch.statistics[row_of(unit)].x : -INFINITY;
    factors[thread] = most > -INFINITY ? exp2_fast(most - largest) : 0.0F;
    __syncthreads();
    if (thread < rank) {
      const int last = min(units - begin, kDroppedThreads);
#pragma unroll 8
      for (int i = 0; i < last; ++i) {
        sum = fmaf(factors[i], p.scratch.sums[row_of(begin + i) * rank + thread], sum);
      }
    }
    __syncthreads();
  }
  if (thread < rank) {
    sums[thread] = sum / weights;
  }
  __syncthreads();
  // Threads beside each other take columns, and rows of threads share the ranks.
  const int columns = min(dim, kDroppedThreads), row_count = kDroppedThreads / columns;
  const int row = thread / columns, column = thread % columns;
  float value = 0;
  if (row < row_count) {
    const __nv_bfloat16* const of_head = basis + static_cast<std::int64_t>(head) * rank * dim + column;
#pragma unroll 8
    for (int r = row; r < rank; r += row_count) {
      value = fmaf(sums[r], __bfloat162float(of_head[static_cast<std::int64_t>(r) * dim]), value);
    }
  }
  rows[thread] = value;
  __syncthreads();
  if (thread < columns) {
    for (int i = 1; i < row_count; ++i) {
      value += rows[i * columns + thread];
    }
    if (p.values) {
      p.values[query * dim + thread] = value;
    }
    if (p.partials.statistics) {
      p.partials.sums[part * dim + thread] = value;
    }
  }
}

// A part that a caller gives: weights [B][H] as natural logs, values [B][H][D]. One block a query head.
__global__ void __launch_bounds__(kDroppedThreads)
    given_part_kernel(const float* weights, const float* values, AttentionPartials partials, int split, int group,
                      int dim) {
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t query = blockIdx.x, pair = query / group, g = query % group;
  const std::int64_t part = (pair * partials.splits + split) * group + g;
  const float weight = weights[query];
  const bool any = isfinite(weight);
  if (thread == 0) {
    partials.statistics[part] = any ? make_float2(weight * kLog2E, 1.0F) : make_float2(-INFINITY, 0.0F);
  }
  for (int d = thread; any && d < dim; d += kDroppedThreads) {
    partials.sums[part * dim + d] = values[query * dim + d];
  }
}

}  // namespace

DroppedScratch take_dropped_scratch(const skv_rerank_params& p, Workspace& workspace) {
  const auto pairs = static_cast<std::uint64_t>(all_pairs(p.batch, p.geometry).count);
  const auto group = static_cast<std::uint64_t>(group_size(p.geometry));
  DroppedScratch scratch;
  scratch.units = static_cast<int>(
      (static_cast<std::int64_t>(p.shortlist_stride) * p.geometry.chunk + kDroppedTokens - 1) / kDroppedTokens);
  const std::uint64_t parts = pairs * static_cast<std::uint64_t>(scratch.units) * group;
  scratch.statistics = workspace.take<float2>(parts);
  scratch.sums = workspace.take<float>(parts * static_cast<std::uint64_t>(p.geometry.rank));
  return scratch;
}

std::uint64_t dropped_scratch_bytes(const skv_rerank_params& p) {
  const auto units = (static_cast<std::uint64_t>(p.shortlist_stride) * static_cast<std::uint64_t>(p.geometry.chunk) +
                      kDroppedTokens - 1) /
                     kDroppedTokens;
  const std::uint64_t parts =
      static_cast<std::uint64_t>(p.batch) * static_cast<std::uint64_t>(p.geometry.query_heads) * units;
  return Workspace::align(parts * sizeof(float2)) +
         Workspace::align(parts * static_cast<std::uint64_t>(p.geometry.rank) * sizeof(float));
}

DroppedParams dropped_of(const skv_rerank_params& rerank, const RerankScratch& rerank_scratch,
                         const DroppedScratch& scratch) {
  DroppedParams p;
  p.geometry = rerank.geometry;
  p.layers = rerank.layers;
  p.states = rerank.states;
  p.listed = rerank.shortlist;
  p.listed_count = rerank.shortlist_count;
  p.listed_stride = rerank.shortlist_stride;
  p.scores = rerank_scratch.scores;
  p.selected = rerank.selected;
  p.selected_count = rerank.selected_count;
  p.select = rerank.select;
  p.scratch = scratch;
  return p;
}

void launch_dropped(const DroppedParams& p, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const DroppedKernelParams q = {p, pairs.first, group_size(p.geometry)};
  const std::size_t bytes = sizeof(float) * kDroppedWarps * kHeadsTogether * static_cast<std::size_t>(p.geometry.rank) +
                            sizeof(float2) * kDroppedWarps * kHeadsTogether;
  launch_beside("dropped tokens",
                p.geometry.rank % 2 == 0 ? dropped_sums<true>(p.geometry.rank) : dropped_sums<false>(p.geometry.rank),
                dim3(static_cast<unsigned>(p.scratch.units), static_cast<unsigned>(pairs.count)), dim3(kDroppedThreads),
                bytes, stream, q);
  launch_beside("dropped tokens", dropped_part_kernel,
                dim3(static_cast<unsigned>(pairs.count), static_cast<unsigned>(q.group)), dim3(kDroppedThreads), 0,
                stream, q);
}

void launch_given_part(const float* weights, const float* values, const AttentionPartials& partials, int split,
                       const skv_geometry& geometry, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const int group = group_size(geometry);
  launch_beside("dropped tokens", given_part_kernel, dim3(static_cast<unsigned>(pairs.count * group)),
                dim3(kDroppedThreads), 0, stream, weights, values, partials, split, group, geometry.head_dim);
}

}  // namespace skv::cuda
