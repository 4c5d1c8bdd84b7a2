#include "cpu/slot_keys.h"

#include <algorithm>
#include <new>

#include "cpu/attention.h"
#include "cpu/elements.h"

namespace skv::cpu {
namespace {

constexpr std::int64_t kUnitTokens = 256;

}  // namespace

std::uint64_t SlotKeys::bytes(const skv_geometry& g, const ExecutionTraits& traits) {
  const std::uint64_t threads = static_cast<std::uint64_t>(traits.threads);
  return Workspace::bytes_of<RebuiltKeys>(threads) + threads * RebuiltKeys::bytes(g, traits);
}

SlotKeys::SlotKeys(const skv_cache_plan_params& plan, const skv_rope& rope, Execution& execution)
    : plan_(plan),
      rope_(rope),
      pairs_(head_pairs(plan.geometry, plan.batch)),
      units_(divide_up(plan.select, kUnitTokens / plan.geometry.chunk)) {
  const ExecutionTraits traits = execution.traits();
  const AttentionKernels& kernels = attention_kernels(traits.set);
  keys_ = execution.workspace.take<RebuiltKeys>(static_cast<std::uint64_t>(traits.threads));
  for (int thread = 0; thread < traits.threads; ++thread) {
    new (keys_ + thread) RebuiltKeys(plan.geometry, kernels, traits, execution.workspace);
  }
}

// Bound by the multipliers, as attention without slots is: r * D multiply-adds a token that is new.
void SlotKeys::rebuild(std::int64_t pair, std::int64_t unit, int thread) const {
  const skv_geometry& g = plan_.geometry;
  const std::int64_t head = pair % g.key_value_heads, each = kUnitTokens / g.chunk;
  const std::int64_t end = std::min<std::int64_t>((unit + 1) * each, plan_.fetch_count[pair]);
  const std::int64_t block = RebuiltKeys::chunks_of_block(g);
  const skv_shadow_layer& layer = plan_.layers[pair / g.key_value_heads];
  const std::int32_t* const chunks = plan_.fetch_chunk + pair * plan_.select;
  const std::int32_t* const slots = plan_.fetch_slot + pair * plan_.select;
  RebuiltKeys& keys = keys_[thread];
  for (std::int64_t at = unit * each; at < end; at += block) {
    const std::int64_t count = std::min(block, end - at);
    for (std::int64_t i = at + count; i < std::min(at + count + block, end); ++i) {
      keys.expect(layer, chunks[i]);
    }
    void* targets[RebuiltKeys::kTokens / kRebuiltGroup];
    for (std::int64_t i = 0; i < count; ++i) {
      targets[i] = slot_keys(g, layer, head, slots[at + i]);
      keys.expect(targets[i], static_cast<std::int64_t>(g.chunk) * g.head_dim * element_bytes(g.storage_type));
    }
    keys.rebuild_to(layer, rope_, pair, head, chunks + at, count, targets);
  }
}

}  // namespace skv::cpu
