// Shapes and types that the decode kernels take.
#include <string>

#include "cuda/decode.h"
#include "value_types.h"

namespace skv::cuda {
namespace {

[[noreturn]] void refuse(const char* operation, const std::string& what) {
  throw Error(SKV_UNSUPPORTED, std::string(operation) + " on CUDA: " + what);
}

}  // namespace

void check_attention_geometry(const skv_geometry& g, std::int32_t query_type, const char* operation) {
  if (query_type != SKV_F32 && query_type != SKV_BF16 && query_type != SKV_F16) {
    refuse(operation, "inputs and outputs are F32, BF16 or F16, not type " + std::to_string(query_type));
  }
  if (g.storage_type != SKV_BF16) {
    refuse(operation, "the storage type is BF16, not type " + std::to_string(g.storage_type));
  }
  if (g.head_dim < 2 || g.head_dim > SKV_MAX_HEAD_DIM || g.head_dim % 2 != 0) {
    refuse(operation, "the head dim is even and at most " + std::to_string(SKV_MAX_HEAD_DIM) + ", not " +
                          std::to_string(g.head_dim));
  }
  if (g.key_value_heads < 1 || g.key_value_heads > SKV_MAX_KEY_VALUE_HEADS) {
    refuse(operation, "there are 1 to " + std::to_string(SKV_MAX_KEY_VALUE_HEADS) + " key/value heads, not " +
                          std::to_string(g.key_value_heads));
  }
  if (g.query_heads % g.key_value_heads != 0 || g.query_heads < g.key_value_heads ||
      g.query_heads / g.key_value_heads > SKV_MAX_GROUP) {
    refuse(operation, "query heads are 1 to " + std::to_string(SKV_MAX_GROUP) + " times the key/value heads, not " +
                          std::to_string(g.query_heads) + " to " + std::to_string(g.key_value_heads));
  }
}

void check_shadow_geometry(const skv_geometry& g, std::int32_t query_type, const char* operation) {
  check_attention_geometry(g, query_type, operation);
  if (g.chunk != 8 && g.chunk != 16) {
    refuse(operation, "a chunk has 8 or 16 tokens, not " + std::to_string(g.chunk));
  }
  if (g.rank < SKV_MIN_RANK || g.rank > SKV_MAX_RANK) {
    refuse(operation, "the rank is " + std::to_string(SKV_MIN_RANK) + " to " + std::to_string(SKV_MAX_RANK) + ", not " +
                          std::to_string(g.rank));
  }
  if (g.value_type != SKV_BF16 && !is_scaled(g.value_type)) {
    refuse(operation, "values are BF16, F8_E4M3, F12_E4M7 or F6_E2M3, not type " + std::to_string(g.value_type));
  }
  if (is_packed(g.value_type) && g.slots == 0) {
    refuse(operation, "values of type " + std::to_string(g.value_type) + " are packed and need slots");
  }
  if (g.landmark_type != SKV_BF16 && g.landmark_type != SKV_I8) {
    refuse(operation, "landmarks are BF16 or I8, not type " + std::to_string(g.landmark_type));
  }
  if (g.coefficient_type != SKV_BF16 && g.coefficient_type != SKV_I8) {
    refuse(operation, "coefficients are BF16 or I8, not type " + std::to_string(g.coefficient_type));
  }
  if (g.slots < 0 || g.slots > SKV_MAX_SLOTS) {
    refuse(operation, "there are 0 to " + std::to_string(SKV_MAX_SLOTS) + " slots, not " + std::to_string(g.slots));
  }
}

}  // namespace skv::cuda
