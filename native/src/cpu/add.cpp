#include <algorithm>

#include "cpu/elements.h"

namespace skv::cpu {

// output = a + b, [count]. Floor: three arrays through memory once. Bound by memory.
void add(const skv_add_params& p, Execution& execution) {
  const Widen widen = widen_function(p.type, execution.set);
  const Narrow narrow = narrow_function(p.type, execution.set);
  constexpr std::int64_t kThreadPiece = 16384, kPiece = 512;
  execution.pool.parallel_ranges(p.count, kThreadPiece, [&](std::int64_t begin, std::int64_t end) {
    float a[kPiece], b[kPiece];
    for (std::int64_t done = begin; done < end; done += kPiece) {
      const std::int64_t here = std::min(kPiece, end - done);
      widen(element_at(p.a, p.type, done), a, here);
      widen(element_at(p.b, p.type, done), b, here);
      for (std::int64_t i = 0; i < here; ++i) {
        a[i] += b[i];
      }
      narrow(a, element_at(p.output, p.type, done), here);
    }
  });
}

std::uint64_t add_workspace(const skv_add_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
