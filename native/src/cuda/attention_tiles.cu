// Attention over the selected and the stored tokens of a pair, by pipelines of tiles (sm_90a).
#include <cstdlib>

#include "cuda/decode.h"
#include "cuda/tile_sum.cuh"
#include "value_types.h"

namespace skv::cuda {
namespace {

struct TileParams {
  skv_sparse_attention_params p;
  AttentionPartials partials;
  AttentionParts parts;
  int first_pair;
  int group;
  bool beside_fetch;  // values are there when the launch before this one is done
};

#ifdef SKV_WARPGROUPS

// What a pair has to attend to. Parts are numbered with those of stored keys first, because they wait for no fetch; a
// selected part is a tile, a stored one every so many tiles.
struct PairWork {
  int selected;  // chunks
  int stored;    // tokens: of the outliers, then of the recent window
  int outliers;  // tokens

  __device__ PairWork(const TileParams& q, int pair, const skv_session_state& state) {
    const bool idle = state.length <= 0;
    selected = idle ? 0 : min(q.p.selected_count[pair], q.p.select);
    outliers = idle ? 0 : state.outliers * q.p.geometry.chunk;
    stored = idle ? 0 : outliers + static_cast<int>(state.length - state.recent_begin);
  }
};

// Fetches parts `part`, `part + step`, ... of stored keys; returns the first part behind them.
template <int kHeadDim>
__device__ inline int fetch_stored_parts(const TileParams& q, const UnitPair& pair, const PairWork& work,
                                         const skv_session_state& state, const TileLayout& layout, unsigned char* own,
                                         TileFetcher& fetcher, int part, int step) {
  constexpr int kRowBytes = kHeadDim * 2;
  const skv_geometry& g = q.p.geometry;
  const skv_shadow_layer& layer = q.p.layers[pair.session];
  const TileRows rows(kStoredChunk, kRowBytes);
  const int place = fetcher.lane();
  const std::int64_t outlier_row = static_cast<std::int64_t>(pair.head) * layer.outlier_capacity * g.chunk;
  const std::int64_t window_row = static_cast<std::int64_t>(pair.head) * g.window;
  for (; part < q.parts.stored; part += step) {
    for (int first = part * kTileTokens; first < work.stored; first += q.parts.stored * kTileTokens) {
      const int bytes = min(kTileTokens, work.stored - first) * kRowBytes;
      // This lane's chunk: outliers or recent tokens, for whole chunks are outliers; the ring may end within it.
      const int token = first + place * kStoredChunk;
      const int count = place < kTileTokens / kStoredChunk ? min(kStoredChunk, work.stored - token) : 0;
      const bool outlier = token < work.outliers;
      const std::int64_t begin = outlier ? token : (state.recent_begin + token - work.outliers) % g.window;
      const int before_end = outlier ? kStoredChunk : static_cast<int>(min(g.window - begin, std::int64_t{count}));
      const auto copy = [&](TilePart of, unsigned char* to, const void* from) {
        const char* const source = static_cast<const char*>(from) + (outlier ? outlier_row : window_row) * kRowBytes;
        if (count > 0) {
          const int head = min(count, before_end);
          fetcher.copy(of, to, source + begin * kRowBytes, head * kRowBytes);
          if (head < count) {
            fetcher.copy(of, to + head * kRowBytes, source, (count - head) * kRowBytes);
          }
        }
      };
      fetcher.await(kTileKeys);
      fetcher.expect(kTileKeys, bytes);
      copy(kTileKeys, own + layout.keys + place * rows.chunk_stride, outlier ? layer.outlier_keys : layer.recent_keys);
      fetcher.await(kTileValues);
      unsigned char* const values = own + layout.values + place * rows.chunk_stride;
      fetcher.expect(kTileValues, kTileTokens * kRowBytes);
      if (const int present = max(0, count); place < rows.places() && present < kStoredChunk) {
        fetcher.clear(kTileValues, values + present * kRowBytes, (kStoredChunk - present) * kRowBytes);
      }
      copy(kTileValues, values, outlier ? layer.outlier_values : layer.recent_values);
    }
  }
  return part;
}

// Fetches selected parts `part`, `part + step`, ...; the stored ones are numbered before them.
template <int kHeadDim, Turn kTurn>
__device__ inline void fetch_selected_parts(const TileParams& q, const UnitPair& pair, int pair_index,
                                            const PairWork& work, const TileLayout& layout, unsigned char* own,
                                            TileFetcher& fetcher, int part, int step) {
  const skv_geometry& g = q.p.geometry;
  const skv_shadow_layer& layer = q.p.layers[pair.session];
  const int lane = fetcher.lane();
  const ChunkFetcher<kHeadDim, kTurn> chunks(fetcher, layer, g, q.p.rope, own + layout.keys, own + layout.tables);
  const int places = chunks.places(), mine = lane & (places - 1);
  const bool byte_values = slot_type(g.value_type) == SKV_F8_E4M3;
  const int width = byte_values ? kHeadDim : kHeadDim * 2;
  const TileRows rows(g.chunk, width);
  const char* const source =
      static_cast<const char*>(g.slots ? layer.slot_values : layer.values) +
      static_cast<std::int64_t>(pair.head) * (g.slots ? g.slots : layer.chunk_capacity) * g.chunk * width;
  const float* const scales = byte_values ? layer.value_scales + pair.head * layer.chunk_capacity : nullptr;
  const std::int64_t list = static_cast<std::int64_t>(pair_index) * q.p.select;
  const auto listed = [&](const std::int32_t* of, int at) {
    const int place = (at - q.parts.stored) * places + mine;
    return place < work.selected ? of[list + place] : -1;
  };
  bool fetched = !q.beside_fetch;
  int chunk = listed(q.p.selected, part), slot = listed(q.p.selected_slot, part);
  for (; (part - q.parts.stored) * places < work.selected; part += step) {
    const int count = min(places, work.selected - (part - q.parts.stored) * places);
    chunks.fetch(chunk, count);
    const float scale = byte_values && chunk >= 0 ? scales[chunk] : 0.0F;
    const int next_chunk = listed(q.p.selected, part + step), next_slot = listed(q.p.selected_slot, part + step);
    if (!fetched) {
      wait_for_earlier();
      fetched = true;
    }
    fetcher.await(kTileValues);
    unsigned char* const values = own + layout.values + lane * rows.chunk_stride;
    if (lane < places && byte_values) {
      reinterpret_cast<float*>(own + layout.scales)[lane] = scale;
    }
    fetcher.expect(kTileValues, places * g.chunk * width);
    if (lane < count) {
      fetcher.copy(kTileValues, values, source + static_cast<std::int64_t>(slot) * g.chunk * width, g.chunk * width);
    } else if (lane < places) {
      fetcher.clear(kTileValues, values, g.chunk * width);
    }
    chunk = next_chunk;
    slot = next_slot;
  }
  if (!fetched) {
    wait_for_earlier();  // what follows this launch relies on the fetch, too
  }
}

// Scores of a tile of keys that are stored rotated, as accumulators of a warp.
template <int kHeadDim>
__device__ inline void stored_scores(const unsigned char* keys, const __nv_bfloat16* queries, const TileThread& me,
                                     float (&s)[2][4]) {
  const TileRows rows(kStoredChunk, kHeadDim * 2);
  // Matrices 0 and 1 are two times 8 columns of 8 rows, 2 and 3 of the 8 rows further down.
  const unsigned char* const key_lane =
      keys + rows.at(me.warp * kWarpTokens + me.lane / 16 * 8 + me.lane % 8) + me.lane / 8 % 2 * 16;
  const __nv_bfloat16* const query_lane = queries + me.lane % 16 * (kHeadDim + kRowPadding) + me.lane / 16 * 8;
#pragma unroll
  for (int d = 0; d < kHeadDim; d += 16) {
    std::uint32_t q[4], k[4];
    load_matrices(q, query_lane + d);
    load_matrices(k, key_lane + 2 * d);
    mma_bf16(s[0], q[0], q[1], q[2], q[3], k[0], k[1]);
    mma_bf16(s[1], q[0], q[1], q[2], q[3], k[2], k[3]);
  }
}

// The side that computes.
template <int kHeadDim, Turn kTurn>
__device__ inline void attend_parts(const TileParams& q, int pair_index, const PairWork& work, const TileThread& me,
                                    const TileLayout& layout, unsigned char* shared, unsigned char* own,
                                    TileReader& reader, int part, int step) {
  const skv_geometry& g = q.p.geometry;
  const float scale = rsqrtf(static_cast<float>(kHeadDim)) * kLog2E;
  TilePartSum<kHeadDim, TileSumOf::kValues> sum(
      me, q.group, kHeadDim, reinterpret_cast<std::uint16_t*>(own + layout.weights),
      *reinterpret_cast<TileExchange*>(own + layout.exchange), reinterpret_cast<const float*>(own + layout.scales));
  TileLogits x;
  for (; part < q.parts.stored; part += step) {
    const int split = q.parts.selected + part;
    int first = part * kTileTokens;
    if (first >= work.stored) {
      sum.write_empty(q.partials, pair_index, split);
      continue;
    }
    sum.begin();
    for (; first < work.stored; first += q.parts.stored * kTileTokens) {
      float s[2][4] = {};
      reader.await(kTileKeys);
      stored_scores<kHeadDim>(own + layout.keys, reinterpret_cast<const __nv_bfloat16*>(shared + layout.plain_queries),
                              me, s);
      reader.release(kTileKeys);
      const TileRows rows(kStoredChunk, kHeadDim * 2);
      sum.scale(s, scale, work.stored - first, rows.shift, x);
      sum.add(x, rows, own + layout.values, false, kTileValues, reader);
    }
    sum.write(q.partials, pair_index, split, false);
  }
  const bool byte_values = slot_type(g.value_type) == SKV_F8_E4M3;
  const TileRows rows(g.chunk, byte_values ? kHeadDim : kHeadDim * 2);
  for (; part < q.parts.stored + q.parts.selected; part += step) {
    const int split = part - q.parts.stored, tokens = work.selected * g.chunk - split * kTileTokens;
    if (tokens <= 0) {
      sum.write_empty(q.partials, pair_index, split);
      continue;
    }
    sum.begin();
    float s[2][4] = {};
    tile_scores<kHeadDim, kTurn>(reader, me, g, q.p.rope, layout, shared, own, s);
    sum.scale(s, scale, tokens, rows.shift, x);
    sum.add(x, rows, own + layout.values, byte_values, kTileValues, reader);
    sum.write(q.partials, pair_index, split, byte_values);
  }
}

#endif

// Attention of a pair: its parts dealt to the pipelines of its blocks.
//
// coefficients [..][r], basis [K][r][D], values [K][slots][C][D] -> partials [B*K][splits][G]([D]).
// Floor for a pair: S*C rows of r coefficients and D values once (S*C*(2r + 2D) bytes), and S*C*r*D*2 operations
// to rebuild. Reached: 0.054 ms, floor 0.024 (H200, 2026-11-28, bench_cuda_decode, 8 sessions of 122880 tokens, 32/8
// heads, r 160, S 256); docs/decisions.md says what it waits for.
template <int kHeadDim, Turn kTurn>
__global__ void __maxnreg__(kTileRegisters) attention_tiles_kernel(const __grid_constant__ TileParams q) {
#ifdef SKV_WARPGROUPS
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_geometry& g = q.p.geometry;
  const TileThread me;
  const TileLayout layout = tile_layout(kHeadDim, g, kTurn, true);
  unsigned char* const own = shared + layout.pipelines + me.pipeline * layout.pipeline_bytes;
  auto& barriers = *reinterpret_cast<TileBarriers*>(own + layout.barriers);
  let_next_begin();
  if (me.fetches && me.pipeline < me.pipelines && me.lane == 0) {
    begin_tile_barriers(barriers);
    barriers_visible();
  }
  __syncthreads();
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const skv_session_state& state = q.p.states[pair.session];
  const PairWork work(q, pair_index, state);
  const int part = static_cast<int>(blockIdx.x) * me.pipelines + me.pipeline;
  const int step = static_cast<int>(gridDim.x) * me.pipelines;
  if (me.fetches) {
    warpgroup_keep_registers<kFetchRegisters>();
    if (me.pipeline >= me.pipelines) {
      return;
    }
    TileFetcher fetcher(barriers, me.lane);
    const int selected = fetch_stored_parts<kHeadDim>(q, pair, work, state, layout, own, fetcher, part, step);
    fetch_selected_parts<kHeadDim, kTurn>(q, pair, pair_index, work, layout, own, fetcher, selected, step);
  } else {
    warpgroup_take_registers<kComputeRegisters>();
    if (work.selected > 0 || work.stored > 0) {  // whoever is idle has no queries
      stage_pair<kHeadDim, kTurn>(me, g, q.p.rope, q.p.layers[pair.session], q.p.queries, q.p.query_type, pair,
                                  work.selected > 0, layout, shared);
    }
    TileReader reader(barriers);
    attend_parts<kHeadDim, kTurn>(q, pair_index, work, me, layout, shared, own, reader, part, step);
  }
#endif
}

// Never launched: its shared memory tells the host which of its versions the device has.
__global__ void warpgroups_kernel(int* any) {
#ifdef SKV_WARPGROUPS
  __shared__ volatile int there;
  there = *any;
  __syncthreads();
  *any = there;
#endif
}

}  // namespace

void find_warpgroups(DeviceTraits& traits) {
  // For tests: 0 keeps to the paths of other GPUs.
  const char* const wanted = std::getenv("SHADOWKV_WARPGROUPS");
  if (traits.compute_major != 9 || (wanted && std::atoi(wanted) == 0)) {
    return;
  }
  cudaFuncAttributes attributes = {};
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(warpgroups_kernel)),
        "asking for the instructions of the device");
  traits.warpgroups = attributes.sharedSizeBytes > 0;
}

