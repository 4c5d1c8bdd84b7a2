// The tokens that a selection leaves out, as one more part of the softmax of each query head.
#include "cuda/decode.h"
#include "cuda/elements.cuh"
#include "cuda/mma.cuh"
#include "cuda/plan_slots.cuh"
#include "moments.h"

namespace skv::cuda {
namespace {

constexpr int kTailThreads = 256;
constexpr int kTailWarps = kTailThreads / 32;
constexpr int kTogether = 4;  // landmarks of a warp that are under way together

struct TailKernelParams {
  TailParams p;
  MomentLayout layout;
  int first_pair;
  int group;
};

struct TailShared {
  float queries[SKV_MAX_GROUP * SKV_MAX_HEAD_DIM];
  float listed[kTailWarps][SKV_MAX_GROUP];  // share of the landmarks' weight
  float weight[SKV_MAX_GROUP];              // natural log
  int indexed;                              // chunks in the index of the head
};

// Queries as the landmarks' logits were made of them: in two parts of 16 bits where tensor cores made them.
__device__ void stage_queries(const TailKernelParams& q, std::int64_t first_query, TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = p.geometry.head_dim;
  const bool parts = dim == 64 || dim == 96 || dim == 128, int8 = p.geometry.landmark_type == SKV_I8;
  for (int g = warp; g < q.group; g += kTailWarps) {
    float x[SKV_MAX_HEAD_DIM / 32], largest = 0;
#pragma unroll
    for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
      const int d = lane + 32 * e;
      x[e] = d < dim ? load_element(p.queries, p.query_type, (first_query + g) * dim + d) : 0.0F;
      largest = fmaxf(largest, fabsf(x[e]));
    }
    largest = warp_max(largest);
    const float inverse = largest > 0 ? 1.0F / largest : 0.0F;
#pragma unroll
    for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
      float rounded = x[e];
      if (parts && int8) {
        const float scaled = x[e] * inverse, high = __half2float(__float2half_rn(scaled));
        rounded = (high + __half2float(__float2half_rn(scaled - high))) * largest;
      } else if (parts) {
        const float high = round_to_bf16(x[e]);
        rounded = high + round_to_bf16(x[e] - high);
      }
      memory.queries[g * SKV_MAX_HEAD_DIM + lane + 32 * e] = rounded;
    }
  }
}

// Chunks in the index of the head, by the whole block.
__device__ void count_indexed(const TailKernelParams& q, int session, int head, TailShared& memory) {
  const skv_shadow_layer& layer = q.p.layers[session];
  const float* const radius = layer.radius + head * layer.chunk_capacity;
  int count = 0;
  for (int i = static_cast<int>(threadIdx.x); i < q.p.states[session].indexed_chunks; i += kTailThreads) {
    count += radius[i] >= 0 ? 1 : 0;
  }
  atomicAdd(&memory.indexed, count);
}

// Share of `weight` that the landmarks of the listed chunks have, a part of it each warp.
__device__ void weigh_listed(const TailKernelParams& q, int pair, int session, int head, TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int dim = p.geometry.head_dim;
  const bool int8 = p.geometry.landmark_type == SKV_I8;
  const skv_shadow_layer& layer = p.layers[session];
  const std::int32_t* const listed = p.listed + static_cast<std::int64_t>(pair) * p.listed_stride;
  const float scale = rsqrtf(static_cast<float>(dim));
  const float tokens = logf(static_cast<float>(p.geometry.chunk));
  const int count = p.listed_count[pair];
  float shares[SKV_MAX_GROUP] = {};
  for (int first = warp; first < count; first += kTogether * kTailWarps) {
    float x[kTogether][SKV_MAX_HEAD_DIM / 32], factor[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int place = first + i * kTailWarps;
      const std::int64_t at = head * layer.chunk_capacity + (place < count ? listed[place] : listed[first]);
      factor[i] = int8 ? layer.landmark_scales[at] * scale : scale;
#pragma unroll
      for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
        const int d = lane + 32 * e;
        x[i][e] = d >= dim ? 0.0F
                  : int8   ? static_cast<float>(static_cast<const std::int8_t*>(layer.landmarks)[at * dim + d])
                           : load_element(layer.landmarks, SKV_BF16, at * dim + d);
      }
    }
#pragma unroll
    for (int g = 0; g < SKV_MAX_GROUP; ++g) {
      if (g < q.group) {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          float dot = 0;
#pragma unroll
          for (int e = 0; e < SKV_MAX_HEAD_DIM / 32; ++e) {
            if (32 * e < dim) {
              dot += x[i][e] * memory.queries[g * SKV_MAX_HEAD_DIM + lane + 32 * e];
            }
          }
          dot = warp_sum(dot);
          if (first + i * kTailWarps < count) {
            shares[g] += exp2_fast((dot * factor[i] + tokens - memory.weight[g]) * kLog2E);
          }
        }
      }
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int g = 0; g < SKV_MAX_GROUP; ++g) {
      if (g < q.group) {
        memory.listed[warp][g] = shares[g];
      }
    }
  }
}

