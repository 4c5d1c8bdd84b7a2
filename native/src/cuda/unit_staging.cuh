// Into shared memory: queries, the basis of a head, rotations, and the coefficients of a unit.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/mma.cuh"
#include "cuda/unit_shape.cuh"

namespace skv::cuda {

// Queries as bf16: rows 0..7 the heads and rows 8..15 what their rounding left, or, with more than 8 heads, 16 rows
// of heads rounded.
template <int kHeadDim, class Column>
__device__ inline void stage_queries(const void* queries, int type, const UnitPair& pair, const Column& column,
                                     __nv_bfloat16* shared, int threads = kUnitThreads) {
  constexpr int kStride = kHeadDim + kRowPadding;
  constexpr int kPiece = 4;  // loads of a thread that are under way together
  const bool wide = pair.group > 8;
  for (int i = kPiece * static_cast<int>(threadIdx.x); i < (wide ? 16 : 8) * kHeadDim; i += kPiece * threads) {
    const int row = i / kHeadDim, d = i % kHeadDim;
    float x[kPiece];
#pragma unroll
    for (int e = 0; e < kPiece; ++e) {
      x[e] = row < pair.group ? load_element(queries, type, pair.first_query * kHeadDim + i + e) : 0.0F;
    }
#pragma unroll
    for (int e = 0; e < kPiece; ++e) {
      const __nv_bfloat16 high = __float2bfloat16_rn(x[e]);
      shared[row * kStride + column(d + e)] = high;
      if (!wide) {
        shared[(row + 8) * kStride + column(d + e)] = __float2bfloat16_rn(x[e] - __bfloat162float(high));
      }
    }
  }
}

// Interleaves 8 elements of each of two rows of elements.
__device__ inline void interleave(const uint4& a, const uint4& b, uint4& first, uint4& second) {
  first.x = __byte_perm(a.x, b.x, 0x5410);
  first.y = __byte_perm(a.x, b.x, 0x7632);
  first.z = __byte_perm(a.y, b.y, 0x5410);
  first.w = __byte_perm(a.y, b.y, 0x7632);
  second.x = __byte_perm(a.z, b.z, 0x5410);
  second.y = __byte_perm(a.z, b.z, 0x7632);
  second.z = __byte_perm(a.w, b.w, 0x5410);
  second.w = __byte_perm(a.w, b.w, 0x7632);
}

// Which rows of coefficients the tensor cores are given. Of bytes, a lane is given four neighbouring ones of a row
// where it takes four that lie apart (mma.cuh): the rows of the basis then lie in that order, of each 16 directions.
enum class DirectionOrder { kAscending, kOfBytes };

__device__ inline int direction_row(int direction, DirectionOrder order) {
  return order == DirectionOrder::kAscending
             ? direction
             : (direction & ~15) | (direction & 2) << 2 | (direction >> 1 & 6) | (direction & 1);
}

// basis [r][D] of the head -> shared, columns as unit_column has it, rows behind the rank zero. Copies may still be
// under way.
template <int kHeadDim, Turn kTurn>
__device__ inline void stage_basis(const __nv_bfloat16* basis, int rank, const skv_rope& rope, unsigned char* to,
                                   int threads = kUnitThreads, DirectionOrder order = DirectionOrder::kAscending) {
  auto* const shared = reinterpret_cast<__nv_bfloat16*>(to);
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = directions(rank), stride = column_block_bytes(rank) / 2;
  const int half = rope.rotary_dim / 2;
  const bool split = rope.pairing == SKV_HALF_SPLIT;
  const auto at = [&](int row, int column) {
    return shared + column / 8 * stride + direction_row(row, order) * 8 + column % 8;
  };
  if (kTurn == Turn::kHalves || !split) {
    constexpr int kPieces = kHeadDim / 8;  // of 8 elements
#pragma unroll 5
    for (int i = thread; i < rows * kPieces; i += threads) {
      const int row = i / kPieces, column = i % kPieces * 8;
      if (row < rank) {
        copy_async_16(at(row, column), basis + static_cast<std::int64_t>(row) * kHeadDim + column);
      } else {
        *reinterpret_cast<uint4*>(at(row, column)) = make_uint4(0, 0, 0, 0);
      }
    }
  } else if (half % 8 == 0) {
    constexpr int kPieces = kHeadDim / 16;  // of 16 elements
#pragma unroll 4
    for (int i = thread; i < rows * kPieces; i += threads) {
      const int row = i / kPieces, column = i % kPieces * 16;
      uint4 first = make_uint4(0, 0, 0, 0), second = first;
      if (row < rank) {
        const __nv_bfloat16* const from = basis + static_cast<std::int64_t>(row) * kHeadDim;
        if (column < rope.rotary_dim) {
          const uint4 a = *reinterpret_cast<const uint4*>(from + column / 2);
          const uint4 b = *reinterpret_cast<const uint4*>(from + half + column / 2);
          interleave(a, b, first, second);
        } else {
          first = *reinterpret_cast<const uint4*>(from + column);
          second = *reinterpret_cast<const uint4*>(from + column + 8);
        }
      }
      *reinterpret_cast<uint4*>(at(row, column)) = first;
      *reinterpret_cast<uint4*>(at(row, column + 8)) = second;
    }
  } else {
    for (int i = thread; i < rows * kHeadDim; i += threads) {
      const int row = i / kHeadDim, d = i % kHeadDim;
      *at(row, unit_column<kTurn>(rope, d)) =
          row < rank ? basis[static_cast<std::int64_t>(row) * kHeadDim + d] : __float2bfloat16_rn(0.0F);
    }
  }
}

// Rotations of the unit's chunks [chunk][D/2] and of the places in a chunk [C][D/2 + padding]: a token's is their
// complex product. Columns that do not rotate get (1, 0).
template <int kHeadDim>
class ChunkRotations {
 public:
  // The tables' entries are under way; copies that begin later do not delay them.
  __device__ ChunkRotations(const skv_rope& rope, int chunk, const UnitRows& rows)
      : count_(kUnitTokens / chunk * kPairs) {
    const int half = rope.rotary_dim / 2, thread = unit_thread();
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int i = thread + n * kUnitThreads, pair = i % kPairs;
      coarse_[n] = fine_[n] = make_float2(1.0F, 0.0F);
      if (i < count_ && pair < half) {
        const std::int64_t position = rows.position[i / kPairs * chunk];
        const auto fine_rows = static_cast<unsigned>(rope.fine_rows);
        const auto row = static_cast<std::int64_t>(position >> (31 - __clz(rope.fine_rows)));
        coarse_[n] = reinterpret_cast<const float2*>(rope.coarse)[row * half + pair];
        fine_[n] =
            reinterpret_cast<const float2*>(rope.fine)[static_cast<int>(position & (fine_rows - 1)) * half + pair];
      }
    }
  }

