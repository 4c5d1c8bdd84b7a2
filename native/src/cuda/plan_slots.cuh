// The cache plan of one key/value head, by the block that selected its chunks.
#pragma once

#include <cstdint>

#include "cuda/select_best.cuh"
#include "shadowkv_types.h"

namespace skv::cuda {

// What a plan reads and writes of one pair.
struct PlanRow {
  std::int32_t* slot_chunk;     // [slots]
  std::int32_t* slot_stamp;     // [slots]
  std::int32_t* selected_slot;  // [S]
  std::int32_t* fetch_chunk;    // [S]
  std::int32_t* fetch_slot;     // [S]
  std::int32_t* fetch_count;
};

__host__ __device__ inline int plan_sorted_slots(int slots) {
  int sorted = 2;  // 16 bytes: what lies behind the keys is read and written in such pieces
  while (sorted < slots) {
    sorted *= 2;
  }
  return sorted;
}

// Entries of shared memory for the keys of a plan: up to two keys a thread, two buffers to exchange keys through.
__host__ __device__ inline int plan_key_places(int slots, int threads) {
  const int sorted = plan_sorted_slots(slots);
  return sorted <= 2 * threads ? 2 * sorted : sorted;
}

__device__ inline void order_keys(unsigned long long& smaller, unsigned long long& larger, bool ascending) {
  if ((smaller > larger) == ascending) {
    const unsigned long long x = smaller;
    smaller = larger;
    larger = x;
  }
}

// Sorts kHeld keys a thread, ascending: key e of thread t is number kHeld * t + e, and there are `sorted`, a power of
// two. Within warps by shuffles, across them through two buffers in turn. Leaves them in keys[0..sorted). To be called
// by all threads.
template <int kHeld>
__device__ inline void sort_keys_held(unsigned long long (&held)[kHeld], int sorted, unsigned long long* keys) {
  const int thread = static_cast<int>(threadIdx.x);
  const bool active = kHeld * thread < sorted;
  int buffer = 0;
  for (int width = 2; width <= sorted; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      const bool ascending = (kHeld * thread & width) == 0;
      if (distance < kHeld) {
        if constexpr (kHeld == 2) {
          order_keys(held[0], held[1], ascending);
        }
        continue;
      }
      unsigned long long other[kHeld];
      if (distance >= 32 * kHeld) {
        unsigned long long* const mine = keys + buffer * sorted;
#pragma unroll
        for (int e = 0; e < kHeld; ++e) {
          if (active) {
            mine[kHeld * thread + e] = held[e];
          }
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < kHeld; ++e) {
          other[e] = active ? mine[(kHeld * thread ^ distance) + e] : held[e];
        }
        buffer ^= 1;
      } else {
#pragma unroll
        for (int e = 0; e < kHeld; ++e) {
          other[e] = __shfl_xor_sync(0xffffffffU, held[e], distance / kHeld);
        }
      }
      const bool smaller = ((kHeld * thread & distance) == 0) == ascending;
#pragma unroll
      for (int e = 0; e < kHeld; ++e) {
        held[e] = (other[e] < held[e]) == smaller ? other[e] : held[e];
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int e = 0; e < kHeld; ++e) {
    if (active) {
      keys[kHeld * thread + e] = held[e];
    }
  }
  __syncthreads();
}

// The same in shared memory, for any number of keys.
template <int kThreads>
__device__ inline void sort_keys(unsigned long long* keys, int sorted) {
  for (int width = 2; width <= sorted; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < sorted / 2; i += kThreads) {
        const int a = 2 * i - (i & (distance - 1)), b = a + distance;
        order_keys(keys[a], keys[b], (a & width) == 0);
      }
      __syncthreads();
    }
  }
}

struct alignas(16) PlanMemory {
  int where[SKV_MAX_SELECT];
  int totals[32];
};

// ids [count] ascending in shared memory, count <= slots; rank_of(chunk) is the place of a chunk among them, or -1.
// keys: plan_key_places(slots, kThreads) entries of shared memory.
// Evicted slots are taken in the order of their last use, then of their number: that order is the key.
// To be called by kThreads threads, after a barrier behind ids.
template <int kThreads, class RankOf>
__device__ inline void plan_slots(const int* ids, int count, const RankOf& rank_of, int slots, int step,
                                  const PlanRow& row, PlanMemory& m, unsigned long long* keys) {
  constexpr int kWarps = kThreads / 32;
  constexpr int kPlaces = (SKV_MAX_SELECT + kThreads - 1) / kThreads;  // of selected chunks a thread
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  if (slots == 0) {
    for (int i = thread; i < count; i += kThreads) {
      row.selected_slot[i] = ids[i];
    }
    if (thread == 0) {
      *row.fetch_count = 0;
    }
    return;
  }
  for (int i = thread; i < count; i += kThreads) {
    m.where[i] = -1;
  }
  __syncthreads();
  const int sorted = plan_sorted_slots(slots);
  // The key of a slot that may be evicted; all ones of one that holds a selected chunk.
  const auto visit = [&](int slot) {
    if (slot >= slots) {
      return ~0ULL;
    }
    const int rank = rank_of(row.slot_chunk[slot]);
    if (rank >= 0) {
      m.where[rank] = slot;
      row.slot_stamp[slot] = step;
      return ~0ULL;
    }
    const unsigned stamp = static_cast<unsigned>(row.slot_stamp[slot]) ^ 0x80000000U;
    return static_cast<unsigned long long>(stamp) << 32 | static_cast<unsigned>(slot);
  };
  unsigned long long held[2] = {~0ULL, ~0ULL};
  if (sorted <= kThreads) {
    held[0] = visit(thread);
  } else if (sorted <= 2 * kThreads) {
    held[0] = visit(2 * thread);
    held[1] = visit(2 * thread + 1);
  } else {
    for (int slot = thread; slot < sorted; slot += kThreads) {
      keys[slot] = visit(slot);
    }
  }
  __syncthreads();
  int slot_of[kPlaces], own = 0;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int place = kPlaces * thread + i;
    slot_of[i] = place < count ? m.where[place] : 0;
    own += slot_of[i] < 0;
  }
  const int through = warp_prefix(own, lane);
  if (lane == 31) {
    m.totals[warp] = through;
  }
  __syncthreads();
  const int total = lane < kWarps ? m.totals[lane] : 0;
  const int misses = warp_sum_int(total);
  int miss = warp_sum_int(lane < warp ? total : 0) + through - own;
  if (misses > 0) {
    if (sorted <= kThreads) {
      unsigned long long one[1] = {held[0]};
      sort_keys_held<1>(one, sorted, keys);
    } else if (sorted <= 2 * kThreads) {
      sort_keys_held<2>(held, sorted, keys);
    } else {
      sort_keys<kThreads>(keys, sorted);
    }
  }
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int place = kPlaces * thread + i;
    if (place < count) {
      if (slot_of[i] >= 0) {
        row.selected_slot[place] = slot_of[i];
      } else {
        const int taken = static_cast<int>(keys[miss] & 0xffffffffULL);
        const int chunk = ids[place];
        row.selected_slot[place] = taken;
        row.fetch_chunk[miss] = chunk;
        row.fetch_slot[miss] = taken;
        row.slot_chunk[taken] = chunk;
        row.slot_stamp[taken] = step;
        ++miss;
      }
    }
  }
  if (thread == 0) {
    *row.fetch_count = misses;
  }
}

// The place of a chunk among ids [count], ascending, or -1.
__device__ inline int rank_in(const int* ids, int count, int chunk) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ids[middle] < chunk) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && ids[low] == chunk ? low : -1;
}

}  // namespace skv::cuda
