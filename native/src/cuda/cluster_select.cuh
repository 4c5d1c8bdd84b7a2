// Selection by clusters of blocks, once their logits are in shared memory: the threshold that they agree on, the chosen
// chunks in order, and the plan of their slots.
#pragma once

#include <cstdint>

#include "cuda/cluster_logits.cuh"
#include "cuda/select_best.cuh"

namespace skv::cuda::cluster {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Of each unit's partial softmaxes [warps][G], the sum over warps to the first; `rows` units and heads.
__device__ inline void merge_warps(int rows, int group, Softmax* partials) {
  const int own = static_cast<int>(threadIdx.x) % kWarps;
  for (int first = 0; first < rows; first += kThreads / kWarps) {
    const int row = first + static_cast<int>(threadIdx.x) / kWarps;
    Softmax* const of_unit = partials + row / group * kWarps * group + row % group;
    Softmax all = row < rows ? of_unit[own * group] : Softmax{};
    static_assert(32 % kWarps == 0, "a row's partial softmaxes are within a warp");
#pragma unroll
    for (int step = kWarps / 2; step; step /= 2) {
      all = merged(all, of_other_lane(all, step));
    }
    if (row < rows && own == 0) {
      of_unit[0] = all;
    }
  }
}

// The whole pair's softmax of one head out of the units', by a warp in a fixed order.
__device__ inline Softmax whole_softmax(const ClusterParams& q, const Share& share, int head, bool plain,
                                        unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Softmax* const own = partials_of(q.layout, plain, shared);
  const int units = (share.chunks + kUnit - 1) / kUnit;
  Softmax all;
#pragma unroll 4
  for (int unit = lane; unit < units; unit += 32) {
    const int rank = unit / share.units_per_block, local = unit % share.units_per_block;
    all = merged(all, cluster.map_shared_rank(own, rank)[local * kWarps * q.group + head]);
  }
#pragma unroll
  for (int step = 16; step; step /= 2) {
    all = merged(all, of_other_lane(all, step));
  }
  return all;
}

// Log sum of the exponentials of all logits of the pair for each head, and the largest. When the tail is asked for, the
// cluster's first block also tells the weight of all indexed tokens by their landmarks without radius.
__device__ inline void log_sums(const ClusterParams& q, const Share& share, int pair, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  for (int head = warp; head < q.group; head += kWarps) {
    const Softmax all = whole_softmax(q, share, head, false, shared);
    if (lane == 0) {
      const float log_sum = all.largest > -INFINITY ? all.largest + logf(all.sum) : 0.0F;
      memory.log_sums[head] = log_sum;
      memory.largest[head] = all.largest - log_sum;
    }
  }
  if (q.p.tail && cluster.block_rank() == 0) {
    // By the warps that are not needed above.
    for (int head = kWarps - 1 - warp; head < q.group; head += kWarps) {
      const Softmax all = whole_softmax(q, share, head, true, shared);
      if (lane == 0) {
        q.p.tail[static_cast<std::int64_t>(pair) * q.group + head] =
            all.largest > -INFINITY ? all.largest + logf(all.sum * static_cast<float>(q.p.geometry.chunk)) : -INFINITY;
      }
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
  int counts[kOwn] = {}, of_earlier_blocks[kOwn] = {};
#pragma unroll 4
  for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) {
    const uint2 x = cluster.map_shared_rank(bins, rank)[thread];
    const int of_block[kOwn] = {static_cast<int>(x.x & 0xffffU), static_cast<int>(x.x >> 16),
                                static_cast<int>(x.y & 0xffffU), static_cast<int>(x.y >> 16)};
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      counts[i] += of_block[i];
      of_earlier_blocks[i] += rank < cluster.block_rank() ? of_block[i] : 0;
    }
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
      memory.bin = kOwn * thread + i;
      memory.before = before;
      memory.members = counts[i];
      memory.first_candidate = of_earlier_blocks[i];
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

// The block of a cluster that lists and plans: the last, since no other has fewer chunks.
__device__ inline unsigned planner(const cg::cluster_group& cluster) {
  return cluster.num_blocks() - 1;
}

// Marks the chosen chunks of a share in the planner's bitmap, and hands the planner those that are still to be ranked.
// Returns the share of the softmax that this thread's marked chunks hold, mass_of each.
template <class MassOf>
__device__ inline unsigned long long mark_chunks(const ClusterLayout& layout, const Share& share, float high,
                                                 const MassOf& mass_of, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  const auto* const scores = reinterpret_cast<const float*>(shared + layout.scores);
  unsigned* const bitmap =
      cluster.map_shared_rank(reinterpret_cast<unsigned*>(shared + layout.bitmap), planner(cluster));
  Candidate* const candidates =
      cluster.map_shared_rank(reinterpret_cast<Candidate*>(shared + layout.candidates), planner(cluster));
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
  unsigned* const bitmap =
      cluster.map_shared_rank(reinterpret_cast<unsigned*>(shared + layout.bitmap), planner(cluster));
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

// Adds what the threads of all blocks hold of the softmax, for the planner; behind a barrier of the cluster it is
// there.
__device__ inline void add_mass(unsigned long long mass, unsigned char* shared) {
  const cg::cluster_group cluster = cg::this_cluster();
  auto& memory = *reinterpret_cast<ClusterShared*>(shared);
  mass = warp_sum_long(mass);
  if (threadIdx.x % 32 == 0 && mass) {
    atomicAdd(&memory.mass, mass);
  }
  if (cluster.block_rank() == planner(cluster)) {
    return;
  }
  __syncthreads();
  if (threadIdx.x == 0 && memory.mass) {
    atomicAdd(cluster.map_shared_rank(&memory.mass, planner(cluster)), memory.mass);
  }
}

// Writes the logits of all chunks of a share that may be listed to the workspace.
__device__ inline void tell_logits(const ClusterParams& q, const Share& share, int pair, float high,
                                   unsigned char* shared) {
  const auto& memory = *reinterpret_cast<const ClusterShared*>(shared);
  const auto* const scores = reinterpret_cast<const float*>(shared + q.layout.scores);
  const auto* const logits = reinterpret_cast<const float*>(shared + q.layout.logits);
  float* const to = q.listed_logits + static_cast<std::int64_t>(pair) * q.group * q.listed_stride + share.first;
  for (int i = static_cast<int>(threadIdx.x); i < share.count; i += kThreads) {
    if (scores[i] > -INFINITY && bin_of(scores[i], high) <= memory.bin) {
#pragma unroll 4
      for (int g = 0; g < q.group; ++g) {
        to[g * q.listed_stride + i] = logits[g * q.layout.stride + i];
      }
    }
  }
}

__device__ inline PlanMemory plan_memory_of(const ClusterLayout& layout, unsigned char* shared) {
  return {.lists = reinterpret_cast<PlanMemory::Lists*>(shared + layout.plan_lists),
          .keys = reinterpret_cast<unsigned long long*>(shared + layout.plan_keys),
          .order = reinterpret_cast<std::uint16_t*>(shared + layout.plan_order),
          .chunks = reinterpret_cast<int*>(shared + layout.plan_chunks)};
}

// The end, by the planner: ranks the candidates, lists the marked chunks in ascending order, plans their
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
                         plan_memory_of(layout, shared));
  }
}

#endif

}  // namespace skv::cuda::cluster
