// What the operations of a decode step share: shapes that are taken, queries made ready, and
// attention in parts. Parts are cut by position, never by thread, so that an answer does not depend on how many
// threads there are or on what else is in the batch.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/attention_kernels.h"
#include "cpu/execution.h"
#include "shadowkv_types.h"

namespace skv::cpu {

// Throw UNSUPPORTED with the limits.
void check_attention_geometry(const skv_geometry& geometry, std::int32_t query_type, const char* operation);
void check_shadow_geometry(const skv_geometry& geometry, std::int32_t query_type, const char* operation);

inline std::int32_t group_size(const skv_geometry& geometry) {
  return geometry.query_heads / geometry.key_value_heads;
}
inline std::int64_t head_pairs(const skv_geometry& geometry, std::int32_t batch) {
  return static_cast<std::int64_t>(batch) * geometry.key_value_heads;
}
inline std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
inline std::int64_t score_stride(std::int64_t count) {
  return divide_up(count, kScoreMultiple) * kScoreMultiple;
}

// The logarithm of a sum of exponentials from what log_sum() gives; -infinity of none, NaN where there was one.
inline float log_of_sum(float largest, float sum) {
  return largest + std::log(sum);
}

// Queries [rows][D] of `type` as floats [rows][padded_dim(D)], times 1/sqrt(D).
std::uint64_t prepared_query_bytes(const skv_geometry& geometry, std::int32_t batch);
const float* prepare_queries(const skv_geometry& geometry, std::int32_t batch, std::int32_t type, const void* queries,
                             Execution& execution);

// Asks for bytes that will be read soon, into the second cache (see ask_for_line in vector.h).
inline void fetch_ahead(const void* address, std::int64_t bytes) {
  constexpr std::int64_t kCacheLine = 64;
  for (std::int64_t at = 0; at < bytes; at += kCacheLine) {
    __builtin_prefetch(static_cast<const char*>(address) + at, 0, 2);
  }
}

// Sums of all (session, key/value head) pairs, each in the same number of parts.
class AttentionParts {
 public:
  static std::uint64_t bytes(std::int64_t pairs, std::int64_t parts, std::int32_t group, std::int32_t dim);
  AttentionParts() = default;
  AttentionParts(std::int64_t pairs, std::int64_t parts, std::int32_t group, std::int32_t dim, Workspace& workspace);

  // Empties a part; it must be done for each of those that are combined.
  RunningSoftmax begin(std::int64_t pair, std::int64_t part) const;
  float* sums(std::int64_t pair, std::int64_t part) const {
    return sums_ + (pair * parts_ + part) * group_ * padded_dim(dim_);
  }

  // output [group][D] and log_sum_exp [group] of the first `used` parts, added in their order. No parts: zero and
  // -infinity.
  void combine(std::int64_t pair, std::int64_t used, std::int32_t output_type, void* output, float* log_sum_exp,
               const ExecutionTraits& traits) const;

 private:
  std::int64_t parts_ = 0;
  std::int32_t group_ = 0, dim_ = 0;
  float* largest_ = nullptr;
  float* sum_ = nullptr;
  float* sums_ = nullptr;
};

}  // namespace skv::cpu
