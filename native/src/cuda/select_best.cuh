// The best of a row of scores, exactly, by one block: a histogram finds the bin of the threshold, the
// members of that bin are ranked exactly, and one ordered pass writes the chosen places ascending.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/vector.cuh"

namespace skv::cuda {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / 32;

struct SelectMemory {
  static constexpr int kMostPieces = 4;  // of four scores that a thread keeps in registers
  static constexpr int kBins = 2 * kSelectThreads;
  static constexpr int kCandidates = 1024;

  int histogram[kBins];
  float candidates[kCandidates];
  float high[kSelectWarps], low[kSelectWarps];
  int counts[kSelectWarps], equals[kSelectWarps];
  int taken[kMostPieces * kSelectWarps];
  float threshold;
  int threshold_equals;
  int bin, before;
  int candidate_count;
};

__device__ inline int warp_sum_int(int x) {
  return __reduce_add_sync(0xffffffffU, x);
}

__device__ inline float warp_min(float x) {
  return -warp_max(-x);
}

// Inclusive sum over the lanes before and with this one.
__device__ inline int warp_prefix(int x, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const int other = __shfl_up_sync(0xffffffffU, x, step);
    if (lane >= step) {
      x += other;
    }
  }
  return x;
}

// Bits that order like the floats do. Scores never hold -0: they have had +0 added.
__device__ inline unsigned ordered_bits(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

__device__ inline float ordered_float(unsigned bits) {
  return __uint_as_float(bits & 0x80000000U ? bits & 0x7fffffffU : ~bits);
}

// Writes to ids the places of the `wanted` largest of scores[0..n), ascending; of equal ones the lower places.
// -infinity is not eligible. Returns how many, to every thread. scores and ids may be in shared memory.
// To be called by kSelectThreads threads; begins and ends with a barrier.
__device__ inline int select_best(const float* scores, int n, int wanted, int* ids, SelectMemory& m) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  for (int i = thread; i < SelectMemory::kBins; i += kSelectThreads) {
    m.histogram[i] = 0;
  }
  if (thread == 0) {
    m.candidate_count = 0;
  }
  __syncthreads();

  float high = -INFINITY, low = INFINITY;
  int eligible = 0;
  for (int i = thread; i < n; i += kSelectThreads) {
    const float score = scores[i];
    if (score > -INFINITY) {
      high = fmaxf(high, score);
      low = fminf(low, score);
      ++eligible;
    }
  }
  high = warp_max(high);
  low = warp_min(low);
  eligible = warp_sum_int(eligible);
  if (lane == 0) {
    m.high[warp] = high;
    m.low[warp] = low;
    m.counts[warp] = eligible;
  }
  __syncthreads();
  high = warp_max(m.high[lane]);
  low = warp_min(m.low[lane]);
  eligible = warp_sum_int(m.counts[lane]);
  __syncthreads();

  // Everything above the threshold is taken, and the first `equals` of those at it.
  float threshold = -INFINITY;
  int equals = 0;
  if (eligible > wanted) {
    // Bins of equal width between the extremes, descending: monotone in the score, so a bin is a range of ranks.
    const float range = high - low;
    const float scale = range > 0 && range < INFINITY ? static_cast<float>(SelectMemory::kBins - 1) / range : 0.0F;
    const bool flat = !(scale > 0 && scale < INFINITY);
    const auto bin_of = [&](float score) {
      return flat ? 0 : min(SelectMemory::kBins - 1, static_cast<int>((high - score) * scale));
    };
    for (int i = thread; i < n; i += kSelectThreads) {
      const float score = scores[i];
      if (score > -INFINITY) {
        atomicAdd(&m.histogram[bin_of(score)], 1);
      }
    }
    __syncthreads();
    const int first = m.histogram[2 * thread], second = m.histogram[2 * thread + 1];
    const int through = warp_prefix(first + second, lane);
    if (lane == 31) {
      m.counts[warp] = through;
    }
    __syncthreads();
    const int earlier_warps = warp_sum_int(lane < warp ? m.counts[lane] : 0);
    const int before = earlier_warps + through - first - second;
    if (before < wanted && wanted <= before + first) {
      m.bin = 2 * thread;
      m.before = before;
    } else if (before + first < wanted && wanted <= before + first + second) {
      m.bin = 2 * thread + 1;
      m.before = before + first;
    }
    __syncthreads();
    const int bin = m.bin;
    const int remaining = wanted - m.before;
    const int members = m.histogram[bin];
    if (members <= SelectMemory::kCandidates) {
      for (int i = thread; i < n; i += kSelectThreads) {
        const float score = scores[i];
        if (score > -INFINITY && bin_of(score) == bin) {
          m.candidates[atomicAdd(&m.candidate_count, 1)] = score;
        }
      }
      __syncthreads();
      for (int c = warp; c < members; c += kSelectWarps) {
        const float candidate = m.candidates[c];
        int greater = 0, equal = 0;
        for (int i = lane; i < members; i += 32) {
          const float other = m.candidates[i];
          greater += other > candidate;
          equal += other == candidate;
        }
        greater = warp_sum_int(greater);
        equal = warp_sum_int(equal);
        if (lane == 0 && greater < remaining && remaining <= greater + equal) {
          m.threshold = candidate;
          m.threshold_equals = remaining - greater;
        }
      }
      __syncthreads();
    } else {
      // Crowded bin: byte by byte of the ordered bits.
      unsigned prefix = 0;
      int rank = remaining;
      for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int i = thread; i < 256; i += kSelectThreads) {
          m.histogram[i] = 0;
        }
        __syncthreads();
        for (int i = thread; i < n; i += kSelectThreads) {
          const float score = scores[i];
          if (score > -INFINITY && bin_of(score) == bin) {
            const unsigned bits = ordered_bits(score);
            if (shift == 24 || bits >> (shift + 8) == prefix) {
              atomicAdd(&m.histogram[bits >> shift & 255U], 1);
            }
          }
        }
        __syncthreads();
        int digit = 255;
        while (digit > 0 && m.histogram[digit] < rank) {
          rank -= m.histogram[digit--];
        }
        prefix = prefix << 8 | static_cast<unsigned>(digit);
      }
      __syncthreads();
      if (thread == 0) {
        m.threshold = ordered_float(prefix);
        m.threshold_equals = rank;
      }
      __syncthreads();
    }
    threshold = m.threshold;
    equals = m.threshold_equals;
  }

  // Each warp takes a run of places: first it counts, then it knows where to write.
  const int run = (n + kSelectThreads - 1) / kSelectThreads * 32;
  const int begin = min(n, warp * run), end = min(n, begin + run);
  int greater = 0, equal = 0;
  for (int i = begin + lane; i < end; i += 32) {
    const float score = scores[i];
    greater += score > threshold;
    equal += score == threshold && score > -INFINITY;
  }
  greater = warp_sum_int(greater);
  equal = warp_sum_int(equal);
  if (lane == 0) {
    m.counts[warp] = greater;
    m.equals[warp] = equal;
  }
  __syncthreads();
  int equals_before = warp_sum_int(lane < warp ? m.equals[lane] : 0);
  const int greater_before = warp_sum_int(lane < warp ? m.counts[lane] : 0);
  const int all_greater = warp_sum_int(m.counts[lane]);
  int at = greater_before + min(equals, equals_before);
  const unsigned lanes_before = (1U << lane) - 1U;
  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const float score = i < end ? scores[i] : -INFINITY;
    const unsigned equal_lanes = __ballot_sync(0xffffffffU, score == threshold && score > -INFINITY);
    const bool taken = score > threshold || (score == threshold && score > -INFINITY &&
                                             equals_before + __popc(equal_lanes & lanes_before) < equals);
    const unsigned taken_lanes = __ballot_sync(0xffffffffU, taken);
    if (taken) {
      ids[at + __popc(taken_lanes & lanes_before)] = i;
    }
    at += __popc(taken_lanes);
    equals_before += __popc(equal_lanes);
  }
  __syncthreads();
  return all_greater + equals;
}

