#include <algorithm>

#include "cuda/attention_block.cuh"
#include "cuda/decode.h"
#include "cuda/tile_pipeline.cuh"
#include "value_types.h"

namespace skv::cuda {
namespace {

// Blocks a pair that share the outliers and the recent window; a block goes over its units in turn. The number of
// outliers is known on the device alone, so the launch is sized for a usual one.
constexpr int kUsualOutlierTokens = 384;
constexpr int kMostStoredParts = 16;

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
    stage_coefficients(block.rows, g, coefficients);
    if (first == work.first) {
      stage_basis<kHeadDim, kTurn>(static_cast<const __nv_bfloat16*>(p.layers[block.pair.session].basis) +
                                       static_cast<std::int64_t>(block.pair.head) * g.rank * kHeadDim,
                                   g.rank, p.rope, basis);
      stage_fine_rotations<kHeadDim, kTurn>(p.rope, g.chunk, fine);
    }
    rotations.write(base);
    copy_async_wait_all();
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
// S 256); Hopper takes launch_attention_tiles.
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
  const UnitBlock<kHeadDim> block(q, pair_index, pair, work.rebuilt && slot_type(g.value_type) == SKV_F8_E4M3, layout,
                                  shared);
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
  const UnitBlock<kHeadDim> block(q, pair_index, pair, work.rebuilt && slot_type(g.value_type) == SKV_F8_E4M3, layout,
                                  shared);
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
  const bool bytes = work.rebuilt && slot_type(g.value_type) == SKV_F8_E4M3;
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
    any_scores(rows, work.rebuilt, g.coefficient_type,
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

AttentionParts attention_parts(const skv_geometry& g, const skv_rope& rope, std::int32_t select, bool scored,
                               const DeviceTraits& traits) {
  AttentionParts parts;
  parts.tokens = !scored && tile_pipelines(g, rope, traits, true) > 0 ? kTileTokens : kUnitTokens;
  parts.selected = (select * g.chunk + parts.tokens - 1) / parts.tokens;
  parts.stored =
      std::min(kMostStoredParts, (g.window + parts.tokens - 1) / parts.tokens + kUsualOutlierTokens / parts.tokens);
  return parts;
}

void launch_sparse_attention(const skv_sparse_attention_params& p, const GivenScores& given,
                             const AttentionPartials& partials, const DeviceTraits& traits, PairRange pairs,
                             bool beside_fetch, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  const AttentionParts parts = attention_parts(p.geometry, p.rope, p.select, given.scores != nullptr, traits);
  if (parts.tokens == kTileTokens) {
    launch_attention_tiles(p, parts, partials, traits, pairs, beside_fetch, stream);
    return;
  }
  const bool tuned = unit_is_tuned(p.geometry, p.rope, traits), scored = tuned && given.scores;
  SparseParams q = {};
  q.p = p;
  q.given = given;
  q.partials = partials;
  q.first_pair = pairs.first;
  q.group = group_size(p.geometry);
  q.selected_splits = parts.selected;
  // Units of a block share its basis; as many as leave every SM its blocks.
  const int blocks = (scored ? kScoredBlocks : 2) * traits.multiprocessors;
  constexpr int kMostUnits = 4;
  q.units_per_block = std::clamp(q.selected_splits * pairs.count / blocks, 1, kMostUnits);
  q.selected_blocks = (q.selected_splits + q.units_per_block - 1) / q.units_per_block;
  q.beside_fetch = beside_fetch && traits.compute_major >= 9 && tuned;
  const dim3 grid(static_cast<unsigned>(q.selected_blocks + parts.stored), static_cast<unsigned>(pairs.count));
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

std::uint64_t sparse_attention_workspace(const skv_sparse_attention_params& p, const DeviceTraits& traits) {
  // A tail and dropped tokens are counted whether there are any or not: who asks may not have their address yet.
  return attention_partials_bytes(all_pairs(p.batch, p.geometry).count,
                                  attention_parts(p.geometry, p.rope, p.select, false, traits).total() + 2, p.geometry);
}

void sparse_attention(const skv_sparse_attention_params& p, Launch& launch) {
  check_sparse(p);
  launch.workspace.require(sparse_attention_workspace(p, launch.traits), "sparse_attention");
  Workspace workspace = launch.workspace;
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  const int own = attention_parts(p.geometry, p.rope, p.select, false, launch.traits).total();
  const int tails = (p.tail ? 1 : 0) + (p.dropped ? 1 : 0);
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
  launch_combine(out, partials, p.geometry, pairs, false, launch.stream);
}

}  // namespace skv::cuda
