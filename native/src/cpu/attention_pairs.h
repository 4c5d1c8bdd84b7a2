// Attention over rows of bf16 by the processor's products of bf16 pairs: softmax and weighted sums behind the scores of
// pair_scores.h, which says what is exact. Included by the file of that instruction set.
#pragma once

#if defined(__AVX512BF16__)

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "cpu/attention_kernels.h"
#include "cpu/pair_scores.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

// Keys whose weights are held at once. Keys and values of two blocks fit in the nearest cache.
constexpr int kPairBlock = 32;
// Columns of the sums that stay in registers while the values of a block pass: 4 x 4 accumulators.
constexpr int kPairColumns = 64;

// Weights of a block, pairs of consecutive tokens side by side: [kPairBlock / 4][kPairQueries][4] bf16.
struct PairWeights {
  alignas(64) std::uint32_t high[kPairBlock / kPairTokens * kPairQueries * kPairTokens / 2];
  alignas(64) std::uint32_t low[kPairBlock / kPairTokens * kPairQueries * kPairTokens / 2];
  static int index(std::int64_t pair, int query) {
    return static_cast<int>(pair / 2) * 2 * kPairQueries + query * 2 + static_cast<int>(pair % 2);
  }
};

// What a tile of queries has seen of its keys.
struct PairSoftmax {
  __m512 largest;  // of a query in each place of its lane
  __m512 sum;      // in parts, one a place
  // [dim / 32][kPairQueries][2][16]: sums in the order in which pairs of rows are brought together.
  alignas(64) float sums[SKV_MAX_HEAD_DIM * kPairQueries];
};

inline void begin_pairs(int dim, PairSoftmax* state) {
  state->largest = broadcast(-std::numeric_limits<float>::infinity());
  state->sum = _mm512_setzero_ps();
  std::memset(state->sums, 0, static_cast<std::size_t>(dim) * kPairQueries * sizeof(float));
}

// scores [count / 4 rounded up] vectors to weights.
inline void soften_pairs(__m512* scores, std::int64_t count, int dim, PairSoftmax* state, PairWeights* weights) {
  const std::int64_t vectors = (count + kPairTokens - 1) / kPairTokens;
  if (const int over = static_cast<int>(count % kPairTokens); over != 0) {
    const __mmask16 behind = static_cast<__mmask16>((0xf & ~((1 << over) - 1)) * 0x1111);
    scores[vectors - 1] =
        _mm512_mask_mov_ps(scores[vectors - 1], behind, broadcast(-std::numeric_limits<float>::infinity()));
  }
  __m512 here = state->largest;
  for (std::int64_t i = 0; i < vectors; ++i) {
    here = _mm512_max_ps(scores[i], here);  // of NaN and a number, the second
  }
  const __m512 now = lane_largest(here);
  const __m512 nothing = broadcast(-std::numeric_limits<float>::infinity());
  const __m512 base = _mm512_mask_mov_ps(now, _mm512_cmp_ps_mask(now, nothing, _CMP_EQ_OQ), _mm512_setzero_ps());
  if (_mm512_cmp_ps_mask(now, state->largest, _CMP_GT_OQ) != 0) {
    // e^-infinity is 0: what was nothing before stays nothing.
    const __m512 factor = exponential(state->largest - base);
    state->sum *= factor;
    state->largest = now;
    alignas(64) float of[kPairQueries * kPairTokens];
    _mm512_store_ps(of, factor);
    for (int d = 0; d < dim; d += 2 * kLanes) {
      for (int q = 0; q < kPairQueries; ++q) {
        float* const at = state->sums + d * kPairQueries + q * 2 * kLanes;
        const Vector scale = broadcast(of[q * kPairTokens]);
        store(at, load(at) * scale);
        store(at + kLanes, load(at + kLanes) * scale);
      }
    }
  }
  for (std::int64_t i = 0; i < vectors; ++i) {
    __m512 weight;
    const Split split = split_parts(exponential(scores[i] - base), &weight);
    state->sum += weight;  // as the values will be weighted
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights->high + i * kPairQueries * 2), split.high);
    _mm256_store_si256(reinterpret_cast<__m256i*>(weights->low + i * kPairQueries * 2), split.low);
  }
}

