// The tokens that a selection leaves out, as one more part of the softmax of each query head.
#include "cuda/decode.h"
#include "cuda/elements.cuh"
#include "cuda/mma.cuh"
#include "moments.h"

namespace skv::cuda {
namespace {

constexpr int kTailThreads = 256;
constexpr int kTailWarps = kTailThreads / 32;
constexpr int kTailRows = 32;  // of the moments, of a block
constexpr int kWarpRows = kTailRows / kTailWarps;

struct TailKernelParams {
  TailParams p;
  MomentLayout layout;
  int first_pair;
  int group;
};

struct TailShared {
  float queries[SKV_MAX_GROUP * SKV_MAX_HEAD_DIM];
  float norms[SKV_MAX_GROUP];
  float listed[kTailWarps][SKV_MAX_GROUP];  // share of the landmarks' weight
  float weight[SKV_MAX_GROUP];              // natural log
  unsigned selected[kMaxShortlist / 32];    // a bit each listed chunk
};

__device__ void stage_queries(const TailKernelParams& q, std::int64_t first_query, TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = p.geometry.head_dim;
  for (int g = warp; g < q.group; g += kTailWarps) {
    float squares = 0;
#pragma unroll
    for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
      const int d = lane + 32 * e;
      const float x = d < dim ? load_element(p.queries, p.query_type, (first_query + g) * dim + d) : 0.0F;
      squares += x * x;
      memory.queries[g * SKV_MAX_HEAD_DIM + d] = x;
    }
    squares = warp_sum(squares);
    if (lane == 0) {
      memory.norms[g] = sqrtf(squares);
    }
  }
}

// Whether no more chunks are in the index of the head than `listed`; by the whole block.
__device__ bool all_listed(const TailKernelParams& q, int session, int head, int listed) {
  const skv_shadow_layer& layer = q.p.layers[session];
  const float* const radius = layer.radius + head * layer.chunk_capacity;
  const int chunks = q.p.states[session].indexed_chunks;
  int indexed = 0;
  for (int first = 0; first < chunks && indexed <= listed; first += kTailThreads) {
    const int chunk = first + static_cast<int>(threadIdx.x);
    indexed += __syncthreads_count(chunk < chunks && radius[chunk] >= 0);
  }
  return indexed <= listed;
}

// Share of `weight` that the landmarks of the listed chunks have, a part of it each warp.
__device__ void weigh_listed(const TailKernelParams& q, int pair, int session, int head, TailShared& memory) {
  const TailParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const skv_shadow_layer& layer = p.layers[session];
  const float* const radius = layer.radius + head * layer.chunk_capacity;
  const std::int32_t* const listed = p.listed + static_cast<std::int64_t>(pair) * p.listed_stride;
  const float* const logits = p.logits + static_cast<std::int64_t>(pair) * q.group * p.chunk_stride;
  const float inverse_root = rsqrtf(static_cast<float>(p.geometry.head_dim));
  const float tokens = logf(static_cast<float>(p.geometry.chunk));
  const int count = p.listed_count[pair];
  float shares[SKV_MAX_GROUP] = {};
  for (int i = thread; i < count; i += kTailThreads) {
    const int chunk = listed[i];
    const float r = radius[chunk];
#pragma unroll
    for (int g = 0; g < SKV_MAX_GROUP; ++g) {
      if (g < q.group) {
        const float logit = logits[g * p.chunk_stride + chunk] - p.radius_weight * memory.norms[g] * inverse_root * r;
        shares[g] += exp2_fast((logit + tokens - memory.weight[g]) * kLog2E);
      }
    }
  }
#pragma unroll
  for (int g = 0; g < SKV_MAX_GROUP; ++g) {
    if (g < q.group) {
      const float share = warp_sum(shares[g]);
      if (lane == 0) {
        memory.listed[warp][g] = share;
      }
    }
  }
}

// Which of the listed chunks were selected; by the whole block, which sees to the barrier behind it.
__device__ void mark_selected(const TailKernelParams& q, int pair, TailShared& memory) {
  const TailParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kMaxShortlist / 32; i += kTailThreads) {
    memory.selected[i] = 0;
  }
  __syncthreads();
  const std::int32_t* const places = p.places + static_cast<std::int64_t>(pair) * p.select;
  for (int i = thread; i < p.selected_count[pair]; i += kTailThreads) {
    atomicOr(&memory.selected[places[i] / 32], 1U << (places[i] % 32));
  }
}

