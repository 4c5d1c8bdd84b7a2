// Where the sums of a key/value head lie in skv_shadow_layer.moments.
#pragma once

#include <cstdint>

namespace skv {

// [K][floats]: the products first, so that their rows keep the alignment of the heads.
struct MomentLayout {
  std::int64_t keys;    // sum of k, [D]; the sums of v k^T, [D][D], lie before it
  std::int64_t values;  // sum of v, [D]
  std::int64_t count;   // tokens
  std::int64_t floats;  // of a head: a multiple of four

  explicit constexpr MomentLayout(std::int64_t dim)
      : keys(dim * dim), values(keys + dim), count(values + dim), floats(count + 4) {}
};

}  // namespace skv
