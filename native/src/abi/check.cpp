#include "abi/check.h"

#include <cmath>

#include "value_types.h"

namespace skv::abi {
namespace {

constexpr std::int64_t kLargestElement = 4;

const char* type_name(std::int32_t type) {
  switch (type) {
    case SKV_F32:
      return "F32";
    case SKV_BF16:
      return "BF16";
    case SKV_F16:
      return "F16";
    case SKV_F8_E4M3:
      return "F8_E4M3";
    case SKV_I8:
      return "I8";
    case SKV_F12_E4M7:
      return "F12_E4M7";
    case SKV_F6_E2M3:
      return "F6_E2M3";
    default:
      return "no type";
  }
}

bool is_type(std::int32_t type) {
  return type >= SKV_F32 && type <= SKV_F6_E2M3;
}

std::string type_text(std::int32_t type) {
  return std::to_string(type) + " (" + type_name(type) + ")";
}

}  // namespace

void Check::fail_range(skv_status status, const char* name, std::int64_t value, std::int64_t low,
                       std::int64_t high) const {
  fail(status, std::string(name) + " is " + std::to_string(value) + ", must be " +
                   (low == high ? std::to_string(low) : std::to_string(low) + ".." + std::to_string(high)));
}

void Check::struct_size(std::uint32_t actual, std::size_t expected) const {
  if (actual != expected) {
    fail(SKV_INVALID_ARGUMENT, "struct_size is " + std::to_string(actual) + ", this library's struct has " +
                                   std::to_string(expected) + " bytes");
  }
}

void Check::finite(const char* name, float value) const {
  if (!std::isfinite(value)) {
    fail(SKV_INVALID_ARGUMENT, std::string(name) + " is " + std::to_string(value) + ", must be finite");
  }
}

void Check::type(const char* name, std::int32_t value) const {
  if (value == SKV_F32 || value == SKV_BF16 || value == SKV_F16) {
    return;
  }
  fail(is_type(value) ? SKV_UNSUPPORTED : SKV_INVALID_ARGUMENT,
       std::string(name) + " is " + type_text(value) + ", must be 0 (F32), 1 (BF16) or 2 (F16)");
}

void Check::value_type(std::int32_t value, std::int32_t storage) const {
  if (value != storage && !is_scaled(value)) {
    fail_type("value_type", value, storage,
              type_text(SKV_F8_E4M3) + ", " + type_text(SKV_F12_E4M7) + " or " + type_text(SKV_F6_E2M3));
  }
}

void Check::landmark_type(std::int32_t value, std::int32_t storage) const {
  if (value != storage && value != SKV_I8) {
    fail_type("landmark_type", value, storage, "or " + type_text(SKV_I8));
  }
}

void Check::coefficient_type(std::int32_t value, std::int32_t storage, const char* storage_name) const {
  if (value != storage && value != SKV_I8) {
    fail_type("coefficient_type", value, storage, "or " + type_text(SKV_I8), storage_name);
  }
}

void Check::fail_type(const char* name, std::int32_t value, std::int32_t storage, const std::string& others,
                      const char* storage_name) const {
  fail(is_type(value) ? SKV_UNSUPPORTED : SKV_INVALID_ARGUMENT, std::string(name) + " is " + type_text(value) +
                                                                    ", must be " + storage_name + ", which is " +
                                                                    type_text(storage) + ", " + others);
}

void Check::stride(const char* name, std::int64_t value, std::int64_t width) const {
  if (value != 0 && value < width) {
    fail(SKV_INVALID_ARGUMENT,
         std::string(name) + " is " + std::to_string(value) + ", must be 0 or at least " + std::to_string(width));
  }
}

void Check::elements(const char* name, std::initializer_list<std::int64_t> sizes) const {
  std::int64_t product = kLargestElement;
  for (const std::int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) {
      fail(SKV_INVALID_ARGUMENT, std::string("the bytes of ") + name + " do not fit into 64 bits");
    }
  }
}

void Check::bytes(std::uint64_t value) const {
  if (value > static_cast<std::uint64_t>(INT64_MAX)) {
    fail(SKV_INVALID_ARGUMENT, std::to_string(value) + " bytes do not fit into 63 bits");
  }
}

void Check::nonzero_bytes(std::uint64_t value) const {
  if (value == 0) {
    fail(SKV_INVALID_ARGUMENT, "bytes is 0, must be at least 1");
  }
  bytes(value);
}

