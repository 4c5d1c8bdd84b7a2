// What keys that are rebuilt on the way to the tensor cores look like: units of tokens, how the elements of a head are
// paired, and where a block has what in shared memory. Half-split pairing of a part of the head permutes the columns of
// basis and queries on their way into shared memory, which changes no dot product.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"

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

// Hands out shared memory from front to back: where each part begins.
struct SharedBytes {
  int end = 0;
  __host__ __device__ int operator()(int bytes) {
    const int begin = end;
    end += align_16(bytes);
    return begin;
  }
};

// A row of coefficients as it is stored.
__host__ __device__ inline int coefficient_row_bytes(const skv_geometry& g) {
  return g.rank * coefficient_bytes(g.coefficient_type);
}
__device__ inline const void* coefficient_row(const skv_shadow_layer& layer, const skv_geometry& g,
                                              std::int64_t position) {
  return static_cast<const char*>(layer.coefficients) + position * coefficient_row_bytes(g);
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
  SharedBytes take;
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
  l.end = take.end;
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

__device__ inline UnitPair unit_pair(const skv_geometry& g, int pair, int group) {
  const int session = pair / g.key_value_heads, head = pair % g.key_value_heads;
  return {session, head, group, static_cast<std::int64_t>(session) * g.query_heads + head * group};
}

}  // namespace skv::cuda
