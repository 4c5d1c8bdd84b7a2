#include <algorithm>

#include "cuda/attention_unit.cuh"
#include "cuda/decode.h"

namespace skv::cuda {
namespace {

// Blocks a pair that share the outliers and the recent window; a block goes over its units in turn. The number of
// outliers is known on the device alone, so the launch is sized for a usual one.
constexpr int kUsualOutlierUnits = 3;
constexpr int kMostDenseSplits = 16;

int selected_splits(const skv_geometry& g, std::int32_t select) {
  return (select * g.chunk + kUnitTokens - 1) / kUnitTokens;
}

int dense_splits(const skv_geometry& g) {
  return std::min(kMostDenseSplits, (g.window + kUnitTokens - 1) / kUnitTokens + kUsualOutlierUnits);
}

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
__device__ SelectedChunk selected_chunk(const skv_sparse_attention_params& p, int pair_index, int first, int count) {
  const int place = (first + static_cast<int>(threadIdx.x)) / p.geometry.chunk;
  if (threadIdx.x >= kUnitTokens || place >= count) {
    return {-1, -1};
  }
  const std::int64_t at = static_cast<std::int64_t>(pair_index) * p.select + place;
  return {p.selected[at], p.selected_slot[at]};
}

// Table of the rows of 128 selected tokens, by their first threads. The first token is the first of a chunk.
__device__ void selected_rows(const skv_sparse_attention_params& p, const UnitPair& pair, const SelectedChunk& selected,
                              UnitRows& rows) {
  const skv_geometry& g = p.geometry;
  const skv_shadow_layer& layer = p.layers[pair.session];
  const int token = static_cast<int>(threadIdx.x), in_chunk = token % g.chunk;
  const void *key = nullptr, *value = nullptr;
  float scale = 1.0F;
  std::int64_t position = 0;
  if (selected.chunk >= 0) {
    const std::int64_t chunk = selected.chunk, slot = selected.slot;
    position = chunk * g.chunk + in_chunk;
    key = static_cast<const __nv_bfloat16*>(layer.coefficients) + position * g.rank;
    const std::int64_t width = static_cast<std::int64_t>(g.head_dim) * (g.value_type == SKV_F8_E4M3 ? 1 : 2);
    const char* const values = static_cast<const char*>(g.slots ? layer.slot_values : layer.values);
    const std::int64_t places = g.slots ? g.slots : layer.chunk_capacity;
    value = values + ((pair.head * places + slot) * g.chunk + in_chunk) * width;
    if (g.value_type == SKV_F8_E4M3) {
      scale = layer.value_scales[pair.head * layer.chunk_capacity + chunk];
    }
  }
  rows.key[token] = key;
  rows.value[token] = value;
  rows.value_scale[token] = scale;
  rows.position[token] = position;
}

// The same for tokens [first, first + 128) of outliers followed by the recent window.
__device__ void dense_rows(const skv_sparse_attention_params& p, const UnitPair& pair, const skv_session_state& state,
                           int first, UnitRows& rows) {
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

__device__ UnitWork unit_work(const SparseParams& q, int pair, const skv_session_state& state) {
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
__device__ void write_statistics(const SparseParams& q, int pair, int split, Statistics& statistics) {
  const int head = static_cast<int>(threadIdx.x);
  if (head < q.group) {
    const std::int64_t at = (static_cast<std::int64_t>(pair) * q.partials.splits + split) * q.group + head;
    q.partials.statistics[at] = make_float2(statistics.largest[head], statistics.sum[head]);
    statistics.largest[head] = -INFINITY;
    statistics.sum[head] = 0.0F;
  }
}

// Of the parts of a block's units from token `first` on, which have no tokens.
__device__ void write_empty(const SparseParams& q, int pair, const UnitWork& work, int first) {
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

// Units of selected tokens, one after the other; each is a part.
template <int kHeadDim, Turn kTurn>
__device__ inline void attend_selected(const UnitBlock<kHeadDim>& block, const UnitWork& work, const UnitLayout& layout,
                                       unsigned char* shared) {
  const SparseParams& q = block.q;
  const skv_sparse_attention_params& p = q.p;
  const skv_geometry& g = p.geometry;
  auto* const fine = reinterpret_cast<float2*>(shared + layout.fine);
  auto* const base = reinterpret_cast<float2*>(shared + layout.base);
  unsigned char* const basis = shared + layout.basis;
  unsigned char* const coefficients = shared + layout.coefficients;
  const int selected_count = work.tokens / g.chunk;
  SelectedChunk selected = selected_chunk(p, block.pair_index, work.first, selected_count);
  stage_queries<kHeadDim>(
      p.queries, p.query_type, block.pair, [&](int d) { return unit_column<kTurn>(p.rope, d); }, block.queries);
  int first = work.first;
  for (; first < work.end && first < work.tokens; first += work.stride) {
    if (threadIdx.x < kUnitTokens) {
      selected_rows(p, block.pair, selected, block.rows);
    }
    __syncthreads();
    const ChunkRotations<kHeadDim> rotations(p.rope, g.chunk, block.rows);
    // On its way while this unit is computed.
    selected = selected_chunk(p, block.pair_index, first + kUnitTokens, selected_count);
    stage_coefficients(block.rows, g.rank, coefficients);
    if (first == work.first) {
      stage_basis<kHeadDim, kTurn>(static_cast<const __nv_bfloat16*>(p.layers[block.pair.session].basis) +
                                       static_cast<std::int64_t>(block.pair.head) * g.rank * kHeadDim,
                                   g.rank, p.rope, basis);
      stage_fine_rotations<kHeadDim, kTurn>(p.rope, g.chunk, fine);
    }
    rotations.write(base);
    copy_async_wait_all();
    shared_memory_for_products();
    __syncthreads();
    rebuilt_scores<kHeadDim, kTurn>(block.rows, g.rank, g.chunk, q.group, coefficients, basis, base, fine,
                                    block.queries, block.scores, [&] {
                                      __syncthreads();
                                      if (q.beside_fetch && first == work.first) {
                                        wait_for_earlier();
                                      }
                                      block.stage_values();
                                    });
    block.find_largest_scale();
    copy_async_wait_all();
    __syncthreads();
    block.soften();
    __syncthreads();
    typename UnitBlock<kHeadDim>::Sums sums = {};
    block.add_values(sums);
    block.write_part(work.split + (first - work.first) / kUnitTokens, sums);
    __syncthreads();
  }
  write_empty(q, block.pair_index, work, first);
}

// The same with scores that are there already.
template <int kHeadDim>
__device__ inline void attend_scored(const UnitBlock<kHeadDim>& block, const UnitWork& work) {
  const SparseParams& q = block.q;
  const skv_sparse_attention_params& p = q.p;
  const int chunk_tokens = p.geometry.chunk, selected_count = work.tokens / chunk_tokens;
  const std::int32_t* const places = q.given.places + static_cast<std::int64_t>(block.pair_index) * p.select;
  const float* const given = q.given.scores + static_cast<std::int64_t>(block.pair_index) * q.group * q.given.stride;
  SelectedChunk selected = selected_chunk(p, block.pair_index, work.first, selected_count);
  int first = work.first;
  for (; first < work.end && first < work.tokens; first += work.stride) {
    if (threadIdx.x < kUnitTokens) {
      selected_rows(p, block.pair, selected, block.rows);
    }
    for (int i = unit_thread(); i < q.group * kUnitTokens; i += kUnitThreads) {
      const int token = i % kUnitTokens, head = i / kUnitTokens, place = (first + token) / chunk_tokens;
      block.scores[head * kScoreStride + token] =
          place < selected_count
              ? given[head * q.given.stride + places[place] * chunk_tokens + (first + token) % chunk_tokens]
              : -INFINITY;
    }
    __syncthreads();
    if (q.beside_fetch && first == work.first) {
      wait_for_earlier();
    }
    block.stage_values();
    // On its way while this unit is computed.
    selected = selected_chunk(p, block.pair_index, first + kUnitTokens, selected_count);
    block.find_largest_scale();
    __syncthreads();
    block.soften();
    copy_async_wait_all();
    __syncthreads();
    typename UnitBlock<kHeadDim>::Sums sums = {};
    block.add_values(sums);
    block.write_part(work.split + (first - work.first) / kUnitTokens, sums);
    __syncthreads();
  }
  write_empty(q, block.pair_index, work, first);
}

// Every stride-th unit of outliers and recent tokens, together one part.
template <int kHeadDim>
__device__ inline void attend_dense(const UnitBlock<kHeadDim>& block, const UnitWork& work,
                                    const skv_session_state& state) {
  const skv_sparse_attention_params& p = block.q.p;
  typename UnitBlock<kHeadDim>::Sums sums = {};
  stage_queries<kHeadDim>(
      p.queries, p.query_type, block.pair, [](int d) { return d; }, block.queries);
  for (int first = work.first; first < work.tokens; first += work.stride) {
    if (threadIdx.x < kUnitTokens) {
      dense_rows(p, block.pair, state, first, block.rows);
    }
    __syncthreads();
    block.stage_values();
    dense_scores<kHeadDim>(block.rows, block.q.group, block.queries, block.scores);
    copy_async_wait_all();
    __syncthreads();
    block.soften();
    __syncthreads();
    block.rescale(sums);
    block.add_values(sums);
    __syncthreads();
  }
  block.write_part(work.split, sums);
}

// Attention of a pair over some units of selected tokens a block, or over a share of its outliers and recent tokens.
//
// coefficients [..][r], basis [K][r][D], values [K][slots][C][D] -> partials [B*K][splits][G]([D]).
// Floor for a pair: S*C rows of r coefficients and D values once (S*C*(2r + 2D) bytes), and S*C*r*D*2 operations
// to rebuild. Basis and coefficients come by asynchronous copies; the values follow into the memory of the coefficients
// when the keys are rebuilt, so that two blocks fit an SM, and one computes while the other waits.
// Reached: 0.084 ms, floor 0.024 (H200, 2026-11-28, bench_cuda_decode, 8 sessions of 122880 tokens, 32/8 heads, r 160,
// S 256). The latency of loads and the issue of copies bound it; docs/decisions.md has the cycles.
template <int kHeadDim, Turn kTurn>
__global__ void __launch_bounds__(kUnitThreads, 2) sparse_attention_kernel(const __grid_constant__ SparseParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_geometry& g = q.p.geometry;
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const skv_session_state& state = q.p.states[pair.session];
  const UnitWork work = unit_work(q, pair_index, state);
  if (work.first >= work.tokens) {
    write_empty(q, pair_index, work, work.first);
    return;
  }
  const UnitLayout layout = unit_layout(kHeadDim, g.rank, g.chunk, q.group, true);
  const UnitBlock<kHeadDim> block(q, pair_index, pair, work.rebuilt && g.value_type == SKV_F8_E4M3, layout, shared);
  block.begin_statistics();
  if (work.rebuilt) {
    attend_selected<kHeadDim, kTurn>(block, work, layout, shared);
  } else {
    attend_dense(block, work, state);
  }
}

// The same after a rerank, whose scores of the selected tokens are there: their values alone are read.
//
// scores [B*K][G][shortlist*C], values [K][slots][C][D] -> partials [B*K][splits][G]([D]). Floor for a pair: S*C rows
// of D values and G scores once.
constexpr int kScoredBlocks = 3;  // of an SM

template <int kHeadDim>
__global__ void __launch_bounds__(kUnitThreads, kScoredBlocks)
    scored_attention_kernel(const __grid_constant__ SparseParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_geometry& g = q.p.geometry;
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const skv_session_state& state = q.p.states[pair.session];
  const UnitWork work = unit_work(q, pair_index, state);
  if (work.first >= work.tokens) {
    write_empty(q, pair_index, work, work.first);
    return;
  }
  const UnitLayout layout = unit_layout(kHeadDim, 0, g.chunk, q.group, true);
  const UnitBlock<kHeadDim> block(q, pair_index, pair, work.rebuilt && g.value_type == SKV_F8_E4M3, layout, shared);
  block.begin_statistics();
  if (work.rebuilt) {
    attend_scored(block, work);
  } else {
    attend_dense(block, work, state);
  }
}

// The same for every shape, without tensor cores: correct, not fast. A thread owns a column of the output.
__global__ void __launch_bounds__(kUnitThreads) sparse_attention_any_kernel(const __grid_constant__ SparseParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_sparse_attention_params& p = q.p;
  const skv_geometry& g = p.geometry;
  const int dim = g.head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const skv_session_state& state = p.states[pair.session];
  const UnitWork work = unit_work(q, pair_index, state);
  if (work.first >= work.tokens) {
    write_empty(q, pair_index, work, work.first);
    return;
  }
  const UnitLayout layout = unit_layout(0, 0, g.chunk, q.group, true);
  auto& rows = *reinterpret_cast<UnitRows*>(shared + layout.rows);
  auto* const scores = reinterpret_cast<float*>(shared + layout.scores);
  auto& statistics = *reinterpret_cast<Statistics*>(shared + layout.statistics);
  auto* const queries = reinterpret_cast<float*>(shared + layout.queries);
  auto* const keys = reinterpret_cast<float*>(shared + layout.base);
  const bool bytes = work.rebuilt && g.value_type == SKV_F8_E4M3;
  if (thread < SKV_MAX_GROUP) {
    statistics.largest[thread] = -INFINITY;
    statistics.sum[thread] = 0.0F;
    statistics.factor[thread] = 1.0F;
  }
  for (int i = thread; i < q.group * dim; i += kUnitThreads) {
    queries[i] = load_element(p.queries, p.query_type, pair.first_query * dim + i);
  }
  float sums[SKV_MAX_GROUP] = {};
  const int selected_count = work.rebuilt ? work.tokens / g.chunk : 0;
  const auto write_part = [&](int split) {
    write_statistics(q, pair_index, split, statistics);
    if (thread < dim) {
#pragma unroll
      for (int head = 0; head < SKV_MAX_GROUP; ++head) {
        if (head < q.group) {
          q.partials.sums[((static_cast<std::int64_t>(pair_index) * q.partials.splits + split) * q.group + head) * dim +
                          thread] = sums[head];
          sums[head] = 0.0F;
        }
      }
    }
  };
  int first = work.first;
  for (; first < work.end && first < work.tokens; first += work.stride) {
    if (thread < kUnitTokens) {
      if (work.rebuilt) {
        selected_rows(p, pair, selected_chunk(p, pair_index, first, selected_count), rows);
      } else {
        dense_rows(p, pair, state, first, rows);
      }
    }
    __syncthreads();
    any_scores(rows, work.rebuilt,
               static_cast<const __nv_bfloat16*>(p.layers[pair.session].basis) +
                   static_cast<std::int64_t>(pair.head) * g.rank * dim,
               dim, g.rank, p.rope, q.group, queries, keys, scores);
    __syncthreads();
    softmax_step(scores, q.group, statistics,
                 [&](int head, int token, float weight) { scores[head * kScoreStride + token] = weight; });
    __syncthreads();
    if (thread < dim) {
#pragma unroll
      for (int head = 0; head < SKV_MAX_GROUP; ++head) {
        if (head < q.group) {
          sums[head] *= statistics.factor[head];
        }
      }
      for (int token = 0; token < kUnitTokens; ++token) {
        const void* const row = rows.value[token];
        if (row) {
          const float value = bytes
                                  ? f32_of_e4m3(static_cast<const std::uint8_t*>(row)[thread]) * rows.value_scale[token]
                                  : __bfloat162float(static_cast<const __nv_bfloat16*>(row)[thread]);
#pragma unroll
          for (int head = 0; head < SKV_MAX_GROUP; ++head) {
            if (head < q.group) {
              sums[head] += scores[head * kScoreStride + token] * value;
            }
          }
        }
      }
    }
    if (work.rebuilt) {
      write_part(work.split + (first - work.first) / kUnitTokens);
    }
    __syncthreads();
  }
  if (work.rebuilt) {
    write_empty(q, pair_index, work, first);
  } else {
    write_part(work.split);
  }
}

void check_sparse(const skv_sparse_attention_params& p) {
  check_shadow_geometry(p.geometry, p.query_type, "sparse_attention");
  check_shadow_geometry(p.geometry, p.output_type, "sparse_attention");
  if (p.select < 0 || p.select > SKV_MAX_SELECT) {
    throw Error(SKV_UNSUPPORTED, "sparse_attention on CUDA takes at most " + std::to_string(SKV_MAX_SELECT) +
                                     " chunks, not " + std::to_string(p.select));
  }
  if (p.geometry.window < 1) {
    throw Error(SKV_INVALID_ARGUMENT,
                "sparse_attention needs a recent window, not one of " + std::to_string(p.geometry.window) + " tokens");
  }
}

}  // namespace

int sparse_attention_splits(const skv_geometry& geometry, std::int32_t select) {
  return selected_splits(geometry, select) + dense_splits(geometry);
}

void launch_sparse_attention(const skv_sparse_attention_params& p, const GivenScores& given,
                             const AttentionPartials& partials, const DeviceTraits& traits, PairRange pairs,
                             bool beside_fetch, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const bool tuned = unit_is_tuned(p.geometry, p.rope, traits), scored = tuned && given.scores;
  SparseParams q = {};
  q.p = p;
  q.given = given;
  q.partials = partials;
  q.first_pair = pairs.first;
  q.group = group_size(p.geometry);
  q.selected_splits = selected_splits(p.geometry, p.select);
  // Units of a block share its basis; as many as leave every SM its blocks.
  const int blocks = (scored ? kScoredBlocks : 2) * traits.multiprocessors;
  constexpr int kMostUnits = 4;
  q.units_per_block = std::clamp(q.selected_splits * pairs.count / blocks, 1, kMostUnits);
  q.selected_blocks = (q.selected_splits + q.units_per_block - 1) / q.units_per_block;
  q.beside_fetch = beside_fetch && traits.compute_major >= 9 && tuned;
  const int dense_blocks = partials.splits - partials.tails - q.selected_splits;
  const dim3 grid(static_cast<unsigned>(q.selected_blocks + dense_blocks), static_cast<unsigned>(pairs.count));
  const char* const name = "sparse attention";
  const auto launch = [&](auto kernel, int dim, int rank) {
    const auto bytes = static_cast<std::size_t>(unit_layout(dim, rank, p.geometry.chunk, q.group, true).end);
    launch_beside(name, Beside{.early = q.beside_fetch}, kernel, grid, dim3(kUnitThreads), bytes, stream, q);
  };
  if (!tuned) {
    launch(sparse_attention_any_kernel, 0, 0);
  } else {
    with_unit_kernel(p.geometry, p.rope, [&](auto dim, auto turn) {
      scored ? launch(scored_attention_kernel<dim.value>, dim.value, 0)
             : launch(sparse_attention_kernel<dim.value, turn.value>, dim.value, p.geometry.rank);
    });
  }
}

std::uint64_t sparse_attention_workspace(const skv_sparse_attention_params& p, const DeviceTraits&) {
  // A tail and dropped tokens are counted whether there are any or not: who asks may not have their address yet.
  return attention_partials_bytes(all_pairs(p.batch, p.geometry).count,
                                  sparse_attention_splits(p.geometry, p.select) + 2, p.geometry);
}

void sparse_attention(const skv_sparse_attention_params& p, Launch& launch) {
  check_sparse(p);
  launch.workspace.require(sparse_attention_workspace(p, launch.traits), "sparse_attention");
  Workspace workspace = launch.workspace;
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  const int own = sparse_attention_splits(p.geometry, p.select), tails = (p.tail ? 1 : 0) + (p.dropped ? 1 : 0);
  AttentionPartials partials = take_attention_partials(pairs.count, own + tails, p.geometry, workspace);
  partials.tails = tails;
  launch_sparse_attention(p, {}, partials, launch.traits, pairs, false, launch.stream);
  if (p.dropped) {
    launch_given_part(p.dropped, p.dropped_values, partials, own, p.geometry, pairs, launch.stream);
  }
  if (p.tail) {
    TailParams tail;
    tail.geometry = p.geometry;
    tail.query_type = p.query_type;
    tail.queries = p.queries;
    tail.layers = p.layers;
    tail.states = p.states;
    tail.weight = const_cast<float*>(p.tail);  // read alone: nothing is taken off or added
    tail.partials = partials;
    tail.split = own + tails - 1;
    launch_tail(tail, pairs, launch.stream);
  }
  CombineOutput out;
  out.output = p.output;
  out.output_type = p.output_type;
  out.log_sum_exp = p.log_sum_exp;
  out.states = p.states;
  launch_combine(out, partials, p.geometry, pairs, launch.stream);
}

}  // namespace skv::cuda
