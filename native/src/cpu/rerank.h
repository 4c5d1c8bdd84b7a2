// Reranking in two stages, as a decode step composes them; the scores may be used again.
#pragma once

#include <cstdint>

#include "cpu/attention_kernels.h"
#include "cpu/execution.h"
#include "cpu/rebuilt_keys.h"
#include "shadowkv_types.h"

namespace skv::cpu {

class Rerank {
 public:
  // Checks, takes workspace and makes the queries ready. The parameters must outlive it. key_slot [B][K][shortlist]:
  // where the keys of the shortlist are when it is scored, or null: they are rebuilt.
  Rerank(const skv_rerank_params& p, Execution& execution, const std::int32_t* key_slot);

  std::int64_t pairs() const { return pairs_; }  // (session, key/value head)
  std::int64_t units() const { return units_; }  // of a pair; each may be scored on its own

  void score(std::int64_t pair, std::int64_t unit, int thread) const;
  // When all units of the pair are scored.
  void choose(std::int64_t pair, int thread) const;

  // After choose(): the scores of a chunk's tokens, by its number in the selection: [C], for one of the G queries.
  const float* scores(std::int64_t pair, std::int64_t number, std::int64_t query) const {
    return scores_ + (pair * group_ + query) * token_stride_ + places_[pair * p_.select + number] * p_.geometry.chunk;
  }

 private:
  std::int64_t listed(std::int64_t pair) const;
  void rounded(std::int64_t pair, std::int64_t first, std::int64_t count, int thread, void** keys) const;
  // Adds what is not selected to the tail of a pair; the masses `rows` of the selected are lost.
  void leave(std::int64_t pair, float* rows, const std::int32_t* places, std::int32_t taken) const;
  // Weight and value of what is not selected, of which there is some.
  void predict(std::int64_t pair, const std::int32_t* places, std::int32_t taken) const;
  void add_dropped(std::int64_t pair, const std::int32_t* places, std::int64_t count, std::int64_t left,
                   const RunningSoftmax& softmax, float* sums) const;
  const void* coefficients(const skv_shadow_layer& layer, std::int64_t chunk) const;
  std::int64_t coefficient_bytes() const;

  const skv_rerank_params& p_;
  const AttentionKernels& kernels_;
  const std::int32_t* key_slot_;
  std::int64_t pairs_, units_, stride_, token_stride_;
  std::int32_t group_;
  const float* queries_;
  float* scores_;         // [pairs][G][token_stride]
  float* chunk_mass_;     // log of the summed exponentials of a chunk: [pairs][G][stride]
  std::int32_t* places_;  // in the shortlist, of the selected: [pairs][S]
  RebuiltKeys* keys_;     // [threads]
  std::byte* rounded_;    // [threads][block][D] of the storage type
  std::uint32_t* order_;  // [threads][order_stride]
  std::int64_t order_stride_;
};

}  // namespace skv::cpu
