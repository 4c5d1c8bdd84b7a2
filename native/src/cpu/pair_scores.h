// Scores of rows of bf16 by the processor's products of bf16 pairs; included by the file of that instruction set.
//
// vdpbf16ps multiplies and adds two pairs a lane: products of bf16 numbers are exact in fp32, and rows need no
// widening. What stands against the rows is fp32, queries and weights, and is split into two bf16 parts, whose sum is
// within 2^-18 of it. A sum of D products in fp32 may be off by D * 2^-24 of its terms anyhow, so from D = 64 on the
// split is no more than that; below it these kernels are not used (fits_pairs).
#pragma once

#if defined(__AVX512BF16__)

#include <algorithm>
#include <bit>
#include <limits>

#include "cpu/attention_kernels.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

// Queries of a tile: one in each 128-bit lane. A vector of scores is [kPairQueries][kPairTokens].
constexpr int kPairQueries = 4;
constexpr int kPairTokens = 4;
// Elements of a row that one 128-bit lane holds.
constexpr int kLaneElements = 8;
// Rows that are scored at once: each query vector that is loaded serves so many.
constexpr int kScoreRows = 8;
// How far ahead of the loads rows are asked for, in rows. Measured on two cores: Zen 4, 32 to 64 the same, 16 costs a
// quarter more time, 96 a tenth; Zen 5, 32 and 64 the same, 24 and 40 cost a tenth, 48 a twentieth.
constexpr int kRowsAhead = 32;

// Rows that these kernels take: whole vectors, and long enough for two parts to be as good as fp32.
constexpr bool fits_pairs(int dim) {
  constexpr int kShortest = 64;
  return dim >= kShortest && dim % (2 * kLanes) == 0;
}

using Pairs = __m512bh;

inline Pairs as_pairs(__m512i bits) {
  return reinterpret_cast<Pairs>(bits);
}

struct Split {
  __m256i high, low;  // bf16
};

// x to two bf16 parts; *sum becomes what the two add up to.
inline Split split_parts(__m512 x, __m512* sum) {
  const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
  const __m512 high_wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  const __m256i low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x - high_wide));
  *sum = high_wide + _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
  return {high, low};
}

// The queries of a tile, ready for score_pairs: [dim / 8][2 parts][kPairQueries][8]; a query that is not there is zero.
struct PairQueries {
  alignas(64) std::uint16_t at[SKV_MAX_HEAD_DIM / kLaneElements * 2 * kPairQueries * kLaneElements];
};

inline void split_queries(const float* queries, std::int64_t stride, int count, int dim, PairQueries* to) {
  static_assert(kLanes == 2 * kLaneElements);
  for (int q = 0; q < kPairQueries; ++q) {
    for (int d = 0; d < dim; d += kLanes) {
      __m512 sum;
      const Split split = q < count ? split_parts(load(queries + q * stride + d), &sum) : Split{};
      const auto put = [&](__m256i part, int number) {
        std::uint16_t* const first = to->at + ((d / kLaneElements * 2 + number) * kPairQueries + q) * kLaneElements;
        _mm_store_si128(reinterpret_cast<__m128i*>(first), _mm256_castsi256_si128(part));
        _mm_store_si128(reinterpret_cast<__m128i*>(first + 2 * kPairQueries * kLaneElements),
                        _mm256_extracti128_si256(part, 1));
      };
      put(split.high, 0);
      put(split.low, 1);
    }
  }
}

// Sums of the four numbers of each 128-bit lane, of four vectors: [kPairQueries][4].
inline __m512 lane_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
}

// The same largest number in every place of a 128-bit lane. NaN is passed over.
inline __m512 lane_largest(__m512 x) {
  const __m512 pairwise = _mm512_max_ps(x, _mm512_permute_ps(x, 0xb1));
  return _mm512_max_ps(pairwise, _mm512_permute_ps(pairwise, 0x4e));
}

// scores[i] = queries . rows first + 4i .. first + 4i + 3, rows behind `last` being taken for `last`. With kAhead, as
// many rows from `ahead` on are asked for.
template <int kRows, bool kAhead>
inline void score_rows(const PairQueries& queries, const BFloat16* rows, std::int64_t last, int dim, __m512* scores,
                       const BFloat16* ahead = nullptr) {
  const BFloat16* row[kRows];
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t) {
    row[t] = rows + (t < last ? t : last) * dim;
  }
  // Apart for both parts: 8 sums do not hide the latency of a product where a core makes two of them in a cycle.
  __m512 sums[kRows], rest[kRows];
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t) {
    sums[t] = rest[t] = _mm512_setzero_ps();
  }
  for (int d = 0; d < dim; d += kLaneElements) {
    if constexpr (kAhead) {
      // As many cache lines, 32 elements each, as rows pass: kRows * dim / 32 of them in dim / 8 steps.
#pragma GCC unroll 2
      for (int i = 0; i < kRows / 4; ++i) {
        const std::int64_t line = d / kLaneElements * (kRows / 4) + i;
        ask_for_line(ahead + line * 32);
      }
    }
    const Pairs high = as_pairs(_mm512_load_si512(queries.at + d * 2 * kPairQueries));
    const Pairs low = as_pairs(_mm512_load_si512(queries.at + (d * 2 + kLaneElements) * kPairQueries));
#pragma GCC unroll 8
    for (int t = 0; t < kRows; ++t) {
      const Pairs key = as_pairs(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row[t] + d))));
      sums[t] = _mm512_dpbf16_ps(sums[t], high, key);
      rest[t] = _mm512_dpbf16_ps(rest[t], low, key);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kRows; ++t) {
    sums[t] += rest[t];
  }
