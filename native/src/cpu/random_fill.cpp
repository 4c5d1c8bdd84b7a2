#include <algorithm>

#include "cpu/elements.h"
#include "random.h"

namespace skv::cpu {

// output [count]: mean + deviation * number. Bound by the logarithm and the trigonometry of random.h.
void random_fill(const skv_random_fill_params& p, Execution& execution) {
  const Narrow narrow = narrow_function(p.type, execution.set);
  constexpr std::int64_t kThreadPiece = 8192, kPiece = 512, kNumbers = 4;
  static_assert(kThreadPiece % kPiece == 0 && kPiece % kNumbers == 0);
  execution.pool.parallel_ranges(p.count, kThreadPiece, [&](std::int64_t begin, std::int64_t end) {
    float piece[kPiece];
    for (std::int64_t done = begin; done < end; done += kPiece) {
      const std::int64_t here = std::min(kPiece, end - done);
      for (std::int64_t i = 0; i < here; i += kNumbers) {
        const RandomNormals normals = random_normals(static_cast<std::uint64_t>((done + i) / kNumbers), p.seed);
        for (std::int64_t j = 0; j < std::min(kNumbers, here - i); ++j) {
          piece[i + j] = p.mean + p.deviation * normals.at[j];
        }
      }
      narrow(piece, element_at(p.output, p.type, done), here);
    }
  });
}

std::uint64_t random_fill_workspace(const skv_random_fill_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
