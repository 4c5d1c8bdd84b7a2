// A unit: 128 tokens of one key/value head against its G queries, by one block. What sparse_attention and
// rerank share: the table of the unit's rows, the keys rebuilt and rotated in registers, the scores.
//
// On the tensor-core path every warp rebuilds 16 keys [16][D] = coefficients [16][r] . basis [r][D] as accumulators;
// rotated and rounded to bf16, as a dense cache would hold them, they are the operand of the scores as they are. A
// lane holds the two elements that rotate together: neighbouring columns, or (Turn::kHalves) columns half the head
// apart. Half-split pairing of a part of the head permutes the columns of basis and queries on their way into shared
// memory, which changes no dot product.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/launch.h"
#include "cuda/mma.cuh"

namespace skv::cuda {

constexpr int kUnitTokens = 128;
constexpr int kUnitThreads = 256;
constexpr int kUnitWarps = kUnitThreads / 32;
constexpr int kWarpTokens = kUnitTokens / kUnitWarps;
static_assert(kWarpTokens == 16, "a warp's keys are the rows of one tensor-core fragment");

enum class Turn { kNeighbours, kHalves };

// What a block is told about its pair.
struct UnitPair {
  int session, head, group;
  std::int64_t first_query;  // index of the pair's first query head in [B][H]
};

// Rows of a unit. A token that is not there has no key row.
struct UnitRows {
  const void* key[kUnitTokens];    // coefficients [r], or a rotated key [D]
  const void* value[kUnitTokens];  // [D]
  float value_scale[kUnitTokens];  // of e4m3 values
  std::int64_t position[kUnitTokens];
};

// Row strides in shared memory are one 16-byte word longer than the data, so that 8 rows lie in different banks.
constexpr int kRowPadding = 8;
constexpr int kScoreStride = kUnitTokens + 4;
// Of the rows of the rotations within a chunk, in pairs: a lane reads one pair, or two neighbouring ones at once.
template <Turn kTurn>
constexpr int kFinePadding = kTurn == Turn::kHalves ? 8 : 4;

// Where the parts of a block's shared memory begin, in bytes.
struct UnitLayout {
  int rows, scores, queries, probabilities, statistics, fine, base, basis, coefficients, values, end;
};

__host__ __device__ inline int align_16(int bytes) {
  return (bytes + 15) / 16 * 16;
}
// Coefficients and basis lie in shared memory as the tensor cores take them: 8 by 8 elements are 128 consecutive bytes.
// Coefficients: [token / 8][direction / 8][token % 8 + 1][8]. Basis: [D / 8][directions + 1][8]. The one more keeps
// what neighbouring lanes write in different banks. Directions are whole instructions of 16.
__host__ __device__ inline int directions(int rank) {
  return (rank + 15) / 16 * 16;
}
constexpr int kBlockBytes = 128;                          // of 8 by 8 elements
constexpr int kCoefficientBlockBytes = kBlockBytes + 16;  // from one to the next
__host__ __device__ inline int token_block_bytes(int rank) {
  return directions(rank) / 8 * kCoefficientBlockBytes;
}
__host__ __device__ inline int column_block_bytes(int rank) {
  return (directions(rank) + 1) * 16;
}

// dim 0 stands for the path without tensor cores.
__host__ __device__ inline UnitLayout unit_layout(int dim, int rank, int chunk, int group, bool with_values) {
  UnitLayout l = {};
  int at = 0;
  const auto take = [&at](int bytes) {
    const int begin = at;
    at += align_16(bytes);
    return begin;
  };
  l.rows = take(static_cast<int>(sizeof(UnitRows)));
  l.scores = take((group > 8 ? 16 : 8) * kScoreStride * 4);
  l.statistics = take(4 * SKV_MAX_GROUP * 4);
  if (dim == 0) {
    l.queries = take(SKV_MAX_GROUP * SKV_MAX_HEAD_DIM * 4);
    l.base = take(kUnitWarps * SKV_MAX_HEAD_DIM * 4);  // a rebuilt key of each warp
  } else {
    l.queries = take(SKV_MAX_GROUP * (dim + kRowPadding) * 2);
    l.fine = take(chunk * (dim / 2 + kFinePadding<Turn::kHalves>)*8);
    // Weights follow when the keys are rotated.
    const int probabilities = SKV_MAX_GROUP * (kUnitTokens + kRowPadding) * 2;
    l.base = l.probabilities = take(max(kUnitTokens / chunk * (dim / 2) * 8, probabilities));
    l.basis = take(dim / 8 * column_block_bytes(rank));
    // Values follow when the keys are rebuilt.
    const int coefficients = kUnitTokens / 8 * token_block_bytes(rank);
    l.coefficients = l.values = take(max(coefficients, with_values ? kUnitTokens * (dim + kRowPadding) * 2 : 0));
  }
  l.end = at;
  return l;
}

// The tensor-core path takes these where a block's shared memory has room for them; the other path takes everything.
inline bool unit_is_tuned(const skv_geometry& g, const skv_rope& rope, const DeviceTraits& traits) {
  return (g.head_dim == 64 || g.head_dim == 96 || g.head_dim == 128) && g.rank % 8 == 0 && rope.fine_rows >= g.chunk &&
         unit_layout(g.head_dim, g.rank, g.chunk, g.query_heads / g.key_value_heads, true).end <=
             traits.shared_memory_per_block;
}

// How the elements of a head are rotated.
inline Turn unit_turn(const skv_geometry& g, const skv_rope& rope) {
  return rope.pairing == SKV_HALF_SPLIT && rope.rotary_dim == g.head_dim ? Turn::kHalves : Turn::kNeighbours;
}

// Calls f(dim, turn) with the two as constants, for a geometry of the tensor-core path.
template <class F>
void with_unit_kernel(const skv_geometry& g, const skv_rope& rope, F&& f) {
  const auto with_dim = [&](auto turn) {
    switch (g.head_dim) {
      case 64:
        return f(std::integral_constant<int, 64>{}, turn);
      case 96:
        return f(std::integral_constant<int, 96>{}, turn);
      default:
        return f(std::integral_constant<int, 128>{}, turn);
    }
  };
  unit_turn(g, rope) == Turn::kHalves ? with_dim(std::integral_constant<Turn, Turn::kHalves>{})
                                      : with_dim(std::integral_constant<Turn, Turn::kNeighbours>{});
}

// Column of element d.
template <Turn kTurn>
__device__ inline int unit_column(const skv_rope& rope, int d) {
  if (kTurn == Turn::kHalves || rope.pairing == SKV_INTERLEAVED || d >= rope.rotary_dim) {
    return d;
  }
  const int half = rope.rotary_dim / 2;
  return d < half ? 2 * d : 2 * (d - half) + 1;
}

// This thread's number, and nothing computed from it outlives a unit: what the compiler would carry from one unit to
// the next costs the registers that hold the keys.
__device__ inline int unit_thread() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}

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

