// A block of sparse attention: its units of tokens as rows in memory, and what it does with a unit that has its scores.
#pragma once

#include <cstdint>

#include "cuda/attention_unit.cuh"
#include "cuda/decode.h"
#include "value_types.h"

namespace skv::cuda {

// Largest weight of an e4m3 value. Its half-precision sums stay far from overflow: they are accumulated in f32.
constexpr float kByteWeight = 16384.0F;

struct SparseParams {
  skv_sparse_attention_params p;
  GivenScores given;
  AttentionPartials partials;
  int first_pair;
  int group;
  int selected_splits;  // parts of selected tokens, of a unit each
  int selected_blocks, units_per_block;
  bool beside_fetch;  // values are there when the launch before this one is done
};

// A selected chunk and its slot; no chunk: -1.
struct SelectedChunk {
  std::int32_t chunk, slot;
};

// The chunk of this thread's token of selected tokens [first, first + 128) of a pair.
__device__ inline SelectedChunk selected_chunk(const skv_sparse_attention_params& p, int pair_index, int first,
                                               int count) {
  const int place = (first + static_cast<int>(threadIdx.x)) / p.geometry.chunk;
  if (threadIdx.x >= kUnitTokens || place >= count) {
    return {-1, -1};
  }
  const std::int64_t at = static_cast<std::int64_t>(pair_index) * p.select + place;
  return {p.selected[at], p.selected_slot[at]};
}

// Table of the rows of 128 selected tokens, by their first threads. The first token is the first of a chunk.
__device__ inline void selected_rows(const skv_sparse_attention_params& p, const UnitPair& pair,
                                     const SelectedChunk& selected, UnitRows& rows) {
  const skv_geometry& g = p.geometry;
  const skv_shadow_layer& layer = p.layers[pair.session];
  const int token = static_cast<int>(threadIdx.x), in_chunk = token % g.chunk;
  const void *key = nullptr, *value = nullptr;
  float scale = 1.0F;
  std::int64_t position = 0;
  if (selected.chunk >= 0) {
    const std::int64_t chunk = selected.chunk, slot = selected.slot;
    position = chunk * g.chunk + in_chunk;
    key = coefficient_row(layer, g, position);
    const bool byte_values = slot_type(g.value_type) == SKV_F8_E4M3;
    const std::int64_t width = static_cast<std::int64_t>(g.head_dim) * (byte_values ? 1 : 2);
    const char* const values = static_cast<const char*>(g.slots ? layer.slot_values : layer.values);
    const std::int64_t places = g.slots ? g.slots : layer.chunk_capacity;
    value = values + ((pair.head * places + slot) * g.chunk + in_chunk) * width;
    if (byte_values) {
      scale = layer.value_scales[pair.head * layer.chunk_capacity + chunk];
    }
  }
  rows.key[token] = key;
  rows.value[token] = value;
  rows.value_scale[token] = scale;
  rows.position[token] = position;
}

// The same for tokens [first, first + 128) of outliers followed by the recent window.
__device__ inline void dense_rows(const skv_sparse_attention_params& p, const UnitPair& pair,
                                  const skv_session_state& state, int first, UnitRows& rows) {
  const skv_geometry& g = p.geometry;
  const skv_shadow_layer& layer = p.layers[pair.session];
  const std::int64_t token = first + threadIdx.x;
  const std::int64_t outliers = static_cast<std::int64_t>(state.outliers) * g.chunk;
  const std::int64_t recent = state.length - state.recent_begin;
  const void *keys = nullptr, *values = nullptr;
  std::int64_t row = 0;
  if (token < outliers) {
    row = pair.head * layer.outlier_capacity * g.chunk + token;
    keys = layer.outlier_keys;
    values = layer.outlier_values;
  } else if (token < outliers + recent) {
    row = static_cast<std::int64_t>(pair.head) * g.window + (state.recent_begin + token - outliers) % g.window;
    keys = layer.recent_keys;
    values = layer.recent_values;
  }
  rows.key[threadIdx.x] = keys ? static_cast<const __nv_bfloat16*>(keys) + row * g.head_dim : nullptr;
  rows.value[threadIdx.x] = values ? static_cast<const __nv_bfloat16*>(values) + row * g.head_dim : nullptr;
  rows.value_scale[threadIdx.x] = 1.0F;
}

// What a block has to do: units of selected chunks, one after the other, each a part of its own; or every stride-th
// unit of the dense rest, together one part. Which tokens make a part does not depend on the launch.
struct UnitWork {
  bool rebuilt;
  int first, end, stride;  // tokens; units begin at first, first + stride, ... before end
  int tokens;              // that there are
  int split;               // part of the first unit
};

__device__ inline UnitWork unit_work(const SparseParams& q, int pair, const skv_session_state& state) {
  const skv_geometry& g = q.p.geometry;
  const int block = static_cast<int>(blockIdx.x), selected_blocks = q.selected_blocks;
  const bool idle = state.length <= 0;
  if (block < selected_blocks) {
    const int first = block * q.units_per_block, last = min(first + q.units_per_block, q.selected_splits);
    const int count = idle ? 0 : min(q.p.selected_count[pair], q.p.select);
    return {true, first * kUnitTokens, last * kUnitTokens, kUnitTokens, count * g.chunk, first};
  }
  const int dense = block - selected_blocks, dense_blocks = static_cast<int>(gridDim.x) - selected_blocks;
  const int tokens = idle ? 0 : state.outliers * g.chunk + static_cast<int>(state.length - state.recent_begin);
  return {false, dense * kUnitTokens, tokens, dense_blocks * kUnitTokens, tokens, q.selected_splits + dense};
}

// Writes the statistics of a part, and begins the next one.
__device__ inline void write_statistics(const SparseParams& q, int pair, int split, Statistics& statistics) {
  const int head = static_cast<int>(threadIdx.x);
  if (head < q.group) {
    const std::int64_t at = (static_cast<std::int64_t>(pair) * q.partials.splits + split) * q.group + head;
    q.partials.statistics[at] = make_float2(statistics.largest[head], statistics.sum[head]);
    statistics.largest[head] = -INFINITY;
    statistics.sum[head] = 0.0F;
  }
}

// Of the parts of a block's units from token `first` on, which have no tokens.
__device__ inline void write_empty(const SparseParams& q, int pair, const UnitWork& work, int first) {
  const int parts = work.rebuilt ? (work.end - first) / kUnitTokens : first == work.first ? 1 : 0;
  const int split = work.split + (first - work.first) / kUnitTokens;
  for (int i = static_cast<int>(threadIdx.x); i < parts * q.group; i += kUnitThreads) {
    const std::int64_t at = (static_cast<std::int64_t>(pair) * q.partials.splits + split) * q.group + i;
    q.partials.statistics[at] = make_float2(-INFINITY, 0.0F);
  }
}

// A block of the tensor-core path: its shared memory, and what both kinds of work do with a unit that has its scores.
template <int kHeadDim>
struct UnitBlock {
  static constexpr int kStride = kHeadDim + kRowPadding;
  static constexpr int kWeightStride = kUnitTokens + kRowPadding;
  static constexpr int kStrips = kHeadDim / 8;
  // e4m3 values are taken in pairs of strips.
  static constexpr int kStripsPerWarp = 2;
  static_assert(kStrips <= kStripsPerWarp * kUnitWarps);
  using Sums = float[kStripsPerWarp][4];

