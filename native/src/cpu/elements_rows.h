// Row conversions, compiled once an instruction set: the includer names the namespace.
// The loops are plain; the compiler makes vectors of them. Float16 has instructions of its own.
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"

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
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace skv::cpu
