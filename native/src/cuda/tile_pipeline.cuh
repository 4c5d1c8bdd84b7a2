// Pipelines of tiles: 64 tokens of one key/value head against its G queries (sm_90a). What attention and rerank share.
//
// A pipeline is a warpgroup that computes and a warp that fetches for it, a tile ahead, by bulk copies: of a tile come
// the keys (coefficients, or rotated keys), rows of the tables of rotations and the values, each into a place of its
// own that is free again as soon as it has been used. The pipelines of a block share the basis and the queries of a
// pair and do not wait for each other: while one waits, others compute.
//
// A chunk is one copy. Its tokens lie in shared memory as in global memory, and neighbouring rows of a tile are tokens
// of different chunks: row i is token i / places of chunk i % places, of `places` chunks. So the 8 rows that the tensor
// cores take at once lie in different banks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/attention_unit.cuh"
#include "cuda/bulk_copy.cuh"
#include "cuda/warpgroup.cuh"

namespace skv::cuda {

constexpr int kTileTokens = 64;
constexpr int kMostPipelines = 3;  // of a block; registers for more there are not
constexpr int kComputeWarps = 4;
constexpr int kComputeThreads = 32 * kComputeWarps;
// Of a block: the warpgroups that compute, and one whose warps fetch, of which some may have nothing to do.
constexpr int tile_threads(int pipelines) {
  return (pipelines + 1) * kComputeThreads;
}
static_assert(kMostPipelines <= kComputeWarps);
// Registers of a thread at launch, and afterwards of those that compute and those that fetch.
constexpr int kTileRegisters = 128, kComputeRegisters = 152, kFetchRegisters = 56;
static_assert(kMostPipelines * kComputeRegisters + kFetchRegisters <= (kMostPipelines + 1) * kTileRegisters);
static_assert(kTileTokens == kComputeWarps * kWarpTokens);

// What a tile consists of.
enum TilePart { kTileKeys, kTileTables, kTileValues, kTileParts };

// Who arrives at a barrier for a warp: one lane, behind __syncwarp. compute-sanitizer's racecheck follows the lane that
// arrives and not those that it arrives for; in a build for it every lane arrives (SHADOWKV_RACECHECK).
#ifdef SKV_EVERY_LANE_ARRIVES
constexpr int kArrivals = 32;
#else
constexpr int kArrivals = 1;
#endif

struct TileBarriers {
  std::uint64_t full[kTileParts], empty[kTileParts];
};

// What the warps of a pipeline tell each other of a softmax.
struct TileExchange {
  float largest[kComputeWarps][SKV_MAX_GROUP];
  float sum[kComputeWarps][SKV_MAX_GROUP];
};

// Where the rows of a tile are, in bytes: chunks are a 16-byte word further apart than their data.
struct TileRows {
  int chunk_stride, row_stride, shift;  // the logarithm of the places

