#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/execution.h"

namespace skv::cpu {

// cosine [K][chunk_capacity] -> ids [K][count] of the smallest, ascending. Floor: the cosines read once; a
// selection passes over them a few times, in the caches. Not part of the decode path: allocates a list a head.
void outlier_select(const skv_outlier_select_params& p, Execution& execution) {
  execution.pool.parallel_for(p.key_value_heads, [&](std::int64_t head) {
    const float* const cosine = p.cosine + head * p.chunk_capacity;
    std::vector<std::int32_t> order(static_cast<std::size_t>(p.chunks));
    std::iota(order.begin(), order.end(), 0);
    const auto described_worse = [cosine](std::int32_t a, std::int32_t b) {
      // A chunk with a NaN in it is certainly described badly.
      const bool a_nan = std::isnan(cosine[a]), b_nan = std::isnan(cosine[b]);
      if (a_nan != b_nan) {
        return a_nan;
      }
      return !a_nan && cosine[a] != cosine[b] ? cosine[a] < cosine[b] : a < b;
    };
    const auto end = order.begin() + p.count;
    std::nth_element(order.begin(), end, order.end(), described_worse);
    std::sort(order.begin(), end);
    std::copy(order.begin(), end, p.ids + head * p.count);
    if (p.radius) {
      for (auto id = order.begin(); id != end; ++id) {
        p.radius[head * p.chunk_capacity + *id] = -1.0F;
      }
    }
  });
}

std::uint64_t outlier_select_workspace(const skv_outlier_select_params&, const ExecutionTraits&) {
  return 0;
}

}  // namespace skv::cpu
