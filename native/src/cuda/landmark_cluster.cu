// Selection by clusters of blocks (sm_90 and later): the logits of a pair's landmarks stay in the shared memory of its
// cluster, which also finds the threshold, lists the chosen chunks and plans their slots.
#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "cuda/bulk_copy.cuh"
#include "cuda/decode.h"
#include "cuda/landmark_logits.cuh"
#include "cuda/plan_slots.cuh"
#include "cuda/select_best.cuh"

namespace skv::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Chunks that make one partial softmax, whole within a block. Fixed, so that a result does not depend on the launch.
constexpr int kUnit = 512;
[[maybe_unused]] constexpr int kTilesPerWarp = kUnit / kTileChunks / kWarps;  // of a unit
constexpr int kTogether = 2;  // tiles that a warp multiplies side by side
static_assert(kTilesPerWarp % kTogether == 0);
constexpr int kMostStages = 8;       // tiles of a warp that are under way
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
  int queries, logits, partials, ring;
  int scores, bins, digits, digit_totals, bitmap, candidates, word_places, ids, plan, keys;
  int end;
};

inline ClusterLayout cluster_layout(int share, int stages, int group, int dim, bool int8, std::int64_t max_chunks,
                                    int select, int slots) {
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
  l.plan = take(static_cast<int>(sizeof(PlanMemory)));
  l.keys = take(std::int64_t{8} * plan_key_places(slots, kThreads));
  const int ring_bytes = kWarps * stages * kTileChunks * dim * (int8 ? 1 : 2);
  l.end = at > l.ring + ring_bytes ? at : l.ring + ring_bytes;
  return l;
}

