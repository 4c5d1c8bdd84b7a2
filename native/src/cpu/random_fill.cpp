#include <algorithm>

#include "cpu/elements.h"
#include "cpu/row_math.h"

namespace skv::cpu {

// output [count]: mean + deviation * number. Bound by the logarithm and the trigonometry of random.h.
void random_fill(const skv_random_fill_params& p, Execution& execution) {
  const Narrow narrow = narrow_function(p.type, execution.set);
  const RowMath& math = row_math(execution.set);
  constexpr std::int64_t kThreadPiece = 8192, kPiece = 512, kNumbers = 4;
  static_assert(kThreadPiece % kPiece == 0 && kPiece % kNumbers == 0);
  execution.pool.parallel_ranges(p.count, kThreadPiece, [&](std::int64_t begin, std::int64_t end) {
    float piece[kPiece];
    for (std::int64_t done = begin; done < end; done += kPiece) {
      const std::int64_t here = std::min(kPiece, end - done);
      math.normals(static_cast<std::uint64_t>(done / kNumbers), p.seed, p.mean, p.deviation,
                   (here + kNumbers - 1) / kNumbers, piece);
      narrow(piece, element_at(p.output, p.type, done), here);
    }
  });
}

std::uint64_t random_fill_workspace(const skv_random_fill_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
