// Products of rows with rows, out = a . b^T, the one matrix product of the CPU backend.
//
// An element of the result is summed in an order that depends on the length of the sum alone: partial sums in
// the lanes of one vector over kSumPiece elements, across the lanes, then piece after piece. So a row of the
// result is the same to the bit whatever rows it is computed with, and whatever threads there are.
#pragma once

#include <cstdint>

#include "cpu/execution.h"

namespace skv::cpu {

inline constexpr std::int64_t kSumPiece = 1024;

// out[i][j] += sum over k of a[i][k] * b[j][k]; i < rows, j < columns, k < inner. Strides in elements.
using RowProducts = void (*)(const float* a, std::int64_t a_stride, std::int64_t rows, const void* b,
                             std::int64_t b_stride, std::int64_t columns, std::int64_t inner, float* out,
                             std::int64_t out_stride);

// type: of b; F32, BF16 or F16.
RowProducts row_products_function(std::int32_t type, InstructionSet set);

}  // namespace skv::cpu
