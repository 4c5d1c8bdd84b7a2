#include "cpu/elements.h"

#include <algorithm>

#include "cpu/elements_rows.h"

namespace skv::cpu {

namespace avx2 {
Widen widen_function(std::int32_t type);
Narrow narrow_function(std::int32_t type);
Unpack unpack_function(std::int32_t type);
Pack pack_function(std::int32_t type);
}  // namespace avx2
namespace avx512 {
Widen widen_function(std::int32_t type);
Narrow narrow_function(std::int32_t type);
Unpack unpack_function(std::int32_t type);
Pack pack_function(std::int32_t type);
}  // namespace avx512

namespace {

template <class Function>
using Functions = Function (*)(std::int32_t type);

// The function of a type in the version of an instruction set.
template <class Function>
Function chosen(std::int32_t type, InstructionSet set, Functions<Function> portable, Functions<Function> avx2,
                Functions<Function> avx512) {
  const bool wide = set == InstructionSet::kAvx512 || set == InstructionSet::kAvx512Bf16;
  Function const function = (wide ? avx512 : set == InstructionSet::kAvx2 ? avx2 : portable)(type);
  if (!function) {
    throw Error(SKV_UNSUPPORTED, "rows of type " + std::to_string(type) + " cannot be converted");
  }
  return function;
}

}  // namespace

Widen widen_function(std::int32_t type, InstructionSet set) {
  return chosen<Widen>(type, set, widen_here, avx2::widen_function, avx512::widen_function);
}

Narrow narrow_function(std::int32_t type, InstructionSet set) {
  return chosen<Narrow>(type, set, narrow_here, avx2::narrow_function, avx512::narrow_function);
}

Unpack unpack_function(std::int32_t type, InstructionSet set) {
  return chosen<Unpack>(type, set, unpack_here, avx2::unpack_function, avx512::unpack_function);
}

Pack pack_function(std::int32_t type, InstructionSet set) {
  return chosen<Pack>(type, set, pack_here, avx2::pack_function, avx512::pack_function);
}

RowConversion::RowConversion(std::int32_t from, std::int32_t to, InstructionSet set)
    : from_(from), to_(to), widen_(widen_function(from, set)), narrow_(narrow_function(to, set)) {}

void RowConversion::operator()(const void* from, void* to, std::int64_t count) const {
  if (from_ == to_) {
    std::memcpy(to, from, static_cast<std::size_t>(count * element_bytes(from_)));
  } else if (to_ == SKV_F32) {
    widen_(from, static_cast<float*>(to), count);
  } else if (from_ == SKV_F32) {
    narrow_(static_cast<const float*>(from), to, count);
  } else {
    constexpr std::int64_t kPiece = 512;
    float piece[kPiece];
    for (std::int64_t done = 0; done < count; done += kPiece) {
      const std::int64_t here = std::min(kPiece, count - done);
      widen_(element_at(from, from_, done), piece, here);
      narrow_(piece, element_at(to, to_, done), here);
    }
  }
}

}  // namespace skv::cpu