struct ClusterParams {
  skv_landmark_topk_params p;
  PlanOutput plan;
  ClusterLayout layout;
  int first_pair;
  int group;
  int stages;  // tiles of a warp that are under way
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Logarithm of a sum of exponentials in two parts.
__device__ inline float2 merged(float2 a, float2 b) {
  const float largest = fmaxf(a.x, b.x);
  if (largest == -INFINITY) {
    return make_float2(-INFINITY, 0.0F);
  }
  return make_float2(largest, a.y * exp2_fast((a.x - largest) * kLog2E) + b.y * exp2_fast((b.x - largest) * kLog2E));
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
// has several tiles of landmarks on their way and waits for nobody. Radii, and the scales of int8 landmarks, wait in
// the first rows of the logits until they are used.
template <int kHeadDim, bool kInt8, bool kWide>
__device__ inline void stream_landmarks(const ClusterParams& q, const ClusterLayout& layout, const Share& share,
                                        int session, int head, unsigned char* shared) {
  using Scorer = LandmarkLogits<kHeadDim, kInt8, kWide>;
  constexpr int kRowBytes = kHeadDim * Scorer::kElementBytes;
  constexpr int kTileBytes = kTileChunks * kRowBytes;
  const skv_landmark_topk_params& p = q.p;
  const int stages = q.stages;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int row = lane / 4, quad_lane = lane % 4;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  auto* const logits = reinterpret_cast<float*>(shared + layout.logits);
  auto* const partials = reinterpret_cast<float2*>(shared + layout.partials);
  unsigned char* const ring = shared + layout.ring + warp * stages * kTileBytes;
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t at = head * layer.chunk_capacity + share.first;
  const char* const landmarks = static_cast<const char*>(layer.landmarks) + at * kRowBytes;
  const int tiles = (share.count + kTileChunks - 1) / kTileChunks;

  for (int i = thread; i < tiles * kTileChunks; i += kThreads) {
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
  const auto fetch = [&](int tile, int stage) {
    const int bytes = min(kTileChunks, share.count - tile * kTileChunks) * kRowBytes;
    barrier_expect(memory.full[warp][stage], bytes);
    copy_bulk(ring + stage * kTileBytes, landmarks + static_cast<std::int64_t>(tile) * kTileBytes, bytes,
              memory.full[warp][stage], policy);
  };
  if (lane < stages && warp + lane * kWarps < tiles) {
    fetch(warp + lane * kWarps, lane);
  }
  auto& queries = *reinterpret_cast<LandmarkQueries<kHeadDim>*>(shared + layout.queries);
  Scorer::stage_queries(p, session, head, q.group, queries);
  copy_async_wait_all();
  __syncthreads();
  const Scorer scorer(queries);

  int tile = warp, stage = 0;
  unsigned phase = 0;
  for (int unit = 0; unit < share.units; ++unit) {
    float2 softmax[Scorer::kHalves];
#pragma unroll
    for (int half = 0; half < Scorer::kHalves; ++half) {
      softmax[half] = make_float2(-INFINITY, 0.0F);
    }
#pragma unroll 1
    for (int i = 0; i < kTilesPerWarp && tile < tiles; i += kTogether) {
      uint4 data[kTogether][Scorer::kSpans];
      float radius[kTogether][2], scale[kTogether][2];
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const int current = tile + t * kWarps;
        if (current < tiles) {
          const int at_stage = stage + t < stages ? stage + t : stage + t - stages;
          barrier_wait(memory.full[warp][at_stage], stage + t < stages ? phase : phase ^ 1);
          read_tile<kInt8>(ring + at_stage * kTileBytes + row * kRowBytes, row, quad_lane, data[t]);
          const int column = current * kTileChunks + 2 * quad_lane;
          const float2 radii = *reinterpret_cast<const float2*>(logits + column);
          radius[t][0] = radii.x;
          radius[t][1] = radii.y;
          scale[t][0] = scale[t][1] = 1.0F;
          if constexpr (kInt8) {
            const float2 scales = *reinterpret_cast<const float2*>(logits + layout.stride + column);
            scale[t][0] = scales.x;
            scale[t][1] = scales.y;
          }
        } else {
#pragma unroll
          for (int s = 0; s < Scorer::kSpans; ++s) {
            data[t][s] = make_uint4(0, 0, 0, 0);
          }
          radius[t][0] = radius[t][1] = -1.0F;
          scale[t][0] = scale[t][1] = 0.0F;
        }
      }
      __syncwarp();
      if (lane < kTogether && tile + (stages + lane) * kWarps < tiles) {
        fetch(tile + (stages + lane) * kWarps, stage + lane < stages ? stage + lane : stage + lane - stages);
      }
      float x[kTogether][2 * Scorer::kHalves];
      scorer.tiles(data, radius, scale, x);
#pragma unroll
      for (int half = 0; half < Scorer::kHalves; ++half) {
        float largest = softmax[half].x;
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          largest = fmaxf(largest, fmaxf(x[t][2 * half], x[t][2 * half + 1]));
        }
        if (largest > -INFINITY) {
          softmax[half].y *= exp2_fast((softmax[half].x - largest) * kLog2E);
          softmax[half].x = largest;
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            softmax[half].y +=
                exp2_fast((x[t][2 * half] - largest) * kLog2E) + exp2_fast((x[t][2 * half + 1] - largest) * kLog2E);
          }
        }
        if (row + 8 * half < q.group) {
#pragma unroll
          for (int t = 0; t < kTogether; ++t) {
            if (tile + t * kWarps < tiles) {
              *reinterpret_cast<float2*>(logits + (row + 8 * half) * layout.stride + (tile + t * kWarps) * kTileChunks +
                                         2 * quad_lane) = make_float2(x[t][2 * half], x[t][2 * half + 1]);
            }
          }
        }
      }
      tile += kTogether * kWarps;
      stage += kTogether;
      if (stage >= stages) {
        stage -= stages;
        phase ^= 1;
      }
    }
#pragma unroll
    for (int half = 0; half < Scorer::kHalves; ++half) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        softmax[half] = merged(softmax[half], make_float2(__shfl_xor_sync(0xffffffffU, softmax[half].x, step),
                                                          __shfl_xor_sync(0xffffffffU, softmax[half].y, step)));
      }
      if (quad_lane == 0 && row + 8 * half < q.group) {
        partials[(unit * kWarps + warp) * q.group + row + 8 * half] = softmax[half];
      }
    }
  }
}

// Log sum of the exponentials of all logits of the pair for each head, and the largest, in a fixed order.
__device__ inline void log_sums(const ClusterLayout& layout, const Share& share, int group, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  auto* const partials = reinterpret_cast<float2*>(shared + layout.partials);
  const int units = (share.chunks + kUnit - 1) / kUnit;
  for (int head = warp; head < group; head += kWarps) {
    float2 all = make_float2(-INFINITY, 0.0F);
#pragma unroll 4
    for (int unit = lane; unit < units; unit += 32) {
      const int rank = unit / share.units_per_block, local = unit % share.units_per_block;
      all = merged(all, cluster.map_shared_rank(partials, rank)[local * kWarps * group + head]);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) {
      all = merged(all,
                   make_float2(__shfl_xor_sync(0xffffffffU, all.x, step), __shfl_xor_sync(0xffffffffU, all.y, step)));
    }
    if (lane == 0) {
      const float log_sum = all.x > -INFINITY ? all.x + logf(all.y) : 0.0F;
      memory.log_sums[head] = log_sum;
      memory.largest[head] = all.x - log_sum;
    }
  }
  __syncthreads();
}

