// The entry points of the operations: check, then hand over.
#include "abi/check.h"
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

skv_status skv_each(skv_context* context, int32_t operation, const void* params, int32_t count) {
  return skv::abi::guarded(__func__, context, [&](skv::Backend& backend) {
    const skv::abi::Check check("skv_each");
    check.at_least("count", count, 0);
    if (count == 0) {
      return;
    }
    check.pointer("params", params);
    switch (operation) {
#define SKV_CHECK(method, type, function, number)                           \
  case number:                                                              \
    for (std::int32_t i = 0; i < count; ++i) {                              \
      skv::abi::check_##method(static_cast<const type*>(params) + i, true); \
    }                                                                       \
    check_lane(*context, number, "skv_each");                               \
    break;
      SKV_OPERATIONS(SKV_CHECK)
#undef SKV_CHECK
      default:
        check.fail(SKV_INVALID_ARGUMENT, "there is no operation number " + std::to_string(operation));
    }
    backend.each(operation, params, count);
  });
}
