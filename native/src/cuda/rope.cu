#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;

// Rotates N pairs, or copies N elements behind the rotated ones, of some heads of one token.
//
// input [count][heads][D], its heads possibly apart, output [count][heads][D]. Floor: every element read and written
// once; bound by memory. The rotation of a token and pair is made once and applied to heads_per_thread heads.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const __grid_constant__ Several<skv_rope_params> all, int items, int heads_per_thread) {
  const skv_rope_params& p = all.of[blockIdx.z];
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t token = index / items;
  const int item = static_cast<int>(index % items);
  if (token >= p.count) {
    return;
  }
  const int first_head = static_cast<int>(blockIdx.y) * heads_per_thread;
  const int last_head = min(p.heads, first_head + heads_per_thread);
  const T* const input = static_cast<const T*>(p.input) + token * p.input_stride;
  T* const output = static_cast<T*>(p.output) + token * p.output_stride;
  const int half = p.rope.rotary_dim / 2;
  const int pair = item * N;
  if (pair >= half) {
    const int element = p.rope.rotary_dim + (pair - half);
    for (int head = first_head; head < last_head; ++head) {
      *reinterpret_cast<Vector<T, N>*>(output + static_cast<std::int64_t>(head) * p.head_dim + element) =
          *reinterpret_cast<const Vector<T, N>*>(input + static_cast<std::int64_t>(head) * p.input_head_stride +
                                                 element);
    }
    return;
  }
  float cosine[N], sine[N];
  rotations<N>(p.rope, p.positions ? p.positions[token] : p.first_position + token, pair, cosine, sine);
  if (p.inverse) {
    const float unscale = 1.0F / (p.rope.scale * p.rope.scale);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      cosine[i] *= unscale;
      sine[i] *= -unscale;
    }
  }
  for (int head = first_head; head < last_head; ++head) {
    const std::int64_t at = static_cast<std::int64_t>(head) * p.head_dim;
    const std::int64_t from = static_cast<std::int64_t>(head) * p.input_head_stride;
    if (p.rope.pairing == SKV_INTERLEAVED) {
      float x[2 * N];
      load_floats(x, input + from + 2 * pair);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = b * cosine[i] + a * sine[i];
      }
      store_floats(output + at + 2 * pair, x);
    } else {
      float a[N], b[N];
      load_floats(a, input + from + pair);
      load_floats(b, input + from + half + pair);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float low = a[i] * cosine[i] - b[i] * sine[i];
        b[i] = b[i] * cosine[i] + a[i] * sine[i];
        a[i] = low;
      }
      store_floats(output + at + pair, a);
      store_floats(output + at + half + pair, b);
    }
  }
}

void rotate(Several<skv_rope_params> all, int together, Launch& launch) {
  const skv_rope_params& p = all.of[0];
  if (p.count == 0 || p.heads == 0) {
    return;
  }
  const std::int64_t dense = static_cast<std::int64_t>(p.heads) * p.head_dim;
  bool addresses_wide = true;
  for (int i = 0; i < together; ++i) {
    skv_rope_params& each = all.of[i];
    each.input_stride = each.input_stride ? each.input_stride : dense;
    each.output_stride = each.output_stride ? each.output_stride : dense;
    each.input_head_stride = each.input_head_stride ? each.input_head_stride : each.head_dim;
    addresses_wide &= aligned_16({each.input, each.output}, {});
  }
  with_type(p.type, "rope", [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr std::int64_t kSize = sizeof(T);
    const bool wide =
        addresses_wide && aligned_16({}, {p.input_stride * kSize, p.output_stride * kSize, p.input_head_stride * kSize,
                                          p.head_dim * kSize, p.rope.rotary_dim / 2 * kSize});
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      const int items = (p.head_dim - p.rope.rotary_dim / 2) / N;
      // Few tokens need the heads as parallelism.
      const std::int64_t threads = p.count * items;
      const bool many = threads >= static_cast<std::int64_t>(launch.traits.multiprocessors) * 1024;
      const int heads_per_thread = many ? std::min(p.heads, 8) : 1;
      const dim3 grid(blocks_for(threads, kThreads), blocks_for(p.heads, heads_per_thread),
                      static_cast<unsigned>(together));
      launch_kernel("rope", rope_kernel<T, N>, grid, dim3(kThreads), 0, launch.stream, all, items, heads_per_thread);
    };
    if (wide) {
      run(std::integral_constant<int, kWidest<T>>{});
    } else {
      run(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace

std::uint64_t rope_workspace(const skv_rope_params&, const DeviceTraits&) {
  return 0;
}

void rope_each(const skv_rope_params* all, int count, Launch& launch) {
  const auto alike = [](const skv_rope_params& a, const skv_rope_params& b) {
    return alike_but_for(a, b, &skv_rope_params::input, &skv_rope_params::output);
  };
  in_groups(all, count, alike,
            [&](const Several<skv_rope_params>& group, int together) { rotate(group, together, launch); });
}

void rope(const skv_rope_params& p, Launch& launch) {
  rotate(only(p), 1, launch);
}

}  // namespace skv::cuda
