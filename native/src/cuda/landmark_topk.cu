#include <algorithm>

#include "cuda/decode.h"
#include "cuda/landmark_logits.cuh"
#include "cuda/plan_slots.cuh"
#include "cuda/select_best.cuh"

namespace skv::cuda {
namespace {

constexpr int kUnit = kSelectionUnit;

struct SelectParams {
  skv_landmark_topk_params p;
  SelectionScratch scratch;
  PlanOutput plan;
  int first_pair;
  int group;
};

struct alignas(16) SelectShared {
  SelectMemory select;
  float log_sums[SKV_MAX_GROUP];
  float2 unit_sums[kSelectWarps];
};

std::uint64_t select_fixed_bytes(std::int32_t select, std::int32_t slots) {
  return sizeof(SelectShared) + plan_bytes(slots, kSelectThreads) +
         static_cast<std::uint64_t>((select + 3) / 4 * 4) * 4;
}

// Pieces of four scores that a thread holds in registers; 0: rows too long for that.
int held_pieces(std::int64_t stride) {
  const std::int64_t pieces = (stride + 4 * kSelectThreads - 1) / (4 * kSelectThreads);
  return pieces <= 2 ? 2 : pieces <= SelectMemory::kMostPieces ? SelectMemory::kMostPieces : 0;
}

// Whether a row of scores fits beside everything else.
bool scores_fit(const skv_landmark_topk_params& p, std::int64_t stride, const DeviceTraits& traits) {
  return held_pieces(stride) > 0 ||
         select_fixed_bytes(p.select, p.geometry.slots) + static_cast<std::uint64_t>(stride) * 4 <=
             static_cast<std::uint64_t>(traits.shared_memory_per_block);
}

// Log sum of the exponentials of a pair's logits for each head, to shared memory; ends with a barrier.
// All warps take a share of the units: 32 / (G rounded up to a power of two) of them a head.
__device__ void log_sums_of_units(const SelectParams& q, int pair, int units, SelectShared& memory) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int heads = 1;
  while (heads < q.group) {
    heads *= 2;
  }
  const int shares = kSelectWarps / heads, head = warp / shares, share = warp % shares;
  float largest = -INFINITY, sum = 0;
  if (head < q.group) {
    const float2* const partials =
        q.scratch.partials + (static_cast<std::int64_t>(pair) * q.group + head) * q.scratch.units;
    for (int i = share * 32 + lane; i < units; i += shares * 32) {
      const float2 partial = partials[i];
      const float next = fmaxf(largest, partial.x);
      if (next > -INFINITY) {
        sum = sum * exp2_fast((largest - next) * kLog2E) + partial.y * exp2_fast((partial.x - next) * kLog2E);
        largest = next;
      }
    }
  }
  const auto reduce = [&](float most, float part, int width) {
    float all = most;
    for (int step = width / 2; step; step /= 2) {
      all = fmaxf(all, __shfl_xor_sync(0xffffffffU, all, step));
    }
    part = most > -INFINITY ? part * exp2_fast((most - all) * kLog2E) : 0.0F;
    for (int step = width / 2; step; step /= 2) {
      part += __shfl_xor_sync(0xffffffffU, part, step);
    }
    return make_float2(all, part);
  };
  const float2 of_warp = reduce(largest, sum, 32);
  if (lane == 0) {
    memory.unit_sums[warp] = of_warp;
  }
  __syncthreads();
  const float2 mine = memory.unit_sums[lane];
  const float2 of_head = reduce(mine.x, mine.y, shares);
  if (warp == 0 && lane % shares == 0 && lane / shares < q.group) {
    memory.log_sums[lane / shares] = of_head.x > -INFINITY ? of_head.x + logf(of_head.y) : 0.0F;
  }
  __syncthreads();
}

// Log of the weight of all indexed tokens of a pair by their landmarks without radius, for each head.
__device__ void write_plain_weight(const SelectParams& q, int pair, int units) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = static_cast<int>(threadIdx.x) / 32;
  if (g >= q.group) {
    return;
  }
  const std::int64_t row = static_cast<std::int64_t>(pair) * q.group + g;
  const float2* const plain = q.scratch.plain + row * q.scratch.units;
  float largest = -INFINITY;
  for (int i = lane; i < units; i += 32) {
    largest = fmaxf(largest, plain[i].x);
  }
  largest = warp_max(largest);
  float sum = 0;
  for (int i = lane; largest > -INFINITY && i < units; i += 32) {
    sum += plain[i].y * exp2_fast((plain[i].x - largest) * kLog2E);
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    q.p.tail[row] = sum == 0 ? -INFINITY : largest + logf(sum * static_cast<float>(q.p.geometry.chunk));
  }
}

