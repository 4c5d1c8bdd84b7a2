#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

// An unsigned number in the order of the floats. NaN comes first: such a chunk is certainly described badly.
__device__ inline unsigned image_of(float x) {
  if (isnan(x)) {
    return 0;
  }
  const unsigned bits = __float_as_uint(x + 0.0F);
  return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

// Number of set flags of the threads before this one, and of all. Contains barriers.
__device__ inline int count_before(bool flag, int* parts, int& total) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned votes = __ballot_sync(0xffffffffU, flag);
  __syncthreads();
  if (lane == 0) {
    parts[warp] = __popc(votes);
  }
  __syncthreads();
  int before = 0, sum = 0;
  for (int i = 0; i < kWarps; ++i) {
    before += i < warp ? parts[i] : 0;
    sum += parts[i];
  }
  total = sum;
  return before + __popc(votes & ((1U << lane) - 1));
}

// The `count` smallest cosines of a head by radix selection (four passes over the row, which the caches hold),
// then one ordered pass that writes ids ascending and takes the lowest ids of those that tie. One block a head.
//
// cosine [K][chunk_capacity] -> ids [K][count]. Bound by the latency of the passes: 15 numbers a thread.
__global__ void __launch_bounds__(kThreads) outlier_select_kernel(const __grid_constant__ skv_outlier_select_params p) {
  __shared__ int histogram[kDigits];
  __shared__ int parts[kWarps];
  __shared__ unsigned chosen_digit;
  __shared__ int chosen_rest;
  const std::int64_t head = blockIdx.x;
  const float* const cosine = p.cosine + head * p.chunk_capacity;
  const std::int64_t rounded = (p.chunks + kThreads - 1) / kThreads * kThreads;

  unsigned prefix = 0, mask = 0;
  int rest = p.count;  // how many to take among those that have the prefix
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) {
      histogram[i] = 0;
    }
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < rounded; i += kThreads) {
      const unsigned image = i < p.chunks ? image_of(cosine[i]) : 0;
      const bool counts = i < p.chunks && (image & mask) == prefix;
      const unsigned digit = counts ? image >> shift & (kDigits - 1) : kDigits;
      // Cosines share their leading digits: a warp that agrees adds once.
      int agree = 0;
      __match_all_sync(0xffffffffU, digit, &agree);
      if (agree) {
        if (counts && threadIdx.x % 32 == 0) {
          atomicAdd(&histogram[digit], 32);
        }
      } else if (counts) {
        atomicAdd(&histogram[digit], 1);
      }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Each lane sums its share of the digits, then the lanes find where the count is reached.
      constexpr int kShare = kDigits / 32;
      const int lane = static_cast<int>(threadIdx.x);
      int sum = 0;
      for (int i = 0; i < kShare; ++i) {
        sum += histogram[lane * kShare + i];
      }
      int inclusive = sum;
      for (int step = 1; step < 32; step <<= 1) {
        const int other = __shfl_up_sync(0xffffffffU, inclusive, step);
        inclusive += lane >= step ? other : 0;
      }
      int before = inclusive - sum;
      if (before < rest && rest <= inclusive) {
        int i = lane * kShare;
        while (before + histogram[i] < rest) {
          before += histogram[i++];
        }
        chosen_digit = static_cast<unsigned>(i);
        chosen_rest = rest - before;
      }
    }
    __syncthreads();
    prefix |= chosen_digit << shift;
    mask |= static_cast<unsigned>(kDigits - 1) << shift;
    rest = chosen_rest;
    __syncthreads();
  }

  int written = 0, tied = 0;
  for (std::int64_t i = threadIdx.x; i < rounded && written < p.count; i += kThreads) {
    const unsigned image = i < p.chunks ? image_of(cosine[i]) : 0xffffffffU;
    const bool ties = i < p.chunks && image == prefix;
    int ties_here = 0, taken_here = 0;
    const int tie_rank = tied + count_before(ties, parts, ties_here);
    const bool takes = i < p.chunks && (image < prefix || (ties && tie_rank < rest));
    const int place = written + count_before(takes, parts, taken_here);
    if (takes) {
      p.ids[head * p.count + place] = static_cast<std::int32_t>(i);
      if (p.radius) {
        p.radius[head * p.chunk_capacity + i] = -1.0F;
      }
    }
    tied += ties_here;
    written += taken_here;
  }
}

}  // namespace

std::uint64_t outlier_select_workspace(const skv_outlier_select_params&, const DeviceTraits&) { return 0; }

void outlier_select(const skv_outlier_select_params& p, Launch& launch) {
  if (p.count == 0) {
    return;
  }
  launch_kernel("outlier_select", outlier_select_kernel, dim3(static_cast<unsigned>(p.key_value_heads)), dim3(kThreads),
                0, launch.stream, p);
}

}  // namespace skv::cuda
