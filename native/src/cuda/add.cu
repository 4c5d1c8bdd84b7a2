#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;

// a, b, output [count]; output may be a or b. Floor: two reads, one write; bound by memory.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) add_kernel(const T* a, const T* b, T* output, std::int64_t count) {
  const std::int64_t groups = count / N;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < groups; i += step) {
    float x[N], y[N];
    load_floats(x, a + i * N);
    load_floats(y, b + i * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      x[j] += y[j];
    }
    store_floats(output + i * N, x);
  }
  if constexpr (N > 1) {
    const std::int64_t rest = groups * N + threadIdx.x;
    if (blockIdx.x == 0 && rest < count) {
      output[rest] = from_float<T>(to_float(a[rest]) + to_float(b[rest]));
    }
  }
}

}  // namespace

std::uint64_t add_workspace(const skv_add_params&, const DeviceTraits&) { return 0; }

void add(const skv_add_params& p, Launch& launch) {
  if (p.count == 0) {
    return;
  }
  const bool wide = aligned_16({p.a, p.b, p.output}, {});
  with_type(p.type, "add", [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = wide ? add_kernel<T, kWidest<T>> : add_kernel<T, 1>;
    const unsigned blocks = striding_blocks(p.count, kThreads * (wide ? kWidest<T> : 1), launch.traits.multiprocessors);
    launch_kernel("add", kernel, dim3(blocks), dim3(kThreads), 0, launch.stream, static_cast<const T*>(p.a),
                  static_cast<const T*>(p.b), static_cast<T*>(p.output), p.count);
  });
}

}  // namespace skv::cuda
