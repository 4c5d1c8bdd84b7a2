// What the library says about itself.
#include <string>
#include <string_view>

#include "backend.h"
#include "shadowkv.h"

#if !defined(SHADOWKV_VERSION)
#define SHADOWKV_VERSION "unknown version"
#endif

uint32_t skv_abi_version(void) {
  return SKV_ABI_VERSION;
}

const char* skv_build_info(void) {
  static char text[256];
  static const bool written = [] {
    std::string_view parts[] = {SHADOWKV_VERSION, ", CPU (portable, AVX2, AVX-512, AVX-512 BF16), ", skv::cuda_build_info()};
    std::size_t length = 0;
    for (const std::string_view part : parts) {
      length += part.copy(text + length, sizeof(text) - 1 - length);
    }
    text[length] = '\0';
    return true;
  }();
  (void)written;
  return text;
}

const char* skv_status_name(skv_status status) {
  switch (status) {
#define SKV_NAME(name) \
  case name:           \
    return #name;
    SKV_NAME(SKV_OK)
    SKV_NAME(SKV_INVALID_ARGUMENT)
    SKV_NAME(SKV_UNSUPPORTED)
    SKV_NAME(SKV_OUT_OF_HOST_MEMORY)
    SKV_NAME(SKV_OUT_OF_DEVICE_MEMORY)
    SKV_NAME(SKV_DEVICE_ERROR)
    SKV_NAME(SKV_NOT_AVAILABLE)
    SKV_NAME(SKV_INTERNAL)
#undef SKV_NAME
    default:
      return "unknown status";
  }
}

uint64_t skv_struct_size(const char* name) {
  if (!name) {
    return 0;
  }
  const std::string_view wanted = name;
#define SKV_SIZE(type)   \
  if (wanted == #type) { \
    return sizeof(type); \
  }
#define SKV_OPERATION_SIZE(method, params, function, number) SKV_SIZE(params)
  SKV_OPERATIONS(SKV_OPERATION_SIZE)
  SKV_SIZE(skv_context_params)
  SKV_SIZE(skv_device_info)
  SKV_SIZE(skv_rope)
  SKV_SIZE(skv_geometry)
  SKV_SIZE(skv_shadow_layer)
  SKV_SIZE(skv_dense_layer)
  SKV_SIZE(skv_session_state)
  SKV_SIZE(skv_decode_counters)
#undef SKV_OPERATION_SIZE
#undef SKV_SIZE
  return 0;
}