// Finds which scores of the pair are taken. Those in bins before memory.bin are; of the memory.members in it, as many
// as memory.before leaves. Bins are equally wide, descending from the largest score, and what is far below is in the
// last. The same in every block of the cluster.
__device__ inline void find_threshold(const ClusterLayout& layout, int wanted, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  constexpr int kOwn = kBins / kThreads;
  static_assert(kOwn == 4);
  auto* const bins = reinterpret_cast<uint2*>(shared + layout.bins);
  int counts[kOwn] = {};
#pragma unroll 4
  for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
    const uint2 x = cluster.map_shared_rank(bins, rank)[thread];
    counts[0] += static_cast<int>(x.x & 0xffffU);
    counts[1] += static_cast<int>(x.x >> 16);
    counts[2] += static_cast<int>(x.y & 0xffffU);
    counts[3] += static_cast<int>(x.y >> 16);
  }
  const int own = counts[0] + counts[1] + counts[2] + counts[3];
  const int through = warp_prefix(own, lane);
  if (lane == 31) {
    memory.totals[warp] = through;
  }
  if (thread == 0) {  // fewer than wanted: all are taken
    memory.bin = kBins;
    memory.before = 0;
    memory.members = 0;
  }
  __syncthreads();
  int before = warp_sum_int(lane < warp ? memory.totals[lane] : 0) + through - own;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (before < wanted && wanted < before + counts[i]) {
      const int bin = kOwn * thread + i;
      int earlier = 0;
      for (unsigned rank = 0; rank < cluster.block_rank(); ++rank) {
        earlier += cluster.map_shared_rank(reinterpret_cast<unsigned short*>(shared + layout.bins), rank)[bin];
      }
      memory.bin = bin;
      memory.before = before;
      memory.members = counts[i];
      memory.first_candidate = earlier;
    } else if (wanted == before + counts[i] && counts[i] > 0) {  // the bin as a whole
      memory.bin = kOwn * thread + i + 1;
      memory.before = wanted;
      memory.members = 0;
    }
    before += counts[i];
  }
  __syncthreads();
}

__device__ inline int bin_of(float score, float high) {
  return max(0, min(kBins - 1, static_cast<int>((high - score) * kBinsPerUnit)));
}

// The exact threshold when the bin it is in holds too many scores to rank: byte by byte of their ordered bits. Of the
// scores at the threshold this block takes the returned number of first ones.
__device__ inline int crowded_threshold(const ClusterLayout& layout, int count, float high, int wanted,
                                        unsigned char* shared, float& threshold) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = static_cast<int>(threadIdx.x);
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  const auto* const scores = reinterpret_cast<const float*>(shared + layout.scores);
  auto* const digits = reinterpret_cast<int*>(shared + layout.digits);
  auto* const totals = reinterpret_cast<int*>(shared + layout.digit_totals);
  static_assert(kDigits <= kThreads);
  unsigned prefix = 0;
  int remaining = wanted - memory.before, before = 0, own = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (thread < kDigits) {
      digits[thread] = 0;
    }
    __syncthreads();
    for (int i = thread; i < count; i += kThreads) {
      const float score = scores[i];
      if (score > -INFINITY && bin_of(score, high) == memory.bin) {
        const unsigned bits = ordered_bits(score);
        if (shift == 24 || bits >> (shift + 8) == prefix) {
          atomicAdd(&digits[bits >> shift & 255U], 1);
        }
      }
    }
    cluster.sync();
    if (thread < kDigits) {
      int total = 0;
      for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
        total += cluster.map_shared_rank(digits, rank)[thread];
      }
      totals[thread] = total;
    }
    __syncthreads();
    int digit = kDigits - 1;
    while (digit > 0 && totals[digit] < remaining) {
      remaining -= totals[digit--];
    }
    prefix = prefix << 8 | static_cast<unsigned>(digit);
    own = digits[digit];
    before = 0;
    for (unsigned rank = 0; rank < cluster.block_rank(); ++rank) {
      before += cluster.map_shared_rank(digits, rank)[digit];
    }
    cluster.sync();
  }
  threshold = ordered_float(prefix);
  return min(max(remaining - before, 0), own);
}

