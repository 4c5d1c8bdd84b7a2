#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/elements.h"

namespace skv::cpu {

// ids [rows] of the largest element of each row of input [rows][width]. Floor: the input read once.
void argmax(const skv_argmax_params& p, Execution& execution) {
  const Widen widen = widen_function(p.type, execution.set);
  execution.pool.parallel_for(p.rows, [&](std::int64_t row) {
    constexpr std::int64_t kPiece = 512;
    float piece[kPiece];
    float best = -std::numeric_limits<float>::infinity();
    std::int64_t best_at = 0;
    for (std::int64_t done = 0; done < p.width; done += kPiece) {
      const std::int64_t here = std::min(kPiece, p.width - done);
      widen(element_at(p.input, p.type, row * p.width + done), piece, here);
      bool nan = false;
      float largest = -std::numeric_limits<float>::infinity();
      for (std::int64_t i = 0; i < here; ++i) {
        nan |= piece[i] != piece[i];
        largest = piece[i] > largest ? piece[i] : largest;
      }
      if (nan) {
        best_at = -1;
        break;
      }
      if (largest > best) {
        best = largest;
        best_at = done + (std::find(piece, piece + here, largest) - piece);
      }
    }
    p.ids[row] = static_cast<std::int32_t>(best_at);
  });
}

std::uint64_t argmax_workspace(const skv_argmax_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
