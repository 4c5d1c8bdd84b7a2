#include "cpu/elements.h"
#include "cpu/rotation.h"

namespace skv::cpu {

// input [count][heads][D], its heads possibly apart -> output [count][heads][D], each head rotated to its position.
// Floor: both arrays through memory once; the rotation is 6 operations a pair. Bound by memory.
void rope(const skv_rope_params& p, Execution& execution) {
  const std::int64_t width = static_cast<std::int64_t>(p.heads) * p.head_dim;
  const std::int64_t input_stride = p.input_stride ? p.input_stride : width;
  const std::int64_t output_stride = p.output_stride ? p.output_stride : width;
  const std::int64_t input_head_stride = p.input_head_stride ? p.input_head_stride : p.head_dim;
  const Widen widen = widen_function(p.type, execution.set);
  const Narrow narrow = narrow_function(p.type, execution.set);
  constexpr std::int64_t kTokens = 16;
  execution.pool.parallel_ranges(p.count, kTokens, [&](std::int64_t begin, std::int64_t end) {
    float head[SKV_MAX_HEAD_DIM];
    for (std::int64_t token = begin; token < end; ++token) {
      const Rotation rotation(p.rope, p.positions ? p.positions[token] : p.first_position + token, p.inverse != 0);
      for (std::int64_t h = 0; h < p.heads; ++h) {
        widen(element_at(p.input, p.type, token * input_stride + h * input_head_stride), head, p.head_dim);
        rotation.apply(head);
        narrow(head, element_at(p.output, p.type, token * output_stride + h * p.head_dim), p.head_dim);
      }
    }
  });
}

std::uint64_t rope_workspace(const skv_rope_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
