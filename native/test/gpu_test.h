// What the GPU tests share: a context, arrays in its memory that are poisoned before an operation writes them,
// 16-bit and 8-bit floats made here by plain arithmetic, and comparisons against double-precision oracles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "check.h"

namespace gpu {

// From 1 to the next number: bf16 stores 7 bits of the fraction. The largest relative error of rounding is half of it.
inline constexpr double kBf16Epsilon = 0x1p-7;
inline constexpr double kF16Epsilon = 0x1p-10;
inline constexpr double kF32Epsilon = 0x1p-23;

inline double epsilon_of(std::int32_t type) {
  return type == SKV_F32 ? kF32Epsilon : type == SKV_BF16 ? kBf16Epsilon : kF16Epsilon;
}

inline std::int64_t size_of(std::int32_t type) {
  return type == SKV_F32 ? 4 : type == SKV_BF16 || type == SKV_F16 ? 2 : 1;
}

// SHADOWKV_TEST_DEVICE=cpu: the same tests of the CPU backend, where a test is of both. Where there is no GPU, they
// show whether a test itself is right.
inline bool on_cpu() {
  const char* const device = std::getenv("SHADOWKV_TEST_DEVICE");
  return device && std::strcmp(device, "cpu") == 0;
}

// The context, or a skip.
inline std::unique_ptr<skv::Backend> open(std::string& reason, const char* blas = std::getenv("SHADOWKV_CUBLAS")) {
  skv_context_params params = {};
  params.struct_size = sizeof params;
  if (on_cpu()) {
    params.backend = SKV_BACKEND_CPU;
    return skv::make_cpu_backend(params);
  }
  params.backend = SKV_BACKEND_CUDA;
  params.own_stream = 1;
  params.blas_path = blas;
  try {
    return skv::make_cuda_backend(params);
  } catch (const skv::Error& error) {
    if (error.status() != SKV_NOT_AVAILABLE) {
      throw;
    }
    reason = error.what();
    return nullptr;
  }
}

inline std::uint16_t bf16_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) {
    return 0x7fff;
  }
  bits += 0x7fff + (bits >> 16 & 1);
  return static_cast<std::uint16_t>(bits >> 16);
}

inline float bf16_value(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float f16_value(std::uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return static_cast<float>(half & 0x8000 ? -magnitude : magnitude);
}

inline std::uint16_t f16_bits(float x) {
  const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(x));
  if (std::isnan(x)) {
    return 0x7e00;
  }
  if (magnitude >= 65520) {
    return static_cast<std::uint16_t>(sign | 0x7c00);
  }
  if (magnitude == 0) {
    return sign;
  }
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = std::max(exponent - 11, -24);
  const double steps = std::nearbyint(std::ldexp(magnitude, -unit));
  // Walks the representable numbers: adding one step to the largest fraction moves the exponent by itself.
  return static_cast<std::uint16_t>(sign | (((unit + 24) << 10) + static_cast<int>(steps)));
}

inline float e4m3_value(std::uint8_t byte) {
  const int exponent = byte >> 3 & 15, fraction = byte & 7;
  if (exponent == 15 && fraction == 7) {
    return NAN;
  }
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return static_cast<float>(byte & 0x80 ? -magnitude : magnitude);
}

