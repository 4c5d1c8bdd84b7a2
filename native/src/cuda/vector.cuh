// Element types as kernels see them, and reads and writes of several elements at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/status.h"
#include "shadowkv_types.h"
#include "value_types.h"

namespace skv::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(std::int8_t x) { return static_cast<float>(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return __float2bfloat16_rn(x);
  }
}

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// Elements of 16 bytes, the widest access of a thread.
template <class T>
inline constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

template <class T, int N>
__device__ inline void load_floats(float (&to)[N], const T* from) {
  constexpr int kPiece = N < kWidest<T> ? N : kWidest<T>;
#pragma unroll
  for (int i = 0; i < N; i += kPiece) {
    const auto piece = *reinterpret_cast<const Vector<T, kPiece>*>(from + i);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      to[i + j] = to_float(piece.at[j]);
    }
  }
}

template <class T, int N>
__device__ inline void store_floats(T* to, const float (&from)[N]) {
  constexpr int kPiece = N < kWidest<T> ? N : kWidest<T>;
#pragma unroll
  for (int i = 0; i < N; i += kPiece) {
    Vector<T, kPiece> piece;
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      piece.at[j] = from_float<T>(from[i + j]);
    }
    *reinterpret_cast<Vector<T, kPiece>*>(to + i) = piece;
  }
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the C++ type of a type number.
template <class F>
void with_type(std::int32_t type, const char* operation, F&& f) {
  switch (type) {
    case SKV_F32:
      return f(Type<float>{});
    case SKV_BF16:
      return f(Type<__nv_bfloat16>{});
    case SKV_F16:
      return f(Type<__half>{});
    default:
      throw Error(SKV_UNSUPPORTED, std::string(operation) + " takes F32, BF16 and F16, not type " + std::to_string(type));
  }
}

inline void require_bf16(std::int32_t type, const char* operation, const char* what) {
  if (type != SKV_BF16) {
    throw Error(SKV_UNSUPPORTED,
                std::string(operation) + " on CUDA: " + what + " must be BF16, not type " + std::to_string(type));
  }
}

inline void require_coefficients(std::int32_t type, const char* operation) {
  if (type != SKV_I8) {
    require_bf16(type, operation, "the coefficient type, unless I8,");
  }
}

__host__ __device__ inline int coefficient_bytes(std::int32_t type) {
  return type == SKV_I8 ? 1 : 2;
}

// The nearest whole number, ties to even, from -127 to 127.
__device__ inline std::int8_t round_to_i8(float x) {
  return static_cast<std::int8_t>(max(-127, min(127, __float2int_rn(x))));
}

// Whether every address and every distance is a multiple of 16 bytes.
inline bool aligned_16(std::initializer_list<const void*> addresses, std::initializer_list<std::int64_t> bytes) {
  for (const void* address : addresses) {
    if (reinterpret_cast<std::uintptr_t>(address) % 16) {
      return false;
    }
  }
  for (const std::int64_t distance : bytes) {
    if (distance % 16) {
      return false;
    }
  }
  return true;
}

inline unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// Blocks of a loop that strides over the grid: enough to fill the device, no more than there is work.
inline unsigned striding_blocks(std::int64_t items, std::int64_t per_block, int multiprocessors) {
  constexpr std::int64_t kBlocksPerMultiprocessor = 16;
  const std::int64_t needed = (items + per_block - 1) / per_block;
  const std::int64_t most = kBlocksPerMultiprocessor * multiprocessors;
  return static_cast<unsigned>(needed < most ? needed : most);
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    x += __shfl_xor_sync(0xffffffffU, x, step);
  }
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, step));
  }
  return x;
}

// Sum over a block of up to 1024 threads, the same for every thread. Contains barriers.
__device__ inline float block_sum(float x) {
  __shared__ float parts[32];
  x = warp_sum(x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();
  if (lane == 0) {
    parts[warp] = x;
  }
  __syncthreads();
  const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
  return warp_sum(lane < warps ? parts[lane] : 0.0F);
}

// Cosines and sines of N consecutive pairs of a position, times the tables' scale.
template <int N>
__device__ inline void rotations(const skv_rope& rope, std::int64_t position, int pair, float (&cosine)[N],
                                 float (&sine)[N]) {
  const int half = rope.rotary_dim / 2;
  const int shift = __ffs(rope.fine_rows) - 1;
  const std::int64_t coarse_row = position >> shift;
  const std::int64_t fine_row = position & (rope.fine_rows - 1);
  const auto* const coarse = reinterpret_cast<const float2*>(rope.coarse) + coarse_row * half + pair;
  const auto* const fine = reinterpret_cast<const float2*>(rope.fine) + fine_row * half + pair;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float2 a = __ldg(coarse + i), b = __ldg(fine + i);
    cosine[i] = a.x * b.x - a.y * b.y;
    sine[i] = a.x * b.y + a.y * b.x;
  }
}

}  // namespace skv::cuda
