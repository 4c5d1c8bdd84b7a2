// Operands of native tests: an array in any element type beside what it holds in double precision, guarded at
// its end; and an execution to run CPU operations with.
#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/elements.h"
#include "cpu/execution.h"
#include "packed_values.h"
#include "value_types.h"

namespace check {

// Relative rounding error of a type.
inline double roundoff(std::int32_t type) {
  switch (type) {
    case SKV_F32:
      return 0x1p-24;
    case SKV_BF16:
      return 0x1p-8;
    case SKV_F16:
      return 0x1p-11;
    case SKV_F8_E4M3:
      return 0x1p-4;
    default:
      return std::nan("");
  }
}

// What rounding may add near zero, where a type's numbers become equidistant.
inline double smallest_step(std::int32_t type) {
  return type == SKV_F16 ? 0x1p-25 : type == SKV_F8_E4M3 ? 0x1p-10 : 0x1p-127;
}

class Array {
 public:
  // Packed types need to be told how many elements are one unit.
  Array(std::int32_t type, std::int64_t count, std::int64_t unit = 1)
      : type_(type),
        count_(count),
        unit_(unit),
        bytes_(static_cast<std::size_t>(skv::value_bytes(type, count) + kGuard), kGuardByte) {}

  // Normal numbers, rounded to the type.
  Array& fill(std::mt19937_64& random, double deviation = 1.0, double mean = 0.0) {
    std::normal_distribution<double> normal(mean, deviation);
    for (std::int64_t i = 0; i < count_; ++i) {
      set(i, normal(random));
    }
    return *this;
  }

  void set(std::int64_t i, double value) {
    const float x = static_cast<float>(value);
    switch (type_) {
      case SKV_F32:
        return put(i, x);
      case SKV_BF16:
        return put(i, skv::cpu::from_float<skv::cpu::BFloat16>(x));
      case SKV_F16:
        return put(i, skv::cpu::from_float<skv::cpu::Float16>(x));
      case SKV_F8_E4M3:
        return put(i, skv::cpu::from_float<skv::cpu::Float8>(x));
      case SKV_F12_E4M7:
      case SKV_F6_E2M3:
        return put_packed(type_, bytes_.data() + offset(i), unit_, i % unit_, packed_format(type_).code(value));
      default:
        return put(i, static_cast<std::int8_t>(value));
    }
  }

  double operator[](std::int64_t i) const {
    switch (type_) {
      case SKV_F32:
        return get<float>(i);
      case SKV_BF16:
        return skv::cpu::to_float(get<skv::cpu::BFloat16>(i));
      case SKV_F16:
        return skv::cpu::to_float(get<skv::cpu::Float16>(i));
      case SKV_F8_E4M3:
        return skv::cpu::to_float(get<skv::cpu::Float8>(i));
      case SKV_F12_E4M7:
      case SKV_F6_E2M3:
        return packed_number(type_, bytes_.data() + offset(i), unit_, i % unit_);
      default:
        return get<std::int8_t>(i);
    }
  }

  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.data());
  }
  std::int64_t count() const { return count_; }
  std::int32_t type() const { return type_; }
  bool operator==(const Array& other) const { return bytes_ == other.bytes_; }

  // Nothing was written behind the last element.
  bool guard_intact() const {
    return std::all_of(bytes_.end() - kGuard, bytes_.end(), [](unsigned char byte) { return byte == kGuardByte; });
  }
  // Element i, or its unit, has not been written since the array was made.
  bool untouched(std::int64_t i) const {
    const auto begin = bytes_.begin() + offset(i);
    return std::all_of(begin, begin + skv::value_bytes(type_, unit_),
                       [](unsigned char byte) { return byte == kGuardByte; });
  }

 private:
  static constexpr std::int64_t kGuard = 64;
  static constexpr unsigned char kGuardByte = 0xA5;

  // Of the unit that element i is in.
  std::int64_t offset(std::int64_t i) const { return i / unit_ * skv::value_bytes(type_, unit_); }
  template <class T>
  void put(std::int64_t i, T x) {
    std::memcpy(bytes_.data() + i * static_cast<std::int64_t>(sizeof(T)), &x, sizeof(T));
  }
  template <class T>
  T get(std::int64_t i) const {
    T x;
    std::memcpy(&x, bytes_.data() + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    return x;
  }

  std::int32_t type_;
  std::int64_t count_, unit_;
  std::vector<unsigned char> bytes_;
};