// basis [r][D] of the head -> shared, columns as unit_column has it, rows behind the rank zero. Copies may still be
// under way.
template <int kHeadDim, Turn kTurn>
__device__ inline void stage_basis(const __nv_bfloat16* basis, int rank, const skv_rope& rope, unsigned char* to,
                                   int threads = kUnitThreads) {
  auto* const shared = reinterpret_cast<__nv_bfloat16*>(to);
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = directions(rank), stride = column_block_bytes(rank) / 2;
  const int half = rope.rotary_dim / 2;
  const bool split = rope.pairing == SKV_HALF_SPLIT;
  const auto at = [&](int row, int column) { return shared + column / 8 * stride + row * 8 + column % 8; };
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
// may still be under way. A warp takes whole lines: the lines touched are what such copies cost.
__device__ inline void stage_coefficients(const UnitRows& rows, int rank, unsigned char* shared) {
  const int words = directions(rank) / 8, token_block = token_block_bytes(rank);
  const int thread = unit_thread();
  int token = thread / words, word = thread % words;
  const int tokens_on = kUnitThreads / words, words_on = kUnitThreads % words;
#pragma unroll 4
  for (; token < kUnitTokens; token += tokens_on) {
    const auto* const row = static_cast<const __nv_bfloat16*>(rows.key[token]);
    unsigned char* const to = shared + token / 8 * token_block + word * kCoefficientBlockBytes + token % 8 * 16;
    if (row && word * 8 < rank) {
      copy_async_16(to, row + word * 8);
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

// Writes this warp's scores [16 heads][16 tokens] in log2 units; tokens that are not there get -infinity.
__device__ inline void write_scores(const float (&s)[2][4], const UnitRows& rows, int group, float scale,
                                    float* scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = lane / 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int token = warp * kWarpTokens + 8 * n + 2 * (lane % 4);
    const bool first = rows.key[token] != nullptr, second = rows.key[token + 1] != nullptr;
    if (group > 8) {
      *reinterpret_cast<float2*>(scores + row * kScoreStride + token) =
          make_float2(first ? s[n][0] * scale : -INFINITY, second ? s[n][1] * scale : -INFINITY);
      *reinterpret_cast<float2*>(scores + (row + 8) * kScoreStride + token) =
          make_float2(first ? s[n][2] * scale : -INFINITY, second ? s[n][3] * scale : -INFINITY);
    } else {
      *reinterpret_cast<float2*>(scores + row * kScoreStride + token) = make_float2(
          first ? (s[n][0] + s[n][2]) * scale : -INFINITY, second ? (s[n][1] + s[n][3]) * scale : -INFINITY);
    }
  }
}

// Keys [16][D] of a warp before rotation = coefficients . basis, as accumulators of D/8 tiles. Everything staged.
template <int kHeadDim>
__device__ inline void rebuild(int rank, const unsigned char* coefficients, const unsigned char* basis,
                               float (&keys)[kHeadDim / 8][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int steps = directions(rank) / 16;
  const int token_block = token_block_bytes(rank), column_block = column_block_bytes(rank);
  constexpr int kTiles = kHeadDim / 8;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    keys[j][0] = keys[j][1] = keys[j][2] = keys[j][3] = 0.0F;
  }
  // Of four matrices, a lane addresses a row of matrix lane / 8: of coefficients, 8 tokens further down or 8 directions
  // to the right; of the basis, 8 directions further down or 8 columns to the right.
  const int lane = static_cast<int>(threadIdx.x) % 32, in_block = lane % 8 * 16;
  const unsigned char* const a_lane =
      coefficients + (2 * warp + lane / 8 % 2) * token_block + lane / 16 * kCoefficientBlockBytes + in_block;
  const unsigned char* const b_lane = basis + lane / 16 * column_block + lane / 8 % 2 * kBlockBytes + in_block;
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
    std::uint32_t a[4];
    load_matrices(a, a_lane + step * 2 * kCoefficientBlockBytes);
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      std::uint32_t b[4];
      load_matrices_transposed(b, b_lane + j * column_block + step * 2 * kBlockBytes);
      mma_bf16(keys[j], a[0], a[1], a[2], a[3], b[0], b[1]);
      mma_bf16(keys[j + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
  }
}

// Where the rotations of a lane's two tokens are: those of their chunks [D/2], and of their places in a chunk.
struct TokenRotations {
  const float2 *upper_base, *lower_base, *upper_fine, *lower_fine;
};

// Scores of a warp's 16 keys, rotated and rounded to bf16 on the way, as accumulators [16 heads][16 tokens]. kOneBase:
// the two bases are the same.
template <int kHeadDim, Turn kTurn, bool kOneBase = false>
__device__ inline void rotated_scores(const float (&keys)[kHeadDim / 8][4], const TokenRotations& turn,
                                      const __nv_bfloat16* queries, float (&s)[2][4]) {
  constexpr int kStride = kHeadDim + kRowPadding;
  constexpr int kTiles = kHeadDim / 8;
  const int lane = unit_thread() % 32, quad_lane = lane % 4;
  const __nv_bfloat16* const query_lane = queries + (lane % 16) * kStride + lane / 16 * 8;
  const auto add_scores = [&](int tile, const std::uint32_t(&upper)[2], const std::uint32_t(&lower)[2]) {
    std::uint32_t q[4];
    load_matrices(q, query_lane + 8 * tile);
    mma_bf16(s[0], q[0], q[1], q[2], q[3], upper[0], upper[1]);
    mma_bf16(s[1], q[0], q[1], q[2], q[3], lower[0], lower[1]);
  };
  if constexpr (kTurn == Turn::kHalves) {
    constexpr int kHalf = kTiles / 2;
    static_assert(kHalf % 2 == 0);
    // Two neighbouring pairs of a token: elements first[0..1] with second[0..1].
    const auto rotate = [](const float4& x, const float2* fine_pair, const float* first, const float* second,
                           std::uint32_t& low, std::uint32_t& high) {
      const float4 y = *reinterpret_cast<const float4*>(fine_pair);
      const float cosine0 = x.x * y.x - x.y * y.y, sine0 = x.x * y.y + x.y * y.x;
      const float cosine1 = x.z * y.z - x.w * y.w, sine1 = x.z * y.w + x.w * y.z;
      low = pack_bf16(first[0] * cosine0 - second[0] * sine0, first[1] * cosine1 - second[1] * sine1);
      high = pack_bf16(second[0] * cosine0 + first[0] * sine0, second[1] * cosine1 + first[1] * sine1);
    };
#pragma unroll
    for (int j = 0; j < kHalf; j += 2) {
      std::uint32_t upper_low[2], upper_high[2], lower_low[2], lower_high[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 8 * (j + i) + 2 * quad_lane;
        const float* const first = keys[j + i];
        const float* const second = keys[j + i + kHalf];
        const float4 upper = *reinterpret_cast<const float4*>(turn.upper_base + at);
        const float4 lower = kOneBase ? upper : *reinterpret_cast<const float4*>(turn.lower_base + at);
        rotate(upper, turn.upper_fine + at, first, second, upper_low[i], upper_high[i]);
        rotate(lower, turn.lower_fine + at, first + 2, second + 2, lower_low[i], lower_high[i]);
      }
      add_scores(j, upper_low, lower_low);
      add_scores(j + kHalf, upper_high, lower_high);
    }
  } else {
    const auto rotate = [](float2 x, float2 y, float first, float second) {
      const float cosine = x.x * y.x - x.y * y.y, sine = x.x * y.y + x.y * y.x;
      return pack_bf16(first * cosine - second * sine, second * cosine + first * sine);
    };
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      std::uint32_t upper[2], lower[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 4 * (j + i) + quad_lane;
        const float2 upper_base = turn.upper_base[at], lower_base = kOneBase ? upper_base : turn.lower_base[at];
        upper[i] = rotate(upper_base, turn.upper_fine[at], keys[j + i][0], keys[j + i][1]);
        lower[i] = rotate(lower_base, turn.lower_fine[at], keys[j + i][2], keys[j + i][3]);
      }
      add_scores(j, upper, lower);
    }
  }
}

// Scores of rebuilt keys. Everything staged; calls rebuilt() when this warp's coefficients are no longer needed.
template <int kHeadDim, Turn kTurn, class Rebuilt>
__device__ inline void rebuilt_scores(const UnitRows& rows, int rank, int chunk, int group,
                                      const unsigned char* coefficients, const unsigned char* basis, const float2* base,
                                      const float2* fine, const __nv_bfloat16* queries, float* scores,
                                      Rebuilt&& rebuilt) {
  constexpr int kPairs = kHeadDim / 2, kFineStride = kPairs + kFinePadding<kTurn>;
  const int thread = unit_thread(), lane = thread % 32, warp = thread / 32;
  float keys[kHeadDim / 8][4];
  rebuild<kHeadDim>(rank, coefficients, basis, keys);
  rebuilt();
  const int upper = warp * kWarpTokens + lane / 4, lower = upper + 8;
  float s[2][4] = {};
  rotated_scores<kHeadDim, kTurn>(keys,
                                  {base + upper / chunk * kPairs, base + lower / chunk * kPairs,
                                   fine + upper % chunk * kFineStride, fine + lower % chunk * kFineStride},
                                  queries, s);
  write_scores(s, rows, group, rsqrtf(static_cast<float>(kHeadDim)) * kLog2E, scores);
}

// Scores of keys that are stored rotated.
template <int kHeadDim>
__device__ inline void dense_scores(const UnitRows& rows, int group, const __nv_bfloat16* queries, float* scores) {
  constexpr int kStride = kHeadDim + kRowPadding;
  constexpr int kSpans = kHeadDim / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = lane / 4, quad_lane = lane % 4;
  uint4 keys[2][kSpans];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const auto* const from = static_cast<const __nv_bfloat16*>(rows.key[warp * kWarpTokens + 8 * n + row]);
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
      keys[n][s] = from ? *reinterpret_cast<const uint4*>(from + 32 * s + 8 * quad_lane) : make_uint4(0, 0, 0, 0);
    }
  }
  float s[2][4] = {};
#pragma unroll
  for (int span = 0; span < kSpans; ++span) {
    const auto* const at = queries + row * kStride + 32 * span + 8 * quad_lane;
    const uint4 q = *reinterpret_cast<const uint4*>(at);
    const uint4 r = *reinterpret_cast<const uint4*>(at + 8 * kStride);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      mma_bf16(s[n], q.x, r.x, q.y, r.y, keys[n][span].x, keys[n][span].y);
      mma_bf16(s[n], q.z, r.z, q.w, r.w, keys[n][span].z, keys[n][span].w);
    }
  }
  write_scores(s, rows, group, rsqrtf(static_cast<float>(kHeadDim)) * kLog2E, scores);
}