// Selects the chunks of one pair from its logits and, when asked, plans its slots. One block a pair.
//
// logits [G][chunks], partials [G][units] -> selected [S], count, mass (+ slots and fetch list).
// Floor: G * 4 bytes a chunk, which the kernel before has just left in the L2 cache; in practice a chain of loads and
// barriers of one SM bounds it. Up to 16,384 chunks a thread holds its scores in registers (kPieces quads of them);
// longer rows (kPieces = 0) go through shared memory, or scratch.
template <int kPieces>
__global__ void __launch_bounds__(kSelectThreads) landmark_select_kernel(const __grid_constant__ SelectParams q) {
  extern __shared__ __align__(16) unsigned char shared[];
  const skv_landmark_topk_params& p = q.p;
  const int thread = static_cast<int>(threadIdx.x);
  const int heads = p.geometry.key_value_heads;
  const int pair = q.first_pair + static_cast<int>(blockIdx.x);
  const int session = pair / heads, head = pair % heads;
  const int chunks = indexed_chunks(p, session);
  const bool planned = q.plan.fetch_count != nullptr;
  if (chunks == 0) {
    if (p.tail && thread < q.group) {
      p.tail[static_cast<std::int64_t>(pair) * q.group + thread] = -INFINITY;
    }
    if (thread == 0) {
      p.selected_count[pair] = 0;
      if (p.mass) {
        p.mass[pair] = 0.0F;
      }
      if (planned) {
        q.plan.fetch_count[pair] = 0;
      }
    }
    return;
  }
  auto& memory = *reinterpret_cast<SelectShared*>(shared);
  const PlanMemory plan = plan_memory(shared + sizeof(SelectShared), p.geometry.slots, kSelectThreads);
  auto* const ids =
      reinterpret_cast<int*>(shared + sizeof(SelectShared) + plan_bytes(p.geometry.slots, kSelectThreads));
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t slot_row = static_cast<std::int64_t>(head) * p.geometry.slots;
  if (planned) {
    // The plan's first reads, on their way to the L2 cache while the selection is made.
    for (int i = 32 * thread; i < p.geometry.slots; i += 32 * kSelectThreads) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(layer.slot_chunk + slot_row + i));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(layer.slot_stamp + slot_row + i));
    }
  }

  const float* const logits = q.scratch.logits + static_cast<std::int64_t>(pair) * q.group * q.scratch.chunk_stride;
  log_sums_of_units(q, pair, (chunks + kUnit - 1) / kUnit, memory);
  if (p.tail) {
    write_plain_weight(q, pair, (chunks + kUnit - 1) / kUnit);
  }
  // Rows are as long as a whole number of units and hold -infinity behind the last chunk.
  const auto best_of_heads = [&](int i) {
    float4 best = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
#pragma unroll 4
    for (int g = 0; g < q.group; ++g) {
      const float4 x = *reinterpret_cast<const float4*>(logits + g * q.scratch.chunk_stride + i);
      const float log_sum = memory.log_sums[g];
      // Adding +0 turns -0 into +0; fmaxf drops NaN.
      best.x = fmaxf(best.x, x.x - log_sum + 0.0F);
      best.y = fmaxf(best.y, x.y - log_sum + 0.0F);
      best.z = fmaxf(best.z, x.z - log_sum + 0.0F);
      best.w = fmaxf(best.w, x.w - log_sum + 0.0F);
    }
    return best;
  };
  int count;
  if constexpr (kPieces > 0) {
    float scores[4 * kPieces];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int i = 4 * (thread + kSelectThreads * piece);
      const float4 best = i < chunks ? best_of_heads(i) : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      scores[4 * piece] = best.x;
      scores[4 * piece + 1] = best.y;
      scores[4 * piece + 2] = best.z;
      scores[4 * piece + 3] = best.w;
    }
    count = select_best_held<kPieces>(scores, p.select, ids, memory.select);
  } else {
    float* const scores = q.scratch.scores ? q.scratch.scores + pair * q.scratch.chunk_stride
                                           : reinterpret_cast<float*>(ids + (p.select + 3) / 4 * 4);
    for (int i = 4 * thread; i < chunks; i += 4 * kSelectThreads) {
      *reinterpret_cast<float4*>(scores + i) = best_of_heads(i);
    }
    __syncthreads();
    count = select_best(scores, chunks, p.select, ids, memory.select);
  }

  std::int32_t* const selected = p.selected + static_cast<std::int64_t>(pair) * p.select;
  for (int i = thread; i < count; i += kSelectThreads) {
    selected[i] = ids[i];
  }
  if (thread == 0) {
    p.selected_count[pair] = count;
  }
  if (planned) {
    const std::int64_t selected_row = static_cast<std::int64_t>(pair) * p.select;
    const PlanRow row = {layer.slot_chunk + slot_row,         layer.slot_stamp + slot_row,
                         q.plan.selected_slot + selected_row, q.plan.fetch_chunk + selected_row,
                         q.plan.fetch_slot + selected_row,    q.plan.fetch_count + pair};
    SlotOrder<kSelectThreads>(row.slot_chunk, row.slot_stamp, p.geometry.slots).sort(plan);
    plan_slots<kSelectThreads>(
        ids, count, [&](int chunk) { return rank_in(ids, count, chunk); }, p.geometry.slots, p.states[session].step,
        row, plan);
  }
  if (p.mass) {
    float mass = 0;
    for (int i = thread; i < count; i += kSelectThreads) {
      for (int g = 0; g < q.group; ++g) {
        mass += exp2_fast((logits[g * q.scratch.chunk_stride + ids[i]] - memory.log_sums[g]) * kLog2E);
      }
    }
    mass = block_sum(mass);
    if (thread == 0) {
      p.mass[pair] = mass / static_cast<float>(q.group);
    }
  }
}

