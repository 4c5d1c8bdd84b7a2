// Attention over selected chunks, outliers and the recent window, in parts, as a decode step composes it.
#pragma once

#include <cstdint>

#include "cpu/attention.h"
#include "cpu/execution.h"
#include "cpu/rebuilt_keys.h"
#include "cpu/rerank.h"
#include "shadowkv_types.h"

namespace skv::cpu {

class SparseAttention {
 public:
  // Checks, takes workspace and makes the queries ready. The parameters must outlive it. With `reranked`, the scores of
  // selected chunks are those that it holds when a part runs: no key is rebuilt.
  SparseAttention(const skv_sparse_attention_params& p, Execution& execution, const Rerank* reranked);

  std::int64_t pairs() const { return pairs_; }  // (session, key/value head)
  std::int64_t parts() const { return selected_parts_ + kOutlierParts + recent_parts_ + tail_parts_; }

  // Parts of a pair, in any order; `thread` tells scratch memory apart. Then, when all are done, their sum.
  void attend(std::int64_t pair, std::int64_t part, int thread) const;
  void combine(std::int64_t pair) const;

 private:
  static constexpr std::int64_t kOutlierParts = 4;

  // What one part works on.
  struct Part {
    std::int64_t pair, head;
    const skv_shadow_layer& layer;
    const float* queries;
    RunningSoftmax softmax;
    float* sums;
  };
  void selected(const Part& part, std::int64_t first, std::int64_t end, RebuiltKeys& keys) const;
  void tail(const Part& part) const;
  void recent(const Part& part, std::int64_t first, std::int64_t end) const;
  void rows(const Part& part, const void* keys, const void* values, std::int64_t first, std::int64_t count) const;
  const void* values(const Part& part, std::int32_t slot) const;

  const skv_sparse_attention_params& p_;
  const AttentionKernels& kernels_;
  const Rerank* reranked_;
  ExecutionTraits traits_;
  std::int64_t pairs_, selected_parts_, recent_parts_, tail_parts_;
  std::int32_t group_;
  const float* queries_;
  AttentionParts sums_;
  RebuiltKeys* keys_;  // [threads]
};

}  // namespace skv::cpu