// Scores without tensor cores, for every shape. queries [G][D] f32, key: a row of SKV_MAX_HEAD_DIM floats a warp.
__device__ inline void any_scores(const UnitRows& rows, bool rebuilt, const __nv_bfloat16* basis, int dim, int rank,
                                  const skv_rope& rope, int group, const float* queries, float* keys, float* scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float* const key = keys + warp * SKV_MAX_HEAD_DIM;
  const float scale = rsqrtf(static_cast<float>(dim)) * kLog2E;
  for (int token = warp * kWarpTokens; token < (warp + 1) * kWarpTokens; ++token) {
    const auto* const row = static_cast<const __nv_bfloat16*>(rows.key[token]);
    if (row) {
      for (int d = lane; d < dim; d += 32) {
        float x = 0;
        if (rebuilt) {
          for (int i = 0; i < rank; ++i) {
            x += __bfloat162float(row[i]) * __bfloat162float(basis[static_cast<std::int64_t>(i) * dim + d]);
          }
        } else {
          x = __bfloat162float(row[d]);
        }
        key[d] = x;
      }
      __syncwarp();
      if (rebuilt) {
        for (int pair = lane; pair < rope.rotary_dim / 2; pair += 32) {
          const float2 turn = rotation(rope, rows.position[token], pair);
          const int2 at = rotated_elements(rope, pair);
          const float x = key[at.x], y = key[at.y];
          key[at.x] = x * turn.x - y * turn.y;
          key[at.y] = y * turn.x + x * turn.y;
        }
        __syncwarp();
      }
      for (int g = 0; g < group; ++g) {
        float dot = 0;
        for (int d = lane; d < dim; d += 32) {
          dot += round_to_bf16(key[d]) * queries[g * dim + d];
        }
        dot = warp_sum(dot);
        if (lane == 0) {
          scores[g * kScoreStride + token] = dot * scale;
        }
      }
      __syncwarp();
    } else {
      for (int g = lane; g < group; g += 32) {
        scores[g * kScoreStride + token] = -INFINITY;
      }
    }
  }
}

