#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;

// table [vocabulary][width], ids [count], output [count][width]. Floor: one row read and one written a
// token; bound by memory.
template <class From, class To, int N>
__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ skv_embed_params p) {
  const std::int64_t row_items = p.width / N;
  const std::int64_t items = p.count * row_items;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items; i += step) {
    const std::int64_t row = i / row_items, column = i % row_items * N;
    const std::int64_t id = p.ids[row];
    float x[N];
    if (id >= 0 && id < p.vocabulary) {
      load_floats(x, static_cast<const From*>(p.table) + id * p.width + column);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        x[j] = __int_as_float(0x7fc00000);  // a quiet NaN
      }
    }
    store_floats(static_cast<To*>(p.output) + row * p.width + column, x);
  }
}

}  // namespace

std::uint64_t embed_workspace(const skv_embed_params&, const DeviceTraits&) { return 0; }

void embed(const skv_embed_params& p, Launch& launch) {
  if (p.count == 0 || p.width == 0) {
    return;
  }
  const bool wide = aligned_16({p.table, p.output}, {}) && p.width % 8 == 0;
  with_type(p.table_type, "embed", [&](auto from) {
    with_type(p.output_type, "embed", [&](auto to) {
      using From = typename decltype(from)::type;
      using To = typename decltype(to)::type;
      const auto kernel = wide ? embed_kernel<From, To, 8> : embed_kernel<From, To, 1>;
      const unsigned blocks =
          striding_blocks(p.count * p.width, kThreads * (wide ? 8 : 1), launch.traits.multiprocessors);
      launch_kernel("embed", kernel, dim3(blocks), dim3(kThreads), 0, launch.stream, p);
    });
  });
}

}  // namespace skv::cuda