  const SparseParams& q;
  const int pair_index;
  const UnitPair pair;
  const bool bytes;  // values are e4m3
  UnitRows& rows;
  float* const scores;
  __nv_bfloat16* const queries;
  std::uint16_t* const weights;
  Statistics& statistics;
  unsigned char* const values;

  __device__ UnitBlock(const SparseParams& q, int pair_index, const UnitPair& pair, bool bytes,
                       const UnitLayout& layout, unsigned char* shared)
      : q(q),
        pair_index(pair_index),
        pair(pair),
        bytes(bytes),
        rows(*reinterpret_cast<UnitRows*>(shared + layout.rows)),
        scores(reinterpret_cast<float*>(shared + layout.scores)),
        queries(reinterpret_cast<__nv_bfloat16*>(shared + layout.queries)),
        weights(reinterpret_cast<std::uint16_t*>(shared + layout.probabilities)),
        statistics(*reinterpret_cast<Statistics*>(shared + layout.statistics)),
        values(shared + layout.values) {}

  __device__ bool wide() const { return q.group > 8; }
  __device__ int value_stride() const { return bytes ? kHeadDim + 16 : 2 * kStride; }

  __device__ void begin_statistics() const {
    if (threadIdx.x < SKV_MAX_GROUP) {
      statistics.largest[threadIdx.x] = -INFINITY;
      statistics.sum[threadIdx.x] = 0.0F;
      statistics.factor[threadIdx.x] = 1.0F;
    }
  }