// Log of the exact weight of the listed chunks that were not selected, for one head of the group; by a warp.
__device__ float weight_of_dropped(const TailKernelParams& q, int pair, int g, const TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const mass = p.chunk_mass + (static_cast<std::int64_t>(pair) * q.group + g) * p.listed_stride;
  const int count = p.listed_count[pair];
  float largest = -INFINITY;
  for (int i = lane; i < count; i += 32) {
    largest = fmaxf(largest, mass[i]);
  }
  largest = warp_max(largest);
  float sum = 0;
  for (int i = lane; i < count; i += 32) {
    if (!(memory.selected[i / 32] >> lane & 1U)) {
      sum += exp2_fast(mass[i] - largest);
    }
  }
  sum = warp_sum(sum);
  return sum > 0 ? (largest + log2f(sum)) * kLn2 : -INFINITY;
}

__device__ float log_of_sum(float a, float b) {
  const float largest = fmaxf(a, b);
  return largest == -INFINITY ? largest : largest + log1pf(exp2_fast((fminf(a, b) - largest) * kLog2E));
}

// What is left of the weights when the listed chunks no longer count by their landmarks, and the dropped ones exactly.
__device__ void settle_weights(const TailKernelParams& q, int pair, int session, int head, TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const bool dropped_here = p.chunk_mass && !(p.predicted && p.layers[session].value_basis);
  bool all = false;
  if (p.logits) {
    weigh_listed(q, pair, session, head, memory);
    all = all_listed(q, session, head, p.listed_count[pair]);
  }
  if (dropped_here) {
    mark_selected(q, pair, memory);
  }
  __syncthreads();
  for (int g = warp; g < q.group; g += kTailWarps) {
    float weight = memory.weight[g];
    if (p.logits) {
      float share = 0;
      for (int w = 0; w < kTailWarps; ++w) {
        share += memory.listed[w][g];
      }
      weight = all || share >= 1.0F ? -INFINITY : weight + log1pf(-share);
    }
    if (dropped_here) {
      weight = log_of_sum(weight, weight_of_dropped(q, pair, g, memory));
    }
    __syncwarp();
    if (lane == 0) {
      memory.weight[g] = weight;
      p.weight[static_cast<std::int64_t>(pair) * q.group + g] = weight;
    }
  }
}

// Rows [first, first + 32) of mean(v) + cov(v, k) q / sqrt(D) = V/n (1 - s) + M q / (n sqrt(D)),
// s = K . q / (n sqrt(D)). A warp takes rows of M, which all heads of the group share.
__device__ void write_rows(const TailKernelParams& q, int first, const float* sums, std::int64_t part,
                           const TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = p.geometry.head_dim;
  const MomentLayout& layout = q.layout;
  const float inverse = 1.0F / sums[layout.count], scale = inverse * rsqrtf(static_cast<float>(dim));
  // The warp's rows, and the sum of keys behind them.
  float x[kWarpRows + 1][SKV_MAX_HEAD_DIM / 32];
#pragma unroll
  for (int row = 0; row <= kWarpRows; ++row) {
    const int i = first + warp * kWarpRows + row;
    const float* const from = row == kWarpRows ? sums + layout.keys : sums + static_cast<std::int64_t>(i) * dim;
#pragma unroll
    for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
      const int d = lane + 32 * e;
      x[row][e] = d < dim && (row == kWarpRows || i < dim) ? from[d] : 0.0F;
    }
  }
  for (int g = 0; g < q.group; ++g) {
    float dots[kWarpRows + 1];
#pragma unroll
    for (int row = 0; row <= kWarpRows; ++row) {
      float dot = 0;
#pragma unroll
      for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
        dot = fmaf(x[row][e], memory.queries[g * SKV_MAX_HEAD_DIM + lane + 32 * e], dot);
      }
      dots[row] = warp_sum(dot) * scale;
    }
