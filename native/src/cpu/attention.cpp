#include "cpu/attention.h"

#include <cmath>
#include <limits>
#include <string>

#include "cpu/elements.h"
#include "value_types.h"

namespace skv::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

[[noreturn]] void refuse(const char* operation, const std::string& what) {
  throw Error(SKV_UNSUPPORTED, std::string(operation) + " on the CPU: " + what);
}

bool is_float(std::int32_t type) {
  return type == SKV_F32 || type == SKV_BF16 || type == SKV_F16;
}

}  // namespace

void check_attention_geometry(const skv_geometry& g, std::int32_t query_type, const char* operation) {
  if (!is_float(query_type)) {
    refuse(operation, "inputs and outputs are F32, BF16 or F16, not type " + std::to_string(query_type));
  }
  if (!is_float(g.storage_type)) {
    refuse(operation, "the storage type is F32, BF16 or F16, not type " + std::to_string(g.storage_type));
  }
  if (g.head_dim < 2 || g.head_dim > SKV_MAX_HEAD_DIM || g.head_dim % 2 != 0) {
    refuse(operation, "the head dim is even and at most " + std::to_string(SKV_MAX_HEAD_DIM) + ", not " +
                          std::to_string(g.head_dim));
  }
  if (g.key_value_heads < 1 || g.key_value_heads > SKV_MAX_KEY_VALUE_HEADS) {
    refuse(operation, "there are 1 to " + std::to_string(SKV_MAX_KEY_VALUE_HEADS) + " key/value heads, not " +
                          std::to_string(g.key_value_heads));
  }
  if (g.query_heads < g.key_value_heads || g.query_heads % g.key_value_heads != 0 || group_size(g) > SKV_MAX_GROUP) {
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
  if (g.value_type != g.storage_type && !is_scaled(g.value_type)) {
    refuse(operation,
           "values are of the storage type, F8_E4M3, F12_E4M7 or F6_E2M3, not type " + std::to_string(g.value_type));
  }
  if (g.landmark_type != g.storage_type && g.landmark_type != SKV_I8) {
    refuse(operation, "landmarks are of the storage type or I8, not type " + std::to_string(g.landmark_type));
  }
  if (g.coefficient_type != g.storage_type && g.coefficient_type != SKV_I8) {
    refuse(operation, "coefficients are of the storage type or I8, not type " + std::to_string(g.coefficient_type));
  }
  if (g.slots < 0 || g.slots > SKV_MAX_SLOTS) {
    refuse(operation, "there are 0 to " + std::to_string(SKV_MAX_SLOTS) + " slots, not " + std::to_string(g.slots));
  }
  if (g.window < g.chunk || g.window % g.chunk != 0) {
    refuse(operation, "the window is a multiple of the chunk, not " + std::to_string(g.window));
  }
}

std::uint64_t prepared_query_bytes(const skv_geometry& g, std::int32_t batch) {
  return Workspace::bytes_of<float>(static_cast<std::uint64_t>(batch) * static_cast<std::uint64_t>(g.query_heads) *
                                    static_cast<std::uint64_t>(padded_dim(g.head_dim)));
}

const float* prepare_queries(const skv_geometry& g, std::int32_t batch, std::int32_t type, const void* queries,
                             Execution& execution) {
  const std::int64_t rows = static_cast<std::int64_t>(batch) * g.query_heads, dim = g.head_dim, width = padded_dim(dim);
  float* const prepared = execution.workspace.take<float>(static_cast<std::uint64_t>(rows * width));
  const Widen widen = widen_function(type, execution.set);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  constexpr std::int64_t kRows = 64;
  execution.pool.parallel_ranges(rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* const to = prepared + row * width;
      widen(element_at(queries, type, row * dim), to, dim);
      for (std::int64_t d = 0; d < dim; ++d) {
        to[d] *= scale;
      }
      for (std::int64_t d = dim; d < width; ++d) {
        to[d] = 0;
      }
    }
  });
  return prepared;
}

std::uint64_t AttentionParts::bytes(std::int64_t pairs, std::int64_t parts, std::int32_t group, std::int32_t dim) {
  const std::uint64_t rows = static_cast<std::uint64_t>(pairs * parts * group);
  return 2 * Workspace::bytes_of<float>(rows) +
         Workspace::bytes_of<float>(rows * static_cast<std::uint64_t>(padded_dim(dim)));
}

AttentionParts::AttentionParts(std::int64_t pairs, std::int64_t parts, std::int32_t group, std::int32_t dim,
                               Workspace& workspace)
    : parts_(parts), group_(group), dim_(dim) {
  const std::uint64_t rows = static_cast<std::uint64_t>(pairs * parts * group);
  largest_ = workspace.take<float>(rows);
  sum_ = workspace.take<float>(rows);
  sums_ = workspace.take<float>(rows * static_cast<std::uint64_t>(padded_dim(dim)));
}

RunningSoftmax AttentionParts::begin(std::int64_t pair, std::int64_t part) const {
  const std::int64_t first = (pair * parts_ + part) * group_;
  float* const to = sums(pair, part);
  for (std::int64_t g = 0; g < group_; ++g) {
    largest_[first + g] = kNothing;
    sum_[first + g] = 0;
  }
  for (std::int64_t i = 0; i < group_ * padded_dim(dim_); ++i) {
    to[i] = 0;
  }
  return {largest_ + first, sum_ + first};
}

void AttentionParts::combine(std::int64_t pair, std::int64_t used, std::int32_t output_type, void* output,
                             float* log_sum_exp, const ExecutionTraits& traits) const {
  const Narrow narrow = narrow_function(output_type, traits.set);
  const std::int64_t width = padded_dim(dim_);
  for (std::int64_t g = 0; g < group_; ++g) {
    alignas(64) float total[SKV_MAX_HEAD_DIM] = {};
    float largest = kNothing, sum = 0;
    for (std::int64_t part = 0; part < used; ++part) {
      const float here = largest_[(pair * parts_ + part) * group_ + g];
      largest = here > largest ? here : largest;
    }
    for (std::int64_t part = 0; part < used; ++part) {
      const std::int64_t row = (pair * parts_ + part) * group_ + g;
      // A part of nothing has no weight; one of NaN alone keeps -infinity as its largest and must be heard.
      const float factor = largest_[row] == kNothing ? 1.0F : std::exp(largest_[row] - largest);
      sum += sum_[row] * factor;
      const float* const from = sums_ + row * width;
      for (std::int64_t d = 0; d < dim_; ++d) {
        total[d] += from[d] * factor;
      }
    }
    if (used > 0) {
      const float inverse = 1.0F / sum;
      for (std::int64_t d = 0; d < dim_; ++d) {
        total[d] *= inverse;
      }
    }
    narrow(total, element_at(output, output_type, g * dim_), dim_);
    if (log_sum_exp != nullptr) {
      log_sum_exp[g] = used > 0 ? largest + std::log(sum) : kNothing;
    }
  }
}

}  // namespace skv::cpu
