// Selection by clusters of blocks: what a block has in shared memory, and how it fills that with the logits of its
// share of a pair's index.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>
#include <cstdint>

#include "cuda/bulk_copy.cuh"
#include "cuda/decode.h"
#include "cuda/landmark_logits.cuh"
#include "cuda/plan_slots.cuh"

namespace skv::cuda::cluster {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Chunks that make one partial softmax, whole within a block. Fixed, so that a result does not depend on the launch.
constexpr int kUnit = 512;
constexpr int kTogether = 2;  // tiles that a warp multiplies side by side: a step
constexpr int kStepChunks = kTogether * kTileChunks;
[[maybe_unused]] constexpr int kStepsPerWarp = kUnit / kStepChunks / kWarps;  // of a unit
static_assert(kStepsPerWarp * kStepChunks * kWarps == kUnit);
constexpr int kMostStages = 4;       // steps of a warp that are under way
constexpr int kBins = 4 * kThreads;  // 16-bit counts: a thread reads 4 of a block at once
[[maybe_unused]] constexpr float kBinsPerUnit = kBins / 32.0F;
constexpr int kCandidates = 512;
constexpr int kDigits = 256;

struct Candidate {
  float score;
  int chunk;
  unsigned long long mass;
};

struct alignas(16) ClusterShared {
  std::uint64_t full[kWarps][kMostStages];  // barriers of the warps' rings
  float log_sums[SKV_MAX_GROUP];
  float largest[SKV_MAX_GROUP];
  int totals[kWarps];
  int bin, before, members;
  int first_candidate;      // of this block among those of the cluster
  int candidate_count;      // of this block
  unsigned long long mass;  // in units of 2^-40: integers, so that the order of additions does not matter
};

// Where the parts of a block's shared memory begin, in bytes. What is needed once the landmarks have been read lies
// where those were on their way.
struct ClusterLayout {
  int stride;  // floats of a row of logits; 8 more than a multiple of 32, so that heads lie in different banks
  int queries, logits, partials, plain, plan_keys, plan_order, plan_chunks, ring;
  int scores, bins, digits, digit_totals, bitmap, candidates, word_places, ids, plan_lists;
  int end;
};

inline ClusterLayout cluster_layout(int share, int stages, int group, int dim, bool int8, bool tail,
                                    std::int64_t max_chunks, int select, int slots) {
  ClusterLayout l = {};
  int at = static_cast<int>(sizeof(ClusterShared));
  const auto take = [&at](std::int64_t bytes) {
    const int begin = at;
    at += static_cast<int>((bytes + 15) / 16 * 16);
    return begin;
  };
  const int rows = int8 && group < 2 ? 2 : group;
  const int units = share / kUnit;
  const std::int64_t words = (max_chunks + 31) / 32;
  l.stride = share + 8;
  l.queries = take(dim == 64   ? sizeof(LandmarkQueries<64>)
                   : dim == 96 ? sizeof(LandmarkQueries<96>)
                               : sizeof(LandmarkQueries<128>));
  l.logits = take(std::int64_t{4} * rows * l.stride);
  l.partials = take(std::int64_t{8} * units * kWarps * group);
  l.plain = tail ? take(std::int64_t{8} * units * kWarps * group) : 0;
  // Slots are sorted before there are logits, behind what waits in the rows of those.
  const int waiting = 4 * l.stride * (int8 ? 2 : 1);
  const std::int64_t key_bytes = std::int64_t{8} * plan_key_places(slots, kThreads);
  l.plan_keys = 4 * rows * l.stride - waiting >= key_bytes ? l.logits + waiting : take(key_bytes);
  l.plan_order = take(std::int64_t{2} * slots);
  l.plan_chunks = take(std::int64_t{4} * plan_chunk_places(slots, kThreads));
  at = (at + 127) / 128 * 128;
  l.ring = at;
  l.scores = take(std::int64_t{4} * share);
  l.bins = take(2 * kBins);
  l.digits = take(4 * kDigits);
  l.digit_totals = take(4 * kDigits);
  l.bitmap = take(4 * words);
  l.candidates = take(static_cast<int>(sizeof(Candidate)) * kCandidates);
  l.word_places = take(4 * words);
  l.ids = take(std::int64_t{4} * select);
  l.plan_lists = take(static_cast<int>(sizeof(PlanMemory::Lists)));
  const int ring_bytes = kWarps * stages * kStepChunks * dim * (int8 ? 1 : 2);
  l.end = at > l.ring + ring_bytes ? at : l.ring + ring_bytes;
  return l;
}

struct ClusterParams {
  skv_landmark_topk_params p;
  PlanOutput plan;
  ClusterLayout layout;
  int first_pair;
  int group;
  int stages;            // steps of a warp that are under way
  float* listed_logits;  // [B*K][G][listed_stride], or null
  std::int64_t listed_stride;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// A partial softmax: the largest logit, and the sum of exponentials relative to it.
struct Softmax {
  float largest = -INFINITY, sum = 0.0F;
};

__device__ inline Softmax merged(const Softmax& a, const Softmax& b) {
  const float largest = fmaxf(a.largest, b.largest);
  if (largest == -INFINITY) {
    return {};
  }
  return {largest,
          a.sum * exp2_fast((a.largest - largest) * kLog2E) + b.sum * exp2_fast((b.largest - largest) * kLog2E)};
}

__device__ inline Softmax of_other_lane(const Softmax& s, int step) {
  return {__shfl_xor_sync(0xffffffffU, s.largest, step), __shfl_xor_sync(0xffffffffU, s.sum, step)};
}

// Adds logits, `kCount` of them.
template <int kCount>
__device__ inline void add_logits(const float (&x)[kCount], Softmax& softmax) {
  float largest = softmax.largest;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    largest = fmaxf(largest, x[i]);
  }
  if (largest > -INFINITY) {
    softmax.sum *= exp2_fast((softmax.largest - largest) * kLog2E);
    softmax.largest = largest;
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      softmax.sum += exp2_fast((x[i] - largest) * kLog2E) + exp2_fast((x[i + 1] - largest) * kLog2E);
    }
  }
}

