#include <algorithm>
#include <cmath>

#include "cpu/elements.h"
#include "cpu/row_math.h"

namespace skv::cpu {

// output [rows][width] = input / sqrt(mean(input^2) + epsilon) * weight, after input += residual. Floor: the
// arrays through memory once; a row stays in the cache between its two passes. Bound by memory.
void rms_norm(const skv_rms_norm_params& p, Execution& execution) {
  const Widen widen = widen_function(p.type, execution.set);
  const Widen widen_weight = widen_function(p.weight_type, execution.set);
  const Narrow narrow = narrow_function(p.type, execution.set);
  const Narrow narrow_output = narrow_function(p.output_type, execution.set);
  const RowMath& math = row_math(execution.set);
  execution.pool.parallel_for(p.rows, [&](std::int64_t row) {
    constexpr std::int64_t kPiece = 512;
    float piece[kPiece], other[kPiece];
    double sum = 0;
    for (std::int64_t done = 0; done < p.width; done += kPiece) {
      const std::int64_t here = std::min(kPiece, p.width - done);
      void* const input = element_at(p.input, p.type, row * p.width + done);
      // Floats without a residual are looked at where they are.
      const bool in_place = p.type == SKV_F32 && !p.residual;
      const float* const row_piece = in_place ? static_cast<const float*>(input) : piece;
      if (!in_place) {
        widen(input, piece, here);
      }
      if (p.residual) {
        widen(element_at(p.residual, p.type, row * p.width + done), other, here);
        for (std::int64_t i = 0; i < here; ++i) {
          piece[i] += other[i];
        }
        narrow(piece, input, here);
        widen(input, piece, here);  // what is normalised is what is stored
      }
      // Short sums in fp32, the rest in fp64.
      constexpr std::int64_t kShort = 128;
      for (std::int64_t i = 0; i < here; i += kShort) {
        float with_itself, squares;
        math.products(row_piece + i, 1, std::min(kShort, here - i), row_piece + i, &with_itself, &squares);
        sum += static_cast<double>(squares);
      }
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(p.width) + p.epsilon));
    for (std::int64_t done = 0; done < p.width; done += kPiece) {
      const std::int64_t here = std::min(kPiece, p.width - done);
      const void* const input = element_at(p.input, p.type, row * p.width + done);
      void* const output = element_at(p.output, p.output_type, row * p.width + done);
      widen_weight(element_at(p.weight, p.weight_type, done), other, here);
      const float* row_piece = static_cast<const float*>(input);
      if (p.type != SKV_F32) {
        widen(input, piece, here);
        row_piece = piece;
      }
      if (p.output_type == SKV_F32) {
        math.scale_multiply(row_piece, scale, other, here, static_cast<float*>(output));
      } else {
        math.scale_multiply(row_piece, scale, other, here, piece);
        narrow_output(piece, output, here);
      }
    }
  });
}

std::uint64_t rms_norm_workspace(const skv_rms_norm_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