  __host__ __device__ TileRows(int chunk, int row_bytes)
      : chunk_stride(chunk * row_bytes + 16), row_stride(row_bytes), shift(chunk == 8 ? 3 : 2) {}
  __host__ __device__ int places() const { return 1 << shift; }
  __host__ __device__ int bytes() const { return places() * chunk_stride; }
  // Of a row, and from one row to the one 16 further down.
  __device__ int at(int row) const { return (row & (places() - 1)) * chunk_stride + (row >> shift) * row_stride; }
  __device__ int step() const { return (16 >> shift) * row_stride; }
};

// Stored keys and their values are fetched like chunks of 8.
constexpr int kStoredChunk = 8;

// Which token of a tile a row is, in the order of its chunks.
__device__ inline int tile_token(int row, int shift) {
  return (row & ((1 << shift) - 1)) * (kTileTokens >> shift) + (row >> shift);
}

constexpr int kTileWeightStride = kTileTokens + kRowPadding;  // in elements
constexpr int kTileScoreStride = kTileTokens + 4;
// Rows of rotations in shared memory, in pairs.
template <int kHeadDim, Turn kTurn>
constexpr int kRotationStride = kHeadDim / 2 + kFinePadding<kTurn>;

// Where the parts of a block's shared memory begin, in bytes; those of a pipeline are relative to it.
struct TileLayout {
  int fine, queries, plain_queries, basis, pipelines;
  int keys, tables, rotations, values, weights, exchange, scales, scores, barriers, pipeline_bytes;
  __host__ __device__ int end(int count) const { return pipelines + count * pipeline_bytes; }
};

__host__ __device__ inline TileLayout tile_layout(int dim, const skv_geometry& g, Turn turn, bool attends) {
  const int chunk = g.chunk;
  TileLayout l = {};
  SharedBytes take;
  const int query_bytes = SKV_MAX_GROUP * (dim + kRowPadding) * 2;
  const int rotation_bytes = (dim / 2 + kFinePadding<Turn::kHalves>)*8;
  l.fine = take(chunk * rotation_bytes);
  l.queries = take(query_bytes);
  // Queries of stored keys, where those of rebuilt ones have their columns in another order.
  l.plain_queries = attends && turn == Turn::kNeighbours ? take(query_bytes) : l.queries;
  l.basis = take(dim / 8 * column_block_bytes(g.rank));
  l.pipelines = take.end;
  take.end = 0;
  const TileRows stored(kStoredChunk, dim * 2);
  l.keys = take(max(TileRows(chunk, coefficient_row_bytes(g)).bytes(), attends ? stored.bytes() : 0));
  l.tables = take(kTileTokens / chunk * 2 * rotation_bytes);
  l.rotations = take(kTileTokens / chunk * rotation_bytes);
  if (attends) {
    l.values = take(stored.bytes());
    l.weights = take(SKV_MAX_GROUP * kTileWeightStride * 2);
    l.exchange = take(static_cast<int>(sizeof(TileExchange)));
    l.scales = take(kTileTokens / chunk * 4);
  } else {
    l.scores = take(SKV_MAX_GROUP * kTileScoreStride * 4);
  }
  l.barriers = take(static_cast<int>(sizeof(TileBarriers)));
  l.pipeline_bytes = take.end;
  return l;
}

// Pipelines that a block has room for; 0: this geometry takes another path. attends: with values.
inline int tile_pipelines(const skv_geometry& g, const skv_rope& rope, const DeviceTraits& traits, bool attends) {
  const bool taken = traits.warpgroups && (g.head_dim == 64 || g.head_dim == 96 || g.head_dim == 128) &&
                     coefficient_row_bytes(g) % 16 == 0 && rope.fine_rows >= g.chunk && rope.rotary_dim > 0 &&
                     rope.rotary_dim % 4 == 0;
  const TileLayout layout = tile_layout(g.head_dim, g, unit_turn(g, rope), attends);
  int count = taken ? kMostPipelines : 0;
  while (count > 0 && layout.end(count) > traits.shared_memory_per_block) {
    --count;
  }
  return count;
}

// Blocks of a pair for a launch of so many pairs and parts of each, one block an SM. in_a_row: parts that a pipeline
// should have at least, since each block brings the pair's basis into shared memory.
inline int tile_blocks(int parts, int pairs, int pipelines, const DeviceTraits& traits, int in_a_row = 1) {
  const int each = pipelines * in_a_row, most = (parts + each - 1) / each;
  return std::clamp(traits.multiprocessors / std::max(1, pairs), 1, std::max(1, most));
}

// For tokens that are not there: as many as the largest chunk of a tile, the coefficients of 16 tokens.
[[maybe_unused]] static __device__ const uint4 kZeros[16 * SKV_MAX_RANK * 2 / sizeof(uint4)] = {};

#ifdef SKV_WARPGROUPS

// Who a thread is in its block: warpgroups that compute come first, then the warps that fetch.
struct TileThread {
  int pipelines;  // of the block
  int pipeline;   // this thread's; from `pipelines` on there is none
  bool fetches;
  int thread;  // within the warpgroup or warp
  int lane, warp;

  __device__ TileThread() {
    const int block_thread = static_cast<int>(threadIdx.x);
    pipelines = static_cast<int>(blockDim.x) / kComputeThreads - 1;
    const int computing = pipelines * kComputeThreads;
    fetches = block_thread >= computing;
    pipeline = fetches ? (block_thread - computing) / 32 : block_thread / kComputeThreads;
    thread = fetches ? (block_thread - computing) % 32 : block_thread % kComputeThreads;
    lane = block_thread % 32;
    warp = thread / 32;
  }

