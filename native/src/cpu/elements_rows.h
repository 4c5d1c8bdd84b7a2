// Row conversions, compiled once an instruction set: the includer names the namespace.
// The loops are plain; the compiler makes vectors of them. Float16 has instructions of its own.
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"
#include "value_types.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace skv::cpu {
namespace {

inline void widen_float(const void* from, float* to, std::int64_t count) {
  if (count > 0) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  }
}

inline void narrow_float(const float* from, void* to, std::int64_t count) {
  if (count > 0) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  }
}

template <class T>
void widen_row(const void* from, float* __restrict__ to, std::int64_t count) {
  const T* __restrict__ const source = static_cast<const T*>(from);
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = to_float(source[i]);
  }
}

template <class T>
void narrow_row(const float* __restrict__ from, void* to, std::int64_t count) {
  T* __restrict__ const target = static_cast<T*>(to);
  for (std::int64_t i = 0; i < count; ++i) {
    target[i] = from_float<T>(from[i]);
  }
}

#if defined(__F16C__)
template <>
void widen_row<Float16>(const void* from, float* __restrict__ to, std::int64_t count) {
  constexpr std::int64_t kLanes = 8;
  const Float16* const source = static_cast<const Float16*>(from);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
  }
  for (; i < count; ++i) {
    to[i] = to_float(source[i]);
  }
}

template <>
void narrow_row<Float16>(const float* __restrict__ from, void* to, std::int64_t count) {
  constexpr std::int64_t kLanes = 8;
  Float16* const target = static_cast<Float16*>(to);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  for (; i < count; ++i) {
    target[i] = from_float<Float16>(from[i]);
  }
}
#endif

inline Widen widen_here(std::int32_t type) {
  switch (type) {
    case SKV_F32:
      return widen_float;
    case SKV_BF16:
      return widen_row<BFloat16>;
    case SKV_F16:
      return widen_row<Float16>;
    case SKV_F8_E4M3:
      return widen_row<Float8>;
    case SKV_I8:
      return widen_row<std::int8_t>;
    default:
      return nullptr;
  }
}

inline Narrow narrow_here(std::int32_t type) {
  switch (type) {
    case SKV_F32:
      return narrow_float;
    case SKV_BF16:
      return narrow_row<BFloat16>;
    case SKV_F16:
      return narrow_row<Float16>;
    case SKV_F8_E4M3:
      return narrow_row<Float8>;
    case SKV_I8:
      return narrow_row<std::int8_t>;
    default:
      return nullptr;
  }
}

// Twelve bits: a BF16 of the lowest sixteen exponents, which two multiplications by powers of two bring to its place.
SKV_INLINE std::uint16_t unpack_12(std::uint32_t low, std::uint32_t high, float scale) {
  constexpr std::uint32_t kSign = 8, kUpperExponent = 7;
  const std::uint32_t bits = (high & kSign) << 28 | (high & kUpperExponent) << 24 | low << 16;
  const float number = std::bit_cast<float>(bits) * kTwelveBitPower * scale;
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(number) >> 16);
}

inline void unpack_12_row(const void* from, float scale, void* to, std::int64_t elements) {
  const std::int64_t half = elements / 2;
  const auto* __restrict__ const low = static_cast<const std::uint8_t*>(from);
  const auto* __restrict__ const high = low + elements;
  auto* __restrict__ const target = static_cast<std::uint16_t*>(to);
  for (std::int64_t i = 0; i < half; ++i) {
    target[i] = unpack_12(low[i], high[i] & 15U, scale);
  }
  for (std::int64_t i = 0; i < half; ++i) {
    target[half + i] = unpack_12(low[half + i], high[i] >> 4U, scale);
  }
}