#pragma GCC unroll 2
  for (int t = 0; t < kRows; t += kPairTokens) {
    scores[t / kPairTokens] = lane_sums(sums[t], sums[t + 1], sums[t + 2], sums[t + 3]);
  }
}

// scores [count / 4 rounded up] vectors; those of rows behind count are of its last row.
template <bool kAhead>
inline void score_block(const PairQueries& queries, const BFloat16* rows, std::int64_t count, int dim, __m512* scores) {
  std::int64_t t = 0;
  for (; t + kScoreRows <= count; t += kScoreRows) {
    score_rows<kScoreRows, kAhead>(queries, rows + t * dim, kScoreRows, dim, scores + t / kPairTokens,
                                   rows + (t + kRowsAhead) * dim);
  }
  for (; t < count; t += kPairTokens) {
    score_rows<kPairTokens, false>(queries, rows + t * dim, count - t - 1, dim, scores + t / kPairTokens);
  }
}

// The first `tokens` places of four.
inline __mmask8 first_tokens(std::int64_t tokens) {
  return static_cast<__mmask8>(tokens >= kPairTokens ? 0xf : (1 << tokens) - 1);
}

// Scores [kPairQueries][4] of 4 tokens, of which `tokens` are wanted, to where they belong.
inline void put_scores(__m512 of, int queries, std::int64_t tokens, float* scores, std::int64_t score_stride) {
  const __mmask8 inside = first_tokens(tokens);
  alignas(64) float lanes[kPairQueries * kPairTokens];
  _mm512_store_ps(lanes, of);
  for (int q = 0; q < queries; ++q) {
    _mm_mask_storeu_ps(scores + q * score_stride, inside, _mm_load_ps(lanes + q * kPairTokens));
  }
}

// As RowKernels::score.
void score_pairs(const float* queries, int group, const void* rows, std::int64_t count, int dim, float* scores,
                 std::int64_t score_stride) {
  const std::int64_t query_stride = padded_dim(dim);
  PairQueries tile;
  for (int g = 0; g < group; g += kPairQueries) {
    const int here = group - g < kPairQueries ? group - g : kPairQueries;
    split_queries(queries + g * query_stride, query_stride, here, dim, &tile);
    for (std::int64_t t = 0; t < count; t += kScoreRows) {
      const std::int64_t left = count - t;
      __m512 of[kScoreRows / kPairTokens];
      score_block<true>(tile, static_cast<const BFloat16*>(rows) + t * dim, left < kScoreRows ? left : kScoreRows, dim,
                        of);
      for (int i = 0; i < kScoreRows / kPairTokens && i * kPairTokens < left; ++i) {
        put_scores(of[i], here, left - i * kPairTokens, scores + g * score_stride + t + i * kPairTokens, score_stride);
      }
    }
  }
}

// Chunks are whole multiples of what is scored at once. `ahead`: the rows of a chunk that is wanted later.
inline void score_chunk(const PairQueries& queries, const void* rows, int chunk, int dim, __m512* scores,
                        const void* ahead) {
  for (int t = 0; t < chunk; t += kScoreRows) {
    const std::int64_t at = static_cast<std::int64_t>(t) * dim;
    score_rows<kScoreRows, true>(queries, static_cast<const BFloat16*>(rows) + at, kScoreRows, dim,
                                 scores + t / kPairTokens, static_cast<const BFloat16*>(ahead) + at);
  }
}

// As RowKernels::score_chunks.
void score_chunk_pairs(const float* queries, int group, const void* const* rows, std::int64_t chunks, int chunk,
                       int dim, float* scores, std::int64_t score_stride) {
  constexpr std::int64_t kAhead = 4;
  constexpr int kMaximumChunk = 16;
  const std::int64_t query_stride = padded_dim(dim);
  PairQueries tile;
  for (int g = 0; g < group; g += kPairQueries) {
    const int here = group - g < kPairQueries ? group - g : kPairQueries;
    split_queries(queries + g * query_stride, query_stride, here, dim, &tile);
    for (std::int64_t i = 0; i < chunks; ++i) {
      __m512 of[kMaximumChunk / kPairTokens];
      score_chunk(tile, rows[i], chunk, dim, of, rows[std::min(i + kAhead, chunks - 1)]);
      for (int t = 0; t < chunk; t += kPairTokens) {
        put_scores(of[t / kPairTokens], here, kPairTokens, scores + g * score_stride + i * chunk + t, score_stride);
      }
    }
  }
}

