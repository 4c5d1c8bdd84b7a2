// Operations that have no kernel yet. These definitions are weak: the .cu file of an operation replaces its
// entry here by defining the same functions. (In an archive the linker takes the first definition it meets;
// the .cu files come before this one there.)
#include "cuda/launch.h"

namespace skv::cuda {

#define SKV_PENDING(method, params, function, number)                                          \
  __attribute__((weak)) void method(const params&, Launch&) {                                  \
    throw Error(SKV_NOT_AVAILABLE, #function " has no CUDA kernel in this build");             \
  }                                                                                            \
  __attribute__((weak)) std::uint64_t method##_workspace(const params&, const DeviceTraits&) { \
    throw Error(SKV_NOT_AVAILABLE, #function " has no CUDA kernel in this build");             \
  }
SKV_OPERATIONS(SKV_PENDING)
#undef SKV_PENDING

}  // namespace skv::cuda
