#include <cuda_fp8.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/vector.cuh"
#include "value_types.h"

namespace skv::cuda {
namespace {

constexpr int kThreads = 256;
// Of a head: what is more goes by the copy engine, which takes no SM from others.
constexpr std::int64_t kMostByKernel = 64 * 1024;

__device__ float quotient(float x, float scale) {
  return scale > 0 ? __fdiv_rn(x, scale) : 0.0F;
}

__device__ std::uint32_t e4m3_bits(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}

// A format says into how many parts a chunk falls whose elements share bytes, how many elements of each a lane takes,
// and writes them: element `first` and those behind it of every part of a chunk of n elements.

struct EightBits {
  static constexpr int kParts = 1, kRun = 16;

  __device__ static float scale(float largest) { return largest / largest_number(SKV_F8_E4M3); }

  __device__ static void write(unsigned char* chunk, int /*n*/, int first, const float (&x)[kParts][kRun],
                               float scale) {
    Vector<std::uint8_t, kRun> bytes;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      bytes.at[j] = static_cast<std::uint8_t>(e4m3_bits(quotient(x[0][j], scale)));
    }
    *reinterpret_cast<Vector<std::uint8_t, kRun>*>(chunk + first) = bytes;
  }
};

struct TwelveBits {
  static constexpr int kParts = 2, kRun = 8;

  // The largest is a BF16 already.
  __device__ static float scale(float largest) {
    return __uint_as_float(twelve_bit_scale(__float_as_uint(largest) >> 16));
  }

  __device__ static void write(unsigned char* chunk, int n, int first, const float (&x)[kParts][kRun], float scale) {
    Vector<std::uint8_t, kRun> low[kParts], high;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      std::uint32_t upper = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const auto number = __float2bfloat16_rn(quotient(x[part][j], scale) / kTwelveBitPower);
        const std::uint32_t bits = __bfloat16_as_ushort(number), magnitude = bits & 0x7fffU;
        const std::uint32_t code = min(magnitude, kTwelveBitLargest) | (bits >> 15) << 11;
        low[part].at[j] = static_cast<std::uint8_t>(code);
        upper |= code >> 8 << (4 * part);
      }
      high.at[j] = static_cast<std::uint8_t>(upper);
    }
    using Bytes = Vector<std::uint8_t, kRun>;
    *reinterpret_cast<Bytes*>(chunk + first) = low[0];
    *reinterpret_cast<Bytes*>(chunk + n / 2 + first) = low[1];
    *reinterpret_cast<Bytes*>(chunk + n + first) = high;
  }
};

struct SixBits {
  static constexpr int kParts = 4, kRun = 4;

  __device__ static float scale(float largest) { return largest / largest_number(SKV_F6_E2M3); }

  __device__ static void write(unsigned char* chunk, int n, int first, const float (&x)[kParts][kRun], float scale) {
    Vector<std::uint8_t, kRun> low[2], high;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      std::uint32_t lower[2] = {}, upper = 0;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const std::uint32_t bits = e4m3_bits(quotient(x[part][j], scale)), magnitude = min(bits & 0x7fU, 0x1fU);
        lower[part % 2] |= (magnitude & 15U) << (4 * (part / 2));
        upper |= (magnitude >> 4 | bits >> 7 << 1) << (2 * part);
      }
      low[0].at[j] = static_cast<std::uint8_t>(lower[0]);
      low[1].at[j] = static_cast<std::uint8_t>(lower[1]);
      high.at[j] = static_cast<std::uint8_t>(upper);
    }
    using Bytes = Vector<std::uint8_t, kRun>;
    *reinterpret_cast<Bytes*>(chunk + first) = low[0];
    *reinterpret_cast<Bytes*>(chunk + n / 4 + first) = low[1];
    *reinterpret_cast<Bytes*>(chunk + n / 2 + first) = high;
  }
};

// Quantizes whole chunks with one scale each and writes them to host memory; one chunk of one head a warp. The chunk is
// read a second time, from the caches, when its scale is known.
//
// source [K][capacity][D] -> values (pinned) [K][chunk_capacity][C][D], value_scales [K][chunk_capacity].
// Floor: 8, 12 or 6 bits an element over the link (55 GB/s); bound by it.
template <class Format, bool kWide>
__global__ void __launch_bounds__(kThreads)
    quantize_kernel(const __grid_constant__ Several<skv_value_store_params> all) {
  using S = __nv_bfloat16;
  constexpr int kParts = Format::kParts, kRun = Format::kRun;
  const skv_value_store_params& p = all.of[blockIdx.z];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t index = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (index >= p.chunks) {
    return;
  }
  const std::int64_t head = blockIdx.y, chunk = p.first_chunk + index;
  const std::int64_t place = head * p.chunk_capacity + chunk;
  const int elements = p.chunk * p.head_dim, part_elements = elements / kParts;
  const std::int64_t first_row = chunk * p.chunk % p.capacity;
  const S* const ring = static_cast<const S*>(p.source) + head * p.capacity * p.head_dim;
  const bool contiguous = first_row + p.chunk <= p.capacity;
  const auto read = [&](float(&x)[kParts][kRun], int first) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int element = part * part_elements + first;
      if (kWide && contiguous) {
        load_floats(x[part], ring + first_row * p.head_dim + element);
      } else {
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const std::int64_t row = (first_row + (element + j) / p.head_dim) % p.capacity;
          x[part][j] = to_float(ring[row * p.head_dim + (element + j) % p.head_dim]);
        }
      }
    }
  };
  // Bits of magnitudes are in the order of magnitudes, and a NaN is the largest: what is not finite makes the scale so,
  // and with it the chunk.
  std::uint32_t largest = 0;
  for (int first = lane * kRun; first < part_elements; first += 32 * kRun) {
    float x[kParts][kRun];
    read(x, first);
#pragma unroll
    for (int j = 0; j < kParts * kRun; ++j) {
      largest = max(largest, __float_as_uint(fabsf(x[j / kRun][j % kRun])));
    }
  }
  const float scale = Format::scale(__uint_as_float(__reduce_max_sync(0xffffffffU, largest)));
  if (lane == 0) {
    p.value_scales[place] = scale;
  }
  auto* const target = static_cast<unsigned char*>(p.values) + place * value_bytes(p.value_type, elements);
  for (int first = lane * kRun; first < part_elements; first += 32 * kRun) {
    float x[kParts][kRun];
    read(x, first);
    Format::write(target, elements, first, x, scale);
  }
}