  // Values of the unit's rows -> shared; zero where there is no token. Copies may still be under way.
  __device__ void stage_values() const { bytes ? stage_rows<kHeadDim / 16>() : stage_rows<kHeadDim / 8>(); }
  template <int kWords>
  __device__ void stage_rows() const {
#pragma unroll
    for (int i = unit_thread(); i < kUnitTokens * kWords; i += kUnitThreads) {
      const int token = i / kWords, word = i % kWords;
      unsigned char* const to = values + token * value_stride() + word * 16;
      const void* const row = rows.value[token];
      if (row) {
        copy_async_16(to, static_cast<const char*>(row) + word * 16);
      } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ void find_largest_scale() const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (bytes && threadIdx.x < 32) {
      float largest = 0;
      for (int i = lane; i < kUnitTokens; i += 32) {
        largest = fmaxf(largest, rows.key[i] ? rows.value_scale[i] : 0.0F);
      }
      largest = warp_max(largest);
      if (lane == 0) {
        statistics.largest_scale = largest;
      }
    }
  }

  // Scores to weights. They go to the tensor cores in 16 bits: with G <= 8, 8 rows further down, also what their
  // rounding left. For e4m3 values they carry the scale of the value, relative to the largest one, and are f16: at most
  // kByteWeight, so that small weights keep their digits too (f16 has none below 2^-24).
  __device__ void soften() const {
    const float unscale = bytes && statistics.largest_scale > 0 ? 1.0F / statistics.largest_scale : 0.0F;
    softmax_step(scores, q.group, statistics, [&](int head, int token, float weight) {
      std::uint16_t high, low;
      if (bytes) {
        const float scaled = weight * kByteWeight * (rows.value_scale[token] * unscale);
        const __half h = __float2half_rn(scaled);
        high = __half_as_ushort(h);
        low = __half_as_ushort(__float2half_rn(scaled - __half2float(h)));
      } else {
        const __nv_bfloat16 h = __float2bfloat16_rn(weight);
        high = __bfloat16_as_ushort(h);
        low = __bfloat16_as_ushort(__float2bfloat16_rn(weight - __bfloat162float(h)));
      }
      weights[head * kWeightStride + token] = high;
      if (!wide()) {
        weights[(head + 8) * kWeightStride + token] = low;
      }
    });
  }

  // sums += weights . values. A warp takes strips of 8 columns for all tokens, so that nothing is added across warps.
  __device__ void add_values(Sums& sums) const {
    const int thread = unit_thread(), lane = thread % 32, warp = thread / 32;
    const int row = lane / 4, quad_lane = lane % 4;
    const std::uint16_t* const weight_lane = weights + (lane % 16) * kWeightStride + lane / 16 * 8;
    if (bytes) {
      // A warp takes 16 columns: in strip 0 the even ones, in strip 1 the odd ones.
      if (warp < kHeadDim / 16) {
#pragma unroll
        for (int k = 0; k < kUnitTokens; k += 16) {
          std::uint32_t a[4];
          load_matrices(a, weight_lane + k);
          const unsigned char* const at = values + (k + 2 * quad_lane) * value_stride() + warp * 16 + 2 * row;
          const auto pair_at = [&](int token) {
            return f16_of_e4m3(*reinterpret_cast<const std::uint16_t*>(at + token * value_stride()));
          };
          const std::uint32_t v0 = pair_at(0), v1 = pair_at(1), v8 = pair_at(8), v9 = pair_at(9);
          mma_f16(sums[0], a[0], a[1], a[2], a[3], __byte_perm(v0, v1, 0x5410), __byte_perm(v8, v9, 0x5410));
          mma_f16(sums[1], a[0], a[1], a[2], a[3], __byte_perm(v0, v1, 0x7632), __byte_perm(v8, v9, 0x7632));
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < kUnitTokens; k += 16) {
        std::uint32_t a[4];
        load_matrices(a, weight_lane + k);
#pragma unroll
        for (int i = 0; i < kStripsPerWarp; ++i) {
          const int strip = warp + i * kUnitWarps;
          if (strip < kStrips) {
            std::uint32_t b[2];
            load_two_matrices_transposed(b, values + (k + lane % 16) * value_stride() + strip * 16);
            mma_bf16(sums[i], a[0], a[1], a[2], a[3], b[0], b[1]);
          }
        }
      }
    }
  }

  // Earlier sums to the scale of the last softmax step. Rows without a head are never read, whatever they hold.
  __device__ void rescale(Sums& sums) const {
    const int row = static_cast<int>(threadIdx.x) % 32 / 4;
    const float upper = statistics.factor[row];
    const float lower = wide() ? statistics.factor[row + 8] : upper;
#pragma unroll
    for (int i = 0; i < kStripsPerWarp; ++i) {
      sums[i][0] *= upper;
      sums[i][1] *= upper;
      sums[i][2] *= lower;
      sums[i][3] *= lower;
    }
  }

  __device__ void write_part(int split, const Sums& sums) const {
    const int thread = unit_thread(), lane = thread % 32, warp = thread / 32;
    const int row = lane / 4, quad_lane = lane % 4;
    const float scale = bytes ? statistics.largest_scale / kByteWeight : 1.0F;
#pragma unroll
    for (int i = 0; i < kStripsPerWarp; ++i) {
      const int strip = warp + i * kUnitWarps;
      if (bytes ? warp >= kHeadDim / 16 : strip >= kStrips) {
        continue;
      }
      const int column = bytes ? warp * 16 + 4 * quad_lane + i : strip * 8 + 2 * quad_lane;
      const int next = bytes ? column + 2 : column + 1;
      float* const out =
          q.partials.sums +
          ((static_cast<std::int64_t>(pair_index) * q.partials.splits + split) * q.group + row) * kHeadDim;
      if (wide()) {
        out[column] = sums[i][0] * scale;
        out[next] = sums[i][1] * scale;
        if (row + 8 < q.group) {
          out[8 * kHeadDim + column] = sums[i][2] * scale;
          out[8 * kHeadDim + next] = sums[i][3] * scale;
        }
      } else if (row < q.group) {
        out[column] = (sums[i][0] + sums[i][2]) * scale;
        out[next] = (sums[i][1] + sums[i][3]) * scale;
      }
    }
    write_statistics(q, pair_index, split, statistics);
  }
};

}  // namespace skv::cuda
