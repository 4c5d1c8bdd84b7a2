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

// Entries of shared memory for the keys of a plan: up to one key a thread, two buffers to exchange keys through.
__host__ __device__ inline int plan_key_places(int slots) {
  const int sorted = plan_sorted_slots(slots);
  return sorted <= kSelectThreads ? 2 * sorted : sorted;
}

// Sorts one key a thread, ascending, those of the first `sorted` threads: within warps by shuffles, across them through
// two buffers in turn. Leaves them in keys[0..sorted). A power of two; to be called by all threads.
__device__ inline void sort_keys_held(unsigned long long key, int sorted, unsigned long long* keys) {
  const int thread = static_cast<int>(threadIdx.x);
  int buffer = 0;
  for (int width = 2; width <= sorted; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      unsigned long long other;
      if (distance >= 32) {
        if (thread < sorted) {
          keys[buffer * sorted + thread] = key;
        }
        __syncthreads();
        other = thread < sorted ? keys[buffer * sorted + (thread ^ distance)] : key;
        buffer ^= 1;
      } else {
        other = __shfl_xor_sync(0xffffffffU, key, distance);
      }
      const bool smaller = ((thread & distance) == 0) == ((thread & width) == 0);
      key = (other < key) == smaller ? other : key;
    }
  }
  __syncthreads();
  if (thread < sorted) {
    keys[thread] = key;
  }
  __syncthreads();
}

struct alignas(16) PlanMemory {
  int where[SKV_MAX_SELECT];
  int totals[kSelectWarps];
};

// ids [count] ascending in shared memory, count <= slots. keys: plan_key_places(slots) entries of shared memory.
// Evicted slots are taken in the order of their last use, then of their number: that order is the key.
// To be called by kSelectThreads threads, after a barrier behind ids.
__device__ inline void plan_slots(const int* ids, int count, int slots, int step, const PlanRow& row, PlanMemory& m,
                                  unsigned long long* keys) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  if (slots == 0) {
    for (int i = thread; i < count; i += kSelectThreads) {
      row.selected_slot[i] = ids[i];
    }
    if (thread == 0) {
      *row.fetch_count = 0;
    }
    return;
  }
  for (int i = thread; i < count; i += kSelectThreads) {
    m.where[i] = -1;
  }
  __syncthreads();
  const int sorted = plan_sorted_slots(slots);
  unsigned long long held = ~0ULL;
  for (int slot = thread; slot < sorted; slot += kSelectThreads) {
    unsigned long long key = ~0ULL;
    if (slot < slots) {
      const int chunk = row.slot_chunk[slot];
      int low = 0, high = count;
      while (low < high) {
        const int middle = (low + high) / 2;
        if (ids[middle] < chunk) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (low < count && ids[low] == chunk) {
        m.where[low] = slot;
        row.slot_stamp[slot] = step;
      } else {
        const unsigned stamp = static_cast<unsigned>(row.slot_stamp[slot]) ^ 0x80000000U;
        key = static_cast<unsigned long long>(stamp) << 32 | static_cast<unsigned>(slot);
      }
    }
    if (sorted > kSelectThreads) {
      keys[slot] = key;
    } else {
      held = key;
    }
  }
  __syncthreads();
  // count <= SKV_MAX_SELECT = the number of threads: one place a thread.
  static_assert(SKV_MAX_SELECT <= kSelectThreads);
  const int slot = thread < count ? m.where[thread] : 0;
  const unsigned missing = __ballot_sync(0xffffffffU, slot < 0);
  if (lane == 0) {
    m.totals[warp] = __popc(missing);
  }
  __syncthreads();
  const int misses = warp_sum_int(m.totals[lane]);
  const int miss = warp_sum_int(lane < warp ? m.totals[lane] : 0) + __popc(missing & ((1U << lane) - 1U));
  if (misses > 0 && sorted <= kSelectThreads) {
    sort_keys_held(held, sorted, keys);
  } else if (misses > 0) {
    for (int width = 2; width <= sorted; width *= 2) {
      for (int distance = width / 2; distance > 0; distance /= 2) {
        for (int i = thread; i < sorted / 2; i += kSelectThreads) {
          const int a = 2 * i - (i & (distance - 1)), b = a + distance;
          const unsigned long long x = keys[a], y = keys[b];
          if ((x > y) == ((a & width) == 0)) {
            keys[a] = y;
            keys[b] = x;
          }
        }
        __syncthreads();
      }
    }
  }
  if (thread < count) {
    if (slot >= 0) {
      row.selected_slot[thread] = slot;
    } else {
      const int taken = static_cast<int>(keys[miss] & 0xffffffffULL);
      const int chunk = ids[thread];
      row.selected_slot[thread] = taken;
      row.fetch_chunk[miss] = chunk;
      row.fetch_slot[miss] = taken;
      row.slot_chunk[taken] = chunk;
      row.slot_stamp[taken] = step;
    }
  }
  if (thread == 0) {
    *row.fetch_count = misses;
  }
}

}  // namespace skv::cuda
