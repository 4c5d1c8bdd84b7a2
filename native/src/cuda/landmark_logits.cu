// The logits of a whole index in device memory, for GPUs and shapes that landmark_cluster.cu does not take.
#include <algorithm>

#include "cuda/decode.h"
#include "cuda/landmark_logits.cuh"

namespace skv::cuda {
namespace {

constexpr int kUnit = kSelectionUnit;
constexpr int kLogitWarps = 4;
constexpr int kLogitThreads = 32 * kLogitWarps;

struct LogitsParams {
  skv_landmark_topk_params p;
  SelectionScratch scratch;
  int first_pair;
  int units_per_warp;
  int group;
};

// Logits of landmarks for the G query heads of a key/value head, and their partial softmaxes.
//
// landmarks [K][chunk_capacity][D] bf16 or int8 -> logits [B*K][G][stride] f32, partials [B*K][G][units].
// Floor: every landmark read once: B * K * chunks * D * (2 or 1) bytes; bound by memory. The logits written are
// G * 4 bytes a chunk more. A warp needs no other warp.
template <int kHeadDim, bool kInt8, bool kWide>
__global__ void __launch_bounds__(kLogitThreads, kWide ? 2 : 4)
    landmark_logits_kernel(const __grid_constant__ LogitsParams q) {
  constexpr int kSpans = kHeadDim / 32;  // a lane takes 8 elements of each 32
  const skv_landmark_topk_params& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = lane / 4, quad_lane = lane % 4;
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  const int chunks = indexed_chunks(p, session);
  if (chunks == 0) {  // whoever is idle has no queries either
    return;
  }
  const std::int64_t first_unit = (static_cast<std::int64_t>(blockIdx.x) * kLogitWarps + warp) * q.units_per_warp;
  using Scorer = LandmarkLogits<kHeadDim, kInt8, kWide>;
  __shared__ LandmarkQueries<kHeadDim> queries;
  Scorer::stage_queries(p, session, head, q.group, queries);
  __syncthreads();
  if (first_unit * kUnit >= chunks) {
    return;
  }
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t capacity = layer.chunk_capacity;
  const char* const landmarks =
      static_cast<const char*>(layer.landmarks) + head * capacity * kHeadDim * (kInt8 ? 1 : 2);
  const float* const radii = layer.radius + head * capacity;
  const float* const scales = kInt8 ? layer.landmark_scales + head * capacity : nullptr;

  const Scorer scorer(queries);

  for (int u = 0; u < q.units_per_warp; ++u) {
    const std::int64_t unit = first_unit + u;
    const std::int64_t first_chunk = unit * kUnit;
    if (first_chunk >= chunks) {
      return;
    }
    float logits[kUnit / kTileChunks][kWide ? 4 : 2];
    constexpr int kTogether = kWide ? 1 : kInt8 ? 4 : 2;  // tiles whose loads are in flight together
#pragma unroll
    for (int tiles = 0; tiles < kUnit / kTileChunks; tiles += kTogether) {
      uint4 data[kTogether][kSpans];
      float radius[kTogether][2], scale[kTogether][2];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const std::int64_t tile_chunk = first_chunk + (tiles + i) * kTileChunks;
        const std::int64_t chunk = min(tile_chunk + row, static_cast<std::int64_t>(chunks) - 1);
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
          const std::int64_t at = chunk * kHeadDim + 32 * s + 8 * quad_lane;
          if constexpr (kInt8) {
            const uint2 bytes = load_once_8(landmarks + at);
            data[i][s].x = bytes.x;
            data[i][s].y = bytes.y;
          } else {
            data[i][s] = load_once_16(landmarks + 2 * at);
          }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const std::int64_t column = tile_chunk + 2 * quad_lane + e;
          const bool inside = column < chunks;
          radius[i][e] = inside ? __ldg(radii + column) : -1.0F;
          scale[i][e] = 1.0F;
          if constexpr (kInt8) {
            scale[i][e] = inside ? __ldg(scales + column) : 0.0F;
          }
        }
      }
      float together[kTogether][kWide ? 4 : 2];
      scorer.tiles(data, radius, scale, together);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
#pragma unroll
        for (int e = 0; e < (kWide ? 4 : 2); ++e) {
          logits[tiles + i][e] = together[i][e];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < (kWide ? 2 : 1); ++half) {
      const int group_head = row + 8 * half;
      float largest = -INFINITY;
#pragma unroll
      for (int t = 0; t < kUnit / kTileChunks; ++t) {
        largest = fmaxf(largest, fmaxf(logits[t][2 * half], logits[t][2 * half + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      float sum = 0;
      if (largest > -INFINITY) {
#pragma unroll
        for (int t = 0; t < kUnit / kTileChunks; ++t) {
          sum += exp2_fast((logits[t][2 * half] - largest) * kLog2E) +
                 exp2_fast((logits[t][2 * half + 1] - largest) * kLog2E);
        }
      }
      sum += __shfl_xor_sync(0xffffffffU, sum, 1);
      sum += __shfl_xor_sync(0xffffffffU, sum, 2);
      if (group_head < q.group) {
        const std::int64_t logit_row = static_cast<std::int64_t>(pair) * q.group + group_head;
        float* const out = q.scratch.logits + logit_row * q.scratch.chunk_stride + first_chunk + 2 * quad_lane;
#pragma unroll
        for (int t = 0; t < kUnit / kTileChunks; ++t) {
          *reinterpret_cast<float2*>(out + t * kTileChunks) = make_float2(logits[t][2 * half], logits[t][2 * half + 1]);
        }
        if (quad_lane == 0) {
          q.scratch.partials[logit_row * q.scratch.units + unit] = make_float2(largest, sum);
        }
      }
      if (p.tail) {
        float plain[kUnit / kTileChunks][2];
        float most = -INFINITY;
#pragma unroll
        for (int t = 0; t < kUnit / kTileChunks; ++t) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const std::int64_t column = first_chunk + t * kTileChunks + 2 * quad_lane + e;
            const float radius = column < chunks ? __ldg(radii + column) : -1.0F;
            plain[t][e] = radius >= 0 ? scorer.without_radius(half, logits[t][2 * half + e], radius) : -INFINITY;
            most = fmaxf(most, plain[t][e]);
          }
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffU, most, 2));
        float weight = 0;
        if (most > -INFINITY) {
#pragma unroll
          for (int t = 0; t < kUnit / kTileChunks; ++t) {
            weight += exp2_fast((plain[t][0] - most) * kLog2E) + exp2_fast((plain[t][1] - most) * kLog2E);
          }
        }
        weight += __shfl_xor_sync(0xffffffffU, weight, 1);
        weight += __shfl_xor_sync(0xffffffffU, weight, 2);
        if (quad_lane == 0 && group_head < q.group) {
          q.scratch.plain[(static_cast<std::int64_t>(pair) * q.group + group_head) * q.scratch.units + unit] =
              make_float2(most, weight);
        }
      }
    }
  }
}

// The same for any head dim, without tensor cores: correct, not fast. One block a unit.
constexpr int kAnyThreads = 256;

__global__ void __launch_bounds__(kAnyThreads) landmark_logits_any_kernel(const __grid_constant__ LogitsParams q) {
  __shared__ float queries[SKV_MAX_GROUP][SKV_MAX_HEAD_DIM];
  __shared__ float norms[SKV_MAX_GROUP];
  __shared__ float logits[SKV_MAX_GROUP][kUnit];
  const skv_landmark_topk_params& p = q.p;
  const int dim = p.geometry.head_dim, heads = p.geometry.key_value_heads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int pair = q.first_pair + static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  const int chunks = indexed_chunks(p, session);
  const std::int64_t unit = blockIdx.x;
  const std::int64_t first_chunk = unit * kUnit;
  if (first_chunk >= chunks) {
    return;
  }
  const skv_shadow_layer& layer = p.layers[session];
  for (int i = thread; i < q.group * dim; i += kAnyThreads) {
    queries[i / dim][i % dim] =
        load_element(p.queries, p.query_type,
                     (static_cast<std::int64_t>(session) * p.geometry.query_heads + head * q.group) * dim + i);
  }
  __syncthreads();
  for (int g = warp; g < q.group; g += kAnyThreads / 32) {
    float squares = 0;
    for (int d = lane; d < dim; d += 32) {
      squares += queries[g][d] * queries[g][d];
    }
    squares = warp_sum(squares);
    if (lane == 0) {
      norms[g] = sqrtf(squares);
    }
  }
  __syncthreads();
  const float inverse_root = rsqrtf(static_cast<float>(dim));
  for (int c = warp; c < kUnit; c += kAnyThreads / 32) {
    const std::int64_t chunk = first_chunk + c;
    const std::int64_t at = head * layer.chunk_capacity + chunk;
    const float radius = chunk < chunks ? layer.radius[at] : -1.0F;
    for (int g = 0; g < q.group; ++g) {
      float dot = 0;
      if (radius >= 0) {
        for (int d = lane; d < dim; d += 32) {
          const float x = p.geometry.landmark_type == SKV_I8
                              ? static_cast<float>(static_cast<const std::int8_t*>(layer.landmarks)[at * dim + d])
                              : load_element(layer.landmarks, SKV_BF16, at * dim + d);
          dot += x * queries[g][d];
        }
        dot = warp_sum(dot);
        if (p.geometry.landmark_type == SKV_I8) {
          dot *= layer.landmark_scales[at];
        }
      }
      if (lane == 0) {
        logits[g][c] = radius >= 0 ? (dot + p.radius_weight * norms[g] * radius) * inverse_root : -INFINITY;
      }
    }
  }
  __syncthreads();
  for (int g = warp; g < q.group; g += kAnyThreads / 32) {
    const float x = logits[g][lane], y = logits[g][lane + 32];
    const float largest = warp_max(fmaxf(x, y));
    const float sum =
        warp_sum(largest > -INFINITY ? exp2_fast((x - largest) * kLog2E) + exp2_fast((y - largest) * kLog2E) : 0.0F);
    const std::int64_t logit_row = static_cast<std::int64_t>(pair) * q.group + g;
    q.scratch.logits[logit_row * q.scratch.chunk_stride + first_chunk + lane] = x;
    q.scratch.logits[logit_row * q.scratch.chunk_stride + first_chunk + lane + 32] = y;
    if (lane == 0) {
      q.scratch.partials[logit_row * q.scratch.units + unit] = make_float2(largest, sum);
    }
    if (p.tail) {
      const auto plain_of = [&](int c, float logit) {
        const float radius =
            first_chunk + c < chunks ? layer.radius[head * layer.chunk_capacity + first_chunk + c] : -1.0F;
        return radius >= 0 ? logit - p.radius_weight * norms[g] * radius * inverse_root : -INFINITY;
      };
      const float plain_x = plain_of(lane, x), plain_y = plain_of(lane + 32, y);
      const float most = warp_max(fmaxf(plain_x, plain_y));
      const float weight = warp_sum(
          most > -INFINITY ? exp2_fast((plain_x - most) * kLog2E) + exp2_fast((plain_y - most) * kLog2E) : 0.0F);
      if (lane == 0) {
        q.scratch.plain[logit_row * q.scratch.units + unit] = make_float2(most, weight);
      }
    }
  }
}

template <int kHeadDim>
void launch_tuned_logits(const LogitsParams& q, dim3 grid, cudaStream_t stream) {
  const bool wide = q.group > 8;
  const char* const name = "landmark logits";
  if (q.p.geometry.landmark_type == SKV_I8) {
    wide ? launch_beside(name, landmark_logits_kernel<kHeadDim, true, true>, grid, dim3(kLogitThreads), 0, stream, q)
         : launch_beside(name, landmark_logits_kernel<kHeadDim, true, false>, grid, dim3(kLogitThreads), 0, stream, q);
  } else {
    wide ? launch_beside(name, landmark_logits_kernel<kHeadDim, false, true>, grid, dim3(kLogitThreads), 0, stream, q)
         : launch_beside(name, landmark_logits_kernel<kHeadDim, false, false>, grid, dim3(kLogitThreads), 0, stream, q);
  }
}

}  // namespace

void launch_landmark_logits(const skv_landmark_topk_params& p, const SelectionScratch& scratch,
                            const DeviceTraits& traits, PairRange pairs, cudaStream_t stream) {
  if (scratch.units == 0 || pairs.count == 0) {
    return;
  }
  LogitsParams q = {p, scratch, pairs.first, 1, group_size(p.geometry)};
  const int dim = p.geometry.head_dim;
  if (dim != 64 && dim != 96 && dim != 128) {
    launch_beside("landmark logits", landmark_logits_any_kernel,
                  dim3(static_cast<unsigned>(scratch.units), static_cast<unsigned>(pairs.count)), dim3(kAnyThreads), 0,
                  stream, q);
    return;
  }
  // Several units a warp spread the cost of its queries once all SMs have enough warps.
  constexpr std::int64_t kWarpsPerMultiprocessor = 16, kMostUnits = 4;
  const std::int64_t warps = scratch.units * pairs.count;
  q.units_per_warp = static_cast<int>(
      std::clamp(warps / (2 * kWarpsPerMultiprocessor * traits.multiprocessors), std::int64_t{1}, kMostUnits));
  const std::int64_t per_block = static_cast<std::int64_t>(kLogitWarps) * q.units_per_warp;
  const dim3 grid(static_cast<unsigned>((scratch.units + per_block - 1) / per_block),
                  static_cast<unsigned>(pairs.count));
  if (dim == 64) {
    launch_tuned_logits<64>(q, grid, stream);
  } else if (dim == 96) {
    launch_tuned_logits<96>(q, grid, stream);
  } else {
    launch_tuned_logits<128>(q, grid, stream);
  }
}

}  // namespace skv::cuda
