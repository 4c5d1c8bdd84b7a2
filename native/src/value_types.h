// What the types of elements have in common, those of values above all, for the host and for kernels.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "shadowkv_types.h"

namespace skv {

// A chunk of one head is a unit, whose elements share bytes.
SKV_BOTH constexpr bool is_packed(std::int32_t type) {
  return type == SKV_F12_E4M7 || type == SKV_F6_E2M3;
}

// Every chunk and head has a scale.
SKV_BOTH constexpr bool is_scaled(std::int32_t type) {
  return type == SKV_F8_E4M3 || is_packed(type);
}

// What slots hold of values of this type.
SKV_BOTH constexpr std::int32_t slot_type(std::int32_t type) {
  return type == SKV_F12_E4M7 ? SKV_BF16 : type == SKV_F6_E2M3 ? SKV_F8_E4M3 : type;
}

// Bytes of so many elements: whole chunks of a head where they are packed.
SKV_BOTH constexpr std::int64_t value_bytes(std::int32_t type, std::int64_t elements) {
  switch (type) {
    case SKV_F32:
      return elements * 4;
    case SKV_BF16:
    case SKV_F16:
      return elements * 2;
    case SKV_F12_E4M7:
      return elements / 2 * 3;
    case SKV_F6_E2M3:
      return elements / 4 * 3;
    default:
      return elements;
  }
}

// Bytes of one element of a type that is not packed.
SKV_BOTH constexpr std::int64_t element_bytes(std::int32_t type) {
  return value_bytes(type, 1);
}

// The largest number of a type, which the largest of a chunk becomes; F12_E4M7 counts exponents instead.
SKV_BOTH constexpr float largest_number(std::int32_t type) {
  return type == SKV_F6_E2M3 ? 7.5F / 64 : 448.0F;
}

// F12_E4M7 as BF16 sees it: numbers of its lowest exponents, and a power of two more.
inline constexpr std::uint32_t kTwelveBitExponent = 15;    // the highest of them, biased
inline constexpr std::uint32_t kTwelveBitLargest = 0x7ff;  // exponent and mantissa
inline constexpr float kTwelveBitPower = 0x1p120F;         // from there to exponents of bias 7

// The scale of F12_E4M7 for a largest magnitude given as the bits of a BF16: a power of two, and infinite where that
// is.
SKV_BOTH constexpr std::uint32_t twelve_bit_scale(std::uint32_t largest) {
  constexpr std::uint32_t kInfinite = 255, kMantissaBits = 7, kFloatMantissaBits = 23;
  std::uint32_t exponent = largest >> kMantissaBits;
  exponent = exponent < kTwelveBitExponent ? kTwelveBitExponent : exponent;
  // The largest number has the exponent 8.
  return (exponent == kInfinite ? kInfinite : exponent - 8) << kFloatMantissaBits;
}

}  // namespace skv
