// Rebuilt keys that stay in slots from step to step, so that a step rebuilds those of newly selected chunks alone.
#pragma once

#include <cstdint>

#include "cpu/execution.h"
#include "cpu/rebuilt_keys.h"
#include "shadowkv_types.h"

namespace skv::cpu {

// A layer with slot_keys: its rebuilt keys are rounded to the storage type wherever they are used, kept or not, so that
// an answer does not depend on which of them were.
inline bool rounds_keys(const skv_shadow_layer& layer) {
  return layer.slot_keys != nullptr;
}

// Whether values are where value_store has put them: without slots, and where slots hold keys.
inline bool values_in_place(const skv_geometry& geometry, const skv_shadow_layer& layer) {
  return geometry.slots == 0 || rounds_keys(layer);
}

// Keys [C][D] of a slot of a key/value head.
inline void* slot_keys(const skv_geometry& geometry, const skv_shadow_layer& layer, std::int64_t head,
                       std::int64_t slot) {
  return element_at(layer.slot_keys, geometry.storage_type,
                    (head * geometry.slots + slot) * geometry.chunk * geometry.head_dim);
}

// Fills slots by a fetch list, piece by piece.
class SlotKeys {
 public:
  static std::uint64_t bytes(const skv_geometry& geometry, const ExecutionTraits& traits);
  // The parameters must outlive it; fetch lists as cache_plan makes them.
  SlotKeys(const skv_cache_plan_params& plan, const skv_rope& rope, Execution& execution);

  std::int64_t pairs() const { return pairs_; }
  std::int64_t units() const { return units_; }  // of a pair; each may be rebuilt on its own
  void rebuild(std::int64_t pair, std::int64_t unit, int thread) const;

 private:
  const skv_cache_plan_params& plan_;
  const skv_rope& rope_;
  std::int64_t pairs_, units_;
  RebuiltKeys* keys_;  // [threads]
};

}  // namespace skv::cpu
