#include "cpu/elements.h"

#include "cpu/elements_rows.h"

namespace skv::cpu {

namespace avx2 {
Widen widen_function(std::int32_t type);
Narrow narrow_function(std::int32_t type);
}  // namespace avx2
namespace avx512 {
Widen widen_function(std::int32_t type);
Narrow narrow_function(std::int32_t type);
}  // namespace avx512

namespace {

template <class Function>
Function checked(Function function, std::int32_t type) {
  if (!function) {
    throw Error(SKV_UNSUPPORTED, "rows of type " + std::to_string(type) + " cannot be converted");
  }
  return function;
}

}  // namespace

Widen widen_function(std::int32_t type, InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return checked(avx512::widen_function(type), type);
    case InstructionSet::kAvx2:
      return checked(avx2::widen_function(type), type);
    default:
      return checked(widen_here(type), type);
  }
}

Narrow narrow_function(std::int32_t type, InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return checked(avx512::narrow_function(type), type);
    case InstructionSet::kAvx2:
      return checked(avx2::narrow_function(type), type);
    default:
      return checked(narrow_here(type), type);
  }
}

}  // namespace skv::cpu
