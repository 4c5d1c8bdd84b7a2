#include "cpu/execution.h"

namespace skv::cpu {

std::uint64_t value_fit_workspace(const skv_value_fit_params&, const ExecutionTraits&) {
  return 0;
}

void value_fit(const skv_value_fit_params&, Execution&) {
  throw Error(SKV_NOT_AVAILABLE, "the CPU backend has no value_fit");
}

}  // namespace skv::cpu
