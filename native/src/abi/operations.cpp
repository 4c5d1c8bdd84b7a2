// The entry points of the operations: check, then hand over.
#include "abi/context.h"

namespace {

// Whether an operation can go on beside another one of its context: the workspace, side streams and BLAS are for one.
bool runs_beside_others(const skv_context& context, std::int32_t operation, const void* params) {
  switch (operation) {
    case SKV_OP_ROPE:
    case SKV_OP_STORE_TOKENS:
    case SKV_OP_LOW_RANK_PROJECT:
    case SKV_OP_LANDMARK_BUILD:
    case SKV_OP_CHUNK_GATHER:
    case SKV_OP_VALUE_STORE:
    case SKV_OP_MOMENT_UPDATE:
      return context.backend->workspace_bytes(operation, params) == 0;
    default:
      return false;
  }
}

void check_lane(const skv_context& context, std::int32_t operation, const void* params, const char* function) {
  if (context.lane != 0 && !runs_beside_others(context, operation, params)) [[unlikely]] {
    throw skv::Error(SKV_INVALID_ARGUMENT, std::string(function) + " cannot go on beside others, on lane " +
                                               std::to_string(context.lane));
  }
}

}  // namespace

#define SKV_ENTRY(method, params_type, function, number)                      \
  skv_status function(skv_context* context, const params_type* params) {      \
    return skv::abi::guarded(#function, context, [&](skv::Backend& backend) { \
      skv::abi::check_##method(params, true);                                 \
      check_lane(*context, number, params, #function);                        \
      backend.method(*params);                                                \
    });                                                                       \
  }
SKV_OPERATIONS(SKV_ENTRY)
#undef SKV_ENTRY
