// What a library that was built without the CUDA sources answers in their place.
#if !defined(SHADOWKV_WITH_CUDA)

#include "backend.h"

namespace skv {
namespace {

[[noreturn]] void refuse() {
  throw Error(SKV_NOT_AVAILABLE,
              "this build of the library has no CUDA backend; build it where nvcc is found (SHADOWKV_CUDA=ON)");
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const skv_context_params&) {
  refuse();
}
std::int32_t count_cuda_devices() {
  refuse();
}
void describe_cuda(std::int32_t, skv_device_info&) {
  refuse();
}
const char* cuda_build_info() {
  return "no CUDA";
}

}  // namespace skv

#endif
