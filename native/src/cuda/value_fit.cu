#include "cuda/launch.h"

namespace skv::cuda {

std::uint64_t value_fit_workspace(const skv_value_fit_params&, const DeviceTraits&) {
  return 0;
}

void value_fit(const skv_value_fit_params&, Launch&) {
  throw Error(SKV_NOT_AVAILABLE, "the CUDA backend has no value_fit");
}

}  // namespace skv::cuda
