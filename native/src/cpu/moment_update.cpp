#include "cpu/elements.h"
#include "moments.h"

namespace skv::cpu {

void moment_update(const skv_moment_update_params&, Execution&) {
  throw Error(SKV_UNSUPPORTED, "moment_update is not there yet");
}

std::uint64_t moment_update_workspace(const skv_moment_update_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
