// The tokens that a rerank drops, as a part of the softmax of each query head: their weights are known from their keys,
// and their values are predicted from the coefficients of those keys.
#include <algorithm>

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

// Two neighbouring coefficients as bf16, at a column below `rank`; else zeros. Bits: an element as it is stored, bf16
// or I8. kEven: ranks are even, so that pairs are aligned.
template <class Bits, bool kEven>
__device__ std::uint32_t load_pair(const void* row, int column, int rank) {
  const auto* const bits = static_cast<const Bits*>(row);
  constexpr int kBits = 8 * static_cast<int>(sizeof(Bits));
  std::uint32_t pair = 0;
  if constexpr (kEven) {
    if (column < rank) {
      const auto both = *reinterpret_cast<const Vector<Bits, 2>*>(bits + column);
      pair = both.at[0] | static_cast<std::uint32_t>(both.at[1]) << kBits;
    }
  } else {
    const std::uint32_t first = column < rank ? bits[column] : 0U, second = column + 1 < rank ? bits[column + 1] : 0U;
    pair = first | second << kBits;
  }
  return sizeof(Bits) == 1 ? bf16_of_i8<0>(pair) : pair;
}

// Weighted sums of the coefficients of dropped tokens, 256 tokens of a shortlist a block, 32 of them a warp.
// kPairs: pairs of coefficients of a lane, 64 coefficients of a row each.
//
// coefficients [..][r], scores [B*K][G][shortlist*C] -> statistics [B*K][units][G], sums [B*K][units][G][r].
// Floor: the coefficients of the dropped tokens read once; bound by memory.
template <class Bits, int kPairs, bool kEven>
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
  const auto* const coefficients = static_cast<const Bits*>(p.layers[session].coefficients);
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
          x[t][i] = load_pair<Bits, kEven>(row, 2 * lane + 64 * i, rank);
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

template <class Bits, bool kEven>
auto dropped_sums(int rank) {
  switch ((rank + 63) / 64) {
    case 1:
      return dropped_sums_kernel<Bits, 1, kEven>;
    case 2:
      return dropped_sums_kernel<Bits, 2, kEven>;
    case 3:
      return dropped_sums_kernel<Bits, 3, kEven>;
    default:
      return dropped_sums_kernel<Bits, 4, kEven>;
  }
}

template <class Bits>
auto dropped_sums(int rank) {
  return rank % 2 == 0 ? dropped_sums<Bits, true>(rank) : dropped_sums<Bits, false>(rank);
}
static_assert(SKV_MAX_RANK <= 256 && SKV_MAX_RANK <= kDroppedThreads);

constexpr int kPartThreads = 1024;
constexpr int kMostUnits = kMaxShortlist * 16 / kDroppedTokens;  // chunks have at most 16 tokens

// Adds up rows of threads, [rows][heads together][columns], in order; the sums are where row 0 was.
__device__ void add_rows(float* parts, int rows, int columns) {
  __syncthreads();
  const int size = kHeadsTogether * columns;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kPartThreads) {
    float sum = parts[i];
    for (int row = 1; row < rows; ++row) {
      sum += parts[row * size + i];
    }
    parts[i] = sum;
  }
  __syncthreads();
}