// Within `operations` roundings in fp32 of terms as large as `magnitude`, and one rounding to `type`.
inline double tolerance(std::int32_t type, double expected, double operations, double magnitude) {
  return roundoff(type) * std::fabs(expected) + smallest_step(type) +
         (1 + roundoff(type)) * operations * 0x1p-24 * magnitude;
}

// A pool, a workspace and an instruction set.
class Bench {
 public:
  Bench(int threads, int set) : pool_(threads), set_(static_cast<skv::cpu::InstructionSet>(set)) {}

  skv::cpu::ExecutionTraits traits() const { return {pool_.threads(), set_}; }
  // With exactly this much workspace.
  skv::cpu::Execution with(std::uint64_t workspace_bytes) {
    memory_.resize(static_cast<std::size_t>(workspace_bytes / sizeof(Line) + 1));
    return {pool_, skv::cpu::Workspace(memory_.data(), workspace_bytes), set_, blas_path};
  }
  std::string blas_path;

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  skv::cpu::ThreadPool pool_;
  skv::cpu::InstructionSet set_;
  std::vector<Line> memory_;
};

// Rotary tables and, apart from them, the angle of each position in double precision.
struct RopeTables {
  RopeTables(int rotary_dim, int pairing, std::int64_t positions, double theta, double scale)
      : rotary_dim(rotary_dim), pairing(pairing), scale(scale), theta(theta) {
    constexpr int kFineRows = 64;
    const std::int64_t coarse_rows = (positions + kFineRows - 1) / kFineRows;
    for (std::int64_t row = 0; row < coarse_rows; ++row) {
      for (int pair = 0; pair < rotary_dim / 2; ++pair) {
        coarse.push_back(static_cast<float>(scale * std::cos(angle(row * kFineRows, pair))));
        coarse.push_back(static_cast<float>(scale * std::sin(angle(row * kFineRows, pair))));
      }
    }
    for (int row = 0; row < kFineRows; ++row) {
      for (int pair = 0; pair < rotary_dim / 2; ++pair) {
        fine.push_back(static_cast<float>(std::cos(angle(row, pair))));
        fine.push_back(static_cast<float>(std::sin(angle(row, pair))));
      }
    }
    table = {coarse.data(),
             fine.data(),
             static_cast<std::int32_t>(coarse_rows),
             kFineRows,
             rotary_dim,
             pairing,
             static_cast<float>(scale)};
  }
  RopeTables(const RopeTables&) = delete;

  double angle(std::int64_t position, int pair) const {
    return static_cast<double>(position) * std::pow(theta, -2.0 * pair / rotary_dim);
  }

  // The definition: one head, in double precision.
  std::vector<double> rotate(std::vector<double> head, std::int64_t position) const {
    for (int pair = 0; pair < rotary_dim / 2; ++pair) {
      const std::size_t i = static_cast<std::size_t>(pairing == SKV_INTERLEAVED ? 2 * pair : pair);
      const std::size_t j = static_cast<std::size_t>(pairing == SKV_INTERLEAVED ? 2 * pair + 1 : pair + rotary_dim / 2);
      const double x = head[i], y = head[j], a = angle(position, pair);
      head[i] = scale * (x * std::cos(a) - y * std::sin(a));
      head[j] = scale * (x * std::sin(a) + y * std::cos(a));
    }
    return head;
  }

  int rotary_dim, pairing;
  double scale, theta;
  std::vector<float> coarse, fine;
  skv_rope table;
};

}  // namespace check
