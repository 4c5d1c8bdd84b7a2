// The cache plan of one key/value head, by the block that selected its chunks.
#pragma once

#include <cstddef>
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

// Keys that a sort of all slots needs in shared memory: up to two a thread, in two buffers to exchange them through.
__host__ __device__ inline int plan_key_places(int slots, int threads) {
  const int sorted = plan_sorted_slots(slots);
  return sorted <= 2 * threads ? 2 * sorted : sorted;
}

// What slots hold, kept in shared memory: with more slots than two a thread, it is read from device memory once more.
__host__ __device__ inline int plan_chunk_places(int slots, int threads) {
  const int sorted = plan_sorted_slots(slots);
  return sorted <= 2 * threads ? sorted : 0;
}

// Shared memory of a plan, aligned to 16 bytes. A SlotOrder needs keys, and leaves order and chunks for
// plan_slots, which needs lists.
struct PlanMemory {
  static constexpr std::uint16_t kInUse = 0xffff;  // in `order`, once the selection is known

  struct Lists {
    int where[SKV_MAX_SELECT];   // the slot of a selected chunk, -1 none
    int taken[SKV_MAX_SELECT];   // slots in the order in which misses take them
    int misses[32], unused[32];  // of the warps
  };

  Lists* lists;
  unsigned long long* keys;  // [plan_key_places]
  std::uint16_t* order;      // [slots]
  int* chunks;               // [plan_chunk_places]
};

static_assert(SKV_MAX_SLOTS <= PlanMemory::kInUse);

// All of it in one piece, whole 16 bytes.
__host__ __device__ inline std::size_t plan_bytes(int slots, int threads) {
  const std::size_t kept = 4 * static_cast<std::size_t>(plan_chunk_places(slots, threads)) +
                           sizeof(std::uint16_t) * static_cast<std::size_t>(slots);
  return sizeof(PlanMemory::Lists) + 8 * static_cast<std::size_t>(plan_key_places(slots, threads)) +
         (kept + 15) / 16 * 16;
}

__device__ inline PlanMemory plan_memory(unsigned char* at, int slots, int threads) {
  PlanMemory m;
  m.lists = reinterpret_cast<PlanMemory::Lists*>(at);
  m.keys = reinterpret_cast<unsigned long long*>(m.lists + 1);
  m.chunks = reinterpret_cast<int*>(m.keys + plan_key_places(slots, threads));
  m.order = reinterpret_cast<std::uint16_t*>(m.chunks + plan_chunk_places(slots, threads));
  return m;
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

// The first half of a plan, which needs no selection: the slots of a pair in the order in which they are taken, that of
// their last use, then of their number. Made with the reads of it on their way, which sort() waits for.
template <int kThreads>
class SlotOrder {
 public:
  __device__ SlotOrder(const std::int32_t* slot_chunk, const std::int32_t* slot_stamp, int slots)
      : stamp_(slot_stamp), slots_(slots), sorted_(plan_sorted_slots(slots)), held_(sorted_ <= kThreads ? 1 : 2) {
    if (sorted_ <= 2 * kThreads) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int slot = held_ * static_cast<int>(threadIdx.x) + e;
        if (e < held_ && slot < slots) {
          stamps_[e] = slot_stamp[slot];
          chunks_[e] = slot_chunk[slot];
        }
      }
    }
  }

  // To be called by kThreads threads; ends with a barrier.
  __device__ void sort(const PlanMemory& m) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (sorted_ > 2 * kThreads) {
      for (int slot = thread; slot < sorted_; slot += kThreads) {
        m.keys[slot] = slot < slots_ ? key(stamp_[slot], slot) : ~0ULL;
      }
      __syncthreads();
      sort_keys<kThreads>(m.keys, sorted_);
    } else {
      unsigned long long keys[2] = {~0ULL, ~0ULL};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int slot = held_ * thread + e;
        if (e < held_ && slot < slots_) {
          keys[e] = key(stamps_[e], slot);
          m.chunks[slot] = chunks_[e];
        }
      }
      if (held_ == 1) {
        unsigned long long one[1] = {keys[0]};
        sort_keys_held<1>(one, sorted_, m.keys);
      } else {
        sort_keys_held<2>(keys, sorted_, m.keys);
      }
    }
    for (int i = thread; i < slots_; i += kThreads) {
      m.order[i] = static_cast<std::uint16_t>(m.keys[i]);
    }
    __syncthreads();
  }

 private:
  static __device__ unsigned long long key(std::int32_t stamp, int slot) {
    return static_cast<unsigned long long>(static_cast<unsigned>(stamp) ^ 0x80000000U) << 32 |
           static_cast<unsigned>(slot);
  }

  const std::int32_t* stamp_;
  int slots_, sorted_, held_;
  std::int32_t stamps_[2], chunks_[2];
};

// The second half. ids [count] ascending in shared memory, count <= slots; rank_of(chunk) is the place of a chunk among
// them, or -1. To be called by kThreads threads, after the sort and a barrier behind ids.
template <int kThreads, class RankOf>
__device__ inline void plan_slots(const int* ids, int count, const RankOf& rank_of, int slots, int step,
                                  const PlanRow& row, const PlanMemory& m) {
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
  PlanMemory::Lists& lists = *m.lists;
  for (int i = thread; i < count; i += kThreads) {
    lists.where[i] = -1;
  }
  __syncthreads();
  const int* const chunks = plan_chunk_places(slots, kThreads) > 0 ? m.chunks : row.slot_chunk;
  const int run = (slots + kThreads - 1) / kThreads;
  const int first = min(slots, thread * run), last = min(slots, first + run);
  int unused = 0;
  for (int i = first; i < last; ++i) {
    const int slot = m.order[i];
    const int rank = rank_of(chunks[slot]);
    if (rank >= 0) {
      lists.where[rank] = slot;
      row.slot_stamp[slot] = step;
      m.order[i] = PlanMemory::kInUse;
    } else {
      ++unused;
    }
  }
  const int unused_through = warp_prefix(unused, lane);
  if (lane == 31) {
    lists.unused[warp] = unused_through;
  }
  __syncthreads();
  int slot_of[kPlaces], own = 0;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int place = kPlaces * thread + i;
    slot_of[i] = place < count ? lists.where[place] : 0;
    own += slot_of[i] < 0;
  }
  const int through = warp_prefix(own, lane);
  if (lane == 31) {
    lists.misses[warp] = through;
  }
  int taken = warp_sum_int(lane < warp ? lists.unused[lane] : 0) + unused_through - unused;
  for (int i = first; i < last && taken < count; ++i) {
    if (m.order[i] != PlanMemory::kInUse) {
      lists.taken[taken++] = m.order[i];
    }
  }
  __syncthreads();
  const int total = lane < kWarps ? lists.misses[lane] : 0;
  int miss = warp_sum_int(lane < warp ? total : 0) + through - own;
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int place = kPlaces * thread + i;
    if (place < count) {
      if (slot_of[i] >= 0) {
        row.selected_slot[place] = slot_of[i];
      } else {
        const int slot = lists.taken[miss], chunk = ids[place];
        row.selected_slot[place] = slot;
        row.fetch_chunk[miss] = chunk;
        row.fetch_slot[miss] = slot;
        row.slot_chunk[slot] = chunk;
        row.slot_stamp[slot] = step;
        ++miss;
      }
    }
  }
  const int misses = warp_sum_int(total);
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
