// Element types as the CPU kernels see them: storage structs, exact conversions to nearest even, and a call
// that turns a type number into a C++ type.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

#include "cpu/execution.h"
#include "error.h"
#include "shadowkv_types.h"
#include "value_types.h"

namespace skv::cpu {

// Files for different instruction sets include this header: a copy of these that is not inlined might be the
// one that a lesser processor is given.
#define SKV_INLINE __attribute__((always_inline)) inline

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
// e4m3 without infinities: exponent bias 7, largest 448, 0x7f and 0xff are NaN.
struct Float8 {
  std::uint8_t bits;
};

inline constexpr float kLargestFloat8 = 448.0F;
inline constexpr float kLargestByte = 127.0F;  // of symmetric whole numbers

// Half the distance between 1 and the next number: what rounding may change, relatively.
template <class T>
inline constexpr double kRoundoff = 0;
template <>
inline constexpr double kRoundoff<float> = 0x1p-24;
template <>
inline constexpr double kRoundoff<BFloat16> = 0x1p-8;
template <>
inline constexpr double kRoundoff<Float16> = 0x1p-11;
template <>
inline constexpr double kRoundoff<Float8> = 0x1p-4;

SKV_INLINE float to_float(float x) {
  return x;
}

SKV_INLINE float to_float(std::int8_t x) {
  return static_cast<float>(x);
}

SKV_INLINE float to_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

SKV_INLINE float to_float(Float16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffU;
  constexpr std::uint32_t kInfinity = 0x7c00U, kSmallestNormal = 0x0400U;
  if (magnitude >= kInfinity) {
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  if (magnitude >= kSmallestNormal) {
    return std::bit_cast<float>(sign | ((magnitude << 13) + ((127U - 15U) << 23)));
  }
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}

SKV_INLINE float to_float(Float8 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x80U) << 24;
  const std::uint32_t magnitude = x.bits & 0x7fU;
  constexpr std::uint32_t kNan = 0x7fU, kSmallestNormal = 0x08U;
  if (magnitude == kNan) {
    return std::bit_cast<float>(sign | 0x7fc00000U);
  }
  if (magnitude >= kSmallestNormal) {
    return std::bit_cast<float>(sign | ((magnitude << 20) + ((127U - 7U) << 23)));
  }
  const float subnormal = static_cast<float>(magnitude) * 0x1p-9F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}

template <class T>
T from_float(float x);

template <>
SKV_INLINE float from_float<float>(float x) {
  return x;
}

template <>
SKV_INLINE BFloat16 from_float<BFloat16>(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  constexpr std::uint32_t kInfinity = 0x7f800000U;
  const bool nan = (bits & 0x7fffffffU) > kInfinity;
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40U;
  return {static_cast<std::uint16_t>(nan ? quiet : rounded)};
}

template <>
SKV_INLINE Float16 from_float<Float16>(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  constexpr std::uint32_t kInfinity = 0x7f800000U;
  constexpr std::uint32_t kSmallestNormal = (127U - 14U) << 23;
  constexpr std::uint32_t kOverflow = (127U + 16U) << 23;  // 65536; what rounds up to it comes out right below
  if (magnitude > kInfinity) {
    return {static_cast<std::uint16_t>(sign | 0x7e00U | ((bits >> 13) & 0x3ffU))};
  }
  if (magnitude >= kOverflow) {
    return {static_cast<std::uint16_t>(sign | 0x7c00U)};
  }
  if (magnitude >= kSmallestNormal) {
    const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
    return {static_cast<std::uint16_t>(sign | ((rounded - ((127U - 15U) << 23)) >> 13))};
  }
  // Adding 0.5 brings the subnormal's last place to the float's, and the addition rounds to nearest even.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
  return {
      static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0.5F)))};
}

// Magnitudes that round beyond 448 become 448 (infinity too), as cuda's saturating conversion has it.
template <>
SKV_INLINE Float8 from_float<Float8>(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint8_t sign = static_cast<std::uint8_t>((bits >> 24) & 0x80U);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  constexpr std::uint32_t kInfinity = 0x7f800000U;
  constexpr std::uint32_t kSmallestNormal = (127U - 6U) << 23;
  constexpr std::uint8_t kLargest = 0x7eU, kNan = 0x7fU;
  if (magnitude > kInfinity) {
    return {static_cast<std::uint8_t>(sign | kNan)};
  }
  if (magnitude >= std::bit_cast<std::uint32_t>(kLargestFloat8)) {
    return {static_cast<std::uint8_t>(sign | kLargest)};
  }
  if (magnitude >= kSmallestNormal) {
    const std::uint32_t rounded = magnitude + 0x7ffffU + ((magnitude >> 20) & 1U);
    return {static_cast<std::uint8_t>(sign | ((rounded - ((127U - 7U) << 23)) >> 20))};
  }
  // As for Float16: 2^14 has its last place at 2^-9, the subnormal's.
  const float shifted = std::bit_cast<float>(magnitude) + 0x1p14F;
  return {static_cast<std::uint8_t>(sign |
                                    (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0x1p14F)))};
}

// The nearest whole number, from -127 to 127; 0 of what is no number.
template <>
SKV_INLINE std::int8_t from_float<std::int8_t>(float x) {
  const float level = std::nearbyint(x == x ? x : 0.0F);
  const float low = level > -kLargestByte ? level : -kLargestByte;
  return static_cast<std::int8_t>(low < kLargestByte ? low : kLargestByte);
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the C++ type of F32, BF16 or F16.
template <class F>
decltype(auto) with_type(std::int32_t type, F&& f) {
  switch (type) {
    case SKV_F32:
      return f(Type<float>{});
    case SKV_BF16:
      return f(Type<BFloat16>{});
    case SKV_F16:
      return f(Type<Float16>{});
    default:
      throw Error(SKV_UNSUPPORTED, "element type " + std::to_string(type) + " is not F32, BF16 or F16");
  }
}

// Whole rows at the speed of memory: [count] elements of `type` to floats and back. Float32 is copied.
using Widen = void (*)(const void* from, float* to, std::int64_t count);
using Narrow = void (*)(const float* from, void* to, std::int64_t count);
Widen widen_function(std::int32_t type, InstructionSet set);    // F32, BF16, F16, F8_E4M3, I8
Narrow narrow_function(std::int32_t type, InstructionSet set);  // F32, BF16, F16, F8_E4M3, I8

// Rows of one type to rows of another, each element rounded once.
class RowConversion {
 public:
  RowConversion(std::int32_t from, std::int32_t to, InstructionSet set);
  void operator()(const void* from, void* to, std::int64_t count) const;

 private:
  std::int32_t from_, to_;
  Widen widen_;
  Narrow narrow_;
};

// A chunk of packed values, F12_E4M7 or F6_E2M3, to what slots hold: [elements] of BF16, times the scale, or of
// F8_E4M3 of the same scale. And back from floats of at most the largest number of the type, as their scale makes them;
// what is no number becomes a large one.
using Unpack = void (*)(const void* from, float scale, void* to, std::int64_t elements);
using Pack = void (*)(const float* from, void* to, std::int64_t elements);
Unpack unpack_function(std::int32_t type, InstructionSet set);
Pack pack_function(std::int32_t type, InstructionSet set);

// Address of element `index` of an array whose type is known by number.
SKV_INLINE const void* element_at(const void* base, std::int32_t type, std::int64_t index) {
  return static_cast<const char*>(base) + index * element_bytes(type);
}
SKV_INLINE void* element_at(void* base, std::int32_t type, std::int64_t index) {
  return static_cast<char*>(base) + index * element_bytes(type);
}

}  // namespace skv::cpu
