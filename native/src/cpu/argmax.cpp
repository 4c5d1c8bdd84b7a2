#include <algorithm>
#include <limits>

#include "cpu/elements.h"
#include "cpu/row_math.h"

namespace skv::cpu {

// ids [rows] of the largest element of each row of input [rows][width]. Floor: the input read once.
void argmax(const skv_argmax_params& p, Execution& execution) {
  const Widen widen = widen_function(p.type, execution.set);
  const RowMath& math = row_math(execution.set);
  execution.pool.parallel_for(p.rows, [&](std::int64_t row) {
    constexpr std::int64_t kPiece = 512;
    float piece[kPiece];
    float best = -std::numeric_limits<float>::infinity();
    std::int64_t best_at = 0;
    const std::int64_t step = p.type == SKV_F32 ? p.width : kPiece;  // floats are looked at where they are
    for (std::int64_t done = 0; done < p.width; done += step) {
      const std::int64_t here = std::min(step, p.width - done);
      const void* const elements = element_at(p.input, p.type, row * p.width + done);
      const float* from = static_cast<const float*>(elements);
      if (p.type != SKV_F32) {
        widen(elements, piece, here);
        from = piece;
      }
      const float largest = math.largest(from, here);
      if (largest != largest) {
        best_at = -1;
        break;
      }
      if (largest > best) {
        best = largest;
        best_at = done + math.find(from, here, largest);
      }
    }
    p.ids[row] = static_cast<std::int32_t>(best_at);
  });
}

std::uint64_t argmax_workspace(const skv_argmax_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