// Marks the chosen chunks of a share in the bitmap of the cluster's first block, and hands it those that are still to
// be ranked. Returns the share of the softmax that this thread's marked chunks hold.
template <class MassOf>
__device__ inline unsigned long long mark_chunks(const ClusterLayout& layout, const Share& share, float high,
                                                 const MassOf& mass_of, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  const auto* const scores = reinterpret_cast<const float*>(shared + layout.scores);
  unsigned* const bitmap = cluster.map_shared_rank(reinterpret_cast<unsigned*>(shared + layout.bitmap), 0);
  Candidate* const candidates = cluster.map_shared_rank(reinterpret_cast<Candidate*>(shared + layout.candidates), 0);
  const int threshold = memory.bin;
  const int ranked_bin = memory.members > 0 ? threshold : kBins + 2;  // none
  unsigned long long mass = 0;
  constexpr int kWords = 4;  // of a warp at once
  for (int base = 32 * kWords * warp; base < share.count; base += kWords * kThreads) {
    int bins[kWords];
    float score[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int i = base + 32 * w + lane;
      score[w] = i < share.count ? scores[i] : -INFINITY;
      bins[w] = score[w] > -INFINITY ? bin_of(score[w], high) : kBins + 1;
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int i = base + 32 * w + lane;
      const unsigned taken = __ballot_sync(0xffffffffU, bins[w] < threshold);
      const unsigned ranked = __ballot_sync(0xffffffffU, bins[w] == ranked_bin);
      if (lane == 0 && i < share.count) {
        bitmap[(share.first + i) / 32] = taken;
      }
      if (bins[w] < threshold) {
        mass += mass_of(i);
      }
      if (ranked) {
        int place = 0;
        if (lane == 0) {
          place = memory.first_candidate + atomicAdd(&memory.candidate_count, __popc(ranked));
        }
        place = __shfl_sync(0xffffffffU, place, 0) + __popc(ranked & ((1U << lane) - 1U));
        if (bins[w] == ranked_bin) {
          candidates[place].score = score[w];
          candidates[place].chunk = share.first + i;
          candidates[place].mass = mass_of(i);
        }
      }
    }
  }
  return mass;
}

// The same once the exact threshold is known: of the scores at it, the `equals` first are taken. By one warp, in order.
template <class MassOf>
__device__ inline unsigned long long mark_above(const ClusterLayout& layout, const Share& share, float threshold,
                                                int equals, const MassOf& mass_of, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int lane = static_cast<int>(threadIdx.x);
  const auto* const scores = reinterpret_cast<const float*>(shared + layout.scores);
  unsigned* const bitmap = cluster.map_shared_rank(reinterpret_cast<unsigned*>(shared + layout.bitmap), 0);
  unsigned long long mass = 0;
  if (lane >= 32) {
    return mass;
  }
  for (int base = 0; base < share.count; base += 32) {
    const int i = base + lane;
    const float score = i < share.count ? scores[i] : -INFINITY;
    const unsigned equal = __ballot_sync(0xffffffffU, score == threshold);
    const bool taken = score > threshold || (score == threshold && __popc(equal & ((1U << lane) - 1U)) < equals);
    const unsigned word = __ballot_sync(0xffffffffU, taken);
    if (lane == 0) {
      bitmap[(share.first + base) / 32] = word;
    }
    if (taken) {
      mass += mass_of(i);
    }
    equals -= min(equals, __popc(equal));
  }
  return mass;
}

__device__ inline unsigned long long warp_sum_long(unsigned long long x) {
#pragma unroll
  for (int step = 16; step; step /= 2) {
    x += __shfl_xor_sync(0xffffffffU, x, step);
  }
  return x;
}

