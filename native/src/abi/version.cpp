#include "shadowkv.h"

uint32_t skv_abi_version(void) {
  return SKV_ABI_VERSION;
}
