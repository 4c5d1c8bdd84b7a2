// Products of coefficients and basis straight from memory to tensor cores: what low_rank_project and rebuild_keys
// share. A lane takes consecutive elements of a row; the order of the inner dimension and of the columns of a tile
// is chosen to fit (see mma.cuh).
#pragma once

#include "cuda/mma.cuh"
#include "cuda/vector.cuh"

namespace skv::cuda {

// kCount consecutive elements from `begin` of a row of `width`, zero behind its end, two to a word. kWide: the row is
// aligned for it and the width is a multiple of kCount.
template <int kCount, bool kWide>
__device__ inline void load_pairs(std::uint32_t (&to)[kCount / 2], const __nv_bfloat16* row, int begin, int width) {
  if constexpr (kWide) {
    if (begin >= width) {
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        to[i] = 0;
      }
      return;
    }
    const auto piece = *reinterpret_cast<const Vector<std::uint32_t, kCount / 2>*>(row + begin);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      to[i] = piece.at[i];
    }
  } else {
    const auto* const bits = reinterpret_cast<const unsigned short*>(row);
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const int at = begin + 2 * i;
      const std::uint32_t low = at < width ? bits[at] : 0, high = at + 1 < width ? bits[at + 1] : 0;
      to[i] = low | high << 16;
    }
  }
}

// Four consecutive coefficients from `begin` of a row of `rank`, zero behind its end, as bf16, two to a word.
template <bool kWide>
__device__ inline void load_coefficients(std::uint32_t (&to)[2], const __nv_bfloat16* row, int begin, int rank) {
  load_pairs<4, kWide>(to, row, begin, rank);
}

template <bool kWide>
__device__ inline void load_coefficients(std::uint32_t (&to)[2], const std::int8_t* row, int begin, int rank) {
  std::uint32_t four = 0;
  if constexpr (kWide) {
    four = begin < rank ? *reinterpret_cast<const std::uint32_t*>(row + begin) : 0U;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      four |= begin + i < rank ? static_cast<std::uint32_t>(static_cast<std::uint8_t>(row[begin + i])) << 8 * i : 0U;
    }
  }
  to[0] = bf16_of_i8<0>(four);
  to[1] = bf16_of_i8<2>(four);
}

constexpr int kKeyTile = 16;  // elements of a head that a warp makes at a time

// keys = coefficients . basis for 16 * kRows tokens and 16 elements of one head from `begin`; zero behind its end.
// With g = lane / 4 and t = lane % 4, keys[m][i] is element begin + 4t + i of token 16m + g, keys[m][4 + i] that of
// token 16m + g + 8. coefficients [..][rank], bf16 or I8, of which `tokens` are read; basis [rank][dim].
template <int kRows, bool kWide, class Coefficient>
__device__ inline void make_keys(float (&keys)[kRows][8], const Coefficient* coefficients, int tokens,
                                 const __nv_bfloat16* basis, int rank, int dim, int begin) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  float even[kRows][4] = {}, odd[kRows][4] = {};  // elements 2n and 2n + 1 of the tile
#pragma unroll 2
  for (int first = 0; first < rank; first += 16) {
    const int j = first + 4 * t;
    std::uint32_t rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t pair[1] = {0};
      if (j + i < rank) {
        load_pairs<2, kWide>(pair, basis + static_cast<std::int64_t>(j + i) * dim, begin + 2 * g, dim);
      }
      rows[i] = pair[0];
    }
    const std::uint32_t even0 = __byte_perm(rows[0], rows[1], 0x5410), even1 = __byte_perm(rows[2], rows[3], 0x5410);
    const std::uint32_t odd0 = __byte_perm(rows[0], rows[1], 0x7632), odd1 = __byte_perm(rows[2], rows[3], 0x7632);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      std::uint32_t low[2] = {0, 0}, high[2] = {0, 0};
      const int token = 16 * m + g;
      if (token < tokens) {
        load_coefficients<kWide>(low, coefficients + static_cast<std::int64_t>(token) * rank, j, rank);
      }
      if (token + 8 < tokens) {
        load_coefficients<kWide>(high, coefficients + static_cast<std::int64_t>(token + 8) * rank, j, rank);
      }
      mma_bf16(even[m], low[0], high[0], low[1], high[1], even0, even1);
      mma_bf16(odd[m], low[0], high[0], low[1], high[1], odd0, odd1);
    }
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keys[m][4 * half] = even[m][2 * half];
      keys[m][4 * half + 1] = odd[m][2 * half];
      keys[m][4 * half + 2] = even[m][2 * half + 1];
      keys[m][4 * half + 3] = odd[m][2 * half + 1];
    }
  }
}

}  // namespace skv::cuda
