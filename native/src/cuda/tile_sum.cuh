// Softmax and weighted sum of tiles, by the computing side of a pipeline (sm_90a).
#pragma once

#include "cuda/attention_block.cuh"
#include "cuda/tile_pipeline.cuh"

namespace skv::cuda {

#ifdef SKV_WARPGROUPS

// Log2 of exponentials of a lane's tokens: [of the rows of heads][8 rows of the tile][neighbours].
using TileLogits = float[2][2][2];

// Values are bf16 or e4m3; coefficients, whose sums are kept exact, bf16 or I8.
enum class TileSumOf { kValues, kCoefficients };

// The softmax and the weighted sum of a part: some tiles, one after the other. A lane has the statistics of the heads
// of its two rows of accumulators: head lane / 4, and with more than 8 heads also the one 8 further; with at most 8,
// the rows further down are what the rounding of the rows above has left. A warp sums every fourth group of 16 columns.
// Of coefficients, with more than 8 heads, too, weights are more than one bf16 number, by 16 rows more.
template <int kMostColumns, TileSumOf kOf>
class TilePartSum {
 public:
  // columns: of a row; weights: [SKV_MAX_GROUP][kTileWeightStride], twice the rows for coefficients; scales: of e4m3
  // values.
  __device__ TilePartSum(const TileThread& me, int group, int columns, std::uint16_t* weights, TileExchange& exchange,
                         const float* scales)
      : me_(me), group_(group), columns_(columns), weights_(weights), exchange_(exchange), scales_(scales) {}

  __device__ void begin() {
#pragma unroll
    for (int set = 0; set < 2; ++set) {
      largest_[set] = -INFINITY;
      sum_[set] = 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        sums_[i][e / 4][e % 4] = 0.0F;
      }
    }
  }

  // Logits from the accumulators [16 heads][16 rows] of a warp, of a tile of which the first `tokens` tokens are there,
  // in the order of its chunks.
  __device__ void scale(const float (&s)[2][4], float scale, int tokens, int shift, TileLogits& x) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const bool there = tile_token(first_row() + 8 * n + e, shift) < tokens;
        const float upper = s[n][e], lower = s[n][e + 2];
        x[0][n][e] = there ? (wide() ? upper : upper + lower) * scale : -INFINITY;
        x[1][n][e] = there ? lower * scale : -INFINITY;
      }
    }
  }

  // Adds a tile; rows: of its values, which come in the part `values` of it and are awaited and released here. bytes:
  // they are of eight bits. e4m3 values have a scale for each chunk: a part is then one tile, and its sums are relative
  // to the largest scale.
  __device__ void add(const TileLogits& x, const TileRows& rows, const unsigned char* tile, bool bytes, TilePart values,
                      TileReader& reader) {
#pragma unroll
    for (int set = 0; set < 2; ++set) {
      if (set == 0 || wide()) {
        const float m = quad_max(fmaxf(fmaxf(x[set][0][0], x[set][0][1]), fmaxf(x[set][1][0], x[set][1][1])));
        if (quad_lane() == 0) {
          exchange_.largest[me_.warp][row() + 8 * set] = m;
        }
      }
    }
    me_.meet();
    float token_scale[2] = {1.0F, 1.0F};
    const bool scaled = !kExact && bytes;
    if (scaled) {
      reader.await(values);  // the scales come with them
      largest_scale_ = 0;
      for (int i = 0; i < rows.places(); ++i) {
        largest_scale_ = fmaxf(largest_scale_, scales_[i]);
      }
      const float unscale = largest_scale_ > 0 ? kByteWeight / largest_scale_ : 0.0F;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        token_scale[e] = scales_[(first_row() + e) & (rows.places() - 1)] * unscale;
      }
    }
    float factor[2] = {1.0F, 1.0F};
#pragma unroll
    for (int set = 0; set < 2; ++set) {
      if (set == 0 || wide()) {
        float m = largest_[set];
#pragma unroll
        for (int w = 0; w < kComputeWarps; ++w) {
          m = fmaxf(m, exchange_.largest[w][row() + 8 * set]);
        }
        factor[set] = largest_[set] > -INFINITY ? exp2_fast(largest_[set] - m) : 0.0F;
        largest_[set] = m;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float w[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            w[e] = m > -INFINITY ? exp2_fast(x[set][n][e] - m) : 0.0F;
            sum += w[e];
          }
          write_weights(set, n, w[0] * token_scale[0], w[1] * token_scale[1], scaled);
        }
        sum = quad_sum(sum);
        if (quad_lane() == 0) {
          exchange_.sum[me_.warp][row() + 8 * set] = sum;
        }
      }
    }
    me_.meet();