// The end, by the cluster's first block: ranks the candidates, lists the marked chunks in ascending order, plans their
// slots.
__device__ inline void list_and_plan(const ClusterParams& q, const ClusterLayout& layout, int chunks, int pair,
                                     int session, int head, unsigned char* shared) {
  const skv_landmark_topk_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  auto* const bitmap = reinterpret_cast<unsigned*>(shared + layout.bitmap);
  const auto* const candidates = reinterpret_cast<const Candidate*>(shared + layout.candidates);
  auto* const word_places = reinterpret_cast<int*>(shared + layout.word_places);
  auto* const ids = reinterpret_cast<int*>(shared + layout.ids);
  const int remaining = p.select - memory.before, members = memory.members <= kCandidates ? memory.members : 0;
  unsigned long long mass = 0;
  for (int i = thread; i < members; i += kThreads) {
    const Candidate mine = candidates[i];
    int better = 0;
#pragma unroll 4
    for (int j = 0; j < members; ++j) {
      const float score = candidates[j].score;
      better += score > mine.score || (score == mine.score && candidates[j].chunk < mine.chunk);
    }
    if (better < remaining) {
      atomicOr(&bitmap[mine.chunk / 32], 1U << (mine.chunk % 32));
      mass += mine.mass;
    }
  }
  if (p.mass) {
    mass = warp_sum_long(mass);
    if (lane == 0) {
      atomicAdd(&memory.mass, mass);
    }
  }
  __syncthreads();

  const int words = (chunks + 31) / 32, run = (words + kThreads - 1) / kThreads;
  const int first_word = min(words, thread * run), last_word = min(words, first_word + run);
  int own = 0;
  for (int w = first_word; w < last_word; ++w) {
    own += __popc(bitmap[w]);
  }
  const int through = warp_prefix(own, lane);
  if (lane == 31) {
    memory.totals[warp] = through;
  }
  __syncthreads();
  const int total = lane < kWarps ? memory.totals[lane] : 0;
  const int count = warp_sum_int(total);
  int place = warp_sum_int(lane < warp ? total : 0) + through - own;
  std::int32_t* const selected = p.selected + static_cast<std::int64_t>(pair) * p.select;
  for (int w = first_word; w < last_word; ++w) {
    word_places[w] = place;
    for (unsigned rest = bitmap[w]; rest; rest &= rest - 1) {
      const int chunk = 32 * w + __ffs(static_cast<int>(rest)) - 1;
      ids[place] = chunk;
      selected[place] = chunk;
      ++place;
    }
  }
  if (thread == 0) {
    p.selected_count[pair] = count;
    if (p.mass) {
      p.mass[pair] = static_cast<float>(static_cast<double>(memory.mass) * 0x1p-40 / q.group);
    }
  }
  __syncthreads();
  if (q.plan.fetch_count) {
    const skv_shadow_layer& layer = p.layers[session];
    const std::int64_t slot_row = static_cast<std::int64_t>(head) * p.geometry.slots;
    const std::int64_t selected_row = static_cast<std::int64_t>(pair) * p.select;
    const PlanRow row = {layer.slot_chunk + slot_row,         layer.slot_stamp + slot_row,
                         q.plan.selected_slot + selected_row, q.plan.fetch_chunk + selected_row,
                         q.plan.fetch_slot + selected_row,    q.plan.fetch_count + pair};
    const auto rank_of = [&](int chunk) {
      if (chunk < 0 || chunk >= chunks) {
        return -1;
      }
      const unsigned word = bitmap[chunk / 32], bit = 1U << (chunk % 32);
      return word & bit ? word_places[chunk / 32] + __popc(word & (bit - 1U)) : -1;
    };
    plan_slots<kThreads>(ids, count, rank_of, p.geometry.slots, p.states[session].step, row,
                         *reinterpret_cast<PlanMemory*>(shared + layout.plan),
                         reinterpret_cast<unsigned long long*>(shared + layout.keys));
  }
}

#endif

