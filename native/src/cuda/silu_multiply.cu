#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;

// gate, up [rows][width] (strided), output [rows][width]: gate / (1 + exp(-gate)) * up.
// Floor: two reads, one write; bound by memory.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) silu_multiply_kernel(const __grid_constant__ skv_silu_multiply_params p) {
  const std::int64_t row_items = p.width / N;
  const std::int64_t items = p.rows * row_items;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const std::int64_t row = i / row_items, column = i % row_items * N;
    float gate[N], up[N];
    load_floats(gate, static_cast<const T*>(p.gate) + row * p.stride + column);
    load_floats(up, static_cast<const T*>(p.up) + row * p.stride + column);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      up[j] *= gate[j] / (1.0F + __expf(-gate[j]));
    }
    store_floats(static_cast<T*>(p.output) + row * p.width + column, up);
  }
}

}  // namespace

std::uint64_t silu_multiply_workspace(const skv_silu_multiply_params&, const DeviceTraits&) { return 0; }

void silu_multiply(const skv_silu_multiply_params& params, Launch& launch) {
  skv_silu_multiply_params p = params;
  if (p.rows == 0 || p.width == 0) {
    return;
  }
  p.stride = p.stride ? p.stride : p.width;
  with_type(p.type, "silu_multiply", [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr std::int64_t kSize = sizeof(T);
    const bool wide = aligned_16({p.gate, p.up, p.output}, {p.width * kSize, p.stride * kSize});
    const auto kernel = wide ? silu_multiply_kernel<T, kWidest<T>> : silu_multiply_kernel<T, 1>;
    const unsigned blocks =
        striding_blocks(p.rows * p.width, kThreads * (wide ? kWidest<T> : 1), launch.traits.multiprocessors);
    launch_kernel("silu_multiply", kernel, dim3(blocks), dim3(kThreads), 0, launch.stream, p);
  });
}

}  // namespace skv::cuda