std::int64_t units_of(std::int64_t max_chunks) {
  return (max_chunks + kUnit - 1) / kUnit;
}

void check_topk(const skv_landmark_topk_params& p) {
  check_shadow_geometry(p.geometry, p.query_type, "landmark_topk");
  if (p.select < 1 || p.select > kMaxShortlist) {
    throw Error(SKV_UNSUPPORTED, "landmark_topk on CUDA selects 1 to " + std::to_string(kMaxShortlist) +
                                     " chunks, not " + std::to_string(p.select));
  }
}

}  // namespace

std::uint64_t selection_scratch_bytes(const skv_landmark_topk_params& p, const DeviceTraits& traits, bool tail) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(p.batch) * p.geometry.key_value_heads;
  const std::uint64_t units = static_cast<std::uint64_t>(units_of(p.max_chunks));
  const std::uint64_t group = static_cast<std::uint64_t>(group_size(p.geometry));
  const std::uint64_t stride = units * kUnit;
  if (selects_in_clusters(p, traits)) {
    return tail ? Workspace::align(pairs * group * stride * sizeof(float)) : 0;
  }
  std::uint64_t bytes = Workspace::align(pairs * group * stride * sizeof(float)) +
                        2 * Workspace::align(pairs * group * units * sizeof(float2));
  if (!scores_fit(p, static_cast<std::int64_t>(stride), traits)) {
    bytes += Workspace::align(pairs * stride * sizeof(float));
  }
  return bytes;
}