// The parts of some query heads out of the units' sums: their weights, and the sums through the value basis. Rows of
// threads share the units, then the ranks.
//
// sums [units][G][r], value_basis [r][D] -> a part [D] a head. Floor: the value basis and the sums, mostly from the L2
// cache; the latency of two chains of loads bounds it.
__global__ void __launch_bounds__(kPartThreads) dropped_part_kernel(const __grid_constant__ DroppedKernelParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const DroppedParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rank = p.geometry.rank, dim = p.geometry.head_dim, heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x),
            first_head = static_cast<int>(blockIdx.y) * kHeadsTogether;
  const int session = pair / heads, head = pair % heads, together = min(kHeadsTogether, q.group - first_head);
  const auto* const basis = static_cast<const __nv_bfloat16*>(value_basis_of(p, session));
  const int count = basis ? min(p.listed_count[pair], p.listed_stride) : 0;
  const int units = (count * p.geometry.chunk + kDroppedTokens - 1) / kDroppedTokens;
  auto* const parts = reinterpret_cast<float*>(shared);  // [rows of threads][heads together][ranks or pairs of columns]
  __shared__ float factors[kHeadsTogether][kMostUnits];  // what a unit's sums are multiplied by
  __shared__ float log_weights[kHeadsTogether];
  const std::int64_t first_row = static_cast<std::int64_t>(pair) * p.scratch.units * q.group + first_head;
  if (warp < kHeadsTogether) {
    const float2* const statistics = p.scratch.statistics + first_row + warp;
    const bool there = warp < together;
    float largest = -INFINITY;
    for (int unit = lane; there && unit < units; unit += 32) {
      largest = fmaxf(largest, statistics[static_cast<std::int64_t>(unit) * q.group].x);
    }
    largest = warp_max(largest);
    float weights = 0;
    for (int unit = lane; unit < units; unit += 32) {
      const float2 of_unit =
          there ? statistics[static_cast<std::int64_t>(unit) * q.group] : make_float2(-INFINITY, 0.0F);
      const float factor = of_unit.x > -INFINITY ? exp2_fast(of_unit.x - largest) : 0.0F;
      factors[warp][unit] = factor;
      weights += of_unit.x > -INFINITY ? of_unit.y * factor : 0.0F;
    }
    weights = warp_sum(weights);
    for (int unit = lane; unit < units; unit += 32) {
      factors[warp][unit] /= weights;
    }
    const float log_weight = largest > -INFINITY ? largest + log2f(weights) : -INFINITY;
    if (lane == 0) {
      log_weights[warp] = log_weight;
      if (there && p.weight) {
        p.weight[static_cast<std::int64_t>(pair) * q.group + first_head + warp] = log_weight * kLn2;
      }
      if (there && p.partials.statistics) {
        p.partials
            .statistics[(static_cast<std::int64_t>(pair) * p.partials.splits + p.split) * q.group + first_head + warp] =
            log_weight > -INFINITY ? make_float2(log_weight, 1.0F) : make_float2(-INFINITY, 0.0F);
      }
    }
  }
  __syncthreads();
  if (units == 0) {
    return;
  }
  const int unit_rows = kPartThreads / rank;
  {
    const int row = thread / rank, column = thread % rank;
    float sums[kHeadsTogether] = {};
    if (row < unit_rows) {
#pragma unroll 2
      for (int unit = row; unit < units; unit += unit_rows) {
        const float* const of_unit =
            p.scratch.sums + (first_row + static_cast<std::int64_t>(unit) * q.group) * rank + column;
#pragma unroll
        for (int h = 0; h < kHeadsTogether; ++h) {
          // A unit without dropped tokens has not written its sums.
          if (h < together && factors[h][unit] > 0) {
            sums[h] = fmaf(factors[h][unit], of_unit[h * rank], sums[h]);
          }
        }
      }
#pragma unroll
      for (int h = 0; h < kHeadsTogether; ++h) {
        parts[(row * kHeadsTogether + h) * rank + column] = sums[h];
      }
    }
    add_rows(parts, unit_rows, rank);
  }
  float values[kHeadsTogether][2] = {};
  const int pairs_of_columns = dim / 2, rank_rows = kPartThreads / pairs_of_columns;
  const int row = thread / pairs_of_columns, column = thread % pairs_of_columns * 2;
  if (row < rank_rows) {
    const __nv_bfloat16* const of_head = basis + static_cast<std::int64_t>(head) * rank * dim + column;
#pragma unroll 4
    for (int r = row; r < rank; r += rank_rows) {
      const std::uint32_t two = *reinterpret_cast<const std::uint32_t*>(of_head + static_cast<std::int64_t>(r) * dim);
#pragma unroll
      for (int h = 0; h < kHeadsTogether; ++h) {
        const float x = parts[h * rank + r];
        values[h][0] = fmaf(x, bf16_low(two), values[h][0]);
        values[h][1] = fmaf(x, bf16_high(two), values[h][1]);
      }
    }
  }
  __syncthreads();
  if (row < rank_rows) {
#pragma unroll
    for (int h = 0; h < kHeadsTogether; ++h) {
      *reinterpret_cast<float2*>(parts + (row * kHeadsTogether + h) * dim + column) =
          make_float2(values[h][0], values[h][1]);
    }
  }
  add_rows(parts, rank_rows, dim);
  for (int i = thread; i < together * dim; i += kPartThreads) {
    const int h = i / dim;
    if (log_weights[h] > -INFINITY) {
      const std::int64_t g = first_head + h;
      if (p.values) {
        p.values[(static_cast<std::int64_t>(pair) * q.group + g) * dim + i % dim] = parts[i];
      }
      if (p.partials.statistics) {
        p.partials
            .sums[((static_cast<std::int64_t>(pair) * p.partials.splits + p.split) * q.group + g) * dim + i % dim] =
            parts[i];
      }
    }
  }
}

std::size_t part_bytes(const skv_geometry& g) {
  const int most = std::max(kPartThreads / g.rank * g.rank, kPartThreads / (g.head_dim / 2) * g.head_dim);
  return sizeof(float) * kHeadsTogether * static_cast<std::size_t>(most);
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
  p.places = rerank_scratch.places;
  p.selected_count = rerank.selected_count;
  p.select = rerank.select;
  p.scratch = scratch;
  return p;
}

void launch_dropped(const DroppedParams& p, const DeviceTraits& traits, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const DroppedKernelParams q = {p, pairs.first, group_size(p.geometry)};
  if (!launch_dropped_tiles(p, traits, pairs, stream)) {
    const std::size_t bytes =
        sizeof(float) * kDroppedWarps * kHeadsTogether * static_cast<std::size_t>(p.geometry.rank) +
        sizeof(float2) * kDroppedWarps * kHeadsTogether;
    launch_beside("dropped tokens",
                  p.geometry.coefficient_type == SKV_I8 ? dropped_sums<std::uint8_t>(p.geometry.rank)
                                                        : dropped_sums<std::uint16_t>(p.geometry.rank),
                  dim3(static_cast<unsigned>(p.scratch.units), static_cast<unsigned>(pairs.count)),
                  dim3(kDroppedThreads), bytes, stream, q);
  }
  launch_beside(
      "dropped tokens", dropped_part_kernel,
      dim3(static_cast<unsigned>(pairs.count), static_cast<unsigned>((q.group + kHeadsTogether - 1) / kHeadsTogether)),
      dim3(kPartThreads), part_bytes(p.geometry), stream, q);
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
