// Scores of rows of int8 by the processor's products of bytes; included by the file of that instruction set.
//
// vpdpbusd multiplies unsigned bytes by signed ones and adds four products a lane, in whole numbers. A query is written
// in three signed bytes an element, within 2^-24 of its largest element: as good as fp32 has it. Sums of products of
// bytes are exact, so only what brings the three together rounds.
#pragma once

#if defined(__AVX512VNNI__)

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/attention_kernels.h"
#include "cpu/pair_scores.h"
#include "cpu/vector.h"

namespace skv::cpu {
namespace {

constexpr int kByteParts = 3;
// Elements of a row that one 128-bit lane holds.
constexpr int kLaneBytes = 16;
// How far ahead of the loads rows are asked for, in rows.
constexpr int kByteRowsAhead = 64;

constexpr bool fits_bytes(int dim) {
  return dim % kLaneBytes == 0;
}

// The queries of a tile: [dim / 16][parts, the highest first][kPairQueries][16].
struct ByteQueries {
  alignas(64) std::int8_t at[SKV_MAX_HEAD_DIM * kByteParts * kPairQueries];
  // Where sums begin, so that they end as if rows were signed: rows are read as 128 more than they are.
  __m512i begin[kByteParts];
  __m512 unit;  // of a query in each place of its lane: what one is worth in the lowest part
};

// Elements to three bytes, x = unit * ((high * 256 + middle) * 256 + low).
inline void write_bytes(const float* query, int dim, int number, ByteQueries* to) {
  constexpr float kMost = 127.0F * 65536.0F;
  // Of a query below this all products count as zero; the inverse of its unit would not be finite.
  constexpr float kSmallest = 0x1p-100F;
  __m512 most = _mm512_setzero_ps();
  bool finite = true;
  for (int d = 0; d < dim; d += kLanes) {
    const __m512 x = load(query + d);
    finite = finite && _mm512_cmp_ps_mask(x - x, x - x, _CMP_UNORD_Q) == 0;
    most = _mm512_max_ps(most, _mm512_abs_ps(x));
  }
  const float largest = finite ? _mm512_reduce_max_ps(most) : 0.0F;
  const __m512 inverse = broadcast(largest < kSmallest ? 0.0F : kMost / largest);
  const float unit = !finite ? std::numeric_limits<float>::quiet_NaN() : largest < kSmallest ? 0.0F : largest / kMost;
  to->unit = _mm512_mask_mov_ps(to->unit, static_cast<__mmask16>(0xf << (number * kPairTokens)), broadcast(unit));
  __m512i sums[kByteParts] = {};
  for (int d = 0; d < dim; d += kLanes) {
    const __m512i whole = finite ? _mm512_cvtps_epi32(load(query + d) * inverse) : _mm512_setzero_si512();
    const auto lowest_byte = [](__m512i x) { return _mm512_srai_epi32(_mm512_slli_epi32(x, 24), 24); };
    const __m512i low = lowest_byte(whole);
    const __m512i rest = _mm512_srai_epi32(_mm512_sub_epi32(whole, low), 8);
    const __m512i middle = lowest_byte(rest);
    const __m512i parts[kByteParts] = {_mm512_srai_epi32(_mm512_sub_epi32(rest, middle), 8), middle, low};
    for (int part = 0; part < kByteParts; ++part) {
      std::int8_t* const place = to->at + ((d / kLaneBytes * kByteParts + part) * kPairQueries + number) * kLaneBytes;
      _mm_store_si128(reinterpret_cast<__m128i*>(place), _mm512_cvtepi32_epi8(parts[part]));
      sums[part] = _mm512_add_epi32(sums[part], parts[part]);
    }
  }
  for (int part = 0; part < kByteParts; ++part) {
    const __m512i first = _mm512_set1_epi32(-128 * _mm512_reduce_add_epi32(sums[part]));
    to->begin[part] =
        _mm512_mask_mov_epi32(to->begin[part], static_cast<__mmask16>(1 << (number * kPairTokens)), first);
  }
}

// A query that is not there is zero.
inline void split_bytes(const float* queries, std::int64_t stride, int count, int dim, ByteQueries* to) {
  *to = ByteQueries();
  for (int q = 0; q < count; ++q) {
    write_bytes(queries + q * stride, dim, q, to);
  }
}

// As lane_sums, of whole numbers.
inline __m512i lane_sums(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// The products of kPairTokens rows, without their scales; rows behind `last` are taken for `last`. As many rows from
// `ahead` on are asked for. More rows at once would not fit in the registers.
inline __m512 score_byte_rows(const ByteQueries& queries, const std::int8_t* rows, std::int64_t last, int dim,
                              const std::int8_t* ahead) {
  const std::int8_t* row[kPairTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kPairTokens; ++t) {
    row[t] = rows + (t < last ? t : last) * dim;
  }
  __m512i sums[kByteParts][kPairTokens];
#pragma GCC unroll 3
  for (int part = 0; part < kByteParts; ++part) {
#pragma GCC unroll 4
    for (int t = 0; t < kPairTokens; ++t) {
      sums[part][t] = queries.begin[part];
    }
  }
  const __m512i offset = _mm512_set1_epi8(-128);
  const std::int8_t* query = queries.at;
  for (int d = 0; d < dim; d += kLaneBytes, query += kByteParts * kPairQueries * kLaneBytes) {
    ask_for_line(ahead + 4 * d);  // kPairTokens * dim / 64 cache lines in dim / 16 steps
#pragma GCC unroll 4
    for (int t = 0; t < kPairTokens; ++t) {
      const __m512i key = _mm512_xor_si512(
          _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row[t] + d))), offset);
#pragma GCC unroll 3
      for (int part = 0; part < kByteParts; ++part) {
        sums[part][t] =
            _mm512_dpbusd_epi32(sums[part][t], key, _mm512_load_si512(query + part * kPairQueries * kLaneBytes));
      }
    }
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 3
  for (const auto& of : sums) {
    total = _mm512_fmadd_ps(total, broadcast(256.0F), _mm512_cvtepi32_ps(lane_sums(of[0], of[1], of[2], of[3])));
  }
  return total * queries.unit;
}

// As RowKernels::landmarks, with scales. A landmark of one key/value head costs 3 * D / 16 products for four queries,
// and D bytes.
void landmark_bytes(const float* queries, int group, const float* weights, const void* rows, const float* scales,
                    const float* radius, std::int64_t count, int dim, float* logits, std::int64_t logit_stride,
                    float* largest, float* sum) {
  const std::int64_t query_stride = padded_dim(dim);
  const std::int8_t* const bytes = static_cast<const std::int8_t*>(rows);
  ByteQueries tile;
  for (int g = 0; g < group; g += kPairQueries) {
    const int here = group - g < kPairQueries ? group - g : kPairQueries;
    split_bytes(queries + g * query_stride, query_stride, here, dim, &tile);
    landmark_tile(here, weights + g, radius, count, logits + g * logit_stride, logit_stride, largest + g, sum + g,
                  [&](std::int64_t first, __m512* scores) {
                    for (std::int64_t c = first; c < std::min(first + kScoreRows, count); c += kPairTokens) {
                      const __m512 scale =
                          _mm512_broadcast_f32x4(_mm_maskz_loadu_ps(first_tokens(count - c), scales + c));
                      *scores++ = scale * score_byte_rows(tile, bytes + c * dim, count - c - 1, dim,
                                                          bytes + (c + kByteRowsAhead) * dim);
                    }
                  });
  }
}

}  // namespace
}  // namespace skv::cpu

#endif