// Partial softmaxes of a block's units in shared memory, [units][warps][G] each: of the logits, and of those without
// what radii add, which are there when the tail is asked for.
__device__ inline Softmax* partials_of(const ClusterLayout& layout, bool plain, unsigned char* shared) {
  return reinterpret_cast<Softmax*>(shared + (plain ? layout.plain : layout.partials));
}

// What a block of a cluster works on: chunks [first, first + count) of a pair that has `chunks`.
struct Share {
  int chunks, units_per_block, first, count, units;
};

__device__ inline Share share_of(int chunks, int rank, int blocks) {
  Share s;
  s.chunks = chunks;
  const int units = (chunks + kUnit - 1) / kUnit;
  s.units_per_block = (units + blocks - 1) / blocks;
  s.first = rank * s.units_per_block * kUnit;
  s.count = min(max(chunks - s.first, 0), s.units_per_block * kUnit);
  s.units = (s.count + kUnit - 1) / kUnit;
  return s;
}

__device__ inline void exchange(uint4& a, uint4& b, bool wanted) {
  const uint4 x = a;
  a = wanted ? b : a;
  b = wanted ? x : b;
}

// A lane's elements of a landmark: 8 at 32 * span + 8 * quad_lane of every span. Rows are whole numbers of 128 bytes
// apart, mostly, so neighbouring ones begin with other spans and exchange them afterwards: the rows of a phase (2 of
// bf16, 4 of int8) then lie in different banks.
template <bool kInt8, int kSpans>
__device__ inline void read_tile(const unsigned char* from, int row, int quad_lane, uint4 (&data)[kSpans]) {
  constexpr int kMask = kSpans % 4 == 0 && kInt8 ? 3 : kSpans % 2 == 0 ? 1 : 0;
  const int turn = row & kMask;
#pragma unroll
  for (int s = 0; s < kSpans; ++s) {
    const int span = s ^ turn;
    if constexpr (kInt8) {
      const uint2 bytes = *reinterpret_cast<const uint2*>(from + 32 * span + 8 * quad_lane);
      data[s] = make_uint4(bytes.x, bytes.y, 0, 0);
    } else {
      data[s] = *reinterpret_cast<const uint4*>(from + 64 * span + 16 * quad_lane);
    }
  }
  if constexpr (kMask > 0) {
#pragma unroll
    for (int s = 0; s < kSpans; s += 2) {
      exchange(data[s], data[s + 1], (turn & 1) != 0);
    }
  }
  if constexpr (kMask > 1) {
#pragma unroll
    for (int s = 0; s < kSpans; s += 4) {
      exchange(data[s], data[s + 2], (turn & 2) != 0);
      exchange(data[s + 1], data[s + 3], (turn & 2) != 0);
    }
  }
}

