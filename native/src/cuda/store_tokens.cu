#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;

// One pass over new tokens: rotated keys head-major, keys before RoPE token-major, values head-major.
//
// keys, values [count][K][D] (strided); rotated_keys, stored_values [K][capacity][D]; raw_keys [capacity][K*D].
// Floor: keys and values read once, three rows written a token; bound by memory. A thread holds N pairs of one
// head of a token: the row of a head is read and written in whole sectors on both sides.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    store_tokens_kernel(const __grid_constant__ skv_store_tokens_params p, int items) {
  using S = __nv_bfloat16;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t token = index / items;
  const int item = static_cast<int>(index % items);
  if (token >= p.count) {
    return;
  }
  const int D = p.head_dim, half = p.rope.rotary_dim / 2;
  const int pair = item * N;
  const bool rotates = pair < half;
  const bool interleaved = p.rope.pairing == SKV_INTERLEAVED;
  const std::int64_t position = p.first_position + token;
  const std::int64_t row = position % p.capacity;
  // A rotating item owns two runs of N elements, the others one.
  const int first = !rotates ? p.rope.rotary_dim + (pair - half) : interleaved ? 2 * pair : pair;
  const int second = interleaved ? first + N : first + half;
  float cosine[N], sine[N];
  if (rotates && p.rotated_keys) {
    rotations<N>(p.rope, position, pair, cosine, sine);
  }
  for (int head = blockIdx.y; head < p.key_value_heads; head += gridDim.y) {
    const std::int64_t ring = (static_cast<std::int64_t>(head) * p.capacity + row) * D;
    if (p.keys) {
      const T* const key = static_cast<const T*>(p.keys) + token * p.key_stride + static_cast<std::int64_t>(head) * D;
      float a[N], b[N];
      load_floats(a, key + first);
      if (rotates) {
        load_floats(b, key + second);
      }
      if (p.raw_keys) {
        S* const raw = static_cast<S*>(p.raw_keys) + row * p.key_value_heads * D + static_cast<std::int64_t>(head) * D;
        store_floats(raw + first, a);
        if (rotates) {
          store_floats(raw + second, b);
        }
      }
      if (p.rotated_keys) {
        S* const rotated = static_cast<S*>(p.rotated_keys) + ring;
        if (rotates && interleaved) {
          float x[2 * N];
#pragma unroll
          for (int i = 0; i < N; ++i) {
            x[i] = a[i];
            x[N + i] = b[i];
          }
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const float u = x[2 * i], v = x[2 * i + 1];
            x[2 * i] = u * cosine[i] - v * sine[i];
            x[2 * i + 1] = v * cosine[i] + u * sine[i];
          }
          store_floats(rotated + first, x);
        } else if (rotates) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            const float low = a[i] * cosine[i] - b[i] * sine[i];
            b[i] = b[i] * cosine[i] + a[i] * sine[i];
            a[i] = low;
          }
          store_floats(rotated + first, a);
          store_floats(rotated + second, b);
        } else {
          store_floats(rotated + first, a);
        }
      }
    }
    if (p.values && p.stored_values) {
      const T* const value =
          static_cast<const T*>(p.values) + token * p.value_stride + static_cast<std::int64_t>(head) * D;
      S* const stored = static_cast<S*>(p.stored_values) + ring;
      float a[N];
      load_floats(a, value + first);
      store_floats(stored + first, a);
      if (rotates) {
        load_floats(a, value + second);
        store_floats(stored + second, a);
      }
    }
  }
}

}  // namespace

std::uint64_t store_tokens_workspace(const skv_store_tokens_params&, const DeviceTraits&) { return 0; }

void store_tokens(const skv_store_tokens_params& params, Launch& launch) {
  skv_store_tokens_params p = params;
  require_bf16(p.storage_type, "store_tokens", "the storage type");
  if (p.count == 0) {
    return;
  }
  const std::int64_t dense = static_cast<std::int64_t>(p.key_value_heads) * p.head_dim;
  p.key_stride = p.key_stride ? p.key_stride : dense;
  p.value_stride = p.value_stride ? p.value_stride : dense;
  with_type(p.input_type, "store_tokens", [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr std::int64_t kSize = sizeof(T);
    constexpr int kWide = 8;  // 16 bytes of the stored type
    const bool wide =
        aligned_16({p.keys, p.values, p.rotated_keys, p.raw_keys, p.stored_values},
                   {p.key_stride * kSize, p.value_stride * kSize}) &&
        p.head_dim % kWide == 0 && p.rope.rotary_dim % (2 * kWide) == 0;
    const auto run = [&]<int N>(std::integral_constant<int, N>) {
      const int items = (p.head_dim - p.rope.rotary_dim / 2) / N;
      const dim3 grid(blocks_for(p.count * items, kThreads), static_cast<unsigned>(p.key_value_heads));
      launch_kernel("store_tokens", store_tokens_kernel<T, N>, grid, dim3(kThreads), 0, launch.stream, p, items);
    };
    if (wide) {
      run(std::integral_constant<int, kWide>{});
    } else {
      run(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace skv::cuda
