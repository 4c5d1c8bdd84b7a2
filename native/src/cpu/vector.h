// Vectors of floats as wide as the including file may use, for kernels that are compiled once an instruction
// set. Everything is in an unnamed namespace: the same names mean other code in every such file.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/elements.h"

#if defined(__AVX2__)
// gcc 12 takes the deliberately undefined registers of its own header for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace skv::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kVectorBytes = kLanes * 4;

// May lie anywhere a float may.
typedef float Vector __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t IntVector __attribute__((vector_size(kVectorBytes)));
typedef float LooseVector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

// x less zero is x, and nothing is computed. Zero and x would have to be added, since that makes 0 of -0.
inline Vector broadcast(float x) {
  return x - Vector{};
}
inline Vector largest(Vector a, Vector b) {
  return a > b ? a : b;
}
inline Vector load(const float* p) {
  return *reinterpret_cast<const LooseVector*>(p);
}
inline void store(float* p, Vector x) {
  *reinterpret_cast<LooseVector*>(p) = x;
}

// Asks for a cache line into the second cache. A line that is asked for into the first holds one of its few miss
// buffers until memory answers: dense attention then reads at half the speed (Zen 4: 21 GB/s for 40).
inline void ask_for_line(const void* address) {
  constexpr int kRead = 0, kSecondCache = 2;
  __builtin_prefetch(address, kRead, kSecondCache);
}

inline void ask_for(const void* begin, std::int64_t offset, std::int64_t bytes) {
  constexpr std::int64_t kCacheLine = 64;
  for (std::int64_t at = 0; at < bytes; at += kCacheLine) {
    ask_for_line(static_cast<const char*>(begin) + offset + at);
  }
}

// --- Elements, widened ------------------------------------------------------------------------

#if defined(__AVX512F__)
inline Vector load(const BFloat16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline Vector load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline IntVector load_bytes(const Float8* p) {
  return reinterpret_cast<IntVector>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Vector load(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#elif defined(__AVX2__)
inline Vector load(const BFloat16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline Vector load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline IntVector load_bytes(const Float8* p) {
  return reinterpret_cast<IntVector>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Vector load(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#else
inline Vector load(const BFloat16* p) {
  IntVector bits;
  for (int i = 0; i < kLanes; ++i) {
    bits[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(p[i].bits) << 16);
  }
  return reinterpret_cast<Vector>(bits);
}
inline Vector load(const Float16* p) {
  Vector x;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = to_float(p[i]);
  }
  return x;
}
inline IntVector load_bytes(const Float8* p) {
  IntVector x;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = p[i].bits;
  }
  return x;
}
inline Vector load(const std::int8_t* p) {
  Vector x;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = static_cast<float>(p[i]);
  }
  return x;
}
#endif

// e4m3's exponent and mantissa in the float's place are off by a factor of 2^120, for subnormals as well.
inline Vector load(const Float8* p) {
  const IntVector bits = load_bytes(p);
  const IntVector magnitude = bits & 0x7f;
  const IntVector sign = (bits & 0x80) << 24;
  const IntVector value = reinterpret_cast<IntVector>(reinterpret_cast<Vector>(magnitude << 20) * 0x1p120F);
  const IntVector nan = IntVector{} + 0x7fc00000;
  return reinterpret_cast<Vector>((magnitude == 0x7f ? nan : value) | sign);
}

// The first `count` < kLanes elements; the other lanes are zero. Reads nothing behind them.
template <class T>
inline Vector load_first(const T* p, int count) {
  T padded[kLanes] = {};
  for (int i = 0; i < count; ++i) {
    padded[i] = p[i];
  }
  return load(padded);
}

// --- Two vectors at once ----------------------------------------------------------------------

// bf16 rows are cheaper to widen when even and odd elements part: a shift and a mask, nothing across lanes.
template <class T>
constexpr bool kPairs = false;

struct Pair {
  Vector even, odd;
};

#if defined(__AVX512F__)
template <>
constexpr bool kPairs<BFloat16> = true;

inline Pair load_pair(const BFloat16* p) {
  const __m512i both = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000U))))};
}
inline Pair split(Vector low, Vector high) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return {_mm512_permutex2var_ps(low, even, high),
          _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high)};
}
// The two vectors of which split() made the pair, in that order.
inline Pair join(const Pair& pair) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return {_mm512_permutex2var_ps(pair.even, low, pair.odd),
          _mm512_permutex2var_ps(pair.even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), pair.odd)};
}
#elif defined(__AVX2__)
template <>
constexpr bool kPairs<BFloat16> = true;