#pragma unroll
    for (int set = 0; set < 2; ++set) {
      if (set == 0 || wide()) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kComputeWarps; ++w) {
          sum += exchange_.sum[w][row() + 8 * set];
        }
        sum_[set] = sum_[set] * factor[set] + sum;
      }
    }
    const float lower = wide() ? factor[1] : factor[0];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int strip = 0; strip < 2; ++strip) {
        sums_[i][strip][0] *= factor[0];
        sums_[i][strip][1] *= factor[0];
        sums_[i][strip][2] *= lower;
        sums_[i][strip][3] *= lower;
      }
    }
    if (!scaled) {
      reader.await(values);
    }
    if (bytes) {
      add_values<true>(rows, tile);
    } else {
      add_values<false>(rows, tile);
    }
    reader.release(values);
  }

  __device__ void write(const AttentionPartials& partials, int pair, int split, bool bytes) const {
    const std::int64_t part = (static_cast<std::int64_t>(pair) * partials.splits + split) * group_;
    if (me_.warp == 0 && quad_lane() == 0) {
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        if ((set == 0 || wide()) && row() + 8 * set < group_) {
          partials.statistics[part + row() + 8 * set] = make_float2(largest_[set], sum_[set]);
        }
      }
    }
    const float scale = !kExact && bytes ? largest_scale_ / kByteWeight : 1.0F;
    float* const out = partials.sums + (part + row()) * columns_;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int first = column_group(i) * 16;
      if (first >= columns_) {
        continue;
      }
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        if ((set == 0 || wide()) && row() + 8 * set < group_) {
          float v[2][2];
#pragma unroll
          for (int strip = 0; strip < 2; ++strip) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float upper = sums_[i][strip][e], lower = sums_[i][strip][e + 2];
              v[strip][e] = (wide() ? (set == 0 ? upper : lower) : upper + lower) * scale;
            }
          }
          float* const at = out + 8 * set * columns_ + first;
          if (bytes) {
            *reinterpret_cast<float4*>(at + 4 * quad_lane()) = make_float4(v[0][0], v[1][0], v[0][1], v[1][1]);
          } else {
            *reinterpret_cast<float2*>(at + 2 * quad_lane()) = make_float2(v[0][0], v[0][1]);
            if (first + 8 < columns_) {
              *reinterpret_cast<float2*>(at + 8 + 2 * quad_lane()) = make_float2(v[1][0], v[1][1]);
            }
          }
        }
      }
    }
  }

  // What a lane has logits of: its first head, and the first of its rows.
  __device__ bool wide() const {
    return group_ > 8;
  }
  __device__ int row() const {
    return me_.lane / 4;
  }
  __device__ int first_row() const {
    return me_.warp * kWarpTokens + 2 * quad_lane();
  }

  // Of a part without tokens.
  __device__ void write_empty(const AttentionPartials& partials, int pair, int split) const {
    if (me_.thread < group_) {
      partials.statistics[(static_cast<std::int64_t>(pair) * partials.splits + split) * group_ + me_.thread] =
          make_float2(-INFINITY, 0.0F);
    }
  }

 private:
  static constexpr bool kExact = kOf == TileSumOf::kCoefficients;
  static constexpr int kGroups = (kMostColumns / 16 + kComputeWarps - 1) / kComputeWarps;

  __device__ int quad_lane() const {
    return me_.lane % 4;
  }
  __device__ int column_group(int i) const {
    return me_.warp + i * kComputeWarps;
  }

  static __device__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffU, x, 2));
  }
  static __device__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffU, x, 1);
    return x + __shfl_xor_sync(0xffffffffU, x, 2);
  }

  // Two neighbouring weights, in 16 bits for the tensor cores: bf16, or f16 for e4m3 values, which keeps the digits of
  // small weights because all are at most kByteWeight (f16 has none below 2^-24).
  __device__ void write_weights(int set, int n, float first, float second, bool scaled) const {
    auto* const at =
        reinterpret_cast<std::uint32_t*>(weights_ + (row() + 8 * set) * kTileWeightStride + first_row() + 8 * n);
    const int rest_row = wide() ? SKV_MAX_GROUP + row() + 8 * set : row() + 8;
    auto* const rest = reinterpret_cast<std::uint32_t*>(weights_ + rest_row * kTileWeightStride + first_row() + 8 * n);
    if (scaled) {
      const std::uint32_t high = pack_f16(first, second);
      *at = high;
      if (!wide()) {
        const float2 rounded = __half22float2(*reinterpret_cast<const __half2*>(&high));
        *rest = pack_f16(first - rounded.x, second - rounded.y);
      }
    } else {
      const std::uint32_t high = pack_bf16(first, second);
      *at = high;
      if (kExact || !wide()) {
        *rest = pack_bf16(first - bf16_low(high), second - bf16_high(high));
      }
    }
  }

  // sums += weights . values. A last group of 8 columns reads 8 more, whatever they are: they are not written.
  template <bool kBytes>
  __device__ void add_values(const TileRows& rows, const unsigned char* tile) {
    const unsigned char *lane_rows[4], *const at_lane = tile + rows.at(me_.lane % 16) + me_.lane / 16 * 16;
    const int step = rows.step();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Of the fragments of bytes: rows 2t, 2t + 1, 2t + 8, 2t + 9.
      lane_rows[i] = tile + rows.at(2 * quad_lane() + i % 2 + i / 2 * 8) + 2 * row();
    }
    const std::uint16_t* const weight_lane = weights_ + me_.lane % 16 * kTileWeightStride + me_.lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kTileTokens; k += 16) {
      std::uint32_t a[4], rest[4];
      load_matrices(a, weight_lane + k);
      if (kExact && wide()) {
        load_matrices(rest, weight_lane + SKV_MAX_GROUP * kTileWeightStride + k);
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int columns = column_group(i);
        if (columns * 16 >= columns_) {
          continue;
        }
        if constexpr (kBytes) {
          // Strip 0 has the even ones of the 16 columns, strip 1 the odd ones.
          std::uint32_t v[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const auto pair = *reinterpret_cast<const std::uint16_t*>(lane_rows[r] + k / 16 * step + columns * 16);
            v[r] = kExact ? bf16_of_i8<0>(pair) : f16_of_e4m3(pair);
          }
          const std::uint32_t even[2] = {__byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410)};
          const std::uint32_t odd[2] = {__byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632)};
          if constexpr (kExact) {
            mma_bf16(sums_[i][0], a[0], a[1], a[2], a[3], even[0], even[1]);
            mma_bf16(sums_[i][1], a[0], a[1], a[2], a[3], odd[0], odd[1]);
            if (wide()) {
              mma_bf16(sums_[i][0], rest[0], rest[1], rest[2], rest[3], even[0], even[1]);
              mma_bf16(sums_[i][1], rest[0], rest[1], rest[2], rest[3], odd[0], odd[1]);
            }
          } else {
            mma_f16(sums_[i][0], a[0], a[1], a[2], a[3], even[0], even[1]);
            mma_f16(sums_[i][1], a[0], a[1], a[2], a[3], odd[0], odd[1]);
          }
        } else {
          std::uint32_t b[4];
          load_matrices_transposed(b, at_lane + k / 16 * step + columns * 32);
          mma_bf16(sums_[i][0], a[0], a[1], a[2], a[3], b[0], b[1]);
          mma_bf16(sums_[i][1], a[0], a[1], a[2], a[3], b[2], b[3]);
          if (kExact && wide()) {
            mma_bf16(sums_[i][0], rest[0], rest[1], rest[2], rest[3], b[0], b[1]);
            mma_bf16(sums_[i][1], rest[0], rest[1], rest[2], rest[3], b[2], b[3]);
          }
        }
      }
    }
  }

  const TileThread& me_;
  const int group_, columns_;
  std::uint16_t* const weights_;
  TileExchange& exchange_;
  const float* const scales_;
  float largest_[2], sum_[2];
  float largest_scale_ = 0;
  float sums_[kGroups][2][4];
};

#endif

}  // namespace skv::cuda