// Copies whole chunks to host memory as they are: few of them, 16 KB a head where a layer is folded. With copies by the
// copy engine for those, single steps took up to 30 ms longer (docs/decisions.md).
//
// source [K][capacity][D] -> values (pinned) [K][chunk_capacity][C][D]. Floor: the bytes over the link (55 GB/s).
template <class Word>
__global__ void __launch_bounds__(kThreads) copy_kernel(const __grid_constant__ Several<skv_value_store_params> all) {
  const skv_value_store_params& p = all.of[blockIdx.z];
  const std::int64_t row_words = p.head_dim * static_cast<std::int64_t>(sizeof(__nv_bfloat16)) / sizeof(Word);
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t row = i / row_words, head = blockIdx.y;
  if (row >= p.chunks * p.chunk) {
    return;
  }
  const std::int64_t position = p.first_chunk * p.chunk + row, word = i % row_words;
  const auto* const ring = static_cast<const Word*>(p.source) + head * p.capacity * row_words;
  auto* const target = static_cast<Word*>(p.values) + head * p.chunk_capacity * p.chunk * row_words;
  target[position * row_words + word] = ring[position % p.capacity * row_words + word];
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

void copy_by_engine(const skv_value_store_params& p, const Launch& launch) {
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

// Calls that differ in addresses alone.
void store(const Several<skv_value_store_params>& all, int together, const Launch& launch) {
  const skv_value_store_params& p = all.of[0];
  require_bf16(p.storage_type, "value_store", "the storage type");
  if (!is_scaled(p.value_type)) {
    require_bf16(p.value_type, "value_store", "the value type, unless F8_E4M3, F12_E4M7 or F6_E2M3,");
  }
  if (p.chunks == 0) {
    return;
  }
  const std::int64_t row_bytes = p.head_dim * static_cast<std::int64_t>(sizeof(__nv_bfloat16));
  bool wide = row_bytes % 16 == 0, whole_words = true;
  for (int i = 0; i < together; ++i) {
    const skv_value_store_params& one = all.of[i];
    wide &= aligned_16({one.source, one.values}, {});
    if (is_scaled(p.value_type) && !aligned_16({one.values}, {})) {
      throw Error(SKV_INVALID_ARGUMENT, "value_store on CUDA: values must be aligned to 16 bytes");
    }
    whole_words &=
        (reinterpret_cast<std::uintptr_t>(one.source) | reinterpret_cast<std::uintptr_t>(one.values)) % 4 == 0;
  }
  const auto heads = static_cast<unsigned>(p.key_value_heads), each = static_cast<unsigned>(together);
  const auto quantize = [&]<class Format>(Format) {
    launch_kernel("value_store", wide ? quantize_kernel<Format, true> : quantize_kernel<Format, false>,
                  dim3(blocks_for(p.chunks * 32, kThreads), heads, each), dim3(kThreads), 0, launch.stream, all);
  };
  if (p.value_type == SKV_F8_E4M3) {
    quantize(EightBits{});
  } else if (p.value_type == SKV_F12_E4M7) {
    quantize(TwelveBits{});
  } else if (p.value_type == SKV_F6_E2M3) {
    quantize(SixBits{});
  } else if (whole_words && p.chunks * p.chunk * row_bytes <= kMostByKernel) {
    const std::int64_t words = p.chunks * p.chunk * row_bytes / (wide ? 16 : 4);
    launch_kernel("value_store", wide ? copy_kernel<uint4> : copy_kernel<std::uint32_t>,
                  dim3(blocks_for(words, kThreads), heads, each), dim3(kThreads), 0, launch.stream, all);
  } else {
    for (int i = 0; i < together; ++i) {
      copy_by_engine(all.of[i], launch);
    }
  }
}

}  // namespace

std::uint64_t value_store_workspace(const skv_value_store_params&, const DeviceTraits&) {
  return 0;
}

void value_store_each(const skv_value_store_params* all, int count, Launch& launch) {
  using P = skv_value_store_params;
  const auto alike = [](const P& a, const P& b) {
    return alike_but_for(a, b, &P::source, &P::values, &P::value_scales);
  };
  in_groups(all, count, alike, [&](const Several<P>& group, int together) { store(group, together, launch); });
}

void value_store(const skv_value_store_params& p, Launch& launch) {
  store(only(p), 1, launch);
}

}  // namespace skv::cuda