// Selects the chunks of a pair and, when asked, plans their slots. One cluster a pair.
//
// landmarks [K][chunk_capacity][D] bf16 or int8 -> selected [S], count, mass (+ slots and fetch list).
// Floor: every landmark read once: B * K * chunks * D * (2 or 1) bytes; bound by memory. Behind it three barriers of
// the cluster and the plan, a chain of small steps of about 14 us (clock64 of the first blocks: merging partial
// softmaxes 2, scores and their bins 2.5, threshold 1.5, marks 3, list 2, plan 2), and before it about 6 us until the
// queries are fragments, mostly the chain of loads from the session tables to the landmarks. Reached, with the plan's
// part left out: 0.083 ms bf16, 0.061 ms int8, floors 0.062 and 0.031 (H200, 2026-11-25, bench_cuda_decode, 8 sessions
// of 122880 tokens, 32/8 heads, D 128); one session 0.029, floor 0.008.
template <int kHeadDim, bool kInt8, bool kWide>
__global__ void __launch_bounds__(kThreads, 1) landmark_cluster_kernel(const __grid_constant__ ClusterParams q) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  const cg::cluster_group cluster = cg::this_cluster();
  const skv_landmark_topk_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.y);
  const int session = pair / heads, head = pair % heads;
  // Both tables are read at once, and what they name is on its way before anything waits.
  const skv_shadow_layer& layer = p.layers[session];
  asm volatile("prefetch.global.L2 [%0];" ::"l"(&layer.landmarks));
  asm volatile("prefetch.global.L2 [%0];" ::"l"(&layer.chunk_capacity));
  const int chunks = indexed_chunks(p, session);
  const int rank = static_cast<int>(cluster.block_rank());
  if (chunks == 0) {
    if (thread == 0 && rank == 0) {
      p.selected_count[pair] = 0;
      if (p.mass) {
        p.mass[pair] = 0.0F;
      }
      if (q.plan.fetch_count) {
        q.plan.fetch_count[pair] = 0;
      }
    }
    return;
  }
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  const ClusterLayout& layout = q.layout;
  const Share share = share_of(chunks, rank, static_cast<int>(cluster.num_blocks()));
  auto* const logits = reinterpret_cast<float*>(shared + layout.logits);
  auto* const scores = reinterpret_cast<float*>(shared + layout.scores);
  auto* const bins = reinterpret_cast<unsigned*>(shared + layout.bins);
  if (thread == 0) {
    memory.candidate_count = 0;
    memory.mass = 0;
  }
  stream_landmarks<kHeadDim, kInt8, kWide>(q, layout, share, session, head, shared);
  __syncthreads();
  // Of a unit's partial softmaxes, one a warp, to the first.
  auto* const partials = reinterpret_cast<float2*>(shared + layout.partials);
  for (int i = thread; i < share.units * q.group; i += kThreads) {
    float2* const of_unit = partials + i / q.group * kWarps * q.group + i % q.group;
    float2 all = of_unit[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      all = merged(all, of_unit[w * q.group]);
    }
    of_unit[0] = all;
  }
  for (int i = thread; i < kBins / 2; i += kThreads) {
    bins[i] = 0;
  }
  cluster.sync();

  log_sums(layout, share, q.group, shared);
  float high = -INFINITY;
  for (int g = 0; g < q.group; ++g) {
    high = fmaxf(high, memory.largest[g]);
  }
  // Four neighbouring chunks a thread. Rows hold -infinity or nothing behind the last chunk.
  for (int i = 4 * thread; i < share.count; i += 4 * kThreads) {
    float score[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll 4
    for (int g = 0; g < q.group; ++g) {
      const float4 x = *reinterpret_cast<const float4*>(logits + g * layout.stride + i);
      const float log_sum = memory.log_sums[g];
      // Adding +0 turns -0 into +0; fmaxf drops NaN.
      score[0] = fmaxf(score[0], x.x - log_sum + 0.0F);
      score[1] = fmaxf(score[1], x.y - log_sum + 0.0F);
      score[2] = fmaxf(score[2], x.z - log_sum + 0.0F);
      score[3] = fmaxf(score[3], x.w - log_sum + 0.0F);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e >= share.count) {
        score[e] = -INFINITY;
      } else if (score[e] > -INFINITY) {
        const int bin = bin_of(score[e], high);
        atomicAdd(&bins[bin / 2], bin % 2 ? 0x10000U : 1U);
      }
    }
    *reinterpret_cast<float4*>(scores + i) = make_float4(score[0], score[1], score[2], score[3]);
  }
  cluster.sync();

  find_threshold(layout, p.select, shared);
  const auto mass_of = [&](int i) -> unsigned long long {
    if (!p.mass) {
      return 0;
    }
    float mass = 0;
    for (int g = 0; g < q.group; ++g) {
      mass += exp2_fast((logits[g * layout.stride + i] - memory.log_sums[g]) * kLog2E);
    }
    return static_cast<unsigned long long>(mass * 0x1p40F);
  };
  unsigned long long mass = 0;
  if (memory.members <= kCandidates) {
    mass = mark_chunks(layout, share, high, mass_of, shared);
  } else {
    float threshold = 0;
    const int equals = crowded_threshold(layout, share.count, high, p.select, shared, threshold);
    mass = mark_above(layout, share, threshold, equals, mass_of, shared);
  }
  if (p.mass) {
    mass = warp_sum_long(mass);
    if (lane == 0 && mass) {
      atomicAdd(cluster.map_shared_rank(&memory.mass, 0), mass);
    }
  }
  cluster.sync();
  if (rank == 0) {
    list_and_plan(q, layout, chunks, pair, session, head, shared);
  }
