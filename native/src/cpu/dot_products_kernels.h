// The kernel of dot_products.h, included by one file an instruction set. All in an unnamed namespace: the same
// names mean other code in every such file.
#include <algorithm>
#include <cstdint>

#include "cpu/dot_products.h"
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

// A tile of sums stays in registers: 32 of them with AVX-512, 16 otherwise.
inline constexpr int kTileRows = 4;
struct FourSums {
  float at[kTileRows];
};

#if defined(__AVX512F__)
inline constexpr int kVectorLanes = 16, kTileColumns = 6;
using Lanes = __m512;
inline Lanes zero_lanes() {
  return _mm512_setzero_ps();
}
inline Lanes read(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Lanes read(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Lanes read(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline __m128 quarter(Lanes x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#elif defined(__AVX2__)
inline constexpr int kVectorLanes = 8, kTileColumns = 3;
using Lanes = __m256;
inline Lanes zero_lanes() {
  return _mm256_setzero_ps();
}
inline Lanes read(const float* p) {
  return _mm256_loadu_ps(p);
}
inline Lanes read(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Lanes read(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline __m128 quarter(Lanes x) {
  return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
#else
inline constexpr int kVectorLanes = 4, kTileColumns = 3;
typedef float Lanes __attribute__((vector_size(16)));
typedef float LooseLanes __attribute__((vector_size(16), aligned(4), may_alias));
inline Lanes zero_lanes() {
  return Lanes{};
}
inline Lanes read(const float* p) {
  return *reinterpret_cast<const LooseLanes*>(p);
}
template <class T>
inline Lanes read(const T* p) {
  return Lanes{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return a * b + c;
}
#endif

// The sums of four vectors; each comes out the same in whichever place it stands.
#if defined(__AVX2__)
inline FourSums across(Lanes a, Lanes b, Lanes c, Lanes d) {
  __m128 qa = quarter(a), qb = quarter(b), qc = quarter(c), qd = quarter(d);
  _MM_TRANSPOSE4_PS(qa, qb, qc, qd);
  FourSums sums;
  _mm_storeu_ps(sums.at, _mm_add_ps(_mm_add_ps(qa, qb), _mm_add_ps(qc, qd)));
  return sums;
}
#else
inline FourSums across(Lanes a, Lanes b, Lanes c, Lanes d) {
  const auto sum = [](Lanes x) { return (x[0] + x[1]) + (x[2] + x[3]); };
  return {{sum(a), sum(b), sum(c), sum(d)}};
}
#endif

// The first `count` elements, zeros behind them; reads nothing further.
template <class T>
inline Lanes read_first(const T* p, int count) {
  T padded[kVectorLanes] = {};
  for (int i = 0; i < count; ++i) {
    padded[i] = p[i];
  }
  return read(padded);
}

template <int kRows, int kColumns, class T>
void tile(const float* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, std::int64_t inner, float* out,
          std::int64_t out_stride) {
  Lanes sums[kTileRows][kColumns];
  for (int i = 0; i < kTileRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      sums[i][j] = zero_lanes();
    }
  }
  const auto step = [&](auto&& read_a, auto&& read_b) __attribute__((always_inline)) {
    Lanes column[kColumns];
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      column[j] = read_b(j);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Lanes row = read_a(i);
#pragma GCC unroll 8
      for (int j = 0; j < kColumns; ++j) {
        sums[i][j] = multiply_add(row, column[j], sums[i][j]);
      }
    }
  };
  std::int64_t k = 0;
  for (; k + kVectorLanes <= inner; k += kVectorLanes) {
    step([&](int i) { return read(a + i * a_stride + k); }, [&](int j) { return read(b + j * b_stride + k); });
  }
  if (const int rest = static_cast<int>(inner - k); rest > 0) {
    step([&](int i) { return read_first(a + i * a_stride + k, rest); },
         [&](int j) { return read_first(b + j * b_stride + k, rest); });
  }
  for (int j = 0; j < kColumns; ++j) {
    const FourSums four = across(sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
    for (int i = 0; i < kRows; ++i) {
      out[i * out_stride + j] += four.at[i];
    }
  }
}

template <int kColumns, class T>
void tile_of_rows(const float* a, std::int64_t a_stride, std::int64_t rows, const T* b, std::int64_t b_stride,
                  std::int64_t inner, float* out, std::int64_t out_stride) {
  for (; rows >= kTileRows; rows -= kTileRows) {
    tile<kTileRows, kColumns>(a, a_stride, b, b_stride, inner, out, out_stride);
    a += kTileRows * a_stride;
    out += kTileRows * out_stride;
  }
  switch (rows) {
    case 3:
      return tile<3, kColumns>(a, a_stride, b, b_stride, inner, out, out_stride);
    case 2:
      return tile<2, kColumns>(a, a_stride, b, b_stride, inner, out, out_stride);
    case 1:
      return tile<1, kColumns>(a, a_stride, b, b_stride, inner, out, out_stride);
    default:
      return;
  }
}

// Floor: 2*rows*columns*inner operations, or b through memory once. Bound by the multipliers for many rows
// (kTileRows + kTileColumns reads for kTileRows * kTileColumns multiply-adds), by memory for few.
template <class T>
void row_products(const float* a, std::int64_t a_stride, std::int64_t rows, const void* b, std::int64_t b_stride,
                  std::int64_t columns, std::int64_t inner, float* out, std::int64_t out_stride) {
  const T* const weights = static_cast<const T*>(b);
  for (std::int64_t k = 0; k < inner; k += kSumPiece) {
    const std::int64_t piece = std::min(kSumPiece, inner - k);
    std::int64_t j = 0;
    // The columns of a tile stay in the nearest cache while the rows pass by.
    for (; j + kTileColumns <= columns; j += kTileColumns) {
      tile_of_rows<kTileColumns>(a + k, a_stride, rows, weights + j * b_stride + k, b_stride, piece, out + j,
                                 out_stride);
    }
    for (; j < columns; ++j) {
      tile_of_rows<1>(a + k, a_stride, rows, weights + j * b_stride + k, b_stride, piece, out + j, out_stride);
    }
  }
}

inline RowProducts row_products_here(std::int32_t type) {
  switch (type) {
    case SKV_F32:
      return row_products<float>;
    case SKV_BF16:
      return row_products<BFloat16>;
    case SKV_F16:
      return row_products<Float16>;
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace skv::cpu