  // Barriers among those that compute: of this pipeline, and of the block. Number 0 is __syncthreads'.
  __device__ void meet() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + pipeline), "n"(kComputeThreads) : "memory");
  }
  __device__ void meet_all() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + kMostPipelines), "r"(pipelines * kComputeThreads) : "memory");
  }
};

// By one thread, before any of the others begins.
__device__ inline void begin_tile_barriers(TileBarriers& barriers) {
#pragma unroll
  for (int part = 0; part < kTileParts; ++part) {
    barrier_begin(barriers.full[part], kArrivals);
    barrier_begin(barriers.empty[part], kComputeWarps * kArrivals);
  }
}

// The side of a pipeline that fetches. All lanes call everything.
class TileFetcher {
 public:
  __device__ TileFetcher(TileBarriers& barriers, int lane) : barriers_(barriers), lane_(lane) {}

  // Waits until the place of a part is free.
  __device__ void await(TilePart part) {
    barrier_wait(barriers_.empty[part], (phases_ >> part & 1U) ^ 1U);
    phases_ ^= 1U << part;
  }

  // What the lanes have written there is complete, and copies of so many bytes follow, those of zeros included.
  __device__ void expect(TilePart part, int bytes) {
    __syncwarp();
    if (lane_ == 0) {
      barrier_expect(barriers_.full[part], bytes);
    } else if constexpr (kArrivals > 1) {
      barrier_arrive(barriers_.full[part]);
    }
    __syncwarp();
  }

  __device__ void copy(TilePart part, void* shared, const void* global, int bytes) {
    copy_bulk(shared, global, bytes, barriers_.full[part]);
  }

  // Zeros for tokens that are not there: their weight is 0, and 0 times what was there before might not be.
  __device__ void clear(TilePart part, void* shared, int bytes) { copy(part, shared, kZeros, bytes); }

  __device__ int lane() const { return lane_; }

 private:
  TileBarriers& barriers_;
  const int lane_;
  unsigned phases_ = 0;
};

// The side that computes. All threads of the warpgroup call everything.
class TileReader {
 public:
  __device__ explicit TileReader(TileBarriers& barriers) : barriers_(barriers) {}

  __device__ void await(TilePart part) {
    barrier_wait(barriers_.full[part], phases_ >> part & 1U);
    phases_ ^= 1U << part;
  }

  // This warp has read a part for the last time.
  __device__ void release(TilePart part) {
    __syncwarp();
    if (threadIdx.x % 32 < kArrivals) {
      barrier_arrive(barriers_.empty[part]);
    }
  }

 private:
  TileBarriers& barriers_;
  unsigned phases_ = 0;
};

// Fetches coefficients and rotations of tiles of chunks. Lane i has the chunk of place i % places, or -1.
template <int kHeadDim, Turn kTurn>
class ChunkFetcher {
 public:
  __device__ ChunkFetcher(TileFetcher& fetcher, const skv_shadow_layer& layer, const skv_geometry& g,
                          const skv_rope& rope, unsigned char* keys, unsigned char* tables)
      : fetcher_(fetcher),
        coefficients_(static_cast<const char*>(layer.coefficients)),
        coarse_(reinterpret_cast<const float2*>(rope.coarse)),
        fine_(reinterpret_cast<const float2*>(rope.fine)),
        keys_(keys),
        tables_(reinterpret_cast<float2*>(tables)),
        rows_(g.chunk, coefficient_row_bytes(g)),
        chunk_(g.chunk),
        half_(rope.rotary_dim / 2),
        fine_rows_(rope.fine_rows) {}

  __device__ int places() const { return rows_.places(); }

