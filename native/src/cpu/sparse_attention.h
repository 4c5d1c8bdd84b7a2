// Attention over selected chunks, outliers and the recent window, in parts, as a decode step composes it.
#pragma once

#include <cstdint>

#include "cpu/attention.h"
#include "cpu/elements.h"
#include "cpu/execution.h"
#include "cpu/rebuilt_keys.h"
#include "cpu/rerank.h"
#include "shadowkv_types.h"

namespace skv::cpu {

class SparseAttention {
 public:
  // Checks, takes workspace and makes the queries ready. The parameters must outlive it. With `reranked`, the scores of
  // selected chunks are those that it holds when a part runs: no key is rebuilt. With `kept`, their keys are in the
  // slots that the selection names.
  SparseAttention(const skv_sparse_attention_params& p, Execution& execution, const Rerank* reranked, bool kept);

  std::int64_t pairs() const { return pairs_; }  // (session, key/value head)
  std::int64_t parts() const { return selected_parts_ + kOutlierParts + recent_parts_ + tail_parts_ + dropped_parts_; }

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
  // Chunks [first, end) of a selection: by scores that are there, by keys rebuilt block by block, or by rounded keys.
  void selected(const Part& part, std::int64_t first, std::int64_t end, int thread) const;
  void scored(const Part& part, std::int64_t first, std::int64_t end) const;
  void rebuilt(const Part& part, std::int64_t first, std::int64_t end, RebuiltKeys& keys) const;
  void rounded(const Part& part, std::int64_t first, std::int64_t end, int thread) const;
  void weigh(const Part& part, std::int64_t first, std::int64_t count, float* scores) const;
  void tail(const Part& part) const;
  void dropped(const Part& part) const;
  void recent(const Part& part, std::int64_t first, std::int64_t end) const;
  void rows(const Part& part, const void* keys, const void* values, std::int64_t first, std::int64_t count) const;
  // Values of a selected chunk, by its number in the selection; their type and the bytes of a chunk.
  const void* values(const Part& part, std::int64_t number) const;
  std::int32_t value_type(const Part& part) const;
  std::int64_t value_bytes(const Part& part) const;

  const skv_sparse_attention_params& p_;
  const AttentionKernels& kernels_;
  const Rerank* reranked_;
  bool kept_;
  ExecutionTraits traits_;
  std::int64_t pairs_, selected_parts_, recent_parts_, tail_parts_, dropped_parts_;
  std::int32_t group_;
  const float* queries_;
  AttentionParts sums_;
  Unpack unpack_;       // null: values are not packed
  RebuiltKeys* keys_;   // [threads]
  std::byte* rounded_;  // [threads][part][D] of the storage type
};

}  // namespace skv::cpu
