#include <algorithm>
#include <cmath>

#include "cpu/elements.h"

namespace skv::cpu {

// output [rows][width] = input / sqrt(mean(input^2) + epsilon) * weight, after input += residual. Floor: the
// arrays through memory once; a row stays in the cache between its two passes. Bound by memory.
void rms_norm(const skv_rms_norm_params& p, Execution& execution) {
  const Widen widen = widen_function(p.type, execution.set);
  const Widen widen_weight = widen_function(p.weight_type, execution.set);
  const Narrow narrow = narrow_function(p.type, execution.set);
  execution.pool.parallel_for(p.rows, [&](std::int64_t row) {
    constexpr std::int64_t kPiece = 512;
    float piece[kPiece], other[kPiece];
    double sum = 0;
    for (std::int64_t done = 0; done < p.width; done += kPiece) {
      const std::int64_t here = std::min(kPiece, p.width - done);
      void* const input = element_at(p.input, p.type, row * p.width + done);
      widen(input, piece, here);
      if (p.residual) {
        widen(element_at(p.residual, p.type, row * p.width + done), other, here);
        for (std::int64_t i = 0; i < here; ++i) {
          piece[i] += other[i];
        }
        narrow(piece, input, here);
        widen(input, piece, here);  // what is normalised is what is stored
      }
      constexpr std::int64_t kLanes = 16;
      float lanes[kLanes] = {};
      std::int64_t i = 0;
      for (; i + kLanes <= here; i += kLanes) {
        for (std::int64_t lane = 0; lane < kLanes; ++lane) {
          lanes[lane] += piece[i + lane] * piece[i + lane];
        }
      }
      for (; i < here; ++i) {
        lanes[0] += piece[i] * piece[i];
      }
      for (const float lane : lanes) {
        sum += lane;
      }
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(p.width) + p.epsilon));
    for (std::int64_t done = 0; done < p.width; done += kPiece) {
      const std::int64_t here = std::min(kPiece, p.width - done);
      widen(element_at(p.input, p.type, row * p.width + done), piece, here);
      widen_weight(element_at(p.weight, p.weight_type, done), other, here);
      for (std::int64_t i = 0; i < here; ++i) {
        piece[i] = piece[i] * scale * other[i];
      }
      narrow(piece, element_at(p.output, p.type, row * p.width + done), here);
    }
  });
}

std::uint64_t rms_norm_workspace(const skv_rms_norm_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
