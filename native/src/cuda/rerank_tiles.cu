// Exact masses of a shortlist's chunks from rebuilt keys, by pipelines of tiles (sm_90a).
#include "cuda/decode.h"
#include "cuda/tile_pipeline.cuh"

namespace skv::cuda {
namespace {

struct RerankTileParams {
  skv_rerank_params p;
  RerankScratch scratch;
  int first_pair;
  int group;
};

#ifdef SKV_WARPGROUPS

// What a tile of a shortlist has come to, from its scores as accumulators [16 heads][16 rows] of a warp, by way of
// scores [16][64] in shared memory. first: of the tile's tokens; count: chunks of the shortlist.
template <int kHeadDim>
__device__ inline void write_tile(const RerankTileParams& q, const float (&s)[2][4], const TileThread& me,
                                  int pair_index, int first, int count, float* scores) {
  const int chunk = q.p.geometry.chunk, shift = TileRows(chunk, 0).shift;
  const int head_row = me.lane / 4, row = me.warp * kWarpTokens + 2 * (me.lane % 4);
  const bool wide = q.group > 8;
  const float scale = rsqrtf(static_cast<float>(kHeadDim)) * kLog2E;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float* const at = scores + head_row * kTileScoreStride + tile_token(row + 8 * n + e, shift);
      at[0] = (wide ? s[n][e] : s[n][e] + s[n][e + 2]) * scale;
      if (wide) {
        at[8 * kTileScoreStride] = s[n][e + 2] * scale;
      }
    }
  }
  me.meet();
  const std::int64_t list = static_cast<std::int64_t>(pair_index) * q.group;
  const std::int64_t stride = static_cast<std::int64_t>(q.p.shortlist_stride) * chunk;
  constexpr int kPieces = kTileTokens / 4;
  for (int i = me.thread; q.scratch.scores && i < q.group * kPieces; i += kComputeThreads) {
    const int head = i / kPieces, token = i % kPieces * 4;
    if (first + token < count * chunk) {
      *reinterpret_cast<float4*>(q.scratch.scores + (list + head) * stride + first + token) =
          *reinterpret_cast<const float4*>(scores + head * kTileScoreStride + token);
    }
  }
  // The last threads begin: the first ones have had more scores to write.
  for (int i = kComputeThreads - 1 - me.thread; i < q.group << shift; i += kComputeThreads) {
    const int head = i >> shift, c = i & ((1 << shift) - 1), place = first / chunk + c;
    if (place < count) {
      q.scratch.chunk_mass[(list + head) * q.p.shortlist_stride + place] =
          log_mass(scores + head * kTileScoreStride + c * chunk, chunk);
    }
  }
}

#endif

// Tiles of a pair's shortlist, dealt to the pipelines of its blocks.
//
// coefficients [..][r], basis [K][r][D] -> chunk_mass [B*K][G][shortlist], scores [B*K][G][shortlist*C]. Floor: the
// coefficients once and r*D*2 operations a token; the rotation of keys bounds it, half of all instructions. Reached,
// with the selection behind it: 0.095 ms, floor 0.041 (H200, 2026-11-28, bench_cuda_decode, 8 sessions, shortlist of
// 1024 chunks, r 160).
template <int kHeadDim, Turn kTurn>
__global__ void __maxnreg__(kTileRegisters) rerank_tiles_kernel(const __grid_constant__ RerankTileParams q) {
#ifdef SKV_WARPGROUPS
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_rerank_params& p = q.p;
  const skv_geometry& g = p.geometry;
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const int count = p.states[pair.session].length <= 0 ? 0 : min(p.shortlist_count[pair_index], p.shortlist_stride);
  if (count == 0) {
    return;
  }
  const TileThread me;
  const TileLayout layout = tile_layout(kHeadDim, g, kTurn, false);
  unsigned char* const own = shared + layout.pipelines + me.pipeline * layout.pipeline_bytes;
  auto& barriers = *reinterpret_cast<TileBarriers*>(own + layout.barriers);
  if (me.fetches && me.pipeline < me.pipelines && me.lane == 0) {
    begin_tile_barriers(barriers);
    barriers_visible();
  }
  __syncthreads();
  const int first = (static_cast<int>(blockIdx.x) * me.pipelines + me.pipeline) * kTileTokens;
  const int step = static_cast<int>(gridDim.x) * me.pipelines * kTileTokens;
  if (me.fetches) {
    warpgroup_keep_registers<kFetchRegisters>();
    if (me.pipeline >= me.pipelines) {
      return;
    }
    TileFetcher fetcher(barriers, me.lane);
    const ChunkFetcher<kHeadDim, kTurn> chunks(fetcher, p.layers[pair.session], g, p.rope, own + layout.keys,
                                               own + layout.tables);
    const int places = chunks.places(), mine = me.lane & (places - 1);
    const std::int32_t* const list = p.shortlist + static_cast<std::int64_t>(pair_index) * p.shortlist_stride;
    const auto listed = [&](int place) { return place < count ? list[place] : -1; };
    int place = first / g.chunk;
    int chunk = listed(place + mine);
    for (; place < count; place += step / g.chunk) {
      const int next = listed(place + step / g.chunk + mine);
      chunks.fetch(chunk, min(places, count - place));
      chunk = next;
    }
  } else {
    warpgroup_take_registers<kComputeRegisters>();
    stage_pair<kHeadDim, kTurn>(me, g, p.rope, p.layers[pair.session], p.queries, p.query_type, pair, true, layout,
                                shared);
    TileReader reader(barriers);
    for (int token = first; token < count * g.chunk; token += step) {
      float s[2][4] = {};
      tile_scores<kHeadDim, kTurn>(reader, me, g, p.rope, layout, shared, own, s);
      write_tile<kHeadDim>(q, s, me, pair_index, token, count, reinterpret_cast<float*>(own + layout.scores));
    }
  }
#endif
}

}  // namespace

bool launch_rerank_tiles(const skv_rerank_params& p, const RerankScratch& scratch, const DeviceTraits& traits,
                         PairRange pairs, cudaStream_t stream) {
  const int pipelines = tile_pipelines(p.geometry, p.rope, traits, false);
  if (pipelines == 0) {
    return false;
  }
  const RerankTileParams q = {p, scratch, pairs.first, group_size(p.geometry)};
  const int tiles = (p.shortlist_stride * p.geometry.chunk + kTileTokens - 1) / kTileTokens;
  const dim3 grid(static_cast<unsigned>(tile_blocks(tiles, pairs.count, pipelines, traits)),
                  static_cast<unsigned>(pairs.count));
  with_unit_kernel(p.geometry, p.rope, [&](auto dim, auto turn) {
    const int bytes = tile_layout(dim.value, p.geometry, turn.value, false).end(pipelines);
    launch_beside("rerank masses", rerank_tiles_kernel<dim.value, turn.value>, grid,
                  dim3(static_cast<unsigned>(tile_threads(pipelines))), static_cast<std::size_t>(bytes), stream, q);
  });
  return true;
}

}  // namespace skv::cuda
