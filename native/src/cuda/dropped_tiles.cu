// Weighted sums of the coefficients of the tokens that a rerank drops, by pipelines of tiles (sm_90a).
#include "cuda/decode.h"
#include "cuda/tile_sum.cuh"

namespace skv::cuda {
namespace {

struct DroppedTileParams {
  DroppedParams p;
  int first_pair;
  int group;
};

// Where the parts of a block's shared memory begin, in bytes; those of a pipeline are relative to it.
struct DroppedLayout {
  int places, dropped, pipelines;
  int tiles, tile_bytes, weights, exchange, barriers, pipeline_bytes;  // tiles: two places in turn
  __host__ __device__ int end() const { return pipelines + kMostPipelines * pipeline_bytes; }
};

__host__ __device__ inline DroppedLayout dropped_layout(const skv_geometry& g, int select, int listed) {
  DroppedLayout l = {};
  SharedBytes take;
  l.places = take(select * 4);
  l.dropped = take(listed * 2);
  l.pipelines = take.end;
  take.end = 0;
  l.tile_bytes = align_16(TileRows(g.chunk, coefficient_row_bytes(g)).bytes());
  l.tiles = take(2 * l.tile_bytes);
  l.weights = take(2 * SKV_MAX_GROUP * kTileWeightStride * 2);
  l.exchange = take(static_cast<int>(sizeof(TileExchange)));
  l.barriers = take(static_cast<int>(sizeof(TileBarriers)));
  l.pipeline_bytes = take.end;
  return l;
}

#ifdef SKV_WARPGROUPS

// Tiles go to two places in turn.
__device__ inline TilePart tile_place(int turn) {
  return turn % 2 == 0 ? kTileKeys : kTileValues;
}

// Log2 scores of a tile's tokens, for the threads that compute.
template <int kMostColumns>
__device__ inline void load_scores(const DroppedTileParams& q,
                                   const TilePartSum<kMostColumns, TileSumOf::kCoefficients>& sum, int pair,
                                   const TileRows& rows, const std::uint16_t* dropped, int count, int tile,
                                   TileLogits& x) {
  const int chunk = q.p.geometry.chunk;
  const std::int64_t stride = static_cast<std::int64_t>(q.p.listed_stride) * chunk;
#pragma unroll
  for (int set = 0; set < 2; ++set) {
    const int head = sum.row() + 8 * set;
    const float* const scores = q.p.scores + (static_cast<std::int64_t>(pair) * q.group + head) * stride;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = sum.first_row() + 8 * n + e, place = tile * rows.places() + (row & (rows.places() - 1));
        x[set][n][e] =
            head < q.group && place < count ? scores[dropped[place] * chunk + (row >> rows.shift)] : -INFINITY;
      }
    }
  }
}

#endif