// Log of the exact weight of the listed chunks that were not selected, for one head of the group; by a warp.
__device__ float weight_of_dropped(const TailKernelParams& q, int pair, int g) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t* const listed = p.listed + static_cast<std::int64_t>(pair) * p.listed_stride;
  const std::int32_t* const selected = p.selected + static_cast<std::int64_t>(pair) * p.select;
  const float* const mass = p.chunk_mass + (static_cast<std::int64_t>(pair) * q.group + g) * p.listed_stride;
  const int count = p.listed_count[pair], kept = p.selected_count[pair];
  float largest = -INFINITY;
  for (int i = lane; i < count; i += 32) {
    largest = fmaxf(largest, mass[i]);
  }
  largest = warp_max(largest);
  float sum = 0;
  for (int i = lane; i < count; i += 32) {
    if (rank_in(selected, kept, listed[i]) < 0) {
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

// What is left of a weight when the listed chunks no longer count by their landmarks, and the dropped ones exactly.
__device__ void settle_weights(const TailKernelParams& q, int pair, TailShared& memory) {
  const TailParams& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int g = warp; g < q.group; g += kTailWarps) {
    float weight = memory.weight[g];
    if (p.subtract) {
      float share = 0;
      for (int w = 0; w < kTailWarps; ++w) {
        share += memory.listed[w][g];
      }
      const bool all = p.listed_count[pair] == memory.indexed;
      weight = all || share >= 1.0F ? -INFINITY : weight + log1pf(-share);
    }
    if (p.chunk_mass) {
      weight = log_of_sum(weight, weight_of_dropped(q, pair, g));
    }
    __syncwarp();
    if (lane == 0) {
      memory.weight[g] = weight;
      p.weight[static_cast<std::int64_t>(pair) * q.group + g] = weight;
    }
  }
}

// mean(v) + cov(v, k) q / sqrt(D) = V/n (1 - s) + M q / (n sqrt(D)), s = K . q / (n sqrt(D)), to the last part of the
// pair. A warp takes rows of M, which all heads of the group share.
__device__ void write_part(const TailKernelParams& q, int pair, int session, int head, const TailShared& memory) {
  const TailParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int dim = p.geometry.head_dim;
  const std::int64_t part = (static_cast<std::int64_t>(pair) * p.partials.splits + p.partials.splits - 1) * q.group;
  const MomentLayout& layout = q.layout;
  const float* const moments = p.layers[session].moments;
  const float* const sums = moments ? moments + head * layout.floats : nullptr;
  const float tokens = sums ? sums[layout.count] : 0.0F;
  const bool there = tokens > 0;
  if (thread < q.group) {
    const bool any = there && memory.weight[thread] != -INFINITY;
    p.partials.statistics[part + thread] =
        any ? make_float2(memory.weight[thread] * kLog2E, 1.0F) : make_float2(-INFINITY, 0.0F);
  }
  if (!there) {
    return;
  }
  const float inverse = 1.0F / tokens, scale = inverse * rsqrtf(static_cast<float>(dim));
  const auto dot_of = [&](const float* row, int g) {
    float dot = 0;
    for (int d = lane; d < dim; d += 32) {
      dot += row[d] * memory.queries[g * SKV_MAX_HEAD_DIM + d];
    }
    return warp_sum(dot) * scale;
  };
  float shift[SKV_MAX_GROUP];
#pragma unroll
  for (int g = 0; g < SKV_MAX_GROUP; ++g) {
    shift[g] = g < q.group ? 1.0F - dot_of(sums + layout.keys, g) : 0.0F;
  }
  for (int i = warp; i < dim; i += kTailWarps) {
    const float mean = sums[layout.values + i] * inverse;
#pragma unroll
    for (int g = 0; g < SKV_MAX_GROUP; ++g) {
      if (g < q.group) {
        const float product = dot_of(sums + static_cast<std::int64_t>(i) * dim, g);
        if (lane == 0) {
          p.partials.sums[(part + g) * dim + i] = mean * shift[g] + product;
        }
      }
    }
  }
}

// Weight, and with partials the part, of what a pair leaves out. One block a pair.
//
// moments [K][D*D + 2D + 4], landmarks of the listed chunks -> weight [B][H], a part [G]([D]). Floor: the moments and
// S*D elements of landmarks read once; latency bounds it. It runs beside the fetch of values.
__global__ void __launch_bounds__(kTailThreads) tail_kernel(const __grid_constant__ TailKernelParams q) {
  __shared__ TailShared memory;
  const TailParams& p = q.p;
  const int thread = static_cast<int>(threadIdx.x);
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x);
  const int session = pair / heads, head = pair % heads;
  const bool idle = p.states[session].length <= 0;
  const std::int64_t first_query = static_cast<std::int64_t>(pair) * q.group;
  if (!idle) {
    stage_queries(q, first_query, memory);
  }
  if (thread == 0) {
    memory.indexed = 0;
  }
  if (thread < q.group) {
    memory.weight[thread] = idle ? -INFINITY : p.weight[first_query + thread];
  }
  __syncthreads();
  if (!idle) {
    if (p.subtract) {
      count_indexed(q, session, head, memory);
      weigh_listed(q, pair, session, head, memory);
      __syncthreads();
    }
    if (p.subtract || p.chunk_mass) {
      settle_weights(q, pair, memory);
      __syncthreads();
    }
  }
  if (p.partials.statistics) {
    write_part(q, pair, session, head, memory);
  }
}

}  // namespace

void launch_tail(const TailParams& p, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const TailKernelParams q = {p, MomentLayout(p.geometry.head_dim), pairs.first, group_size(p.geometry)};
  launch_beside("tail", tail_kernel, dim3(static_cast<unsigned>(pairs.count)), dim3(kTailThreads), 0, stream, q);
}

}  // namespace skv::cuda
