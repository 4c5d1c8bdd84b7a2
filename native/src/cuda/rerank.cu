#include "cuda/attention_unit.cuh"
#include "cuda/decode.h"
#include "cuda/plan_slots.cuh"

namespace skv::cuda {
namespace {

struct RerankParams {
  skv_rerank_params p;
  RerankScratch scratch;
  PlanOutput plan;
  int first_pair;
  int group;
  int units_per_block;
};

// Rows of tokens [first, first + 128) of a pair's shortlist. Behind its end they are those of the first chunk, whose
// scores nobody reads: a row is then always there.
__device__ void shortlist_rows(const skv_rerank_params& p, const UnitPair& pair, int pair_index, int first, int count,
                               UnitRows& rows) {
  const int token = static_cast<int>(threadIdx.x);
  const int place = (first + token) / p.geometry.chunk, in_chunk = (first + token) % p.geometry.chunk;
  const std::int64_t chunk =
      p.shortlist[static_cast<std::int64_t>(pair_index) * p.shortlist_stride + (place < count ? place : 0)];
  const std::int64_t position = chunk * p.geometry.chunk + in_chunk;
  rows.key[token] = coefficient_row(p.layers[pair.session], p.geometry, position);
  rows.position[token] = position;
}

// Log2 of each token's exponential of the unit, for each head.
__device__ void write_scores(const RerankParams& q, const float* scores, int pair_index, int first, int count) {
  const int tokens = min(kUnitTokens, count * q.p.geometry.chunk - first);
  const std::int64_t stride = static_cast<std::int64_t>(q.p.shortlist_stride) * q.p.geometry.chunk;
  float* const to = q.scratch.scores + static_cast<std::int64_t>(pair_index) * q.group * stride + first;
  for (int i = static_cast<int>(threadIdx.x); i < kUnitTokens * q.group; i += kUnitThreads) {
    const int token = i % kUnitTokens, head = i / kUnitTokens;
    if (token < tokens) {
      to[head * stride + token] = scores[head * kScoreStride + token];
    }
  }
}

// Log2 of the summed exponentials of each chunk of the unit, for each head.
__device__ void write_chunk_mass(const RerankParams& q, const float* scores, int pair_index, int first, int count) {
  const int chunk = q.p.geometry.chunk;
  const int chunks = kUnitTokens / chunk;
  for (int i = static_cast<int>(threadIdx.x); i < chunks * q.group; i += kUnitThreads) {
    const int c = i % chunks, head = i / chunks;
    const int place = first / chunk + c;
    if (place < count) {
      q.scratch.chunk_mass[(static_cast<std::int64_t>(pair_index) * q.group + head) * q.p.shortlist_stride + place] =
          log_mass(scores + head * kScoreStride + c * chunk, chunk);
    }
  }
}

// What the unit that begins at token `first` has come to.
__device__ void write_unit(const RerankParams& q, const float* scores, int pair_index, int first, int count) {
  write_chunk_mass(q, scores, pair_index, first, count);
  if (q.scratch.scores) {
    write_scores(q, scores, pair_index, first, count);
  }
}

// Exact masses of a shortlist's chunks from rebuilt keys, some units of 128 tokens a block.
//
// coefficients [..][r], basis [K][r][D] -> chunk_mass [B*K][G][shortlist], scores [B*K][G][shortlist*C]. Floor: the
// coefficients once and r*D*2 operations a token; bound like the first half of sparse_attention. The coefficients of a
// unit are on their way while the keys of the one before it are rotated and scored. Reached, with the selection behind
// it: 0.154 ms, floor 0.041 (H200, 2026-11-28, bench_cuda_decode, 8 sessions, shortlist of 1024 chunks, r 160);
// Hopper takes launch_rerank_tiles.
template <int kHeadDim, Turn kTurn>
__global__ void __launch_bounds__(kUnitThreads, 2) rerank_mass_kernel(const __grid_constant__ RerankParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_rerank_params& p = q.p;
  const skv_geometry& g = p.geometry;
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const int count = p.states[pair.session].length <= 0 ? 0 : min(p.shortlist_count[pair_index], p.shortlist_stride);
  const int span = q.units_per_block * kUnitTokens;
  int first = static_cast<int>(blockIdx.x) * span;
  const int end = min(first + span, count * g.chunk);
  if (first >= end) {
    return;
  }
  const UnitLayout layout = unit_layout(kHeadDim, g.rank, g.chunk, q.group, false);
  auto& rows = *reinterpret_cast<UnitRows*>(shared + layout.rows);
  auto* const scores = reinterpret_cast<float*>(shared + layout.scores);
  auto* const queries = reinterpret_cast<__nv_bfloat16*>(shared + layout.queries);
  auto* const fine = reinterpret_cast<float2*>(shared + layout.fine);
  auto* const base = reinterpret_cast<float2*>(shared + layout.base);
  unsigned char* const basis = shared + layout.basis;
  unsigned char* const coefficients = shared + layout.coefficients;
  const auto* const head_basis = static_cast<const __nv_bfloat16*>(p.layers[pair.session].basis) +
                                 static_cast<std::int64_t>(pair.head) * g.rank * g.head_dim;
  if (threadIdx.x < kUnitTokens) {
    shortlist_rows(p, pair, pair_index, first, count, rows);
  }
  stage_queries<kHeadDim>(
      p.queries, p.query_type, pair, [&](int d) { return unit_column<kTurn>(p.rope, d); }, queries);
  __syncthreads();
  {
    const ChunkRotations<kHeadDim> rotations(p.rope, g.chunk, rows);
    stage_coefficients(rows, g, coefficients);
    stage_basis<kHeadDim, kTurn>(head_basis, g.rank, p.rope, basis);
    stage_fine_rotations<kHeadDim, kTurn>(p.rope, g.chunk, fine);
    rotations.write(base);
  }
#pragma unroll 1
  for (; first < end; first += kUnitTokens) {
    copy_async_wait_all();
    __syncthreads();
    // Behind the last unit it is prepared once more, for nobody.
    const int next = min(first + kUnitTokens, end - 1) / kUnitTokens * kUnitTokens;
    if (threadIdx.x < kUnitTokens) {
      shortlist_rows(p, pair, pair_index, next, count, rows);
    }
    rebuilt_scores<kHeadDim, kTurn>(rows, g.rank, g.chunk, q.group, coefficients, basis, base, fine, queries, scores,
                                    [&] {
                                      __syncthreads();
                                      stage_coefficients(rows, g, coefficients);
                                    });
    __syncthreads();
    const ChunkRotations<kHeadDim> rotations(p.rope, g.chunk, rows);
    write_unit(q, scores, pair_index, first, count);
    rotations.write(base);
  }
}

// The same for every shape, without tensor cores: correct, not fast.
__global__ void __launch_bounds__(kUnitThreads) rerank_mass_any_kernel(const __grid_constant__ RerankParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_rerank_params& p = q.p;
  const skv_geometry& g = p.geometry;
  const int pair_index = q.first_pair + static_cast<int>(blockIdx.y);
  const UnitPair pair = unit_pair(g, pair_index, q.group);
  const int count = p.states[pair.session].length <= 0 ? 0 : min(p.shortlist_count[pair_index], p.shortlist_stride);
  const int first = static_cast<int>(blockIdx.x) * kUnitTokens;
  if (first >= count * g.chunk) {
    return;
  }
  const UnitLayout layout = unit_layout(0, g.rank, g.chunk, q.group, false);
  auto& rows = *reinterpret_cast<UnitRows*>(shared + layout.rows);
  auto* const scores = reinterpret_cast<float*>(shared + layout.scores);
  auto* const queries = reinterpret_cast<float*>(shared + layout.queries);
  if (threadIdx.x < kUnitTokens) {
    shortlist_rows(p, pair, pair_index, first, count, rows);
  }
  for (int i = static_cast<int>(threadIdx.x); i < q.group * g.head_dim; i += kUnitThreads) {
    queries[i] = load_element(p.queries, p.query_type, pair.first_query * g.head_dim + i);
  }
  __syncthreads();
  any_scores(rows, true, g.coefficient_type,
             static_cast<const __nv_bfloat16*>(p.layers[pair.session].basis) +
                 static_cast<std::int64_t>(pair.head) * g.rank * g.head_dim,
             g.head_dim, g.rank, p.rope, q.group, queries, reinterpret_cast<float*>(shared + layout.base), scores);
  __syncthreads();
  write_unit(q, scores, pair_index, first, count);
}

struct alignas(16) RerankShared {
  SelectMemory select;
  float log_sums[SKV_MAX_GROUP];
};

std::size_t rerank_select_bytes(const skv_rerank_params& p) {
  return sizeof(RerankShared) + plan_bytes(p.geometry.slots, kSelectThreads) + static_cast<std::size_t>(p.select) * 4 +
         static_cast<std::size_t>(p.shortlist_stride) * 4;
}

// Keeps the best of a shortlist, and plans their slots when asked. One block a pair; a chain of barriers bounds it.
__global__ void __launch_bounds__(kSelectThreads) rerank_select_kernel(const __grid_constant__ RerankParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_rerank_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x);
  const int session = pair / heads, head = pair % heads;
  const bool planned = q.plan.fetch_count != nullptr;
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t slot_row = static_cast<std::int64_t>(head) * p.geometry.slots;
  const PlanMemory plan = plan_memory(shared + sizeof(RerankShared), p.geometry.slots, kSelectThreads);
  const int listed = p.states[session].length <= 0 ? 0 : min(p.shortlist_count[pair], p.shortlist_stride);
  if (listed <= 0) {
    if (thread == 0) {
      p.selected_count[pair] = 0;
      if (planned) {
        q.plan.fetch_count[pair] = 0;
      }
    }
    return;
  }
  if (planned) {
    SlotOrder<kSelectThreads>(layer.slot_chunk + slot_row, layer.slot_stamp + slot_row, p.geometry.slots).sort(plan);
  }
  auto& memory = *reinterpret_cast<RerankShared*>(shared);
  auto* const ids =
      reinterpret_cast<int*>(shared + sizeof(RerankShared) + plan_bytes(p.geometry.slots, kSelectThreads));
  auto* const scores = reinterpret_cast<float*>(ids + p.select);
  const float* const masses = q.scratch.chunk_mass + static_cast<std::int64_t>(pair) * q.group * p.shortlist_stride;
  if (warp < q.group) {
    const float* const mass = masses + static_cast<std::int64_t>(warp) * p.shortlist_stride;
    float largest = -INFINITY;
    for (int i = lane; i < listed; i += 32) {
      largest = fmaxf(largest, mass[i]);
    }
    largest = warp_max(largest);
    float sum = 0;
    for (int i = lane; i < listed; i += 32) {
      sum += exp2_fast(mass[i] - largest);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      memory.log_sums[warp] = largest + log2f(sum);
    }
  }
  __syncthreads();
  for (int i = thread; i < listed; i += kSelectThreads) {
    float best = -INFINITY;
    for (int g = 0; g < q.group; ++g) {
      best = fmaxf(best, masses[static_cast<std::int64_t>(g) * p.shortlist_stride + i] - memory.log_sums[g] + 0.0F);
    }
    scores[i] = best;
  }
  __syncthreads();
  const int count = select_best(scores, listed, p.select, ids, memory.select);
  const std::int64_t selected_row = static_cast<std::int64_t>(pair) * p.select;
  for (int i = thread; i < count; i += kSelectThreads) {
    const int chunk = p.shortlist[static_cast<std::int64_t>(pair) * p.shortlist_stride + ids[i]];
    q.scratch.places[selected_row + i] = ids[i];
    ids[i] = chunk;
    p.selected[selected_row + i] = chunk;
  }
  if (thread == 0) {
    p.selected_count[pair] = count;
  }
  __syncthreads();
  if (planned) {
    const PlanRow row = {layer.slot_chunk + slot_row,         layer.slot_stamp + slot_row,
                         q.plan.selected_slot + selected_row, q.plan.fetch_chunk + selected_row,
                         q.plan.fetch_slot + selected_row,    q.plan.fetch_count + pair};
    plan_slots<kSelectThreads>(
        ids, count, [&](int chunk) { return rank_in(ids, count, chunk); }, p.geometry.slots, p.states[session].step,
        row, plan);
  }
}

void check_rerank(const skv_rerank_params& p) {
  check_shadow_geometry(p.geometry, p.query_type, "rerank");
  if (p.select < 1 || p.select > SKV_MAX_SELECT || p.shortlist_stride < p.select ||
      p.shortlist_stride > kMaxShortlist) {
    throw Error(SKV_UNSUPPORTED, "rerank on CUDA selects 1 to " + std::to_string(SKV_MAX_SELECT) + " of up to " +
                                     std::to_string(kMaxShortlist) + " chunks, not " + std::to_string(p.select) +
                                     " of " + std::to_string(p.shortlist_stride));
  }
}

std::uint64_t selected_chunks(const skv_rerank_params& p) {
  return static_cast<std::uint64_t>(all_pairs(p.batch, p.geometry).count) * static_cast<std::uint64_t>(p.select);
}

// Units of a block share its basis and queries: as many as end the launch soonest, were staging these a unit's time.
int units_per_block(std::int64_t units, int pairs, const DeviceTraits& traits) {
  constexpr int kMostUnits = 8;
  const std::int64_t at_once = std::int64_t{2} * traits.multiprocessors;
  int best = 1;
  std::int64_t least = 0;
  for (int each = 1; each <= kMostUnits; ++each) {
    const std::int64_t blocks = (units + each - 1) / each * pairs;
    const std::int64_t time = (blocks + at_once - 1) / at_once * (each + 1);
    if (each == 1 || time < least) {
      best = each;
      least = time;
    }
  }
  return best;
}

void launch_masses(const skv_rerank_params& p, const RerankScratch& scratch, const DeviceTraits& traits,
                   PairRange pairs, cudaStream_t stream) {
  if (launch_rerank_tiles(p, scratch, traits, pairs, stream)) {
    return;
  }
  const auto units = (static_cast<std::int64_t>(p.shortlist_stride) * p.geometry.chunk + kUnitTokens - 1) / kUnitTokens;
  const bool tuned = unit_is_tuned(p.geometry, p.rope, traits);
  const int each = tuned ? units_per_block(units, pairs.count, traits) : 1;
  const RerankParams q = {p, scratch, {}, pairs.first, group_size(p.geometry), each};
  const dim3 grid(static_cast<unsigned>((units + each - 1) / each), static_cast<unsigned>(pairs.count));
  const auto launch = [&](auto kernel, int dim) {
    const auto bytes =
        static_cast<std::size_t>(unit_layout(dim, p.geometry.rank, p.geometry.chunk, q.group, false).end);
    launch_beside("rerank masses", kernel, grid, dim3(kUnitThreads), bytes, stream, q);
  };
  if (!tuned) {
    launch(rerank_mass_any_kernel, 0);
  } else {
    with_unit_kernel(p.geometry, p.rope,
                     [&](auto dim, auto turn) { launch(rerank_mass_kernel<dim.value, turn.value>, dim.value); });
  }
}

}  // namespace

