#include <algorithm>

#include "cuda/decode.h"
#include "cuda/elements.cuh"
#include "cuda/mma.cuh"
#include "cuda/plan_slots.cuh"
#include "cuda/select_best.cuh"

namespace skv::cuda {
namespace {

// Chunks of which one warp makes one partial softmax. Fixed, so that a result does not depend on the launch.
constexpr int kUnit = 64;
constexpr int kTile = 8;  // chunks of one tensor-core instruction
constexpr int kLogitWarps = 4;
constexpr int kLogitThreads = 32 * kLogitWarps;

struct LogitsParams {
  skv_landmark_topk_params p;
  SelectionScratch scratch;
  int first_pair;
  int units_per_warp;
  int group;
};

// What a session's row of the batch has in its index.
__device__ int indexed_chunks(const skv_landmark_topk_params& p, int session) {
  const skv_session_state& state = p.states[session];
  return state.length <= 0 ? 0
                           : static_cast<int>(min(static_cast<long long>(state.indexed_chunks),
                                                  static_cast<long long>(p.max_chunks)));
}

// Four int8 as two pairs of f16, exactly: 0x6400 + byte is 1024 + byte.
__device__ uint2 f16_of_int8(std::uint32_t four) {
  const std::uint32_t shifted = four ^ 0x80808080U;
  std::uint32_t low = __byte_perm(shifted, 0x64646464U, 0x4140), high = __byte_perm(shifted, 0x64646464U, 0x4342);
  const __half2 offset = __float2half2_rn(1152.0F);
  const __half2 a = __hsub2(*reinterpret_cast<__half2*>(&low), offset);
  const __half2 b = __hsub2(*reinterpret_cast<__half2*>(&high), offset);
  return make_uint2(*reinterpret_cast<const std::uint32_t*>(&a), *reinterpret_cast<const std::uint32_t*>(&b));
}

// Two floats as 16-bit high parts and what those leave, as 16-bit low parts.
template <bool kInt8>
__device__ void split(float x, float y, std::uint32_t& high, std::uint32_t& low) {
  if constexpr (kInt8) {
    high = pack_f16(x, y);
    const float2 h = __half22float2(*reinterpret_cast<const __half2*>(&high));
    low = pack_f16(x - h.x, y - h.y);
  } else {
    high = pack_bf16(x, y);
    low = pack_bf16(x - bf16_low(high), y - bf16_high(high));
  }
}

template <bool kInt8>
__device__ void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (kInt8) {
    mma_f16(c, a[0], a[1], a[2], a[3], b0, b1);
  } else {
    mma_bf16(c, a[0], a[1], a[2], a[3], b0, b1);
  }
}

// Logits of landmarks for the G query heads of a key/value head, and their partial softmaxes.
//
// landmarks [K][chunk_capacity][D] bf16 or int8 -> logits [B*K][G][stride] f32, partials [B*K][G][units].
// Floor: every landmark read once: B * K * chunks * D * (2 or 1) bytes; bound by memory. The logits written are
// G * 4 bytes a chunk more. A warp needs no other warp: its queries are tensor-core fragments in registers, and
// the lanes of a quad take 64 consecutive bytes of a landmark, which are fragments as they are.
// Reached with the selection behind it: 0.119 ms bf16, 0.100 ms int8, floors 0.061 and 0.031 (H200, 2026-11-24, JMH,
// 8 sessions of 122880 tokens, 32/8 heads, D 128).
// Queries keep f32 accuracy: the 16 rows of a fragment hold G <= 8 heads and, 8 rows below, what their
// rounding left (kWide: G > 8, a second set of fragments). Int8 takes f16 fragments of queries scaled to [-1, 1].
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
  const std::int64_t first_unit = (static_cast<std::int64_t>(blockIdx.x) * kLogitWarps + warp) * q.units_per_warp;
  if (first_unit * kUnit >= chunks) {
    return;
  }
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t capacity = layer.chunk_capacity;
  const char* const landmarks =
      static_cast<const char*>(layer.landmarks) + head * capacity * kHeadDim * (kInt8 ? 1 : 2);
  const float* const radii = layer.radius + head * capacity;
  const float* const scales = kInt8 ? layer.landmark_scales + head * capacity : nullptr;

