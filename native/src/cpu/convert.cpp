#include "cpu/elements.h"

namespace skv::cpu {

// output = input in another type, [count]. Floor: both arrays through memory once. Bound by memory.
void convert(const skv_convert_params& p, Execution& execution) {
  const RowConversion convert_row(p.input_type, p.output_type, execution.set);
  constexpr std::int64_t kThreadPiece = 32768;
  execution.pool.parallel_ranges(p.count, kThreadPiece, [&](std::int64_t begin, std::int64_t end) {
    convert_row(element_at(p.input, p.input_type, begin), element_at(p.output, p.output_type, begin), end - begin);
  });
}

std::uint64_t convert_workspace(const skv_convert_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
