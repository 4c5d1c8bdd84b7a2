#include <algorithm>
#include <limits>

#include "cpu/elements.h"

namespace skv::cpu {

// output [count][width] = rows of table [vocabulary][width]. Floor: the rows read and written once.
void embed(const skv_embed_params& p, Execution& execution) {
  const RowConversion convert_row(p.table_type, p.output_type, execution.set);
  const Narrow narrow = narrow_function(p.output_type, execution.set);
  execution.pool.parallel_for(p.count, [&](std::int64_t i) {
    void* const row = element_at(p.output, p.output_type, i * p.width);
    const std::int64_t id = p.ids[i];
    if (id >= 0 && id < p.vocabulary) {
      convert_row(element_at(p.table, p.table_type, id * p.width), row, p.width);
      return;
    }
    // Not an exception: the ids may have been made by the step before, and the CUDA backend cannot throw.
    constexpr std::int64_t kPiece = 64;
    float nan[kPiece];
    std::fill_n(nan, kPiece, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t done = 0; done < p.width; done += kPiece) {
      narrow(nan, element_at(row, p.output_type, done), std::min(kPiece, p.width - done));
    }
  });
}

std::uint64_t embed_workspace(const skv_embed_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