void Check::bytes_product(const char* name, std::uint64_t a, std::uint64_t b) const {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product) || product > static_cast<std::uint64_t>(INT64_MAX)) {
    fail(SKV_INVALID_ARGUMENT, std::string(name) + " does not fit into 63 bits");
  }
}

void Check::head_dim(std::int32_t value) const {
  limit("head_dim", value, 2, SKV_MAX_HEAD_DIM);
  if (value % 2 != 0) {
    fail(SKV_UNSUPPORTED,
         "head_dim is " + std::to_string(value) + ", must be even, 2.." + std::to_string(SKV_MAX_HEAD_DIM));
  }
}

void Check::heads(const char* name, std::int32_t value) const {
  limit(name, value, 1, SKV_MAX_KEY_VALUE_HEADS);
}

void Check::chunk(std::int32_t value) const {
  if (value != 8 && value != 16) {
    fail(value < 1 ? SKV_INVALID_ARGUMENT : SKV_UNSUPPORTED, "chunk is " + std::to_string(value) + ", must be 8 or 16");
  }
}

void Check::rank(const char* name, std::int32_t value) const {
  limit(name, value, SKV_MIN_RANK, SKV_MAX_RANK);
}

void Check::batch(std::int32_t value) const {
  limit("batch", value, 1, SKV_MAX_BATCH);
}

void Check::select(const char* name, std::int32_t value) const {
  limit(name, value, 1, SKV_MAX_SELECT);
}

void Check::rope(const skv_rope& rope, std::int32_t head_dim, std::int64_t first, std::int64_t count) const {
  if (rope.rotary_dim < 0 || rope.rotary_dim > head_dim || rope.rotary_dim % 2 != 0) {
    fail(SKV_INVALID_ARGUMENT,
         "rope.rotary_dim is " + std::to_string(rope.rotary_dim) + ", must be even, 0.." + std::to_string(head_dim));
  }
  if (rope.rotary_dim == 0) {
    return;
  }
  pointer("rope.coarse", rope.coarse);
  pointer("rope.fine", rope.fine);
  at_least("rope.coarse_rows", rope.coarse_rows, 1);
  if (rope.fine_rows < 1 || (rope.fine_rows & (rope.fine_rows - 1)) != 0) {
    fail(SKV_INVALID_ARGUMENT, "rope.fine_rows is " + std::to_string(rope.fine_rows) + ", must be a power of two");
  }
  range("rope.pairing", rope.pairing, SKV_HALF_SPLIT, SKV_INTERLEAVED);
  if (!std::isfinite(rope.scale) || rope.scale == 0) {
    fail(SKV_INVALID_ARGUMENT, "rope.scale is " + std::to_string(rope.scale) + ", must be finite and not 0");
  }
  const std::int64_t covered = static_cast<std::int64_t>(rope.coarse_rows) * rope.fine_rows;
  if (count > 0 && (first > covered || count > covered - first)) {
    fail(SKV_INVALID_ARGUMENT, "positions " + std::to_string(first) + ".." + std::to_string(first + (count - 1)) +
                                   " exceed the rotary tables, which cover " + std::to_string(covered));
  }
}

void Check::dense_geometry(const skv_geometry& geometry) const {
  heads("key_value_heads", geometry.key_value_heads);
  at_least("query_heads", geometry.query_heads, 1);
  if (geometry.query_heads % geometry.key_value_heads != 0) {
    fail(SKV_INVALID_ARGUMENT, "query_heads is " + std::to_string(geometry.query_heads) +
                                   ", must be a multiple of key_value_heads, which is " +
                                   std::to_string(geometry.key_value_heads));
  }
  limit("query_heads / key_value_heads", geometry.query_heads / geometry.key_value_heads, 1, SKV_MAX_GROUP);
  head_dim(geometry.head_dim);
  type("storage_type", geometry.storage_type);
}

void Check::shadow_geometry(const skv_geometry& geometry) const {
  dense_geometry(geometry);
  chunk(geometry.chunk);
  rank("rank", geometry.rank);
  value_type(geometry.value_type, geometry.storage_type);
  landmark_type(geometry.landmark_type, geometry.storage_type);
  coefficient_type(geometry.coefficient_type, geometry.storage_type);
  if (geometry.window < geometry.chunk || geometry.window % geometry.chunk != 0) {
    fail(SKV_INVALID_ARGUMENT, "window is " + std::to_string(geometry.window) +
                                   ", must be a multiple of chunk, which is " + std::to_string(geometry.chunk));
  }
  if (geometry.slots != 0) {
    limit("slots", geometry.slots, 1, SKV_MAX_SLOTS);
  }
}

}  // namespace skv::abi