// Rounded as from_float does, with the numbers below the normal ones equidistant.
SKV_INLINE std::uint32_t pack_12(float x) {
  constexpr std::uint32_t kSmallestNormal = (127U - 6U) << 23, kBias = (127U - 7U) << 23;
  constexpr float kLastPlace = 0x1p10F;  // has it at 2^-13, the subnormal's
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), magnitude = bits & 0x7fffffffU;
  const std::uint32_t normal = (magnitude + 0x7fffU + ((magnitude >> 16) & 1U) - kBias) >> 16;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + kLastPlace) -
                                  std::bit_cast<std::uint32_t>(kLastPlace);
  const std::uint32_t code = magnitude < kSmallestNormal ? subnormal : normal;
  return (code < kTwelveBitLargest ? code : kTwelveBitLargest) | bits >> 31 << 11;
}

inline void pack_12_row(const float* __restrict__ from, void* to, std::int64_t elements) {
  const std::int64_t half = elements / 2;
  auto* __restrict__ const low = static_cast<std::uint8_t*>(to);
  auto* __restrict__ const high = low + elements;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::uint32_t a = pack_12(from[i]), b = pack_12(from[half + i]);
    low[i] = static_cast<std::uint8_t>(a);
    low[half + i] = static_cast<std::uint8_t>(b);
    high[i] = static_cast<std::uint8_t>(a >> 8 | b >> 8 << 4);
  }
}

// Six bits: sign and the lower five bits of an e4m3.
SKV_INLINE std::uint8_t unpack_6(std::uint32_t low, std::uint32_t high) {
  return static_cast<std::uint8_t>((low & 15U) | (high & 1U) << 4 | (high & 2U) << 6);
}

inline void unpack_6_row(const void* from, float /*scale*/, void* to, std::int64_t elements) {
  const std::int64_t quarter = elements / 4;
  const auto* __restrict__ const low = static_cast<const std::uint8_t*>(from);
  const auto* __restrict__ const high = low + 2 * quarter;
  auto* __restrict__ const target = static_cast<std::uint8_t*>(to);
  // One quarter after the other, so that the compiler sees that they do not overlap.
  for (std::int64_t i = 0; i < quarter; ++i) {
    target[i] = unpack_6(low[i], high[i]);
  }
  for (std::int64_t i = 0; i < quarter; ++i) {
    target[quarter + i] = unpack_6(low[quarter + i], high[i] >> 2U);
  }
  for (std::int64_t i = 0; i < quarter; ++i) {
    target[2 * quarter + i] = unpack_6(low[i] >> 4U, high[i] >> 4U);
  }
  for (std::int64_t i = 0; i < quarter; ++i) {
    target[3 * quarter + i] = unpack_6(low[quarter + i] >> 4U, high[i] >> 6U);
  }
}

inline void pack_6_row(const float* __restrict__ from, void* to, std::int64_t elements) {
  const std::int64_t quarter = elements / 4;
  auto* __restrict__ const low = static_cast<std::uint8_t*>(to);
  auto* __restrict__ const high = low + 2 * quarter;
  const auto code = [&](std::int64_t i) {
    constexpr std::uint32_t kMagnitude = 0x7f, kLargest = 0x1f;
    const std::uint32_t bits = from_float<Float8>(from[i]).bits, magnitude = bits & kMagnitude;
    return (magnitude < kLargest ? magnitude : kLargest) | (bits >> 7) << 5;
  };
  for (std::int64_t i = 0; i < quarter; ++i) {
    const std::uint32_t a = code(i), b = code(quarter + i), c = code(2 * quarter + i), d = code(3 * quarter + i);
    low[i] = static_cast<std::uint8_t>((a & 15U) | (c & 15U) << 4);
    low[quarter + i] = static_cast<std::uint8_t>((b & 15U) | (d & 15U) << 4);
    high[i] = static_cast<std::uint8_t>(a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6);
  }
}

inline Unpack unpack_here(std::int32_t type) {
  return type == SKV_F12_E4M7 ? unpack_12_row : type == SKV_F6_E2M3 ? unpack_6_row : nullptr;
}

inline Pack pack_here(std::int32_t type) {
  return type == SKV_F12_E4M7 ? pack_12_row : type == SKV_F6_E2M3 ? pack_6_row : nullptr;
}

}  // namespace
}  // namespace skv::cpu