  const float inverse_root = rsqrtf(static_cast<float>(kHeadDim));
  std::uint32_t a[kSpans][2][4];
  std::uint32_t rest[kWide ? kSpans : 1][2][4];
  float factor[kWide ? 2 : 1], radius_factor[kWide ? 2 : 1];
#pragma unroll
  for (int half = 0; half < (kWide ? 2 : 1); ++half) {
    const int group_head = row + 8 * half;
    const bool present = group_head < q.group;
    const std::int64_t base =
        (static_cast<std::int64_t>(session) * p.geometry.query_heads + head * q.group + group_head) * kHeadDim;
    float x[kSpans][8];
    float squares = 0, largest = 0;
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int d = 32 * s + 8 * quad_lane + i;
        x[s][i] = present ? load_element(p.queries, p.query_type, base + d) : 0.0F;
        squares += x[s][i] * x[s][i];
        largest = fmaxf(largest, fabsf(x[s][i]));
      }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      squares += __shfl_xor_sync(0xffffffffU, squares, step);
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, step));
    }
    radius_factor[half] = p.radius_weight * sqrtf(squares) * inverse_root;
    factor[half] = inverse_root;
    if constexpr (kInt8) {
      factor[half] *= largest;
      const float inverse = largest > 0 ? 1.0F / largest : 0.0F;
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x[s][i] *= inverse;
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const float* const e = &x[s][4 * step];
        std::uint32_t low0, low1;
        split<kInt8>(e[0], e[1], a[s][step][kWide ? half : 0], low0);
        split<kInt8>(e[2], e[3], a[s][step][kWide ? 2 + half : 2], low1);
        if constexpr (kWide) {
          rest[s][step][half] = low0;
          rest[s][step][2 + half] = low1;
        } else {
          a[s][step][1] = low0;
          a[s][step][3] = low1;
        }
      }
    }
  }

  const std::int64_t local_pair = pair;
  for (int u = 0; u < q.units_per_warp; ++u) {
    const std::int64_t unit = first_unit + u;
    const std::int64_t first_chunk = unit * kUnit;
    if (first_chunk >= chunks) {
      return;
    }
    float logits[kUnit / kTile][kWide ? 4 : 2];
    constexpr int kTogether = kWide ? 1 : kInt8 ? 4 : 2;  // tiles whose loads are in flight together
#pragma unroll
    for (int tiles = 0; tiles < kUnit / kTile; tiles += kTogether) {
      uint4 data[kTogether][kSpans];
      float radius[kTogether][2], scale[kTogether][2];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const std::int64_t tile_chunk = first_chunk + (tiles + i) * kTile;
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
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        float c[4] = {0, 0, 0, 0};
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
          uint4 b = data[i][s];
          if constexpr (kInt8) {
            const uint2 first = f16_of_int8(b.x), second = f16_of_int8(b.y);
            b = make_uint4(first.x, first.y, second.x, second.y);
          }
          multiply<kInt8>(c, a[s][0], b.x, b.y);
          multiply<kInt8>(c, a[s][1], b.z, b.w);
          if constexpr (kWide) {
            multiply<kInt8>(c, rest[s][0], b.x, b.y);
            multiply<kInt8>(c, rest[s][1], b.z, b.w);
          }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool indexed = radius[i][e] >= 0;
          if constexpr (kWide) {
            logits[tiles + i][e] =
                indexed ? c[e] * scale[i][e] * factor[0] + radius_factor[0] * radius[i][e] : -INFINITY;
            logits[tiles + i][2 + e] =
                indexed ? c[2 + e] * scale[i][e] * factor[1] + radius_factor[1] * radius[i][e] : -INFINITY;
          } else {
            logits[tiles + i][e] =
                indexed ? (c[e] + c[2 + e]) * scale[i][e] * factor[0] + radius_factor[0] * radius[i][e] : -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int half = 0; half < (kWide ? 2 : 1); ++half) {
      const int group_head = row + 8 * half;
      float largest = -INFINITY;
#pragma unroll
      for (int t = 0; t < kUnit / kTile; ++t) {
        largest = fmaxf(largest, fmaxf(logits[t][2 * half], logits[t][2 * half + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
      float sum = 0;
      if (largest > -INFINITY) {
#pragma unroll
        for (int t = 0; t < kUnit / kTile; ++t) {
          sum += exp2_fast((logits[t][2 * half] - largest) * kLog2E) +
                 exp2_fast((logits[t][2 * half + 1] - largest) * kLog2E);
        }
      }
      sum += __shfl_xor_sync(0xffffffffU, sum, 1);
      sum += __shfl_xor_sync(0xffffffffU, sum, 2);
      if (group_head < q.group) {
        const std::int64_t logit_row = local_pair * q.group + group_head;
        float* const out = q.scratch.logits + logit_row * q.scratch.chunk_stride + first_chunk + 2 * quad_lane;
#pragma unroll
        for (int t = 0; t < kUnit / kTile; ++t) {
          *reinterpret_cast<float2*>(out + t * kTile) = make_float2(logits[t][2 * half], logits[t][2 * half + 1]);
        }
        if (quad_lane == 0) {
          q.scratch.partials[logit_row * q.scratch.units + unit] = make_float2(largest, sum);
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
  }
}

struct SelectParams {
  skv_landmark_topk_params p;
  SelectionScratch scratch;
  PlanOutput plan;
  int first_pair;
  int group;
};

struct alignas(16) SelectShared {
  SelectMemory select;
  PlanMemory plan;
  float log_sums[SKV_MAX_GROUP];
  float2 unit_sums[kSelectWarps];
};

std::uint64_t select_fixed_bytes(std::int32_t select, std::int32_t slots) {
  return sizeof(SelectShared) + static_cast<std::uint64_t>(plan_key_places(slots)) * 8 +
         static_cast<std::uint64_t>((select + 3) / 4 * 4) * 4;
}

// Pieces of four scores that a thread holds in registers; 0: rows too long for that.
int held_pieces(std::int64_t stride) {
  const std::int64_t pieces = (stride + 4 * kSelectThreads - 1) / (4 * kSelectThreads);
  return pieces <= 2 ? 2 : pieces <= SelectMemory::kMostPieces ? SelectMemory::kMostPieces : 0;
}

// Whether a row of scores fits beside everything else.
bool scores_fit(const skv_landmark_topk_params& p, std::int64_t stride, const DeviceTraits& traits) {
  return held_pieces(stride) > 0 ||
         select_fixed_bytes(p.select, p.geometry.slots) + static_cast<std::uint64_t>(stride) * 4 <=
             static_cast<std::uint64_t>(traits.shared_memory_per_block);
}

// Log sum of the exponentials of a pair's logits for each head, to shared memory; ends with a barrier.
// All warps take a share of the units: 32 / (G rounded up to a power of two) of them a head.
__device__ void log_sums_of_units(const SelectParams& q, int pair, int units, SelectShared& memory) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int heads = 1;
  while (heads < q.group) {
    heads *= 2;
  }
  const int shares = kSelectWarps / heads, head = warp / shares, share = warp % shares;
  float largest = -INFINITY, sum = 0;
  if (head < q.group) {
    const float2* const partials =
        q.scratch.partials + (static_cast<std::int64_t>(pair) * q.group + head) * q.scratch.units;
    for (int i = share * 32 + lane; i < units; i += shares * 32) {
      const float2 partial = partials[i];
      const float next = fmaxf(largest, partial.x);
      if (next > -INFINITY) {
        sum = sum * exp2_fast((largest - next) * kLog2E) + partial.y * exp2_fast((partial.x - next) * kLog2E);
        largest = next;
      }
    }
  }
  const auto reduce = [&](float most, float part, int width) {
    float all = most;
    for (int step = width / 2; step; step /= 2) {
      all = fmaxf(all, __shfl_xor_sync(0xffffffffU, all, step));
    }
    part = most > -INFINITY ? part * exp2_fast((most - all) * kLog2E) : 0.0F;
    for (int step = width / 2; step; step /= 2) {
      part += __shfl_xor_sync(0xffffffffU, part, step);
    }
    return make_float2(all, part);
  };
  const float2 of_warp = reduce(largest, sum, 32);
  if (lane == 0) {
    memory.unit_sums[warp] = of_warp;
  }
  __syncthreads();
  const float2 mine = memory.unit_sums[lane];
  const float2 of_head = reduce(mine.x, mine.y, shares);
  if (warp == 0 && lane % shares == 0 && lane / shares < q.group) {
    memory.log_sums[lane / shares] = of_head.x > -INFINITY ? of_head.x + logf(of_head.y) : 0.0F;
  }
  __syncthreads();
}

// Selects the chunks of one pair from its logits and, when asked, plans its slots. One block a pair.
//
// logits [G][chunks], partials [G][units] -> selected [S], count, mass (+ slots and fetch list).
// Floor: G * 4 bytes a chunk, which the kernel before has just left in the L2 cache; in practice a chain of loads and
// barriers of one SM bounds it. Up to 16,384 chunks a thread holds its scores in registers (kPieces quads of them);
// longer rows (kPieces = 0) go through shared memory, or scratch.
template <int kPieces>
__global__ void __launch_bounds__(kSelectThreads) landmark_select_kernel(const __grid_constant__ SelectParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_landmark_topk_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x);
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x);
  const int session = pair / heads, head = pair % heads;
  const int chunks = indexed_chunks(p, session);
  const bool planned = q.plan.fetch_count != nullptr;
  if (chunks == 0) {
    if (thread == 0) {
      p.selected_count[pair] = 0;
      if (p.mass) {
        p.mass[pair] = 0.0F;
      }
      if (planned) {
        q.plan.fetch_count[pair] = 0;
      }
    }
    return;
  }
  auto& memory = *reinterpret_cast<SelectShared*>(shared);
  auto* const keys = reinterpret_cast<unsigned long long*>(shared + sizeof(SelectShared));
  auto* const ids = reinterpret_cast<int*>(keys + plan_key_places(p.geometry.slots));
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t slot_row = static_cast<std::int64_t>(head) * p.geometry.slots;
  if (planned) {
    // The plan's first reads, on their way to the L2 cache while the selection is made.
    for (int i = 32 * thread; i < p.geometry.slots; i += 32 * kSelectThreads) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(layer.slot_chunk + slot_row + i));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(layer.slot_stamp + slot_row + i));
    }
  }

  const float* const logits = q.scratch.logits + static_cast<std::int64_t>(pair) * q.group * q.scratch.chunk_stride;
  log_sums_of_units(q, pair, (chunks + kUnit - 1) / kUnit, memory);
  // Rows are as long as a whole number of units and hold -infinity behind the last chunk.
  const auto best_of_heads = [&](int i) {
    float4 best = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
#pragma unroll 4
    for (int g = 0; g < q.group; ++g) {
      const float4 x = *reinterpret_cast<const float4*>(logits + g * q.scratch.chunk_stride + i);
      const float log_sum = memory.log_sums[g];
      // Adding +0 turns -0 into +0; fmaxf drops NaN.
      best.x = fmaxf(best.x, x.x - log_sum + 0.0F);
      best.y = fmaxf(best.y, x.y - log_sum + 0.0F);
      best.z = fmaxf(best.z, x.z - log_sum + 0.0F);
      best.w = fmaxf(best.w, x.w - log_sum + 0.0F);
    }
    return best;
  };
  int count;
  if constexpr (kPieces > 0) {
    float scores[4 * kPieces];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int i = 4 * (thread + kSelectThreads * piece);
      const float4 best = i < chunks ? best_of_heads(i) : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      scores[4 * piece] = best.x;
      scores[4 * piece + 1] = best.y;
      scores[4 * piece + 2] = best.z;
      scores[4 * piece + 3] = best.w;
    }
    count = select_best_held<kPieces>(scores, p.select, ids, memory.select);
  } else {
    float* const scores = q.scratch.scores ? q.scratch.scores + pair * q.scratch.chunk_stride
                                           : reinterpret_cast<float*>(ids + (p.select + 3) / 4 * 4);
    for (int i = 4 * thread; i < chunks; i += 4 * kSelectThreads) {
      *reinterpret_cast<float4*>(scores + i) = best_of_heads(i);
    }
    __syncthreads();
    count = select_best(scores, chunks, p.select, ids, memory.select);
  }

  std::int32_t* const selected = p.selected + static_cast<std::int64_t>(pair) * p.select;
  for (int i = thread; i < count; i += kSelectThreads) {
    selected[i] = ids[i];
  }
  if (thread == 0) {
    p.selected_count[pair] = count;
  }
  if (planned) {
    const std::int64_t selected_row = static_cast<std::int64_t>(pair) * p.select;
    const PlanRow row = {layer.slot_chunk + slot_row,         layer.slot_stamp + slot_row,
                         q.plan.selected_slot + selected_row, q.plan.fetch_chunk + selected_row,
                         q.plan.fetch_slot + selected_row,    q.plan.fetch_count + pair};
    plan_slots(ids, count, p.geometry.slots, p.states[session].step, row, memory.plan, keys);
  }
  if (p.mass) {
    float mass = 0;
    for (int i = thread; i < count; i += kSelectThreads) {
      for (int g = 0; g < q.group; ++g) {
        mass += exp2_fast((logits[g * q.scratch.chunk_stride + ids[i]] - memory.log_sums[g]) * kLog2E);
      }
    }
    mass = block_sum(mass);
    if (thread == 0) {
      p.mass[pair] = mass / static_cast<float>(q.group);
    }
  }
}