SelectionScratch take_selection_scratch(const skv_landmark_topk_params& p, const DeviceTraits& traits, bool tail,
                                        Workspace& workspace) {
  const std::uint64_t pairs = static_cast<std::uint64_t>(p.batch) * p.geometry.key_value_heads;
  const std::uint64_t group = static_cast<std::uint64_t>(group_size(p.geometry));
  SelectionScratch scratch;
  scratch.units = units_of(p.max_chunks);
  scratch.chunk_stride = scratch.units * kUnit;
  const auto units = static_cast<std::uint64_t>(scratch.units),
             stride = static_cast<std::uint64_t>(scratch.chunk_stride);
  const bool clusters = selects_in_clusters(p, traits);
  if (tail || !clusters) {
    scratch.logits = workspace.take<float>(pairs * group * stride);
  }
  if (clusters) {
    return scratch;
  }
  scratch.partials = workspace.take<float2>(pairs * group * units);
  scratch.plain = workspace.take<float2>(pairs * group * units);
  if (!scores_fit(p, scratch.chunk_stride, traits)) {
    scratch.scores = workspace.take<float>(pairs * stride);
  }
  return scratch;
}

void launch_selection(const skv_landmark_topk_params& p, const SelectionScratch& scratch, const PlanOutput& plan,
                      const DeviceTraits& traits, PairRange pairs, int at_once, bool early, cudaEvent_t begun,
                      cudaStream_t stream) {
  if (pairs.count == 0) {
    return;
  }
  if (plan.fetch_count && p.geometry.slots != 0 && p.geometry.slots < p.select) {
    throw Error(SKV_INVALID_ARGUMENT, "cache_plan needs as many slots as chunks are selected: " +
                                          std::to_string(p.geometry.slots) + " < " + std::to_string(p.select));
  }
  if (selects_in_clusters(p, traits)) {
    launch_landmark_cluster(p, scratch, plan, traits, pairs, at_once, early, begun, stream);
    return;
  }
  launch_landmark_logits(p, scratch, traits, pairs, stream);
  const SelectParams q = {p, scratch, plan, pairs.first, group_size(p.geometry)};
  const int pieces = held_pieces(scratch.chunk_stride);
  std::size_t bytes = select_fixed_bytes(p.select, p.geometry.slots);
  if (pieces == 0 && !scratch.scores) {
    bytes += static_cast<std::size_t>(scratch.chunk_stride) * 4;
  }
  launch_beside("landmark selection",
                pieces == 0   ? landmark_select_kernel<0>
                : pieces == 2 ? landmark_select_kernel<2>
                              : landmark_select_kernel<SelectMemory::kMostPieces>,
                dim3(static_cast<unsigned>(pairs.count)), dim3(kSelectThreads), bytes, stream, q);
  if (begun) {
    check(cudaEventRecord(begun, stream), "recording an event");
  }
}

std::uint64_t landmark_topk_workspace(const skv_landmark_topk_params& p, const DeviceTraits& traits) {
  return selection_scratch_bytes(p, traits, p.tail != nullptr);
}

void landmark_topk(const skv_landmark_topk_params& p, Launch& launch) {
  check_topk(p);
  launch.workspace.require(landmark_topk_workspace(p, launch.traits), "landmark_topk");
  Workspace workspace = launch.workspace;
  const SelectionScratch scratch = take_selection_scratch(p, launch.traits, p.tail != nullptr, workspace);
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  launch_selection(p, scratch, {}, launch.traits, pairs, pairs.count, false, nullptr, launch.stream);
  if (p.tail) {
    launch_tail(tail_of(p, scratch), pairs, launch.stream);
  }
}

}  // namespace skv::cuda
