#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kMaximumThreads = 512;

// One row a block: input (+ residual, written back), its mean square, then the scaled row.
//
// input, residual, output [rows][width], weight [width]. Floor: input (and residual) read once, output (and
// input) written once; bound by memory. The second read of the row comes from the caches.
template <class T, class W, class Y, int N>
__global__ void __launch_bounds__(kMaximumThreads) rms_norm_kernel(const __grid_constant__ skv_rms_norm_params p) {
  const std::int64_t row = blockIdx.x;
  T* const input = static_cast<T*>(p.input) + row * p.width;
  const T* const residual = p.residual ? static_cast<const T*>(p.residual) + row * p.width : nullptr;
  Y* const output = static_cast<Y*>(p.output) + row * p.width;
  const W* const weight = static_cast<const W*>(p.weight);
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * N;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * N;
  float squares = 0;
  for (std::int64_t i = first; i < p.width; i += step) {
    float x[N];
    load_floats(x, input + i);
    if (residual) {
      float y[N];
      load_floats(y, residual + i);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        // What is normalized is the sum as it is stored.
        x[j] = to_float(from_float<T>(x[j] + y[j]));
      }
      store_floats(input + i, x);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      squares += x[j] * x[j];
    }
  }
  const float scale = rsqrtf(block_sum(squares) / static_cast<float>(p.width) + p.epsilon);
  for (std::int64_t i = first; i < p.width; i += step) {
    // The thread reads what it wrote itself.
    float x[N], w[N];
    load_floats(x, input + i);
    load_floats(w, weight + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      x[j] *= scale * w[j];
    }
    store_floats(output + i, x);
  }
}

}  // namespace

std::uint64_t rms_norm_workspace(const skv_rms_norm_params&, const DeviceTraits&) {
  return 0;
}

void rms_norm(const skv_rms_norm_params& p, Launch& launch) {
  if (p.rows == 0 || p.width == 0) {
    return;
  }
  with_type(p.type, "rms_norm", [&](auto type) {
    with_type(p.weight_type, "rms_norm", [&](auto weight) {
      with_type(p.output_type, "rms_norm", [&](auto output) {
        using T = typename decltype(type)::type;
        using W = typename decltype(weight)::type;
        using Y = typename decltype(output)::type;
        const bool wide = aligned_16({p.input, p.residual, p.output, p.weight}, {}) && p.width % 8 == 0;
        const auto kernel = wide ? rms_norm_kernel<T, W, Y, 8> : rms_norm_kernel<T, W, Y, 1>;
        const std::int64_t items = p.width / (wide ? 8 : 1);
        const unsigned threads =
            static_cast<unsigned>(std::clamp<std::int64_t>((items + 31) / 32 * 32, 32, kMaximumThreads));
        launch_kernel("rms_norm", kernel, dim3(static_cast<unsigned>(p.rows)), dim3(threads), 0, launch.stream, p);
      });
    });
  });
}

}  // namespace skv::cuda
