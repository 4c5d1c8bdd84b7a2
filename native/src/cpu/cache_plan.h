// Where the selected chunks of a key/value head go, head by head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/execution.h"
#include "shadowkv_types.h"

namespace skv::cpu {

class CachePlan {
 public:
  // Checks and takes workspace. The parameters must outlive it.
  CachePlan(const skv_cache_plan_params& p, Execution& execution);

  std::int64_t pairs() const;  // (session, key/value head)
  // `thread` tells scratch memory apart.
  void place(std::int64_t pair, int thread) const;

 private:
  const skv_cache_plan_params& p_;
  std::byte* memory_;
  std::uint64_t thread_bytes_;
};

}  // namespace skv::cpu
