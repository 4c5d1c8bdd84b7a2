// Argument checks. What no machine could do is INVALID_ARGUMENT; a sensible shape beyond a limit of this
// library is UNSUPPORTED. Messages name the function, the argument, its value and what it must be.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "error.h"
#include "shadowkv_types.h"

namespace skv::abi {

class Check {
 public:
  // With pointers unset, addresses are not looked at: the caller only asks for a workspace.
  explicit Check(const char* function, bool pointers = true) : function_(function), pointers_(pointers) {}

  [[noreturn]] void fail(skv_status status, const std::string& what) const {
    throw Error(status, std::string(function_) + ": " + what);
  }

  void struct_size(std::uint32_t actual, std::size_t expected) const;
  void pointer(const char* name, const void* address) const {
    if (pointers_ && !address) [[unlikely]] {
      fail(SKV_INVALID_ARGUMENT, std::string(name) + " is null");
    }
  }
  // INVALID_ARGUMENT outside [low, high].
  void range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) const {
    if (value < low || value > high) [[unlikely]] {
      fail_range(SKV_INVALID_ARGUMENT, name, value, low, high);
    }
  }
  void at_least(const char* name, std::int64_t value, std::int64_t low) const {
    if (value < low) [[unlikely]] {
      fail(SKV_INVALID_ARGUMENT,
           std::string(name) + " is " + std::to_string(value) + ", must be at least " + std::to_string(low));
    }
  }
  // INVALID_ARGUMENT below 1, UNSUPPORTED otherwise outside [low, high].
  void limit(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) const {
    if (value < low || value > high) [[unlikely]] {
      fail_range(value < 1 ? SKV_INVALID_ARGUMENT : SKV_UNSUPPORTED, name, value, low, high);
    }
  }
  void finite(const char* name, float value) const;
  // F32, BF16 or F16.
  void type(const char* name, std::int32_t value) const;
  // The storage type, or one with scales for values, I8 for landmarks and coefficients.
  void value_type(std::int32_t value, std::int32_t storage) const;
  void landmark_type(std::int32_t value, std::int32_t storage) const;
  void coefficient_type(std::int32_t value, std::int32_t storage, const char* storage_name = "storage_type") const;
  // A stride in elements: 0 for `width`, or at least that.
  void stride(const char* name, std::int64_t value, std::int64_t width) const;
  // The elements of an array, times the largest element, fit into 63 bits.
  void elements(const char* name, std::initializer_list<std::int64_t> sizes) const;
  void bytes(std::uint64_t value) const;
  void nonzero_bytes(std::uint64_t value) const;
  void bytes_product(const char* name, std::uint64_t a, std::uint64_t b) const;

  void head_dim(std::int32_t value) const;
  void heads(const char* name, std::int32_t value) const;
  void chunk(std::int32_t value) const;
  void rank(const char* name, std::int32_t value) const;
  // Tables of rotations for positions in [first, first + count) of heads of this width.
  void rope(const skv_rope& rope, std::int32_t head_dim, std::int64_t first, std::int64_t count) const;

  // Heads, head dim and storage types.
  void dense_geometry(const skv_geometry& geometry) const;
  // These and all that belongs to a shadow cache.
  void shadow_geometry(const skv_geometry& geometry) const;
  void batch(std::int32_t value) const;
  void select(const char* name, std::int32_t value) const;

 private:
  [[noreturn]] void fail_range(skv_status status, const char* name, std::int64_t value, std::int64_t low,
                               std::int64_t high) const;
  [[noreturn]] void fail_type(const char* name, std::int32_t value, std::int32_t storage, const std::string& others,
                              const char* storage_name = "storage_type") const;

  const char* function_;
  bool pointers_;
};

// The common head of an operation's checks.
template <class Params>
Check begin(const char* function, const Params* params, bool pointers) {
  Check(function).pointer("params", params);
  const Check check(function, pointers);
  check.struct_size(params->struct_size, sizeof(Params));
  return check;
}

}  // namespace skv::abi
