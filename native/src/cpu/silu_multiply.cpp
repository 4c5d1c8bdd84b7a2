#include <algorithm>

#include "cpu/elements.h"
#include "cpu/row_math.h"

namespace skv::cpu {

// output [rows][width] = gate / (1 + exp(-gate)) * up, both [rows][width]. Floor: three arrays through memory
// once; bound by memory.
void silu_multiply(const skv_silu_multiply_params& p, Execution& execution) {
  const std::int64_t stride = p.stride ? p.stride : p.width;
  const Widen widen = widen_function(p.type, execution.set);
  const Narrow narrow = narrow_function(p.type, execution.set);
  const RowMath& math = row_math(execution.set);
  constexpr std::int64_t kPiece = 512;
  const std::int64_t pieces = (p.width + kPiece - 1) / kPiece;
  constexpr std::int64_t kGrain = 8;
  execution.pool.parallel_ranges(p.rows * pieces, kGrain, [&](std::int64_t begin, std::int64_t end) {
    float gate[kPiece], up[kPiece];
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t row = index / pieces, done = index % pieces * kPiece;
      const std::int64_t here = std::min(kPiece, p.width - done);
      const void* const gates = element_at(p.gate, p.type, row * stride + done);
      const void* const ups = element_at(p.up, p.type, row * stride + done);
      void* const target = element_at(p.output, p.type, row * p.width + done);
      if (p.type == SKV_F32) {
        math.silu_multiply(static_cast<const float*>(gates), static_cast<const float*>(ups), here,
                           static_cast<float*>(target));
        continue;
      }
      widen(gates, gate, here);
      widen(ups, up, here);
      math.silu_multiply(gate, up, here, gate);
      narrow(gate, target, here);
    }
  });
}

std::uint64_t silu_multiply_workspace(const skv_silu_multiply_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