// Values as bytes of a type, and back.
inline std::vector<std::uint8_t> encode(const std::vector<float>& values, std::int32_t type) {
  std::vector<std::uint8_t> bytes(values.size() * static_cast<std::size_t>(size_of(type)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (type == SKV_F32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else if (type == SKV_I8) {
      const float whole = std::nearbyint(std::min(std::max(values[i], -128.0F), 127.0F));
      bytes[i] = static_cast<std::uint8_t>(static_cast<std::int8_t>(whole));
    } else {
      const std::uint16_t half = type == SKV_BF16 ? bf16_bits(values[i]) : f16_bits(values[i]);
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  return bytes;
}

inline std::vector<float> decode(const std::vector<std::uint8_t>& bytes, std::int32_t type) {
  std::vector<float> values(bytes.size() / static_cast<std::size_t>(size_of(type)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (type == SKV_F32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    } else if (type == SKV_F8_E4M3) {
      values[i] = e4m3_value(bytes[i]);
    } else if (type == SKV_I8) {
      values[i] = static_cast<std::int8_t>(bytes[i]);
    } else {
      std::uint16_t half;
      std::memcpy(&half, &bytes[2 * i], 2);
      values[i] = type == SKV_BF16 ? bf16_value(half) : f16_value(half);
    }
  }
  return values;
}

// What a type keeps of values.
inline std::vector<float> rounded(const std::vector<float>& values, std::int32_t type) {
  return decode(encode(values, type), type);
}

inline std::vector<float> normals(std::mt19937_64& generator, std::int64_t count, float deviation = 1.0F) {
  std::normal_distribution<float> distribution(0.0F, deviation);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = distribution(generator);
  }
  return values;
}

// Memory of the device. Poisoned with bytes 0xff, NaN in every float type, until something is written.
class Array {
 public:
  Array(skv::Backend& backend, std::int64_t bytes) : backend_(&backend), bytes_(bytes) {
    address_ = backend.allocate_device(static_cast<std::uint64_t>(bytes));
    backend.fill(address_, 0xff, static_cast<std::uint64_t>(bytes));
  }
  Array(skv::Backend& backend, const std::vector<std::uint8_t>& contents)
      : Array(backend, static_cast<std::int64_t>(contents.size())) {
    backend.copy(address_, contents.data(), contents.size());
  }
  Array(skv::Backend& backend, const std::vector<float>& values, std::int32_t type)
      : Array(backend, encode(values, type)) {}
  template <class T>
  static Array of(skv::Backend& backend, const std::vector<T>& values) {
    std::vector<std::uint8_t> bytes(values.size() * sizeof(T));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return Array(backend, bytes);
  }
  Array(Array&& other) noexcept : backend_(other.backend_), address_(other.address_), bytes_(other.bytes_) {
    other.address_ = nullptr;
  }
  Array& operator=(Array&&) = delete;
  ~Array() {
    try {
      if (address_) {
        backend_->free_device(address_);
      }
    } catch (const skv::Error&) {
    }
  }

  void* get() const { return address_; }
  operator void*() const { return address_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(address_);
  }

  std::vector<std::uint8_t> bytes() const {
    std::vector<std::uint8_t> result(static_cast<std::size_t>(bytes_));
    backend_->copy(result.data(), address_, result.size());
    backend_->synchronize();
    return result;
  }
  template <class T>
  std::vector<T> download() const {
    const std::vector<std::uint8_t> raw = bytes();
    std::vector<T> result(raw.size() / sizeof(T));
    std::memcpy(result.data(), raw.data(), result.size() * sizeof(T));
    return result;
  }
  std::vector<float> values(std::int32_t type) const { return decode(bytes(), type); }

 private:
  skv::Backend* backend_;
  void* address_ = nullptr;
  std::int64_t bytes_;
};

// One check over whole arrays: every element within its own tolerance. NaN never is.
template <class Tolerance>
bool check_all(const std::string& what, const std::vector<float>& actual, const std::vector<double>& expected,
               Tolerance&& tolerance) {
  ++check::checks;
  std::size_t bad = 0, first = 0;
  double worst = 0;
  if (actual.size() != expected.size()) {
    ++check::failures;
    std::fprintf(stderr, "failed: %s: %zu elements, expected %zu\n", what.c_str(), actual.size(), expected.size());
    return false;
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double allowed = tolerance(i);
    const double error = std::fabs(static_cast<double>(actual[i]) - expected[i]);
    if (!(error <= allowed)) {
      first = bad++ ? first : i;
    }
    if (allowed > 0) {
      worst = std::max(worst, error / allowed);
    }
  }
  if (bad) {
    ++check::failures;
    std::fprintf(stderr, "failed: %s: %zu of %zu elements, the first at %zu: %.9g, expected %.9g within %.3g\n",
                 what.c_str(), bad, actual.size(), first, static_cast<double>(actual[first]), expected[first],
                 tolerance(first));
    return false;
  }
  std::printf("ok: %s: %zu elements, worst error %.2f of what is allowed\n", what.c_str(), actual.size(), worst);
  return true;
}

// Whether f throws Error with that status.
template <class F>
bool throws(skv_status status, F&& f) {
  try {
    f();
  } catch (const skv::Error& error) {
    if (error.status() == status) {
      return true;
    }
    std::fprintf(stderr, "status %d instead of %d: %s\n", error.status(), status, error.what());
    return false;
  }
  std::fprintf(stderr, "no error instead of status %d\n", status);
  return false;
}

// Tables of a rotation and the rotation itself in double precision.
struct Rotation {
  std::int32_t rotary_dim, pairing, fine_rows = 64, coarse_rows;
  double theta, scale;
  std::vector<float> coarse, fine;

  Rotation(std::int32_t rotary, std::int32_t pairs, double base, double scaling, std::int64_t positions)
      : rotary_dim(rotary), pairing(pairs), theta(base), scale(scaling) {
    coarse_rows = static_cast<std::int32_t>((positions + fine_rows - 1) / fine_rows);
    const auto fill = [&](std::vector<float>& table, std::int32_t rows, double step, double factor) {
      for (std::int32_t row = 0; row < rows; ++row) {
        for (std::int32_t pair = 0; pair < rotary_dim / 2; ++pair) {
          const double angle = row * step * frequency(pair);
          table.push_back(static_cast<float>(std::cos(angle) * factor));
          table.push_back(static_cast<float>(std::sin(angle) * factor));
        }
      }
    };
    fill(coarse, coarse_rows, fine_rows, scale);
    fill(fine, fine_rows, 1, 1);
  }

  double frequency(std::int32_t pair) const { return std::pow(theta, -2.0 * pair / rotary_dim); }

  skv_rope on(const Array& coarse_table, const Array& fine_table) const {
    skv_rope rope = {};
    rope.coarse = coarse_table.as<float>();
    rope.fine = fine_table.as<float>();
    rope.coarse_rows = coarse_rows;
    rope.fine_rows = fine_rows;
    rope.rotary_dim = rotary_dim;
    rope.pairing = pairing;
    rope.scale = static_cast<float>(scale);
    return rope;
  }

  // Rotates one head.
  std::vector<double> rotate(const float* head, std::int32_t head_dim, std::int64_t position,
                             bool inverse = false) const {
    std::vector<double> x(head, head + head_dim);
    for (std::int32_t pair = 0; pair < rotary_dim / 2; ++pair) {
      const double angle = static_cast<double>(position) * frequency(pair);
      const double c = std::cos(angle) * (inverse ? 1 / scale : scale);
      const double s = std::sin(angle) * (inverse ? -1 / scale : scale);
      const std::int32_t i = pairing == SKV_INTERLEAVED ? 2 * pair : pair;
      const std::int32_t j = pairing == SKV_INTERLEAVED ? 2 * pair + 1 : pair + rotary_dim / 2;
      const double a = head[i], b = head[j];
      x[static_cast<std::size_t>(i)] = a * c - b * s;
      x[static_cast<std::size_t>(j)] = b * c + a * s;
    }
    return x;
  }
};

}  // namespace gpu