  // count: chunks that there are, the first ones.
  __device__ void fetch(int chunk, int count) const {
    const int lane = fetcher_.lane(), bytes = chunk_ * rows_.row_stride;
    fetcher_.await(kTileKeys);
    fetcher_.expect(kTileKeys, count * bytes);
    if (lane < count) {
      fetcher_.copy(kTileKeys, keys_ + lane * rows_.chunk_stride,
                    coefficients_ + static_cast<std::int64_t>(chunk) * bytes, bytes);
    }
    // Of each chunk a row of both tables.
    fetcher_.await(kTileTables);
    fetcher_.expect(kTileTables, count * 2 * half_ * 8);
    if ((lane & (places() - 1)) < count && lane < 2 * places()) {
      const std::int64_t position = static_cast<std::int64_t>(chunk) * chunk_;
      const float2* const row = lane < places() ? coarse_ + (position >> (31 - __clz(fine_rows_))) * half_
                                                : fine_ + (position & (fine_rows_ - 1)) * half_;
      fetcher_.copy(kTileTables, tables_ + lane * kRotationStride<kHeadDim, kTurn>, row, half_ * 8);
    }
  }

 private:
  TileFetcher& fetcher_;
  const char* const coefficients_;
  const float2 *const coarse_, *const fine_;
  unsigned char* const keys_;
  float2* const tables_;
  const TileRows rows_;
  const int chunk_, half_, fine_rows_;
};

// Rotations of the chunks of a tile: the products of their rows of the two tables. Columns that do not rotate get (1,
// 0).
template <int kHeadDim, Turn kTurn>
__device__ inline void multiply_rotations(const float2* tables, float2* rotations, int places, int half, int thread) {
  constexpr int kPieces = kHeadDim / 4, kAtOnce = kComputeThreads / kPieces;  // pieces are two pairs
  constexpr int kStride = kRotationStride<kHeadDim, kTurn>;
  const int pair = thread % kPieces * 2;
  if (thread < kAtOnce * kPieces) {
    for (int place = thread / kPieces; place < places; place += kAtOnce) {
      float4 product = make_float4(1.0F, 0.0F, 1.0F, 0.0F);
      if (pair < half) {
        const float4 x = *reinterpret_cast<const float4*>(tables + place * kStride + pair);
        const float4 y = *reinterpret_cast<const float4*>(tables + (places + place) * kStride + pair);
        product =
            make_float4(x.x * y.x - x.y * y.y, x.x * y.y + x.y * y.x, x.z * y.z - x.w * y.w, x.z * y.w + x.w * y.z);
      }
      *reinterpret_cast<float4*>(rotations + place * kStride + pair) = product;
    }
  }
}

// Where the coefficients of 16 directions of a warp's 16 rows lie, as this lane gives them to the tensor cores.
class TileCoefficients {
 public:
  __device__ TileCoefficients(const TileThread& me, const skv_geometry& g, const unsigned char* tile)
      : bytes_(g.coefficient_type == SKV_I8),
        row_(tile + TileRows(g.chunk, coefficient_row_bytes(g)).at(me.warp * kWarpTokens + me.lane % 16) +
             (bytes_ ? 0 : me.lane / 16 * 16)) {}

  // Bytes come in the order of DirectionOrder::kOfBytes.
  __device__ void load(int step, std::uint32_t (&a)[4]) const {
    if (bytes_) {
      std::uint32_t rows[2];
      load_two_matrices(rows, row_ + step * 16);
      a[0] = bf16_of_i8<0>(rows[0]);
      a[1] = bf16_of_i8<0>(rows[1]);
      a[2] = bf16_of_i8<2>(rows[0]);
      a[3] = bf16_of_i8<2>(rows[1]);
    } else {
      load_matrices(a, row_ + step * 32);
    }
  }

 private:
  const bool bytes_;
  const unsigned char* const row_;
};

// Keys of a warp's 16 rows before rotation, as accumulators of D/8 tiles; calls read() when the coefficients are no
// longer needed.
template <int kHeadDim, class Read>
__device__ inline void rebuild_tile(int rank, const TileCoefficients& coefficients, const unsigned char* basis,
                                    float (&keys)[kHeadDim / 8][4], Read&& read) {
  constexpr int kTogether = 5;  // steps of 16 directions
  const int steps = directions(rank) / 16;
  const MatrixDescriptor b(basis, kBlockBytes, column_block_bytes(rank));
  int step = 0;
#pragma unroll 1
  for (; step + kTogether <= steps && step * 16 + kTogether * 16 <= rank; step += kTogether) {
    std::uint32_t a[kTogether][4];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      coefficients.load(step + i, a[i]);
    }
    if (step + kTogether == steps) {
      read();
    }
    warpgroup_begin(keys);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      warpgroup_multiply(keys, a[i], b.at((step + i) * 2 * kBlockBytes), step + i);
    }
    warpgroup_end(keys);
  }
