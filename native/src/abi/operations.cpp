// The entry points of the operations: check, then hand over.
#include "abi/context.h"

namespace {

void check_lane(const skv_context& context, std::int32_t operation, const char* function) {
  if (context.lane != 0 && operation != SKV_OP_VALUE_STORE) [[unlikely]] {
    throw skv::Error(SKV_INVALID_ARGUMENT, std::string(function) + ": lane " + std::to_string(context.lane) +
                                               " takes copies, fills and skv_value_store alone");
  }
}

}  // namespace

#define SKV_ENTRY(method, params_type, function, number)                      \
  skv_status function(skv_context* context, const params_type* params) {      \
    return skv::abi::guarded(#function, context, [&](skv::Backend& backend) { \
      skv::abi::check_##method(params, true);                                 \
      check_lane(*context, number, #function);                                \
      backend.method(*params);                                                \
    });                                                                       \
  }
SKV_OPERATIONS(SKV_ENTRY)
#undef SKV_ENTRY
