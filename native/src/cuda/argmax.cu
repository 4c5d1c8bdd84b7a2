#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 1024;

// A value and its index as one number whose order is "larger first, then the lower index". A NaN is above
// everything and carries no index: a row that has one gives -1.
__device__ inline unsigned long long ordered(float value, std::int64_t index) {
  if (isnan(value)) {
    return ~0ULL;
  }
  // -0 and +0 are equal, and so must be their images.
  const unsigned bits = __float_as_uint(value + 0.0F);
  const unsigned image = bits & 0x80000000U ? ~bits : bits | 0x80000000U;
  return static_cast<unsigned long long>(image) << 32 | (0xffffffffULL - static_cast<unsigned long long>(index) - 1);
}

// input [rows][width], ids [rows]; one row a block. Floor: the row read once; bound by memory where there are
// many rows, by latency for the one row of a decode step.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) argmax_kernel(const __grid_constant__ skv_argmax_params p) {
  __shared__ unsigned long long parts[kThreads / 32];
  const std::int64_t row = blockIdx.x;
  const T* const input = static_cast<const T*>(p.input) + row * p.width;
  unsigned long long best = 0;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * N; i < p.width; i += kThreads * N) {
    float x[N];
    load_floats(x, input + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      best = max(best, ordered(x[j], i + j));
    }
  }
  for (int step = 16; step; step >>= 1) {
    best = max(best, __shfl_xor_sync(0xffffffffU, best, step));
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) {
    parts[warp] = best;
  }
  __syncthreads();
  if (warp == 0) {
    best = parts[lane];
    for (int step = 16; step; step >>= 1) {
      best = max(best, __shfl_xor_sync(0xffffffffU, best, step));
    }
    if (lane == 0) {
      p.ids[row] = best == ~0ULL ? -1 : static_cast<std::int32_t>(0xfffffffeU - static_cast<unsigned>(best));
    }
  }
}

}  // namespace

std::uint64_t argmax_workspace(const skv_argmax_params&, const DeviceTraits&) { return 0; }

void argmax(const skv_argmax_params& p, Launch& launch) {
  if (p.rows == 0) {
    return;
  }
  with_type(p.type, "argmax", [&](auto type) {
    using T = typename decltype(type)::type;
    const bool wide = aligned_16({p.input}, {p.width * static_cast<std::int64_t>(sizeof(T))});
    const auto kernel = wide ? argmax_kernel<T, kWidest<T>> : argmax_kernel<T, 1>;
    launch_kernel("argmax", kernel, dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), 0, launch.stream, p);
  });
}

}  // namespace skv::cuda