#pragma unroll 1
  for (; step < steps; ++step) {
    std::uint32_t a[4];
    coefficients.load(step, a);
    // Behind the rank is the next row.
    if (step * 16 + 8 >= rank) {
      a[2] = a[3] = 0;
    }
    if (step + 1 == steps) {
      read();
    }
    warpgroup_begin(keys);
    warpgroup_multiply(keys, a, b.at(step * 2 * kBlockBytes), step);
    warpgroup_end(keys);
  }
}

// Scores of a tile of chunks as accumulators [16 heads][16 rows] of a warp.
template <int kHeadDim, Turn kTurn>
__device__ inline void tile_scores(TileReader& reader, const TileThread& me, const skv_geometry& g,
                                   const skv_rope& rope, const TileLayout& layout, unsigned char* shared,
                                   unsigned char* own, float (&s)[2][4]) {
  constexpr int kStride = kRotationStride<kHeadDim, kTurn>;
  const TileRows rows(g.chunk, coefficient_row_bytes(g));
  auto* const rotations = reinterpret_cast<float2*>(own + layout.rotations);
  reader.await(kTileTables);
  multiply_rotations<kHeadDim, kTurn>(reinterpret_cast<const float2*>(own + layout.tables), rotations, rows.places(),
                                      rope.rotary_dim / 2, me.thread);
  reader.release(kTileTables);
  me.meet();
  reader.await(kTileKeys);
  float keys[kHeadDim / 8][4];
  rebuild_tile<kHeadDim>(g.rank, TileCoefficients(me, g, own + layout.keys), shared + layout.basis, keys,
                         [&] { reader.release(kTileKeys); });
  const auto* const fine = reinterpret_cast<const float2*>(shared + layout.fine);
  // Rows 8 apart are tokens of one chunk.
  const int upper = me.warp * kWarpTokens + me.lane / 4;
  const float2* const base = rotations + (upper & (rows.places() - 1)) * kStride;
  rotated_scores<kHeadDim, kTurn, true>(
      keys, {base, base, fine + (upper >> rows.shift) * kStride, fine + ((upper + 8) >> rows.shift) * kStride},
      reinterpret_cast<const __nv_bfloat16*>(shared + layout.queries), s);
}

// What all pipelines of a block share: by the threads that compute. rebuilt: whether there are keys to rebuild; a
// session without an index has no basis.
template <int kHeadDim, Turn kTurn>
__device__ inline void stage_pair(const TileThread& me, const skv_geometry& g, const skv_rope& rope,
                                  const skv_shadow_layer& layer, const void* queries, int query_type,
                                  const UnitPair& pair, bool rebuilt, const TileLayout& layout, unsigned char* shared) {
  const int threads = me.pipelines * kComputeThreads;
  if (rebuilt) {
    stage_basis<kHeadDim, kTurn>(
        static_cast<const __nv_bfloat16*>(layer.basis) + static_cast<std::int64_t>(pair.head) * g.rank * kHeadDim,
        g.rank, rope, shared + layout.basis, threads,
        g.coefficient_type == SKV_I8 ? DirectionOrder::kOfBytes : DirectionOrder::kAscending);
    stage_fine_rotations<kHeadDim, kTurn>(rope, g.chunk, reinterpret_cast<float2*>(shared + layout.fine), threads);
    stage_queries<kHeadDim>(
        queries, query_type, pair, [&](int d) { return unit_column<kTurn>(rope, d); },
        reinterpret_cast<__nv_bfloat16*>(shared + layout.queries), threads);
  }
  if (!rebuilt || layout.plain_queries != layout.queries) {
    stage_queries<kHeadDim>(
        queries, query_type, pair, [](int d) { return d; },
        reinterpret_cast<__nv_bfloat16*>(shared + layout.plain_queries), threads);
  }
  copy_async_wait_all();
  shared_memory_for_products();
  me.meet_all();
}

#endif

}  // namespace skv::cuda