// Writes the logits of a share to shared memory and the partial softmaxes of its units, by warps of their own: a warp
// has several steps of landmarks on their way and waits for nobody. Radii, and the scales of int8 landmarks, wait in
// the first rows of the logits until they are used. `meanwhile` is done while the first landmarks are on their way.
template <int kHeadDim, bool kInt8, bool kWide, class Meanwhile>
__device__ inline void stream_landmarks(const ClusterParams& q, const ClusterLayout& layout, const Share& share,
                                        int session, int head, unsigned char* shared, const Meanwhile& meanwhile) {
  using Scorer = LandmarkLogits<kHeadDim, kInt8, kWide>;
  constexpr int kRowBytes = kHeadDim * Scorer::kElementBytes;
  constexpr int kStepBytes = kStepChunks * kRowBytes;
  const skv_landmark_topk_params& p = q.p;
  const int stages = q.stages;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int row = lane / 4, quad_lane = lane % 4;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  auto* const logits = reinterpret_cast<float*>(shared + layout.logits);
  Softmax* const partials = partials_of(layout, false, shared);
  Softmax* const plain_partials = partials_of(layout, true, shared);
  const bool tail = p.tail != nullptr;
  unsigned char* const ring = shared + layout.ring + warp * stages * kStepBytes;
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t at = head * layer.chunk_capacity + share.first;
  const char* const landmarks = static_cast<const char*>(layer.landmarks) + at * kRowBytes;
  const int steps = (share.count + kStepChunks - 1) / kStepChunks;

  for (int i = thread; i < steps * kStepChunks; i += kThreads) {
    if (i < share.count) {
      copy_async_4(logits + i, layer.radius + at + i);
      if constexpr (kInt8) {
        copy_async_4(logits + layout.stride + i, layer.landmark_scales + at + i);
      }
    } else {
      logits[i] = -1.0F;
      if constexpr (kInt8) {
        logits[layout.stride + i] = 0.0F;
      }
    }
  }
  if (lane == 0) {
    for (int stage = 0; stage < stages; ++stage) {
      barrier_begin(memory.full[warp][stage], 1);
    }
    barriers_visible();
  }
  __syncwarp();
  const std::uint64_t policy = evict_first_policy();
  const auto fetch = [&](int step, int stage) {
    const int bytes = min(kStepChunks, share.count - step * kStepChunks) * kRowBytes;
    barrier_expect(memory.full[warp][stage], bytes);
    copy_bulk(ring + stage * kStepBytes, landmarks + static_cast<std::int64_t>(step) * kStepBytes, bytes,
              memory.full[warp][stage], policy);
  };
  if (lane < stages && warp + lane * kWarps < steps) {
    fetch(warp + lane * kWarps, lane);
  }
  meanwhile();
  wait_for_earlier();
  auto& queries = *reinterpret_cast<LandmarkQueries<kHeadDim>*>(shared + layout.queries);
  Scorer::stage_queries(p, session, head, q.group, queries);
  copy_async_wait_all();
  __syncthreads();
  const Scorer scorer(queries);

  int step = warp, stage = 0;
  unsigned phase = 0;
  for (int unit = 0; unit < share.units; ++unit) {
    Softmax softmax[Scorer::kHalves], plain[Scorer::kHalves];
#pragma unroll 1
    for (int i = 0; i < kStepsPerWarp && step < steps; ++i) {
      uint4 data[kTogether][Scorer::kSpans];
      float radius[kTogether][2], scale[kTogether][2];
      barrier_wait(memory.full[warp][stage], phase);
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        // Behind the last chunk lies whatever lay there: a column of the products that nothing is taken from.
        read_tile<kInt8>(ring + stage * kStepBytes + (t * kTileChunks + row) * kRowBytes, row, quad_lane, data[t]);
        const int column = step * kStepChunks + t * kTileChunks + 2 * quad_lane;
        const float2 radii = *reinterpret_cast<const float2*>(logits + column);
        radius[t][0] = radii.x;
        radius[t][1] = radii.y;
        scale[t][0] = scale[t][1] = 1.0F;
        if constexpr (kInt8) {
          const float2 scales = *reinterpret_cast<const float2*>(logits + layout.stride + column);
          scale[t][0] = scales.x;
          scale[t][1] = scales.y;
        }
      }
      __syncwarp();
      if (lane == 0 && step + stages * kWarps < steps) {
        fetch(step + stages * kWarps, stage);
      }
      float x[kTogether][2 * Scorer::kHalves];
      scorer.tiles(data, radius, scale, x);
#pragma unroll
      for (int half = 0; half < Scorer::kHalves; ++half) {
        float logit[2 * kTogether];
#pragma unroll
        for (int i = 0; i < 2 * kTogether; ++i) {
          logit[i] = x[i / 2][2 * half + i % 2];
        }
        add_logits(logit, softmax[half]);
        if (tail) {
#pragma unroll
          for (int i = 0; i < 2 * kTogether; ++i) {
            logit[i] = scorer.without_radius(half, logit[i], radius[i / 2][i % 2]);
          }
          add_logits(logit, plain[half]);
        }
        if (row + 8 * half < q.group) {
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            *reinterpret_cast<float2*>(logits + (row + 8 * half) * layout.stride + step * kStepChunks +
                                       t * kTileChunks + 2 * quad_lane) =
                make_float2(x[t][2 * half], x[t][2 * half + 1]);
          }
        }
      }
      step += kWarps;
      if (++stage == stages) {
        stage = 0;
        phase ^= 1;
      }
    }
#pragma unroll
    for (int half = 0; half < Scorer::kHalves; ++half) {
#pragma unroll
      for (int other = 1; other < 4; other *= 2) {
        softmax[half] = merged(softmax[half], of_other_lane(softmax[half], other));
        if (tail) {
          plain[half] = merged(plain[half], of_other_lane(plain[half], other));
        }
      }
      if (quad_lane == 0 && row + 8 * half < q.group) {
        const int at = (unit * kWarps + warp) * q.group + row + 8 * half;
        partials[at] = softmax[half];
        if (tail) {
          plain_partials[at] = plain[half];
        }
      }
    }
  }
}

#endif

}  // namespace skv::cuda::cluster