// Statistics of a block's softmax so far, one a head.
struct Statistics {
  float largest[SKV_MAX_GROUP];
  float sum[SKV_MAX_GROUP];
  float factor[SKV_MAX_GROUP];  // what earlier sums are to be multiplied by
  float largest_scale;          // of the e4m3 values of the unit
};
static_assert(sizeof(Statistics) <= 4 * SKV_MAX_GROUP * 4);

// One step of an online softmax over the unit's scores; gives every weight to write(head, token, weight).
template <class Write>
__device__ inline void softmax_step(const float* scores, int group, Statistics& statistics, Write&& write) {
  const int thread = unit_thread(), lane = thread % 32, warp = thread / 32;
  for (int head = warp; head < group; head += kUnitWarps) {
    float x[kUnitTokens / 32];
    float largest = statistics.largest[head];
    const float before = largest;
#pragma unroll
    for (int i = 0; i < kUnitTokens / 32; ++i) {
      x[i] = scores[head * kScoreStride + 32 * i + lane];
      largest = fmaxf(largest, x[i]);
    }
    largest = warp_max(largest);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kUnitTokens / 32; ++i) {
      const float weight = largest > -INFINITY ? exp2_fast(x[i] - largest) : 0.0F;
      sum += weight;
      write(head, 32 * i + lane, weight);
    }
    sum = warp_sum(sum);
    // Every lane has read the largest so far before it is replaced: shuffles alone do not order memory.
    __syncwarp();
    if (lane == 0) {
      const float factor = before > -INFINITY ? exp2_fast(before - largest) : 0.0F;
      statistics.largest[head] = largest;
      statistics.factor[head] = factor;
      statistics.sum[head] = statistics.sum[head] * factor + sum;
    }
  }
}

__device__ inline UnitPair unit_pair(const skv_geometry& g, int pair, int group) {
  const int session = pair / g.key_value_heads, head = pair % g.key_value_heads;
  return {session, head, group, static_cast<std::int64_t>(session) * g.query_heads + head * group};
}

}  // namespace skv::cuda
