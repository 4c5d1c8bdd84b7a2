#include <algorithm>

#include "cpu/basis.h"
#include "cpu/dot_products.h"
#include "cpu/elements.h"

namespace skv::cpu {
namespace {

// What one thread computes at a time; a multiple of every instruction set's tile.
constexpr std::int64_t kRows = 32, kColumns = 24;
// Rows of the input that are packed together.
constexpr std::int64_t kPackedRows = 256;
// From here on weights are packed once instead of being read as they lie by every tile of rows.
constexpr std::int64_t kManyRows = 17;
// Multiply-adds that are over before another thread would be awake.
constexpr std::int64_t kSmall = 1 << 15;

bool packs_weights(const skv_matmul_params& p) {
  return p.rows >= kManyRows;
}
bool packs_input(const skv_matmul_params& p) {
  return p.input_type != SKV_F32 || packs_weights(p);
}

}  // namespace

// output [rows][columns] = input [rows][inner] . weight [columns][inner]^T (+ bias) (+ output).
// Floor: 2*rows*columns*inner operations; for few rows the weights through memory once. A row's result does not
// depend on the other rows (see dot_products.h), so batch mates and the size of prefill pieces change nothing;
// that is why no BLAS is asked here.
void matmul(const skv_matmul_params& p, Execution& execution) {
  execution.workspace.require(matmul_workspace(p, execution.traits()), "skv_matmul");
  const std::int64_t input_stride = p.input_stride ? p.input_stride : p.inner;
  const std::int64_t output_stride = p.output_stride ? p.output_stride : p.columns;
  const std::int64_t stride = padded_row(p.inner);
  float* const packed_input =
      packs_input(p)
          ? execution.workspace.take<float>(static_cast<std::uint64_t>(std::min(p.rows, kPackedRows) * stride))
          : nullptr;
  float* const packed_weights =
      packs_weights(p)
          ? execution.workspace.take<float>(static_cast<std::uint64_t>(execution.pool.threads() * kColumns * stride))
          : nullptr;
  const RowProducts products = row_products_function(packed_weights ? SKV_F32 : p.weight_type, execution.set);
  const Widen widen_input = widen_function(p.input_type, execution.set);
  const Widen widen_weight = widen_function(p.weight_type, execution.set);
  const Widen widen_output = widen_function(p.output_type, execution.set);
  const Narrow narrow = narrow_function(p.output_type, execution.set);

  const std::int64_t rows_at_once = packed_input ? kPackedRows : p.rows;
  for (std::int64_t first = 0; first < p.rows; first += rows_at_once) {
    const std::int64_t rows = std::min(rows_at_once, p.rows - first);
    const float* a = static_cast<const float*>(p.input);
    std::int64_t a_stride = input_stride;
    if (packed_input) {
      execution.pool.parallel_for(rows, [&](std::int64_t row) {
        widen_input(element_at(p.input, p.input_type, (first + row) * input_stride), packed_input + row * stride,
                    p.inner);
      });
      a = packed_input;
      a_stride = stride;
    }
    const auto compute = [&](std::int64_t column, std::int64_t end, int thread) {
      const std::int64_t columns = end - column;
      const void* weights = element_at(p.weight, p.weight_type, column * p.inner);
      std::int64_t weight_stride = p.inner;
      if (packed_weights) {
        float* const mine = packed_weights + thread * kColumns * stride;
        for (std::int64_t j = 0; j < columns; ++j) {
          widen_weight(element_at(weights, p.weight_type, j * p.inner), mine + j * stride, p.inner);
        }
        weights = mine;
        weight_stride = stride;
      }
      float bias[kColumns] = {};
      if (p.bias) {
        widen_weight(element_at(p.bias, p.weight_type, column), bias, columns);
      }
      for (std::int64_t row = 0; row < rows; row += kRows) {
        const std::int64_t rows_here = std::min(kRows, rows - row);
        float out[kRows * kColumns];
        std::fill_n(out, rows_here * kColumns, 0.0F);
        products(a + row * a_stride, a_stride, rows_here, weights, weight_stride, columns, p.inner, out, kColumns);
        for (std::int64_t i = 0; i < rows_here; ++i) {
          float* const result = out + i * kColumns;
          void* const target = element_at(p.output, p.output_type, (first + row + i) * output_stride + column);
          for (std::int64_t j = 0; j < columns; ++j) {
            result[j] += bias[j];
          }
          if (p.accumulate) {
            float before[kColumns];
            widen_output(target, before, columns);
            for (std::int64_t j = 0; j < columns; ++j) {
              result[j] += before[j];
            }
          }
          narrow(result, target, columns);
        }
      }
    };
    if (rows * p.columns <= kSmall / p.inner) {
      for (std::int64_t column = 0; column < p.columns; column += kColumns) {
        compute(column, std::min(column + kColumns, p.columns), 0);
      }
    } else {
      execution.pool.parallel_ranges(p.columns, kColumns, compute);
    }
  }
}

std::uint64_t matmul_workspace(const skv_matmul_params& p, const ExecutionTraits& traits) {
  const std::int64_t stride = padded_row(p.inner);
  std::uint64_t bytes = 0;
  if (packs_input(p)) {
    bytes += Workspace::bytes_of<float>(static_cast<std::uint64_t>(std::min(p.rows, kPackedRows) * stride));
  }
  if (packs_weights(p)) {
    bytes += Workspace::bytes_of<float>(static_cast<std::uint64_t>(traits.threads * kColumns * stride));
  }
  return bytes;
}

}  // namespace skv::cpu