// As RowKernels::landmarks for `queries` at most kPairQueries: score(c, scores) gives the products of rows c .. c +
// kScoreRows - 1, scaled, in kScoreRows / kPairTokens vectors.
template <class Score>
inline void landmark_tile(int queries, const float* weights, const float* radius, std::int64_t count, float* logits,
                          std::int64_t logit_stride, float* largest, float* sum, const Score& score) {
  const __m512 nothing = broadcast(-std::numeric_limits<float>::infinity());
  __m512 scores[kLandmarks / kPairTokens];
  alignas(64) float lanes[kLanes] = {};
  for (int i = 0; i < queries * kPairTokens; ++i) {
    lanes[i] = weights[i / kPairTokens];
  }
  const __m512 weight = _mm512_load_ps(lanes);
  __m512 most = nothing;
  for (std::int64_t c = 0; c < count; c += kScoreRows) {
    __m512* const of = scores + c / kPairTokens;
    score(c, of);
    for (int i = 0; i < kScoreRows / kPairTokens && c + i * kPairTokens < count; ++i) {
      const __mmask8 inside = first_tokens(count - c - i * kPairTokens);
      const __m512 distance = _mm512_broadcast_f32x4(_mm_maskz_loadu_ps(inside, radius + c + i * kPairTokens));
      const __mmask16 outside = _mm512_cmp_ps_mask(distance, _mm512_setzero_ps(), _CMP_LT_OQ) |
                                static_cast<__mmask16>((0xf & ~inside) * 0x1111);
      const __m512 logit = _mm512_mask_mov_ps(_mm512_fmadd_ps(weight, distance, of[i]), outside, nothing);
      of[i] = logit;
      most = _mm512_max_ps(logit, most);  // of NaN and a number, the second
      float* const to = logits + c + i * kPairTokens;
      const __m128 by_query[kPairQueries] = {_mm512_extractf32x4_ps(logit, 0), _mm512_extractf32x4_ps(logit, 1),
                                             _mm512_extractf32x4_ps(logit, 2), _mm512_extractf32x4_ps(logit, 3)};
      for (int q = 0; q < queries; ++q) {
        _mm_mask_storeu_ps(to + q * logit_stride, inside, by_query[q]);
      }
    }
  }
  most = lane_largest(most);
  const __m512 base = _mm512_mask_mov_ps(most, _mm512_cmp_ps_mask(most, nothing, _CMP_EQ_OQ), _mm512_setzero_ps());
  __m512 total = _mm512_setzero_ps();
  for (std::int64_t i = 0; i * kPairTokens < count; ++i) {
    total += exponential(scores[i] - base);
  }
  _mm512_store_ps(lanes, most);
  alignas(64) float sums[kLanes];
  _mm512_store_ps(sums, total);
  for (int q = 0; q < queries; ++q) {
    const float* const of = sums + q * kPairTokens;
    largest[q] = lanes[q * kPairTokens];
    sum[q] = (of[0] + of[1]) + (of[2] + of[3]);
  }
}

// As RowKernels::landmarks, without scales. A landmark of one key/value head costs 2 * D / 32 products a query, and D *
// 2 bytes.
void landmark_pairs(const float* queries, int group, const float* weights, const void* rows, const float*,
                    const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
                    float* largest, float* sum) {
  const std::int64_t query_stride = padded_dim(dim);
  PairQueries tile;
  for (int g = 0; g < group; g += kPairQueries) {
    const int here = group - g < kPairQueries ? group - g : kPairQueries;
    split_queries(queries + g * query_stride, query_stride, here, dim, &tile);
    landmark_tile(here, weights + g, radius, count, logits + g * logit_stride, logit_stride, largest + g, sum + g,
                  [&](std::int64_t c, __m512* scores) {
                    const std::int64_t left = count - c;
                    score_block<true>(tile, static_cast<const BFloat16*>(rows) + c * dim,
                                      left < kScoreRows ? left : kScoreRows, dim, scores);
                  });
  }
}

// As AttentionKernels::round_bf16.
void round_bf16(const float* from, void* to, std::int64_t count) {
  std::uint16_t* const halves = static_cast<std::uint16_t*>(to);
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    _mm512_storeu_si512(halves + i,
                        reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(from + i + kLanes), load(from + i))));
  }
  for (; i < count; i += kLanes) {
    const __mmask16 inside = static_cast<__mmask16>(count - i >= kLanes ? 0xffff : (1 << (count - i)) - 1);
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, from + i));
    _mm256_mask_storeu_epi16(halves + i, inside, reinterpret_cast<__m256i>(rounded));
  }
}

}  // namespace
}  // namespace skv::cpu

#endif
