// Small matrix products out of the nearest cache, rebuilt keys and their rotation; included by one file an
// instruction set.
#pragma once

#include "cpu/attention_kernels.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

// A tile of the product stays in registers: kProductRows x kProductVectors accumulators, of 16 registers or 32.
constexpr int kProductRows = kLanes == 16 ? 8 : 4;
constexpr int kProductVectors = 2;
constexpr int kProductColumns = kProductVectors * kLanes;
static_assert(kDimMultiple % kProductColumns == 0);

// out[i][c] = sum over k of a[i * a_row + k * a_step] * b[k * kProductColumns + c], plus, when scale is given,
// scale[c] * out[i][c].
template <bool kScaled>
inline void product_tile(const float* a, std::int64_t a_row, std::int64_t a_step, const float* b, std::int64_t inner,
                         float* out, std::int64_t out_stride, const float* scale) {
  Vector tile[kProductRows][kProductVectors] = {};
  if constexpr (kScaled) {
#pragma GCC unroll 8
    for (int c = 0; c < kProductVectors; ++c) {
      const Vector factor = load(scale + c * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kProductRows; ++i) {
        tile[i][c] = load(out + i * out_stride + c * kLanes) * factor;
      }
    }
  }
  for (std::int64_t k = 0; k < inner; ++k) {
    Vector row[kProductVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kProductVectors; ++c) {
      row[c] = load(b + k * kProductColumns + c * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kProductRows; ++i) {
      const Vector factor = broadcast(a[i * a_row + k * a_step]);
#pragma GCC unroll 8
      for (int c = 0; c < kProductVectors; ++c) {
        tile[i][c] = factor * row[c] + tile[i][c];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kProductRows; ++i) {
#pragma GCC unroll 8
    for (int c = 0; c < kProductVectors; ++c) {
      store(out + i * out_stride + c * kLanes, tile[i][c]);
    }
  }
}

// Bound by the multipliers. A tile of columns of b is brought together, so that its rows lie one behind the other.
void add_products(const float* a, int a_dim, const float* b, int b_dim, std::int64_t count, float* sums) {
  const std::int64_t rows = padded_dim(a_dim), width = padded_dim(b_dim);
  alignas(kVectorBytes) float columns[kProductsAtOnce * kProductColumns];
  alignas(kVectorBytes) float tile[kProductRows * kProductColumns];
  for (std::int64_t j = 0; j < width; j += kProductColumns) {
    for (std::int64_t t = 0; t < count; ++t) {
      for (int c = 0; c < kProductColumns; c += kLanes) {
        store(columns + t * kProductColumns + c, load(b + t * width + j + c));
      }
    }
    for (std::int64_t i = 0; i < rows; i += kProductRows) {
      product_tile<false>(a + i, 1, rows, columns, count, tile, kProductColumns, nullptr);
      for (int row = 0; row < kProductRows; ++row) {
        float* const to = sums + (i + row) * width + j;
        for (int c = 0; c < kProductColumns; c += kLanes) {
          store(to + c, load(to + c) + load(tile + row * kProductColumns + c));
        }
      }
    }
  }
}

// --- Rebuilt keys -----------------------------------------------------------------------------

// The packed basis is cut into tiles of kProductColumns columns, each [rank][kProductColumns], zero behind dim.

// Up to padded_dim(dim): the scores of rebuilt keys go over whole padded rows, which must hold zeros there.
std::int64_t column_tiles(int dim) {
  return padded_dim(dim) / kProductColumns;
}

// Spreads lines over `steps` calls of next().
class AheadAsked {
 public:
  AheadAsked(const AheadLines& ahead, std::int64_t steps) : ahead_(ahead), steps_(steps) {}
  void next() {
    ++step_;
    for (const std::int64_t until = ahead_.count * step_ / steps_; done_ < until; ++done_) {
      ask_for_line(ahead_.lines[done_]);
    }
  }

 private:
  const AheadLines& ahead_;
  std::int64_t steps_, step_ = 0, done_ = 0;
};

#if defined(__AVX512BF16__)
// Products of bf16 numbers are exact in fp32, so the pairwise dot product loses nothing and does two at once.
// Tiles are [ceil(rank/2)][kProductColumns][2], coefficients [tokens][ceil(rank/2)][2].
constexpr std::int64_t pairs_of(int rank) {
  return (rank + 1) / 2;
}

void pack_basis_pairs(const BFloat16* basis, int rank, int dim, BFloat16* packed) {
  const BFloat16 zero = {0};
  for (std::int64_t tile = 0; tile < column_tiles(dim); ++tile) {
    const std::int64_t first = tile * kProductColumns;
    const bool whole = first + kProductColumns <= dim;
    for (std::int64_t pair = 0; pair < pairs_of(rank); ++pair) {
      const BFloat16* const even = basis + 2 * pair * dim + first;
      const bool has_odd = 2 * pair + 1 < rank;
      if (whole && has_odd) {
        const __m512i low = _mm512_loadu_si512(even), high = _mm512_loadu_si512(even + dim);
        for (int half = 0; half < 2; ++half) {
          const __m256i low_half = half == 0 ? _mm512_castsi512_si256(low) : _mm512_extracti64x4_epi64(low, 1);
          const __m256i high_half = half == 0 ? _mm512_castsi512_si256(high) : _mm512_extracti64x4_epi64(high, 1);
          _mm512_storeu_si512(packed + half * kProductColumns,
                              _mm512_or_si512(_mm512_cvtepu16_epi32(low_half),
                                              _mm512_slli_epi32(_mm512_cvtepu16_epi32(high_half), 16)));
        }
      } else {
        for (int c = 0; c < kProductColumns; ++c) {
          const bool inside = first + c < dim;
          packed[2 * c] = inside ? even[c] : zero;
          packed[2 * c + 1] = inside && has_odd ? even[dim + c] : zero;
        }
      }
      packed += 2 * kProductColumns;
    }
  }
}

void pack_coefficient_pairs(const BFloat16* rows, int rank, std::int64_t tokens, BFloat16* packed) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    BFloat16* const to = packed + t * 2 * pairs_of(rank);
    to[2 * pairs_of(rank) - 1] = {0};
    std::memcpy(to, rows + t * rank, static_cast<std::size_t>(rank) * sizeof(BFloat16));
  }
}

// Whole numbers of eight bits are bf16 as they are. Rows of an even rank lie as one.
void pack_byte_pairs(const std::int8_t* rows, int rank, std::int64_t tokens, BFloat16* packed) {
  constexpr std::int64_t kAtOnce = 2 * kLanes;
  const bool dense = rank % 2 == 0;
  const std::int64_t lines = dense ? 1 : tokens, count = dense ? rank * tokens : rank, width = (count + 1) / 2 * 2;
  const auto first = [](std::int64_t elements) {
    return elements < kAtOnce ? (std::uint32_t{1} << elements) - 1 : ~std::uint32_t{0};
  };
  for (std::int64_t line = 0; line < lines; ++line) {
    for (std::int64_t i = 0; i < width; i += kAtOnce) {
      const __m256i bytes = _mm256_maskz_loadu_epi8(first(count - i), rows + line * count + i);
      const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
      const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
      _mm512_mask_storeu_epi16(packed + line * width + i, first(width - i), (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}

void rebuild_pairs(const void* const* coefficients, const BFloat16* basis, int rank, int dim, std::int64_t groups,
                   float* keys, const AheadLines& ahead) {
  static_assert(kProductRows == kRebuiltGroup);
  AheadAsked asked(ahead, column_tiles(dim) * groups);
  const std::int64_t pairs = pairs_of(rank), width = padded_dim(dim);
  for (std::int64_t tile = 0; tile < column_tiles(dim); ++tile) {
    const BFloat16* const columns = basis + tile * pairs * 2 * kProductColumns;
    for (std::int64_t group = 0; group < groups; ++group) {
      const BFloat16* const rows = static_cast<const BFloat16*>(coefficients[group]);
      asked.next();
      __m512 sums[kProductRows][kProductVectors];
#pragma GCC unroll 8
      for (auto& row : sums) {
#pragma GCC unroll 8
        for (auto& sum : row) {
          sum = _mm512_setzero_ps();
        }
      }
      for (std::int64_t pair = 0; pair < pairs; ++pair) {
        __m512bh column[kProductVectors];
#pragma GCC unroll 8
        for (int c = 0; c < kProductVectors; ++c) {
          column[c] = (__m512bh)_mm512_loadu_si512(columns + (pair * kProductVectors + c) * 2 * kLanes);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kProductRows; ++i) {
          std::int32_t both;
          std::memcpy(&both, rows + (i * pairs + pair) * 2, sizeof(both));
          const __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
          for (int c = 0; c < kProductVectors; ++c) {
            sums[i][c] = _mm512_dpbf16_ps(sums[i][c], factor, column[c]);
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kProductRows; ++i) {
#pragma GCC unroll 8
        for (int c = 0; c < kProductVectors; ++c) {
          store(keys + (group * kProductRows + i) * width + tile * kProductColumns + c * kLanes, sums[i][c]);
        }
      }
    }
  }
}
constexpr bool kHasPairProducts = true;
#else
constexpr bool kHasPairProducts = false;
#endif

bool in_pairs(std::int32_t type) {
  return kHasPairProducts && type == SKV_BF16;
}

std::uint64_t packed_basis_bytes(std::int32_t type, int rank, int dim) {
  const std::int64_t columns = column_tiles(dim) * kProductColumns;
  return static_cast<std::uint64_t>(in_pairs(type) ? (rank + 1) / 2 * 2 * columns * 2 : rank * columns * 4);
}

std::uint64_t packed_coefficients_bytes(std::int32_t type, int rank, std::int64_t tokens) {
  return static_cast<std::uint64_t>(in_pairs(type) ? (rank + 1) / 2 * 2 * tokens * 2 : rank * tokens * 4);
}

template <class T>
void widen_all(const T* from, std::int64_t count, float* to) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(to + i, load(from + i));
  }
  if (i < count) {
    const Vector last = load_first(from + i, static_cast<int>(count - i));
    std::memcpy(to + i, &last, static_cast<std::size_t>(count - i) * sizeof(float));
  }
}

template <class T>
void pack_basis_floats(const T* basis, int rank, int dim, float* packed) {
  for (std::int64_t tile = 0; tile < column_tiles(dim); ++tile) {
    const std::int64_t first = tile * kProductColumns;
    const std::int64_t left = first < dim ? dim - first : 0;
    const std::int64_t columns = left < kProductColumns ? left : kProductColumns;
    for (std::int64_t k = 0; k < rank; ++k) {
      if (columns > 0) {
        widen_all(basis + k * dim + first, columns, packed);
      }
      for (std::int64_t c = columns; c < kProductColumns; ++c) {
        packed[c] = 0;
      }
      packed += kProductColumns;
    }
  }
}

// Calls work(rows of their C++ type).
template <class Work>
void with_rows(std::int32_t type, const void* rows, Work&& work) {
  if (type == SKV_BF16) {
    work(static_cast<const BFloat16*>(rows));
  } else if (type == SKV_F16) {
    work(static_cast<const Float16*>(rows));
  } else if (type == SKV_I8) {
    work(static_cast<const std::int8_t*>(rows));
  } else {
    work(static_cast<const float*>(rows));
  }
}

void pack_basis(std::int32_t type, const void* basis, int rank, int dim, void* packed) {
  // Tiles of columns are read one after the other, which no prefetcher of a processor foresees.
  ask_for(basis, 0, static_cast<std::int64_t>(rank) * dim * element_bytes(type));
#if defined(__AVX512BF16__)
  if (in_pairs(type)) {
    pack_basis_pairs(static_cast<const BFloat16*>(basis), rank, dim, static_cast<BFloat16*>(packed));
    return;
  }
#endif
  with_rows(type, basis, [&](const auto* rows) { pack_basis_floats(rows, rank, dim, static_cast<float*>(packed)); });
}

void pack_coefficients(std::int32_t type, std::int32_t coefficient_type, const void* coefficients, int rank,
                       std::int64_t tokens, void* packed) {
#if defined(__AVX512BF16__)
  if (in_pairs(type)) {
    auto* const to = static_cast<BFloat16*>(packed);
    coefficient_type == SKV_I8 ? pack_byte_pairs(static_cast<const std::int8_t*>(coefficients), rank, tokens, to)
                               : pack_coefficient_pairs(static_cast<const BFloat16*>(coefficients), rank, tokens, to);
    return;
  }
#else
  (void)type;
#endif
  with_rows(coefficient_type, coefficients,
            [&](const auto* rows) { widen_all(rows, rank * tokens, static_cast<float*>(packed)); });
}

// Whether coefficients lie as rebuild() reads them.
bool plain_coefficients(std::int32_t type, std::int32_t coefficient_type, int rank) {
  return coefficient_type == type && (in_pairs(type) ? rank % 2 == 0 : type == SKV_F32);
}

void rebuild(std::int32_t type, const void* const* coefficients, const void* basis, int rank, int dim,
             std::int64_t groups, float* keys, const AheadLines& ahead) {
#if defined(__AVX512BF16__)
  if (in_pairs(type)) {
    rebuild_pairs(coefficients, static_cast<const BFloat16*>(basis), rank, dim, groups, keys, ahead);
    return;
  }
#else
  (void)type;
#endif
  const std::int64_t width = padded_dim(dim);
  AheadAsked asked(ahead, column_tiles(dim) * groups);
  for (std::int64_t tile = 0; tile < column_tiles(dim); ++tile) {
    const float* const columns = static_cast<const float*>(basis) + tile * rank * kProductColumns;
    for (std::int64_t group = 0; group < groups; ++group) {
      asked.next();
      for (std::int64_t t = 0; t < kRebuiltGroup; t += kProductRows) {
        product_tile<false>(static_cast<const float*>(coefficients[group]) + t * rank, rank, 1, columns, rank,
                            keys + (group * kRebuiltGroup + t) * width + tile * kProductColumns, width, nullptr);
      }
    }
  }
}

// --- Rotation ---------------------------------------------------------------------------------

// Cosines and sines of a row of a table, apart: [pairs] each from [pairs][2].
inline void part_row(const float* row, int pairs, float* cosine, float* sine) {
  int i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const Vector low = load(row + 2 * i), high = load(row + 2 * i + kLanes);
    store(cosine + i, even_lanes(low, high));
    store(sine + i, odd_lanes(low, high));
  }
  for (; i < pairs; ++i) {
    cosine[i] = row[2 * i];
    sine[i] = row[2 * i + 1];
  }
}

// One angle of a pair of elements or of kLanes of them.
template <class T>
inline void rotate_pair(T coarse_cosine, T coarse_sine, T fine_cosine, T fine_sine, T* x, T* y) {
  const T cosine = coarse_cosine * fine_cosine - coarse_sine * fine_sine;
  const T sine = coarse_cosine * fine_sine + coarse_sine * fine_cosine;
  const T before = *x;
  *x = before * cosine - *y * sine;
  *y = *y * cosine + before * sine;
}

// Eight multiplications or so a pair of elements, a fiftieth of what rebuilding them took.
void rotate(const skv_rope& rope, std::int64_t position, std::int64_t tokens, int dim, float* keys) {
  const int half = rope.rotary_dim / 2;
  const bool split_halves = rope.pairing == SKV_HALF_SPLIT;
  const std::int64_t width = padded_dim(dim);
  alignas(kVectorBytes) float cosine[SKV_MAX_HEAD_DIM / 2], sine[SKV_MAX_HEAD_DIM / 2];
  std::int64_t coarse_row = position / rope.fine_rows, fine_row = position % rope.fine_rows;
  for (std::int64_t t = 0; t < tokens; ++t, ++fine_row) {
    if (fine_row == rope.fine_rows) {
      fine_row = 0;
      ++coarse_row;
    }
    if (t == 0 || fine_row == 0) {
      part_row(rope.coarse + coarse_row * rope.rotary_dim, half, cosine, sine);
    }
    const float* const fine = rope.fine + fine_row * rope.rotary_dim;
    float* const key = keys + t * width;
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Vector low = load(fine + 2 * i), high = load(fine + 2 * i + kLanes);
      float* const first = key + (split_halves ? i : 2 * i);
      float* const second = split_halves ? first + half : first + kLanes;
      Vector x = load(first), y = load(second);
      if (!split_halves) {
        const Vector both = x;
        x = even_lanes(both, y);
        y = odd_lanes(both, y);
      }
      rotate_pair(load(cosine + i), load(sine + i), even_lanes(low, high), odd_lanes(low, high), &x, &y);
      store(first, split_halves ? x : front_lanes(x, y));
      store(second, split_halves ? y : back_lanes(x, y));
    }
    for (; i < half; ++i) {
      rotate_pair(cosine[i], sine[i], fine[2 * i], fine[2 * i + 1], key + (split_halves ? i : 2 * i),
                  key + (split_halves ? half + i : 2 * i + 1));
    }
  }
}

}  // namespace
}  // namespace skv::cpu
