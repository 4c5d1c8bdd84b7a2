#include "cpu/elements_rows.h"

namespace skv::cpu::avx512 {

Widen widen_function(std::int32_t type) {
  return widen_here(type);
}
Narrow narrow_function(std::int32_t type) {
  return narrow_here(type);
}
Unpack unpack_function(std::int32_t type) {
  return unpack_here(type);
}
Pack pack_function(std::int32_t type) {
  return pack_here(type);
}

}  // namespace skv::cpu::avx512
