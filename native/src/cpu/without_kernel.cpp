// Operations that have no kernel yet. These definitions are weak: the file of an operation replaces its
// entry here by defining the same functions. (In an archive the linker takes the first definition it meets;
// by its name this file comes last.)
#include "cpu/execution.h"

namespace skv::cpu {

#define SKV_PENDING(method, params, function, number)                                             \
  __attribute__((weak)) void method(const params&, Execution&) {                                  \
    throw Error(SKV_NOT_AVAILABLE, #function " has no CPU kernel in this build");                 \
  }                                                                                               \
  __attribute__((weak)) std::uint64_t method##_workspace(const params&, const ExecutionTraits&) { \
    throw Error(SKV_NOT_AVAILABLE, #function " has no CPU kernel in this build");                 \
  }
SKV_OPERATIONS(SKV_PENDING)
#undef SKV_PENDING

}  // namespace skv::cpu