std::int64_t units_of(std::int64_t max_chunks) {
  return (max_chunks + kUnit - 1) / kUnit;
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

void check_topk(const skv_landmark_topk_params& p) {
  check_shadow_geometry(p.geometry, p.query_type, "landmark_topk");
  if (p.select < 1 || p.select > kMaxShortlist) {
    throw Error(SKV_UNSUPPORTED, "landmark_topk on CUDA selects 1 to " + std::to_string(kMaxShortlist) +
                                     " chunks, not " + std::to_string(p.select));
  }
}

}  // namespace

std::uint64_t selection_scratch_bytes(const skv_landmark_topk_params& p, const DeviceTraits& traits) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(p.batch) * p.geometry.key_value_heads;
  const std::uint64_t units = static_cast<std::uint64_t>(units_of(p.max_chunks));
  const std::uint64_t group = static_cast<std::uint64_t>(group_size(p.geometry));
  const std::uint64_t stride = units * kUnit;
  std::uint64_t bytes = Workspace::align(pairs * group * stride * sizeof(float)) +
                        Workspace::align(pairs * group * units * sizeof(float2));
  if (!scores_fit(p, static_cast<std::int64_t>(stride), traits)) {
    bytes += Workspace::align(pairs * stride * sizeof(float));
  }
  return bytes;
}

