#include "cuda/decode.h"
#include "cuda/plan_slots.cuh"

namespace skv::cuda {
namespace {

// Plans the slots of one pair. One block a pair.
//
// selected [S], slot_chunk and slot_stamp [slots] -> selected_slot [S], fetch list. A few KB a pair: the chain
// of barriers of the sort bounds it, which is why decode_layer has it done by the kernel that selects.
__global__ void __launch_bounds__(kSelectThreads) cache_plan_kernel(const __grid_constant__ skv_cache_plan_params p) {
  extern __shared__ __align__(16) unsigned char shared[];
  const PlanMemory memory = plan_memory(shared, p.geometry.slots, kSelectThreads);
  auto* const ids = reinterpret_cast<int*>(shared + plan_bytes(p.geometry.slots, kSelectThreads));
  const int pair = static_cast<int>(blockIdx.x);
  const int session = pair / p.geometry.key_value_heads, head = pair % p.geometry.key_value_heads;
  const skv_session_state& state = p.states[session];
  const int count = state.length <= 0 ? 0 : min(p.selected_count[pair], p.select);
  if (count <= 0) {
    if (threadIdx.x == 0) {
      p.fetch_count[pair] = 0;
    }
    return;
  }
  const std::int64_t selected_row = static_cast<std::int64_t>(pair) * p.select;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSelectThreads) {
    ids[i] = p.selected[selected_row + i];
  }
  const skv_shadow_layer& layer = p.layers[session];
  const std::int64_t slot_row = static_cast<std::int64_t>(head) * p.geometry.slots;
  const PlanRow row = {layer.slot_chunk + slot_row,  layer.slot_stamp + slot_row, p.selected_slot + selected_row,
                       p.fetch_chunk + selected_row, p.fetch_slot + selected_row, p.fetch_count + pair};
  SlotOrder<kSelectThreads>(row.slot_chunk, row.slot_stamp, p.geometry.slots).sort(memory);
  __syncthreads();
  plan_slots<kSelectThreads>(
      ids, count, [&](int chunk) { return rank_in(ids, count, chunk); }, p.geometry.slots, state.step, row, memory);
}

}  // namespace

std::uint64_t cache_plan_workspace(const skv_cache_plan_params&, const DeviceTraits&) {
  return 0;
}

void cache_plan(const skv_cache_plan_params& p, Launch& launch) {
  check_shadow_geometry(p.geometry, SKV_F32, "cache_plan");
  if (p.select < 1 || p.select > SKV_MAX_SELECT) {
    throw Error(SKV_UNSUPPORTED, "cache_plan on CUDA takes 1 to " + std::to_string(SKV_MAX_SELECT) + " chunks, not " +
                                     std::to_string(p.select));
  }
  if (p.geometry.slots != 0 && p.geometry.slots < p.select) {
    throw Error(SKV_INVALID_ARGUMENT, "cache_plan needs as many slots as chunks are selected: " +
                                          std::to_string(p.geometry.slots) + " < " + std::to_string(p.select));
  }
  const PairRange pairs = all_pairs(p.batch, p.geometry);
  if (pairs.count == 0) {
    return;
  }
  const std::size_t bytes =
      plan_bytes(p.geometry.slots, kSelectThreads) + static_cast<std::size_t>(p.select) * sizeof(std::int32_t);
  launch_beside("cache plan", cache_plan_kernel, dim3(static_cast<unsigned>(pairs.count)), dim3(kSelectThreads), bytes,
                launch.stream, p);
}

}  // namespace skv::cuda