std::uint64_t rerank_scratch_bytes(const skv_rerank_params& p, bool scores) {
  const std::uint64_t masses = static_cast<std::uint64_t>(p.batch) *
                               static_cast<std::uint64_t>(p.geometry.query_heads) *
                               static_cast<std::uint64_t>(p.shortlist_stride);
  return Workspace::align(masses * sizeof(float)) + Workspace::align(selected_chunks(p) * sizeof(std::int32_t)) +
         (scores ? Workspace::align(masses * static_cast<std::uint64_t>(p.geometry.chunk) * sizeof(float)) : 0);
}

RerankScratch take_rerank_scratch(const skv_rerank_params& p, bool scores, Workspace& workspace) {
  const std::uint64_t masses = static_cast<std::uint64_t>(p.batch) *
                               static_cast<std::uint64_t>(p.geometry.query_heads) *
                               static_cast<std::uint64_t>(p.shortlist_stride);
  RerankScratch scratch;
  scratch.chunk_mass = workspace.take<float>(masses);
  scratch.places = workspace.take<std::int32_t>(selected_chunks(p));
  if (scores) {
    scratch.scores = workspace.take<float>(masses * static_cast<std::uint64_t>(p.geometry.chunk));
  }
  return scratch;
}

void launch_rerank(const skv_rerank_params& p, const RerankScratch& scratch, const PlanOutput& plan,
                   const DeviceTraits& traits, PairRange pairs, cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  if (plan.fetch_count && p.geometry.slots != 0 && p.geometry.slots < p.select) {
    throw Error(SKV_INVALID_ARGUMENT, "cache_plan needs as many slots as chunks are selected: " +
                                          std::to_string(p.geometry.slots) + " < " + std::to_string(p.select));
  }
  launch_masses(p, scratch, traits, pairs, stream);
  const RerankParams q = {p, scratch, plan, pairs.first, group_size(p.geometry), 0};
  launch_beside("rerank selection", rerank_select_kernel, dim3(static_cast<unsigned>(pairs.count)),
                dim3(kSelectThreads), rerank_select_bytes(p), stream, q);
}

