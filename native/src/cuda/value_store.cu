#include <cuda_fp8.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.cuh"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPiece = 16;         // elements of a thread's write: 16 bytes of e4m3
constexpr float kLargest = 448.0F;  // of e4m3

// Quantizes whole chunks to e4m3 with one scale and writes them to host memory; one chunk of one head a warp.
// The chunk is read a second time, from the caches, when its scale is known.
//
// source [K][capacity][D] -> values (pinned) [K][chunk_capacity][C][D], value_scales [K][chunk_capacity].
// Floor: one byte an element over the link (55 GB/s); bound by it.
template <bool kWide>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const __grid_constant__ skv_value_store_params p) {
  using S = __nv_bfloat16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t index = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (index >= p.chunks) {
    return;
  }
  const std::int64_t head = blockIdx.y, chunk = p.first_chunk + index;
  const std::int64_t place = head * p.chunk_capacity + chunk;
  const int elements = p.chunk * p.head_dim;
  const std::int64_t first_row = chunk * p.chunk % p.capacity;
  const S* const ring = static_cast<const S*>(p.source) + head * p.capacity * p.head_dim;
  const bool contiguous = first_row + p.chunk <= p.capacity;
  const auto read = [&](float(&x)[kPiece], int element) {
    if (kWide && contiguous) {
      load_floats(x, ring + first_row * p.head_dim + element);
    } else {
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        const std::int64_t row = (first_row + (element + j) / p.head_dim) % p.capacity;
        x[j] = to_float(ring[row * p.head_dim + (element + j) % p.head_dim]);
      }
    }
  };
  float largest = 0;
  for (int element = lane * kPiece; element < elements; element += 32 * kPiece) {
    float x[kPiece];
    read(x, element);
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      largest = fmaxf(largest, fabsf(x[j]));
    }
  }
  const float scale = warp_max(largest) / kLargest;
  if (lane == 0) {
    p.value_scales[place] = scale;
  }
  auto* const target = static_cast<std::uint8_t*>(p.values) + place * elements;
  for (int element = lane * kPiece; element < elements; element += 32 * kPiece) {
    float x[kPiece];
    read(x, element);
    Vector<std::uint8_t, kPiece> bytes;
#pragma unroll
    for (int j = 0; j < kPiece; ++j) {
      bytes.at[j] = __nv_cvt_float_to_fp8(scale > 0 ? __fdiv_rn(x[j], scale) : 0.0F, __NV_SATFINITE, __NV_E4M3);
    }
    *reinterpret_cast<Vector<std::uint8_t, kPiece>*>(target + element) = bytes;
  }
}

// Rows [first, first + rows) of every head of the ring to the host, by the copy engine.
void copy_rows(const skv_value_store_params& p, std::int64_t first_row, std::int64_t first_target_row,
               std::int64_t rows, const Launch& launch) {
  const std::int64_t row_bytes = p.head_dim * element_bytes(p.storage_type);
  const std::int64_t source_pitch = p.capacity * row_bytes;
  const std::int64_t target_pitch = p.chunk_capacity * p.chunk * row_bytes;
  const auto* const source = static_cast<const std::byte*>(p.source) + first_row * row_bytes;
  auto* const target = static_cast<std::byte*>(p.values) + first_target_row * row_bytes;
  // The driver's limit of a pitch.
  constexpr std::int64_t kMaximumPitch = 0x7fffffff;
  if (source_pitch <= kMaximumPitch && target_pitch <= kMaximumPitch) {
    check(cudaMemcpy2DAsync(target, static_cast<std::size_t>(target_pitch), source,
                            static_cast<std::size_t>(source_pitch), static_cast<std::size_t>(rows * row_bytes),
                            static_cast<std::size_t>(p.key_value_heads), cudaMemcpyDefault, launch.stream),
          "value_store");
    return;
  }
  for (std::int64_t head = 0; head < p.key_value_heads; ++head) {
    check(cudaMemcpyAsync(target + head * target_pitch, source + head * source_pitch,
                          static_cast<std::size_t>(rows * row_bytes), cudaMemcpyDefault, launch.stream),
          "value_store");
  }
}

}  // namespace

std::uint64_t value_store_workspace(const skv_value_store_params&, const DeviceTraits&) { return 0; }

void value_store(const skv_value_store_params& p, Launch& launch) {
  require_bf16(p.storage_type, "value_store", "the storage type");
  if (p.value_type != SKV_F8_E4M3) {
    require_bf16(p.value_type, "value_store", "the value type, unless F8_E4M3,");
  }
  if (p.chunks == 0) {
    return;
  }
  if (p.value_type == SKV_F8_E4M3) {
    const bool wide = aligned_16({p.source, p.values}, {p.head_dim * static_cast<std::int64_t>(sizeof(__nv_bfloat16))});
    const dim3 grid(blocks_for(p.chunks * 32, kThreads), static_cast<unsigned>(p.key_value_heads));
    launch_kernel("value_store", wide ? quantize_kernel<true> : quantize_kernel<false>, grid, dim3(kThreads), 0,
                  launch.stream, p);
    return;
  }
  // A run of chunks in a ring is up to two runs of rows for each time around.
  std::int64_t position = p.first_chunk * p.chunk;
  const std::int64_t end = position + p.chunks * p.chunk;
  while (position < end) {
    const std::int64_t row = position % p.capacity;
    const std::int64_t rows = std::min(end - position, p.capacity - row);
    copy_rows(p, row, position, rows, launch);
    position += rows;
  }
}

}  // namespace skv::cuda
