#include "cuda/launch.h"
#include "moments.h"

namespace skv::cuda {

std::uint64_t moment_update_workspace(const skv_moment_update_params&, const DeviceTraits&) { return 0; }

void moment_update(const skv_moment_update_params&, Launch&) {
  throw Error(SKV_UNSUPPORTED, "moment_update is not there yet");
}

}  // namespace skv::cuda