inline Pair load_pair(const BFloat16* p) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000U))))};
}
inline Pair split(Vector low, Vector high) {
  // Within halves, then the quarters of both in order.
  const auto in_order = [](__m256 x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); };
  return {in_order(_mm256_shuffle_ps(low, high, 0x88)), in_order(_mm256_shuffle_ps(low, high, 0xdd))};
}
inline Pair join(const Pair& pair) {
  const __m256 front = _mm256_unpacklo_ps(pair.even, pair.odd), back = _mm256_unpackhi_ps(pair.even, pair.odd);
  return {_mm256_permute2f128_ps(front, back, 0x20), _mm256_permute2f128_ps(front, back, 0x31)};
}
#else
// Here a pair is two vectors as they lie, and nothing is gained by it.
inline Pair load_pair(const BFloat16* p) {
  return {load(p), load(p + kLanes)};
}
inline Pair split(Vector low, Vector high) {
  return {low, high};
}
inline Pair join(const Pair& pair) {
  return pair;
}
#endif

// --- Across lanes -----------------------------------------------------------------------------

// Elements of even and of odd number of two vectors one behind the other; and one of each in turn, the front and the
// back half of that.
#if defined(__AVX512F__)
inline Vector even_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
inline Vector odd_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
inline Vector front_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vector back_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif defined(__AVX2__)
inline Vector even_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}
inline Vector odd_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
}
inline Vector front_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline Vector back_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
inline Vector even_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
inline Vector odd_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
inline Vector front_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
inline Vector back_lanes(Vector a, Vector b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

struct Sums {
  float at[4];
};

// The sums of four vectors. Each comes out the same in whichever place it stands.
#if defined(__AVX512F__)
inline Sums sums_of(Vector a, Vector b, Vector c, Vector d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  Sums sums;
  _mm_storeu_ps(sums.at, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  return sums;
}
#elif defined(__AVX2__)
inline Sums sums_of(Vector a, Vector b, Vector c, Vector d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  Sums sums;
  _mm_storeu_ps(sums.at, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  return sums;
}
#else
inline Sums sums_of(Vector a, Vector b, Vector c, Vector d) {
  const auto sum = [](Vector x) { return (x[0] + x[2]) + (x[1] + x[3]); };
  return {{sum(a), sum(b), sum(c), sum(d)}};
}
#endif

inline float sum_of(Vector x) {
  return sums_of(x, Vector{}, Vector{}, Vector{}).at[0];
}

inline float largest_of(Vector x) {
  float largest = x[0];
  for (int i = 1; i < kLanes; ++i) {
    largest = x[i] > largest ? x[i] : largest;
  }
  return largest;
}

// --- Exponential ------------------------------------------------------------------------------

// e^x for x <= 88, to about one unit in the last place: 2^n times the Taylor polynomial of the rest, which is at
// most ln(2)/2 in magnitude, where degree 7 is exact to 2^-27. Below the smallest normal number: 0 or what is left of
// it. NaN stays NaN.
inline Vector exponential(Vector x) {
#if defined(__AVX512F__)
  // scalef() takes an exponent below the smallest: what is there is not zero before 2^-149.
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  constexpr float kVanished = -104.0F;
  const __m512 clamped = _mm512_max_ps(broadcast(kVanished), x);  // of NaN and a number, the second: x
  const __m512 n = _mm512_roundscale_ps(clamped * kLog2E, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vector r = (clamped - n * kLn2High) - n * kLn2Low;
#else
  constexpr float kLog2E = 1.44269504088896341F;
  constexpr float kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  constexpr float kRoundToInteger = 12582912.0F;  // 1.5 * 2^23: the integer is in the low bits of the sum
  constexpr float kSmallest = -87.3365F;
  const Vector clamped = x < kSmallest ? broadcast(kSmallest) : x;
  const Vector shifted = clamped * kLog2E + kRoundToInteger;
  const Vector n = shifted - kRoundToInteger;
  const Vector r = (clamped - n * kLn2High) - n * kLn2Low;
#endif
  Vector p = r * (1.0F / 5040.0F) + (1.0F / 720.0F);
  p = p * r + (1.0F / 120.0F);
  p = p * r + (1.0F / 24.0F);
  p = p * r + (1.0F / 6.0F);
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, n);
#else
  // A product, not a sum of exponents: NaN times anything is NaN.
  constexpr std::int32_t kExponentOfOne = 127;
  const Vector scaled = p * reinterpret_cast<Vector>((reinterpret_cast<IntVector>(shifted) + kExponentOfOne) << 23);
  return x < kSmallest ? Vector{} : scaled;
#endif
}

inline int full_vectors(int count) {
  return count / kLanes;
}
inline int rest_of_vector(int count) {
  return count % kLanes;
}

}  // namespace
}  // namespace skv::cpu