void launch_attention_tiles(const skv_sparse_attention_params& p, const AttentionParts& parts,
                            const AttentionPartials& partials, const DeviceTraits& traits, PairRange pairs,
                            bool beside_fetch, cudaStream_t stream) {
  const int pipelines = tile_pipelines(p.geometry, p.rope, traits, true);
  TileParams q = {};
  q.p = p;
  q.partials = partials;
  q.parts = parts;
  q.first_pair = pairs.first;
  q.group = group_size(p.geometry);
  q.beside_fetch = beside_fetch;
  // Nobody waits for a part of the batch but for the last: the others take fewer SMs for longer, which leaves more to
  // selections and fetches beside them.
  const bool last = pairs.first + pairs.count == all_pairs(p.batch, p.geometry).count;
  constexpr int kInARow = 4;
  const int blocks = tile_blocks(parts.selected + parts.stored, pairs.count, pipelines, traits, last ? 1 : kInARow);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(pairs.count));
  with_unit_kernel(p.geometry, p.rope, [&](auto dim, auto turn) {
    const int bytes = tile_layout(dim.value, p.geometry, turn.value, true).end(pipelines);
    launch_beside("attention of tiles", Beside{.early = beside_fetch}, attention_tiles_kernel<dim.value, turn.value>,
                  grid, dim3(static_cast<unsigned>(tile_threads(pipelines))), static_cast<std::size_t>(bytes), stream,
                  q);
  });
}

}  // namespace skv::cuda
