// Packed chunks of values, read and written number by number after their definition in shadowkv_types.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "shadowkv_types.h"

namespace check {

// Sign, exponent of bias 7 and mantissa, without infinities; exponent 0 means subnormal.
struct PackedFormat {
  int exponent_bits, mantissa_bits;

  int bits() const { return 1 + exponent_bits + mantissa_bits; }
  double step(int exponent) const { return std::ldexp(1.0, std::max(exponent, 1) - 7 - mantissa_bits); }
  double largest() const { return ((2 << mantissa_bits) - 1) * step((1 << exponent_bits) - 1); }

  double number(unsigned code) const {
    const int mantissa = static_cast<int>(code & ((1U << mantissa_bits) - 1));
    const int exponent = static_cast<int>(code >> mantissa_bits & ((1U << exponent_bits) - 1));
    const double magnitude = (mantissa + (exponent > 0 ? 1 << mantissa_bits : 0)) * step(exponent);
    return code >> (bits() - 1) ? -magnitude : magnitude;
  }

  // The nearest, ties to even; the largest for what is larger.
  unsigned code(double number) const {
    const double magnitude = std::min(std::fabs(number), largest());
    const unsigned sign = std::signbit(number) ? 1U << (bits() - 1) : 0;
    const int exponent = magnitude > 0 ? std::max(std::ilogb(magnitude) + 7, 1) : 1;
    // The mantissa of the next exponent follows on that of this one.
    const auto steps = static_cast<unsigned>(std::nearbyint(magnitude / step(exponent)));
    return sign | (static_cast<unsigned>(exponent - 1) * (1U << mantissa_bits) + steps);
  }
};

inline PackedFormat packed_format(std::int32_t type) {
  return type == SKV_F12_E4M7 ? PackedFormat{4, 7} : PackedFormat{2, 3};
}

// Where the bits of element i of a chunk of n lie: the lower ones in one byte, the upper ones in another.
struct PackedPlace {
  std::int64_t low, high;
  int low_bits, low_shift, high_bits, high_shift;
};

inline PackedPlace packed_place(std::int32_t type, std::int64_t n, std::int64_t i) {
  const std::int64_t half = n / 2, quarter = n / 4;
  return type == SKV_F12_E4M7
             ? PackedPlace{i, n + i % half, 8, 0, 4, i < half ? 0 : 4}
             : PackedPlace{i % half, half + i % quarter, 4, i < half ? 0 : 4, 2, static_cast<int>(i / quarter) * 2};
}

inline unsigned packed_code(std::int32_t type, const unsigned char* chunk, std::int64_t n, std::int64_t i) {
  const PackedPlace at = packed_place(type, n, i);
  const unsigned low = chunk[at.low] >> at.low_shift & ((1U << at.low_bits) - 1);
  const unsigned high = chunk[at.high] >> at.high_shift & ((1U << at.high_bits) - 1);
  return high << at.low_bits | low;
}

inline void put_packed(std::int32_t type, unsigned char* chunk, std::int64_t n, std::int64_t i, unsigned code) {
  const PackedPlace at = packed_place(type, n, i);
  const auto put = [](unsigned char& byte, unsigned bits, int count, int shift) {
    const unsigned mask = ((1U << count) - 1) << shift;
    byte = static_cast<unsigned char>((byte & ~mask) | (bits << shift & mask));
  };
  put(chunk[at.low], code, at.low_bits, at.low_shift);
  put(chunk[at.high], code >> at.low_bits, at.high_bits, at.high_shift);
}

// What it stands for, before its scale.
inline double packed_number(std::int32_t type, const unsigned char* chunk, std::int64_t n, std::int64_t i) {
  return packed_format(type).number(packed_code(type, chunk, n, i));
}

// The e4m3 that a slot holds of a code of F6_E2M3.
inline std::uint8_t e4m3_of_six(unsigned code) {
  return static_cast<std::uint8_t>((code & 31U) | code >> 5 << 7);
}

}  // namespace check
