// The best of many scores, exactly, with ties to the lower index.
#pragma once

#include <bit>
#include <cstdint>

namespace skv::cpu {

// Larger keys are better; 0 is never taken. NaN is worse than every number.
inline std::uint32_t order_key(float score) {
  if (score != score) {
    return 1;
  }
  constexpr std::uint32_t kSign = 0x80000000U;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(score + 0.0F);  // -0 becomes 0
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

// Indices of the `select` largest of keys [count], ascending; of those that are not 0, when they are fewer. Returns how
// many. scratch [select_best_scratch(count)].
std::int64_t select_best_scratch(std::int64_t count);
std::int32_t select_best(const std::uint32_t* keys, std::int64_t count, std::int32_t select, std::int32_t* indices,
                         std::uint32_t* scratch);

}  // namespace skv::cpu