  __device__ void write(float2* base) const {
    const int thread = unit_thread();
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int i = thread + n * kUnitThreads;
      if (i < count_) {
        base[i] = make_float2(coarse_[n].x * fine_[n].x - coarse_[n].y * fine_[n].y,
                              coarse_[n].x * fine_[n].y + coarse_[n].y * fine_[n].x);
      }
    }
  }

 private:
  static constexpr int kPairs = kHeadDim / 2;
  static constexpr int kShortestChunk = 8;
  static constexpr int kEach = kUnitTokens / kShortestChunk * kPairs / kUnitThreads;
  static_assert(kEach * kUnitThreads == kUnitTokens / kShortestChunk * kPairs);
  int count_;
  float2 coarse_[kEach], fine_[kEach];
};

template <int kHeadDim, Turn kTurn>
__device__ inline void stage_fine_rotations(const skv_rope& rope, int chunk, float2* fine, int threads = kUnitThreads) {
  constexpr int kPairs = kHeadDim / 2, kStride = kPairs + kFinePadding<kTurn>;
  const int half = rope.rotary_dim / 2;
  if constexpr (kTurn == Turn::kHalves) {
    for (int i = 2 * static_cast<int>(threadIdx.x); i < chunk * kPairs; i += 2 * threads) {
      copy_async_16(fine + i / kPairs * kStride + i % kPairs, reinterpret_cast<const float2*>(rope.fine) + i);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < chunk * kPairs; i += threads) {
      const int token = i / kPairs, pair = i % kPairs;
      fine[token * kStride + pair] =
          pair < half ? reinterpret_cast<const float2*>(rope.fine)[token * half + pair] : make_float2(1.0F, 0.0F);
    }
  }
}

// Coefficients of the unit's rows -> shared; those behind the rank, and of tokens that are not there, are zero. Copies
// may still be under way. A warp takes whole lines: the lines touched are what such copies cost. Those of eight bits
// become bf16 on the way.
__device__ inline void stage_coefficients(const UnitRows& rows, const skv_geometry& g, unsigned char* shared) {
  const bool bytes = g.coefficient_type == SKV_I8;
  const int rank = g.rank, words = directions(rank) / 8, token_block = token_block_bytes(rank);
  const int thread = unit_thread();
  int token = thread / words, word = thread % words;
  const int tokens_on = kUnitThreads / words, words_on = kUnitThreads % words;
#pragma unroll 4
  for (; token < kUnitTokens; token += tokens_on) {
    const auto* const row = static_cast<const char*>(rows.key[token]);
    unsigned char* const to = shared + token / 8 * token_block + word * kCoefficientBlockBytes + token % 8 * 16;
    if (row && word * 8 < rank && bytes) {
      const uint2 eight = *reinterpret_cast<const uint2*>(row + word * 8);
      *reinterpret_cast<uint4*>(to) =
          make_uint4(bf16_of_i8<0>(eight.x), bf16_of_i8<2>(eight.x), bf16_of_i8<0>(eight.y), bf16_of_i8<2>(eight.y));
    } else if (row && word * 8 < rank) {
      copy_async_16(to, row + word * 16);
    } else {
      *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    }
    word += words_on;
    if (word >= words) {
      word -= words;
      ++token;
    }
  }
}

}  // namespace skv::cuda