#endif
}

// How a pair is split. 0 blocks: not at all.
struct ClusterShape {
  int blocks = 0;  // of a cluster
  int stages = 0;  // tiles of a warp that are under way
  ClusterLayout layout;
};

// As many blocks as let all pairs of the launch run at the same time, but at least as many as hold a pair's logits.
ClusterShape cluster_shape(const skv_landmark_topk_params& p, const DeviceTraits& traits, int pairs) {
  const std::int64_t units = std::max<std::int64_t>(1, (p.max_chunks + kUnit - 1) / kUnit);
  constexpr std::int64_t kMostShare = 16384;  // what 16-bit counts and the arithmetic of a layout take by far
  ClusterShape best;
  for (int blocks = 1; blocks <= DeviceTraits::kMostClusterBlocks; ++blocks) {
    const std::int64_t share = (units + blocks - 1) / blocks * kUnit;
    if (share > kMostShare || traits.clusters[blocks] == 0 || (best.blocks > 0 && traits.clusters[blocks] < pairs)) {
      continue;
    }
    for (int stages = kMostStages; stages >= kTogether; --stages) {
      const ClusterLayout layout =
          cluster_layout(static_cast<int>(share), stages, group_size(p.geometry), p.geometry.head_dim,
                         p.geometry.landmark_type == SKV_I8, p.max_chunks, p.select, p.geometry.slots);
      if (layout.end <= traits.shared_memory_per_block) {
        best = {blocks, stages, layout};
        break;
      }
    }
  }
  return best;
}

template <int kHeadDim>
auto cluster_kernel(bool int8, bool wide) {
  return int8 ? (wide ? landmark_cluster_kernel<kHeadDim, true, true> : landmark_cluster_kernel<kHeadDim, true, false>)
              : (wide ? landmark_cluster_kernel<kHeadDim, false, true>
                      : landmark_cluster_kernel<kHeadDim, false, false>);
}

}  // namespace

void count_clusters(DeviceTraits& traits) {
  // For tests: as on a GPU without clusters.
  const char* const wanted = std::getenv("SHADOWKV_CLUSTERS");
  if (traits.compute_major < 9 || (wanted && std::strcmp(wanted, "0") == 0)) {
    return;
  }
  const auto kernel = cluster_kernel<128>(false, false);
  const int bytes = traits.shared_memory_per_block;
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for shared memory");
  for (int blocks = 1; blocks <= DeviceTraits::kMostClusterBlocks; ++blocks) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(traits.multiprocessors));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.attrs = &cluster;
    config.numAttrs = 1;
    check(cudaOccupancyMaxActiveClusters(&traits.clusters[blocks], kernel, &config), "counting clusters of blocks");
  }
}

bool selects_in_clusters(const skv_landmark_topk_params& p, const DeviceTraits& traits) {
  const int dim = p.geometry.head_dim;
  return (dim == 64 || dim == 96 || dim == 128) &&
         cluster_shape(p, traits, p.batch * p.geometry.key_value_heads).blocks > 0;
}

void launch_landmark_cluster(const skv_landmark_topk_params& p, const PlanOutput& plan, const DeviceTraits& traits,
                             PairRange pairs, int at_once, cudaStream_t stream) {
  const ClusterShape shape = cluster_shape(p, traits, at_once);
  const ClusterParams q = {p, plan, shape.layout, pairs.first, group_size(p.geometry), shape.stages};
  const bool int8 = p.geometry.landmark_type == SKV_I8, wide = q.group > 8;
  const int dim = p.geometry.head_dim;
  launch_beside("landmark selection", Beside{.cluster = shape.blocks},
                dim == 64   ? cluster_kernel<64>(int8, wide)
                : dim == 96 ? cluster_kernel<96>(int8, wide)
                            : cluster_kernel<128>(int8, wide),
                dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(pairs.count)), dim3(kThreads),
                static_cast<std::size_t>(shape.layout.end), stream, q);
}

}  // namespace skv::cuda
