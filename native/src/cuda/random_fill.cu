#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "random.h"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;

// output [count]. Floor: one write; bound by the arithmetic of ten Philox rounds and a logarithm for four numbers.
template <class T>
__global__ void __launch_bounds__(kThreads) random_fill_kernel(const __grid_constant__ skv_random_fill_params p) {
  const std::int64_t groups = (p.count + 3) / 4;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  T* const output = static_cast<T*>(p.output);
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < groups; i += step) {
    const RandomNormals normals = random_normals(static_cast<std::uint64_t>(i), p.seed);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (4 * i + j < p.count) {
        output[4 * i + j] = from_float<T>(p.mean + p.deviation * normals.at[j]);
      }
    }
  }
}

}  // namespace

std::uint64_t random_fill_workspace(const skv_random_fill_params&, const DeviceTraits&) { return 0; }

void random_fill(const skv_random_fill_params& p, Launch& launch) {
  if (p.count == 0) {
    return;
  }
  with_type(p.type, "random_fill", [&](auto type) {
    using T = typename decltype(type)::type;
    const unsigned blocks = striding_blocks((p.count + 3) / 4, kThreads, launch.traits.multiprocessors);
    launch_kernel("random_fill", random_fill_kernel<T>, dim3(blocks), dim3(kThreads), 0, launch.stream, p);
  });
}

}  // namespace skv::cuda