SelectionScratch take_selection_scratch(const skv_landmark_topk_params& p, const DeviceTraits& traits,
                                        Workspace& workspace) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(p.batch) * p.geometry.key_value_heads;
  const std::uint64_t group = static_cast<std::uint64_t>(group_size(p.geometry));
  SelectionScratch scratch;
  scratch.units = units_of(p.max_chunks);
  scratch.chunk_stride = scratch.units * kUnit;
  const auto units = static_cast<std::uint64_t>(scratch.units),
             stride = static_cast<std::uint64_t>(scratch.chunk_stride);
  scratch.logits = workspace.take<float>(pairs * group * stride);
  scratch.partials = workspace.take<float2>(pairs * group * units);
  if (!scores_fit(p, scratch.chunk_stride, traits)) {
    scratch.scores = workspace.take<float>(pairs * stride);
  }
  return scratch;
}

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

void launch_landmark_select(const skv_landmark_topk_params& p, const SelectionScratch& scratch, const PlanOutput& plan,
                            const DeviceTraits&, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  if (plan.fetch_count && p.geometry.slots != 0 && p.geometry.slots < p.select) {
    throw Error(SKV_INVALID_ARGUMENT, "cache_plan needs as many slots as chunks are selected: " +
                                          std::to_string(p.geometry.slots) + " < " + std::to_string(p.select));
  }
  const SelectParams q = {p, scratch, plan, pairs.first, group_size(p.geometry)};
  const int pieces = held_pieces(scratch.chunk_stride);
  std::size_t bytes = select_fixed_bytes(p.select, p.geometry.slots);
  if (pieces == 0 && !scratch.scores) {
    bytes += static_cast<std::size_t>(scratch.chunk_stride) * 4;
  }
  launch_beside("landmark selection",
                pieces == 0   ? landmark_select_kernel<0>
                : pieces == 2 ? landmark_select_kernel<2>
                              : landmark_select_kernel<SelectMemory::kMostPieces>,
                dim3(static_cast<unsigned>(pairs.count)), dim3(kSelectThreads), bytes, stream, q);
}

std::uint64_t landmark_topk_workspace(const skv_landmark_topk_params& p, const DeviceTraits& traits) {
  return selection_scratch_bytes(p, traits);
}

void landmark_topk(const skv_landmark_topk_params& p, Launch& launch) {
  check_topk(p);
  launch.workspace.require(landmark_topk_workspace(p, launch.traits), "landmark_topk");
  Workspace workspace = launch.workspace;
  const SelectionScratch scratch = take_selection_scratch(p, launch.traits, workspace);
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  launch_landmark_logits(p, scratch, launch.traits, pairs, launch.stream);
  launch_landmark_select(p, scratch, {}, launch.traits, pairs, launch.stream);
}

}  // namespace skv::cuda
