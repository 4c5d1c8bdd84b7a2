// The joint basis of a layer as the products of the CPU backend want it: floats, rows padded so that rows a
// power of two apart do not share the cache's sets.
#pragma once

#include <cstdint>

#include "cpu/elements.h"

namespace skv::cpu {

inline std::int64_t padded_row(std::int64_t elements) {
  constexpr std::int64_t kLine = 16;
  return (elements + kLine - 1) / kLine * kLine + kLine;
}

// basis [K][r][D] of `type` -> rows [r][padded_row(K*D)] that keys are projected on, and columns [K*D][padded_row(r)]
// that they are rebuilt from (either may be null). With head_scales, the basis of a head is that of scaled keys
// divided by the scale, and keys are projected as if scaled: the rows of a head are multiplied by the scale's square.
void unpack_basis(const void* basis, std::int32_t type, std::int64_t heads, std::int64_t rank, std::int64_t dim,
                  const float* head_scales, float* rows, float* columns, Execution& execution);

// A direction with no more than this share of the largest one's sum of squares is rounding alone, of the products that
// the basis was made of or of the basis as it is stored, which brings some of the longest direction into the others.
constexpr float rounding_share(std::int32_t type) {
  return type == SKV_BF16 ? 0x1p-20F : 0x1p-24F;
}

// What project_keys needs for each thread, in floats.
std::int64_t projection_scratch(std::int64_t width, std::int64_t rank);

// keys [count][width] of `type` . rows^T -> coefficients [count][rank] of `coefficient_type`, and, when both are given,
// the residual energy of each key with the coefficients as they are stored. Tokens of the key rows lie key_stride
// elements apart, those of the coefficients coefficient_stride. With coefficient_scales [rank], each row holds its
// direction times the scale: products are divided by its square. scratch: [threads][projection_scratch].
struct Projection {
  std::int32_t type, coefficient_type;
  const void* keys;
  std::int64_t count, key_stride;
  std::int64_t width, rank;
  const float* rows;
  const float* columns;
  void* coefficients;
  std::int64_t coefficient_stride;
  const float* coefficient_scales;
  float* residual;
};
void project_keys(const Projection& p, float* scratch, Execution& execution);

}  // namespace skv::cpu
