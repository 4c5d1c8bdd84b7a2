#include "cpu/cache_plan.h"

#include <algorithm>
#include <bit>
#include <string>

#include "cpu/attention.h"

namespace skv::cpu {
namespace {

// A slot that may be given away, ordered by its last use, then by its number.
struct Candidate {
  std::int32_t stamp, slot;
  bool operator<(const Candidate& other) const {
    return stamp != other.stamp ? stamp < other.stamp : slot < other.slot;
  }
};

constexpr std::int32_t kNowhere = -1;

// Where a chunk is in a list: a hash table of at least twice the list's length.
class Places {
 public:
  static std::uint64_t size(std::int32_t select) {
    return std::bit_ceil(2 * static_cast<std::uint64_t>(std::max(select, 1)));
  }

  Places(const std::int32_t* chunks, std::int32_t count, std::int32_t* table, std::uint64_t size)
      : chunks_(chunks), table_(table), last_(static_cast<std::uint32_t>(size - 1)) {
    std::fill(table, table + size, kNowhere);
    for (std::int32_t i = 0; i < count; ++i) {
      std::uint32_t at = first(chunks[i]);
      while (table[at] != kNowhere) {
        at = (at + 1) & last_;
      }
      table[at] = i;
    }
  }

  // kNowhere where it is not in the list.
  std::int32_t of(std::int32_t chunk) const {
    std::uint32_t at = first(chunk);
    while (table_[at] != kNowhere && chunks_[table_[at]] != chunk) {
      at = (at + 1) & last_;
    }
    return table_[at];
  }

 private:
  // Neighbouring chunks are often selected together, and lie apart by the golden ratio.
  std::uint32_t first(std::int32_t chunk) const {
    return (static_cast<std::uint32_t>(chunk) * 0x9e3779b1U >> 12) & last_;
  }

  const std::int32_t* chunks_;
  std::int32_t* table_;
  std::uint32_t last_;
};

std::uint64_t bytes_of_thread(const skv_cache_plan_params& p) {
  return Workspace::bytes_of<Candidate>(static_cast<std::uint64_t>(p.geometry.slots)) +
         Workspace::bytes_of<std::int32_t>(Places::size(p.select));
}

}  // namespace

std::uint64_t cache_plan_workspace(const skv_cache_plan_params& p, const ExecutionTraits& traits) {
  return p.geometry.slots == 0 ? 0 : static_cast<std::uint64_t>(traits.threads) * bytes_of_thread(p);
}

CachePlan::CachePlan(const skv_cache_plan_params& p, Execution& execution) : p_(p) {
  const std::int64_t slots = p.geometry.slots;
  if (slots != 0 && slots < p.select) {
    throw Error(SKV_INVALID_ARGUMENT, "cache_plan: " + std::to_string(slots) + " slots cannot hold the " +
                                          std::to_string(p.select) + " chunks of a selection");
  }
  execution.workspace.require(cache_plan_workspace(p, execution.traits()), "cache_plan");
  thread_bytes_ = bytes_of_thread(p);
  memory_ =
      slots == 0
          ? nullptr
          : execution.workspace.take<std::byte>(static_cast<std::uint64_t>(execution.pool.threads()) * thread_bytes_);
}

std::int64_t CachePlan::pairs() const {
  return head_pairs(p_.geometry, p_.batch);
}

// A few thousand integers, in no order that a processor could foresee: looked up by halving and sorted as a heap they
// took 15 us a pair, 512 slots and 256 chunks on Zen 5.
void CachePlan::place(std::int64_t pair, int thread) const {
  const std::int64_t heads = p_.geometry.key_value_heads, slots = p_.geometry.slots;
  const skv_session_state& state = p_.states[pair / heads];
  const std::int32_t count = state.length == 0 ? 0 : p_.selected_count[pair];
  const std::int32_t* const selected = p_.selected + pair * p_.select;
  std::int32_t* const selected_slot = p_.selected_slot + pair * p_.select;
  p_.fetch_count[pair] = 0;
  if (slots == 0) {
    std::copy(selected, selected + count, selected_slot);
    return;
  }
  const skv_shadow_layer& layer = p_.layers[pair / heads];
  std::int32_t* const slot_chunk = layer.slot_chunk + pair % heads * slots;
  std::int32_t* const slot_stamp = layer.slot_stamp + pair % heads * slots;
  Workspace scratch(memory_ + static_cast<std::uint64_t>(thread) * thread_bytes_, thread_bytes_);
  Candidate* const candidates = scratch.take<Candidate>(static_cast<std::uint64_t>(slots));
  const std::uint64_t size = Places::size(p_.select);
  const Places places(selected, count, scratch.take<std::int32_t>(size), size);
  std::fill(selected_slot, selected_slot + count, kNowhere);
  std::int64_t others = 0;
  std::int32_t resident = 0;
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    const std::int32_t at = places.of(slot_chunk[slot]);
    if (at != kNowhere && selected_slot[at] == kNowhere) {
      selected_slot[at] = slot;
      slot_stamp[slot] = state.step;
      ++resident;
    } else {
      candidates[others++] = {slot_stamp[slot], slot};
    }
  }
  const std::int32_t misses = count - resident;
  std::nth_element(candidates, candidates + misses, candidates + others);
  std::sort(candidates, candidates + misses);
  std::int32_t fetched = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    if (selected_slot[i] != kNowhere) {
      continue;
    }
    const std::int32_t slot = candidates[fetched].slot;
    selected_slot[i] = slot;
    slot_chunk[slot] = selected[i];
    slot_stamp[slot] = state.step;
    p_.fetch_chunk[pair * p_.select + fetched] = selected[i];
    p_.fetch_slot[pair * p_.select + fetched] = slot;
    ++fetched;
  }
  p_.fetch_count[pair] = fetched;
}

void cache_plan(const skv_cache_plan_params& p, Execution& execution) {
  const CachePlan plan(p, execution);
  execution.pool.parallel_for(plan.pairs(), [&](std::int64_t pair, int thread) { plan.place(pair, thread); });
}

}  // namespace skv::cpu