// row_at(t): the values of an even token, with those of the token after it behind them. With kAhead, ahead_at(t): two
// rows that are wanted later.
template <class RowAt, class AheadAt, int kColumns, bool kAhead>
inline void accumulate_columns(const PairWeights& weights, const RowAt& row_at, const AheadAt& ahead_at,
                               std::int64_t count, int dim, int column, float* sums) {
  constexpr int kBlocks = kColumns / 32;  // of 32 columns, two accumulators each
  __m512 tile[kPairQueries][2 * kBlocks];
#pragma GCC unroll 4
  for (int q = 0; q < kPairQueries; ++q) {
#pragma GCC unroll 4
    for (int c = 0; c < 2 * kBlocks; ++c) {
      tile[q][c] = _mm512_load_ps(sums + (c / 2 * kPairQueries + q) * 2 * kLanes + c % 2 * kLanes);
    }
  }
  const auto add = [&](std::int64_t pair, auto&& second_row) __attribute__((always_inline)) {
    const BFloat16* const first = row_at(2 * pair) + column;
    __m512i low[kBlocks], high[kBlocks];
#pragma GCC unroll 2
    for (int c = 0; c < kBlocks; ++c) {
      const __m512i a = _mm512_loadu_si512(first + 32 * c), b = second_row(first + dim + 32 * c);
      low[c] = _mm512_unpacklo_epi16(a, b);
      high[c] = _mm512_unpackhi_epi16(a, b);
    }
    if constexpr (kAhead) {
      const BFloat16* const ahead = ahead_at(2 * pair) + column;
#pragma GCC unroll 4
      for (int c = 0; c < 2 * kBlocks; ++c) {
        ask_for_line(ahead + c % 2 * dim + c / 2 * 32);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < kPairQueries; ++q) {
      const int at = PairWeights::index(pair, q);
      const Pairs most = as_pairs(_mm512_set1_epi32(static_cast<int>(weights.high[at])));
      const Pairs rest = as_pairs(_mm512_set1_epi32(static_cast<int>(weights.low[at])));
#pragma GCC unroll 2
      for (int c = 0; c < kBlocks; ++c) {
        tile[q][2 * c] = _mm512_dpbf16_ps(tile[q][2 * c], as_pairs(low[c]), most);
        tile[q][2 * c + 1] = _mm512_dpbf16_ps(tile[q][2 * c + 1], as_pairs(high[c]), most);
      }
#pragma GCC unroll 2
      for (int c = 0; c < kBlocks; ++c) {
        tile[q][2 * c] = _mm512_dpbf16_ps(tile[q][2 * c], as_pairs(low[c]), rest);
        tile[q][2 * c + 1] = _mm512_dpbf16_ps(tile[q][2 * c + 1], as_pairs(high[c]), rest);
      }
    }
  };
  for (std::int64_t pair = 0; pair < count / 2; ++pair) {
    add(pair, [](const BFloat16* p) { return _mm512_loadu_si512(p); });
  }
  if (count % 2 != 0) {
    add(count / 2, [](const BFloat16*) { return _mm512_setzero_si512(); });
  }
#pragma GCC unroll 4
  for (int q = 0; q < kPairQueries; ++q) {
#pragma GCC unroll 4
    for (int c = 0; c < 2 * kBlocks; ++c) {
      _mm512_store_ps(sums + (c / 2 * kPairQueries + q) * 2 * kLanes + c % 2 * kLanes, tile[q][c]);
    }
  }
}

template <bool kAhead, class RowAt, class AheadAt>
inline void accumulate_pairs(const PairWeights& weights, const RowAt& row_at, const AheadAt& ahead_at,
                             std::int64_t count, int dim, PairSoftmax* state) {
  int column = 0;
  for (; column + kPairColumns <= dim; column += kPairColumns) {
    accumulate_columns<RowAt, AheadAt, kPairColumns, kAhead>(weights, row_at, ahead_at, count, dim, column,
                                                             state->sums + column * kPairQueries);
  }
  if (column < dim) {
    accumulate_columns<RowAt, AheadAt, kPairColumns / 2, kAhead>(weights, row_at, ahead_at, count, dim, column,
                                                                 state->sums + column * kPairQueries);
  }
}

// Adds what a tile has seen to softmax and sums [kPairQueries][padded_dim(dim)] of its first `count` queries.
inline void finish_pairs(const PairSoftmax& state, int count, int dim, const RunningSoftmax& softmax, int first,
                         float* sums) {
  alignas(64) float largest[kLanes], sum[kLanes];
  _mm512_store_ps(largest, state.largest);
  _mm512_store_ps(sum, state.sum);
  const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
  for (int q = 0; q < count; ++q) {
    const float before = softmax.largest[first + q], here = largest[q * kPairTokens];
    const float now = here > before ? here : before;
    // A side of nothing has no weight; one of NaN alone keeps -infinity as its largest and must be heard.
    const float old_factor = before == now ? 1.0F : exponential(broadcast(before - now))[0];
    const float new_factor = here == now ? 1.0F : exponential(broadcast(here - now))[0];
    const float* const part = sum + q * kPairTokens;
    softmax.largest[first + q] = now;
    softmax.sum[first + q] =
        softmax.sum[first + q] * old_factor + ((part[0] + part[1]) + (part[2] + part[3])) * new_factor;
    float* const row = sums + (first + q) * padded_dim(dim);
    for (int d = 0; d < dim; d += 2 * kLanes) {
      const float* const from = state.sums + d * kPairQueries + q * 2 * kLanes;
      const __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + kLanes);
      store(row + d, load(row + d) * old_factor + _mm512_permutex2var_ps(low, front, high) * new_factor);
      store(row + d + kLanes,
            load(row + d + kLanes) * old_factor + _mm512_permutex2var_ps(low, back, high) * new_factor);
    }
  }
}