#pragma unroll
    for (int row = 0; row < kWarpRows; ++row) {
      const int i = first + warp * kWarpRows + row;
      if (lane == row && i < dim) {
        p.partials.sums[(part + g) * dim + i] =
            sums[layout.values + i] * inverse * (1.0F - dots[kWarpRows]) + dots[row];
      }
    }
  }
}

// Weight, and with partials the part, of what a pair leaves out. The first block of a pair sees to the weight, and each
// to its rows of the moments.
//
// moments [K][D*D + 2D + 4], logits of the listed chunks -> weight [B][H], a part [G]([D]). Floor: the moments read
// once; latency bounds it. It runs beside the fetch of values.
__global__ void __launch_bounds__(kTailThreads) tail_kernel(const __grid_constant__ TailKernelParams q) {
  __shared__ TailShared memory;
  const TailParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x);
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x), block = static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  const bool idle = p.states[session].length <= 0;
  const std::int64_t first_query = static_cast<std::int64_t>(pair) * q.group;
  const std::int64_t part = (static_cast<std::int64_t>(pair) * p.partials.splits + p.split) * q.group;
  const float* const moments = p.layers[session].moments;
  const float* const sums = moments ? moments + head * q.layout.floats : nullptr;
  const bool there = !idle && sums && sums[q.layout.count] > 0;
  if (!idle) {
    stage_queries(q, first_query, memory);
  }
  if (block == 0 && thread < q.group) {
    memory.weight[thread] = idle ? -INFINITY : p.weight[first_query + thread];
  }
  __syncthreads();
  if (block == 0) {
    if (!idle && (p.logits || p.chunk_mass)) {
      settle_weights(q, pair, session, head, memory);
      __syncthreads();
    }
    if (p.partials.statistics && thread < q.group) {
      const bool any = there && memory.weight[thread] != -INFINITY;
      p.partials.statistics[part + thread] =
          any ? make_float2(memory.weight[thread] * kLog2E, 1.0F) : make_float2(-INFINITY, 0.0F);
    }
  }
  if (there && p.partials.statistics) {
    write_rows(q, block * kTailRows, sums, part, memory);
  }
}

}  // namespace

TailParams tail_of(const skv_landmark_topk_params& selection, const SelectionScratch& scratch) {
  TailParams p;
  p.geometry = selection.geometry;
  p.query_type = selection.query_type;
  p.queries = selection.queries;
  p.layers = selection.layers;
  p.states = selection.states;
  p.weight = selection.tail;
  p.logits = scratch.logits;
  p.chunk_stride = scratch.chunk_stride;
  p.radius_weight = selection.radius_weight;
  p.listed = selection.selected;
  p.listed_count = selection.selected_count;
  p.listed_stride = selection.select;
  return p;
}

void add_dropped(TailParams& tail, const skv_rerank_params& rerank, const RerankScratch& scratch) {
  tail.listed = rerank.shortlist;
  tail.listed_count = rerank.shortlist_count;
  tail.listed_stride = rerank.shortlist_stride;
  tail.chunk_mass = scratch.chunk_mass;
  tail.places = scratch.places;
  tail.selected_count = rerank.selected_count;
  tail.select = rerank.select;
}

void launch_tail(const TailParams& p, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const TailKernelParams q = {p, MomentLayout(p.geometry.head_dim), pairs.first, group_size(p.geometry)};
  const int blocks = p.partials.statistics ? (p.geometry.head_dim + kTailRows - 1) / kTailRows : 1;
  launch_beside("tail", tail_kernel, dim3(static_cast<unsigned>(pairs.count), static_cast<unsigned>(blocks)),
                dim3(kTailThreads), 0, stream, q);
}

}  // namespace skv::cuda