std::uint64_t rerank_workspace(const skv_rerank_params& p, const DeviceTraits&) {
  // Dropped tokens are counted whether they are asked for or not: who asks may not have their address yet.
  return rerank_scratch_bytes(p, true) + dropped_scratch_bytes(p);
}

void rerank(const skv_rerank_params& p, Launch& launch) {
  check_rerank(p);
  launch.workspace.require(rerank_workspace(p, launch.traits), "rerank");
  Workspace workspace = launch.workspace;
  const RerankScratch scratch = take_rerank_scratch(p, p.dropped != nullptr, workspace);
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  launch_rerank(p, scratch, {}, launch.traits, pairs, launch.stream);
  if (p.dropped) {
    DroppedParams dropped = dropped_of(p, scratch, take_dropped_scratch(p, workspace));
    dropped.weight = p.dropped;
    dropped.values = p.dropped_values;
    launch_dropped(dropped, launch.traits, pairs, launch.stream);
  }
  if (p.tail) {
    TailParams tail;
    tail.geometry = p.geometry;
    tail.query_type = p.query_type;
    tail.queries = p.queries;
    tail.layers = p.layers;
    tail.states = p.states;
    tail.weight = p.tail;
    add_dropped(tail, p, scratch);
    tail.predicted = p.dropped != nullptr;
    launch_tail(tail, pairs, launch.stream);
  }
}

}  // namespace skv::cuda