// The dropped chunks of a pair in tiles, of which every units-th makes a unit.
//
// coefficients [..][r], scores [B*K][G][shortlist*C] -> statistics [B*K][units][G], sums [B*K][units][G][r].
// Floor: the coefficients of the dropped tokens read once; bound by memory. Reached: 0.043 ms, floor 0.031 (H200,
// 2026-11-28, Nsight Compute, 8 sessions, 768 of 1024 chunks dropped, r 160).
template <int kMostColumns>
__global__ void __maxnreg__(kTileRegisters) dropped_tiles_kernel(const __grid_constant__ DroppedTileParams q) {
#ifdef SKV_WARPGROUPS
  extern __shared__ __align__(16) unsigned char shared[];
  const DroppedParams& p = q.p;
  const skv_geometry& g = p.geometry;
  const int pair = q.first_pair + static_cast<int>(blockIdx.y), session = pair / g.key_value_heads;
  const skv_shadow_layer& layer = p.layers[session];
  if (p.states[session].length <= 0 || layer.value_basis == nullptr) {
    return;
  }
  const int listed = min(p.listed_count[pair], p.listed_stride);
  const int selected = min(p.selected_count[pair], p.select), count = max(0, listed - selected);
  const TileThread me;
  const DroppedLayout layout = dropped_layout(g, p.select, p.listed_stride);
  unsigned char* const own = shared + layout.pipelines + me.pipeline * layout.pipeline_bytes;
  auto& barriers = *reinterpret_cast<TileBarriers*>(own + layout.barriers);
  auto* const places = reinterpret_cast<int*>(shared + layout.places);
  auto* const dropped = reinterpret_cast<std::uint16_t*>(shared + layout.dropped);
  if (me.fetches && me.pipeline < me.pipelines && me.lane == 0) {
    begin_tile_barriers(barriers);
    barriers_visible();
  }
  for (int i = static_cast<int>(threadIdx.x); i < selected; i += static_cast<int>(blockDim.x)) {
    places[i] = p.places[static_cast<std::int64_t>(pair) * p.select + i];
  }
  __syncthreads();
  // The i-th dropped chunk is behind all selected ones that have at most i dropped ones before them.
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    int before = 0;
    for (int end = selected; before < end;) {
      const int middle = (before + end) / 2;
      (places[middle] - middle <= i) ? before = middle + 1 : end = middle;
    }
    dropped[i] = static_cast<std::uint16_t>(i + before);
  }
  __syncthreads();
  const TileRows rows(g.chunk, coefficient_row_bytes(g));
  const bool byte_coefficients = g.coefficient_type == SKV_I8;
  const int tiles = (count + rows.places() - 1) / rows.places();
  const int units = (listed * g.chunk + kDroppedTokens - 1) / kDroppedTokens;
  const int first_unit = static_cast<int>(blockIdx.x) * me.pipelines + me.pipeline;
  const int step = static_cast<int>(gridDim.x) * me.pipelines;
  int turn = 0;
  if (me.fetches) {
    if (me.pipeline >= me.pipelines) {
      return;
    }
    TileFetcher fetcher(barriers, me.lane);
    const int bytes = g.chunk * rows.row_stride;
    const std::int32_t* const list = p.listed + static_cast<std::int64_t>(pair) * p.listed_stride;
    for (int unit = first_unit; unit < units; unit += step) {
      for (int tile = unit; tile < tiles; tile += units, ++turn) {
        const int place = tile * rows.places() + me.lane;
        const int chunk = me.lane < rows.places() && place < count ? list[dropped[place]] : -1;
        unsigned char* const to = own + layout.tiles + turn % 2 * layout.tile_bytes + me.lane * rows.chunk_stride;
        fetcher.await(tile_place(turn));
        fetcher.expect(tile_place(turn), rows.places() * bytes);
        if (chunk >= 0) {
          fetcher.copy(tile_place(turn), to,
                       static_cast<const char*>(layer.coefficients) + static_cast<std::int64_t>(chunk) * bytes, bytes);
        } else if (me.lane < rows.places()) {
          fetcher.clear(tile_place(turn), to, bytes);
        }
      }
    }
  } else {
    TileReader reader(barriers);
    AttentionPartials sums;
    sums.statistics = p.scratch.statistics;
    sums.sums = p.scratch.sums;
    sums.splits = p.scratch.units;
    TilePartSum<kMostColumns, TileSumOf::kCoefficients> sum(
        me, q.group, g.rank, reinterpret_cast<std::uint16_t*>(own + layout.weights),
        *reinterpret_cast<TileExchange*>(own + layout.exchange), nullptr);
    for (int unit = first_unit; unit < units; unit += step) {
      if (unit >= tiles) {
        sum.write_empty(sums, pair, unit);
        continue;
      }
      sum.begin();
      TileLogits x;
      load_scores(q, sum, pair, rows, dropped, count, unit, x);
      for (int tile = unit; tile < tiles; tile += units, ++turn) {
        TileLogits next;
        load_scores(q, sum, pair, rows, dropped, count, tile + units, next);
        sum.add(x, rows, own + layout.tiles + turn % 2 * layout.tile_bytes, byte_coefficients, tile_place(turn),
                reader);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x[i / 4][i / 2 % 2][i % 2] = next[i / 4][i / 2 % 2][i % 2];
        }
      }
      sum.write(sums, pair, unit, byte_coefficients);
    }
  }
#endif
}

}  // namespace

bool launch_dropped_tiles(const DroppedParams& p, const DeviceTraits& traits, PairRange pairs, cudaStream_t stream) {
  const int bytes = dropped_layout(p.geometry, p.select, p.listed_stride).end();
  if (!traits.warpgroups || coefficient_row_bytes(p.geometry) % 16 != 0 || bytes > traits.shared_memory_per_block) {
    return false;
  }
  const DroppedTileParams q = {p, pairs.first, group_size(p.geometry)};
  const auto kernel = p.geometry.rank <= 128   ? dropped_tiles_kernel<128>
                      : p.geometry.rank <= 192 ? dropped_tiles_kernel<192>
                                               : dropped_tiles_kernel<256>;
  static_assert(SKV_MAX_RANK <= 256);
  launch_beside("dropped tokens", kernel,
                dim3(static_cast<unsigned>(tile_blocks(p.scratch.units, pairs.count, kMostPipelines, traits)),
                     static_cast<unsigned>(pairs.count)),
                dim3(tile_threads(kMostPipelines)), static_cast<std::size_t>(bytes), stream, q);
  return true;
}

}  // namespace skv::cuda