// As RowKernels::attend. A token of one key/value head costs 2 * 2 * D / 32 pair products a query (two parts,
// keys and values), 4 * D bytes.
void attend_pairs(const float* queries, int group, const void* keys, const void* values, std::int64_t count, int dim,
                  const RunningSoftmax& softmax, float* sums) {
  const std::int64_t query_stride = padded_dim(dim);
  for (int g = 0; g < group; g += kPairQueries) {
    const int here = group - g < kPairQueries ? group - g : kPairQueries;
    PairQueries tile;
    PairSoftmax state;
    PairWeights weights;
    split_queries(queries + g * query_stride, query_stride, here, dim, &tile);
    begin_pairs(dim, &state);
    for (std::int64_t t = 0; t < count; t += kPairBlock) {
      const std::int64_t tokens = count - t < kPairBlock ? count - t : kPairBlock;
      const BFloat16* const block_values = static_cast<const BFloat16*>(values) + t * dim;
      __m512 scores[kPairBlock / kPairTokens];
      score_block<true>(tile, static_cast<const BFloat16*>(keys) + t * dim, tokens, dim, scores);
      soften_pairs(scores, tokens, dim, &state, &weights);
      accumulate_pairs<true>(
          weights, [=](std::int64_t row) { return block_values + row * dim; },
          [=](std::int64_t row) { return block_values + (row + kRowsAhead) * dim; }, tokens, dim, &state);
    }
    finish_pairs(state, here, dim, softmax, g, sums);
  }
}

// As RowKernels::attend_chunks.
void attend_chunk_pairs(const float* queries, int group, const void* const* keys, const void* const* values,
                        std::int64_t chunks, int chunk, int dim, const RunningSoftmax& softmax, float* sums) {
  const std::int64_t query_stride = padded_dim(dim), block = kPairBlock / chunk;
  const std::int64_t chunk_bytes = static_cast<std::int64_t>(chunk) * dim * 2;
  const int shift = std::countr_zero(static_cast<unsigned>(chunk));  // 8 or 16 tokens
  for (int g = 0; g < group; g += kPairQueries) {
    const int here = group - g < kPairQueries ? group - g : kPairQueries;
    PairQueries tile;
    PairSoftmax state;
    PairWeights weights;
    split_queries(queries + g * query_stride, query_stride, here, dim, &tile);
    begin_pairs(dim, &state);
    // The chunk a block later; at the end, one that is there.
    const auto later = [=](std::int64_t i) { return std::min(i + block, chunks - 1); };
    for (std::int64_t i = 0; i < std::min(block, chunks); ++i) {
      ask_for(keys[i], 0, chunk_bytes);
      ask_for(values[i], 0, chunk_bytes);
    }
    for (std::int64_t first = 0; first < chunks; first += block) {
      const std::int64_t count = chunks - first < block ? chunks - first : block;
      __m512 scores[kPairBlock / kPairTokens];
      for (std::int64_t i = 0; i < count; ++i) {
        score_chunk(tile, keys[first + i], chunk, dim, scores + i * chunk / kPairTokens, keys[later(first + i)]);
      }
      soften_pairs(scores, count * chunk, dim, &state, &weights);
      const auto row_of = [=](std::int64_t i, std::int64_t row) {
        return static_cast<const BFloat16*>(values[i]) + (row & (chunk - 1)) * dim;
      };
      accumulate_pairs<true>(
          weights, [=](std::int64_t row) { return row_of(first + (row >> shift), row); },
          [=](std::int64_t row) { return row_of(later(first + (row >> shift)), row); }, count * chunk, dim, &state);
    }
    finish_pairs(state, here, dim, softmax, g, sums);
  }
}

}  // namespace
}  // namespace skv::cpu

#endif