// The bin, of kBins that hold what m.histogram counts, in which the wanted-th member lies, counted from bin 0, and how
// many lie before it. To be called by all threads, after a barrier behind the histogram; ends with a barrier.
__device__ inline void find_bin(int wanted, SelectMemory& m) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int2 two = reinterpret_cast<const int2*>(m.histogram)[thread];
  const int through = warp_prefix(two.x + two.y, lane);
  if (lane == 31) {
    m.counts[warp] = through;
  }
  __syncthreads();
  const int before = warp_sum_int(lane < warp ? m.counts[lane] : 0) + through - two.x - two.y;
  if (before < wanted && wanted <= before + two.x) {
    m.bin = 2 * thread;
    m.before = before;
  } else if (before + two.x < wanted && wanted <= before + two.x + two.y) {
    m.bin = 2 * thread + 1;
    m.before = before + two.x;
  }
  __syncthreads();
}

// The same selection from scores in registers: thread t holds those of the places 4 * (t + kSelectThreads * piece)
// + 0..3, -infinity where there is none. wanted <= kSelectThreads makes it fast: the wanted-th largest of the threads'
// own maxima is a lower bound of the threshold, and what reaches its bin is mostly few enough to be ranked at once.
template <int kPieces>
__device__ inline int select_best_held(const float (&scores)[4 * kPieces], int wanted, int* ids, SelectMemory& m) {
  static_assert(kPieces <= SelectMemory::kMostPieces);
  constexpr int kHeld = 4 * kPieces;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  reinterpret_cast<int2*>(m.histogram)[thread] = make_int2(0, 0);
  static_assert(SelectMemory::kBins == 2 * kSelectThreads);
  float high = -INFINITY, low = INFINITY;
  int eligible = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    high = fmaxf(high, scores[i]);
    if (scores[i] > -INFINITY) {
      low = fminf(low, scores[i]);
      ++eligible;
    }
  }
  const float own_high = high;
  high = warp_max(high);
  low = warp_min(low);
  eligible = warp_sum_int(eligible);
  const int holders = __popc(__ballot_sync(0xffffffffU, own_high > -INFINITY));
  if (lane == 0) {
    m.high[warp] = high;
    m.low[warp] = low;
    m.counts[warp] = eligible;
    m.equals[warp] = holders;
  }
  if (thread == 0) {
    m.candidate_count = 0;
  }
  __syncthreads();
  high = warp_max(m.high[lane]);
  low = warp_min(m.low[lane]);
  eligible = warp_sum_int(m.counts[lane]);
  const int all_holders = warp_sum_int(m.equals[lane]);

  float threshold = -INFINITY;
  int equals = 0;
  if (eligible > wanted) {
    // Bins of equal width between the extremes, descending: monotone in the score, so a bin is a range of ranks.
    const float range = high - low;
    const float scale = range > 0 && range < INFINITY ? static_cast<float>(SelectMemory::kBins - 1) / range : 0.0F;
    const bool flat = !(scale > 0 && scale < INFINITY);
    const auto bin_of = [&](float score) {
      return flat ? 0 : min(SelectMemory::kBins - 1, static_cast<int>((high - score) * scale));
    };
    // Members of the bins up to `last` are candidates, of which the `remaining` best are wanted.
    int first = 0, last = SelectMemory::kBins - 1, remaining = wanted;
    if (wanted <= all_holders) {
      if (own_high > -INFINITY) {
        atomicAdd(&m.histogram[bin_of(own_high)], 1);
      }
      __syncthreads();
      find_bin(wanted, m);
      last = m.bin;
      // find_bin's last barrier lies between its reads of the histogram and this.
      reinterpret_cast<int2*>(m.histogram)[thread] = make_int2(0, 0);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (scores[i] > -INFINITY && bin_of(scores[i]) <= last) {
        const int place = atomicAdd(&m.candidate_count, 1);
        if (place < SelectMemory::kCandidates) {
          m.candidates[place] = scores[i];
        }
      }
    }
    __syncthreads();
    int members = m.candidate_count;
    if (members > SelectMemory::kCandidates) {
      // Too many: all of them into the histogram, and only its bin of the threshold is ranked.
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (scores[i] > -INFINITY && bin_of(scores[i]) <= last) {
          atomicAdd(&m.histogram[bin_of(scores[i])], 1);
        }
      }
      __syncthreads();
      find_bin(wanted, m);
      first = last = m.bin;
      remaining = wanted - m.before;
      members = m.histogram[last];
      if (thread == 0) {
        m.candidate_count = 0;
      }
      __syncthreads();
      if (members <= SelectMemory::kCandidates) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (scores[i] > -INFINITY && bin_of(scores[i]) == last) {
            m.candidates[atomicAdd(&m.candidate_count, 1)] = scores[i];
          }
        }
        __syncthreads();
      }
    }
    if (members <= SelectMemory::kCandidates) {
      if (thread < members) {
        const float candidate = m.candidates[thread];
        int greater = 0, equal = 0;
#pragma unroll 8
        for (int i = 0; i < members; ++i) {
          const float other = m.candidates[i];
          greater += other > candidate;
          equal += other == candidate;
        }
        if (greater < remaining && remaining <= greater + equal) {
          m.threshold = candidate;
          m.threshold_equals = remaining - greater;
        }
      }
      __syncthreads();
    } else {
      // Crowded bin: byte by byte of the ordered bits.
      unsigned prefix = 0;
      int rank = remaining;
      for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        if (thread < 256) {
          m.histogram[thread] = 0;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          if (scores[i] > -INFINITY && bin_of(scores[i]) == first) {
            const unsigned bits = ordered_bits(scores[i]);
            if (shift == 24 || bits >> (shift + 8) == prefix) {
              atomicAdd(&m.histogram[bits >> shift & 255U], 1);
            }
          }
        }
        __syncthreads();
        int digit = 255;
        while (digit > 0 && m.histogram[digit] < rank) {
          rank -= m.histogram[digit--];
        }
        prefix = prefix << 8 | static_cast<unsigned>(digit);
      }
      __syncthreads();
      if (thread == 0) {
        m.threshold = ordered_float(prefix);
        m.threshold_equals = rank;
      }
      __syncthreads();
    }
    threshold = m.threshold;
    equals = m.threshold_equals;
  }

  // Places ascend with the piece, then the thread. The low half of a count is of greater ones, the high half of equal
  // ones: a piece has 4096 places.
  int through[kPieces], own[kPieces];
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    own[piece] = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float score = scores[4 * piece + e];
      own[piece] += (score > threshold) + ((score == threshold && score > -INFINITY) << 16);
    }
    through[piece] = warp_prefix(own[piece], lane);
    if (lane == 31) {
      m.taken[piece * kSelectWarps + warp] = through[piece];
    }
  }
  __syncthreads();
  int greater_before = 0, equals_before = 0;  // of earlier pieces
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const int total = m.taken[piece * kSelectWarps + lane];
    const int earlier = warp_sum_int(lane < warp ? total : 0) + through[piece] - own[piece];
    int greater = greater_before + (earlier & 0xffff), equal = equals_before + (earlier >> 16);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float score = scores[4 * piece + e];
      const bool same = score == threshold && score > -INFINITY;
      if (score > threshold || (same && equal < equals)) {
        ids[greater + min(equal, equals)] = 4 * (thread + kSelectThreads * piece) + e;
      }
      greater += score > threshold;
      equal += same;
    }
    const int all = warp_sum_int(total);
    greater_before += all & 0xffff;
    equals_before += all >> 16;
  }
  __syncthreads();
  return min(eligible, wanted);
}

}  // namespace skv::cuda
