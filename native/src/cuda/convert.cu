#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kItems = 8;

// input, output [count]. Floor: one read, one write; bound by memory.
template <class From, class To, int N>
__global__ void __launch_bounds__(kThreads) convert_kernel(const From* input, To* output, std::int64_t count) {
  const std::int64_t groups = count / N;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < groups; i += step) {
    float x[N];
    load_floats(x, input + i * N);
    store_floats(output + i * N, x);
  }
  if constexpr (N > 1) {
    const std::int64_t rest = groups * N + threadIdx.x;
    if (blockIdx.x == 0 && rest < count) {
      output[rest] = from_float<To>(to_float(input[rest]));
    }
  }
}

}  // namespace

std::uint64_t convert_workspace(const skv_convert_params&, const DeviceTraits&) { return 0; }

void convert(const skv_convert_params& p, Launch& launch) {
  if (p.count == 0) {
    return;
  }
  const bool wide = aligned_16({p.input, p.output}, {});
  with_type(p.input_type, "convert", [&](auto from) {
    with_type(p.output_type, "convert", [&](auto to) {
      using From = typename decltype(from)::type;
      using To = typename decltype(to)::type;
      const auto kernel = wide ? convert_kernel<From, To, kItems> : convert_kernel<From, To, 1>;
      const unsigned blocks = striding_blocks(p.count, kThreads * (wide ? kItems : 1), launch.traits.multiprocessors);
      launch_kernel("convert", kernel, dim3(blocks), dim3(kThreads), 0, launch.stream,
                    static_cast<const From*>(p.input), static_cast<To*>(p.output), p.count);
    });
  });
}

}  // namespace skv::cuda
