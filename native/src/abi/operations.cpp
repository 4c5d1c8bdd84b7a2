// The entry points of the operations: check, then hand over.
#include "abi/context.h"

#define SKV_ENTRY(method, params_type, function, number)                      \
  skv_status function(skv_context* context, const params_type* params) {      \
    return skv::abi::guarded(#function, context, [&](skv::Backend& backend) { \
      skv::abi::check_##method(params, true);                                 \
      backend.method(*params);                                                \
    });                                                                       \
  }
SKV_OPERATIONS(SKV_ENTRY)
#undef SKV_ENTRY
