// Landmark selection in two stages, as a decode step composes them.
#pragma once

#include <cstdint>

#include "cpu/attention_kernels.h"
#include "cpu/execution.h"
#include "shadowkv_types.h"

namespace skv::cpu {

class LandmarkTopk {
 public:
  // Checks, takes workspace and makes the queries ready. The parameters must outlive it.
  LandmarkTopk(const skv_landmark_topk_params& p, Execution& execution);

  std::int64_t pairs() const { return pairs_; }  // (session, key/value head)
  std::int64_t units() const { return units_; }  // of a pair; each may be scored on its own

  void score(std::int64_t pair, std::int64_t unit) const;
  // When all units of the pair are scored. `thread` tells scratch memory apart.
  void choose(std::int64_t pair, int thread) const;

 private:
  std::int64_t indexed(std::int64_t pair) const;
  // What a unit of radius adds to the logit of a prepared query [D].
  float weight_of_radius(const float* query) const;
  // Writes the tail of a pair; the logits `rows` of the selected are lost.
  void leave(std::int64_t pair, float* rows, const std::int32_t* selected, std::int32_t taken) const;

  const skv_landmark_topk_params& p_;
  const AttentionKernels& kernels_;
  std::int64_t pairs_, units_, stride_;
  std::int32_t group_;
  const float* queries_;
  float* logits_;   // [pairs][G][stride]
  float* largest_;  // [pairs][units][G]
  float* sum_;      // [pairs][units][G]
  std::byte* thread_memory_;
  std::uint64_t thread_bytes_;
};

}  // namespace skv::cpu
