#include "cpu/select_best.h"

#include <array>

namespace skv::cpu {
namespace {

// The key is found digit by digit, from the highest: 11, 11 and 10 bits.
struct Digit {
  int shift, bits;
};
constexpr std::array<Digit, 3> kDigits = {{{21, 11}, {10, 11}, {0, 10}}};
constexpr std::size_t kBuckets = std::size_t{1} << 11;

}  // namespace

std::int32_t select_best(const std::uint32_t* keys, std::int64_t count, std::int32_t select, std::int32_t* indices) {
  std::int64_t wanted = select;  // of the keys that share the digits found so far
  std::uint32_t threshold = 0;
  for (const Digit digit : kDigits) {
    std::array<std::uint32_t, kBuckets> buckets{};
    const std::uint32_t mask = (1U << digit.bits) - 1;
    const int above = digit.shift + digit.bits;
    for (std::int64_t i = 0; i < count; ++i) {
      if (above == 32 || keys[i] >> (above % 32) == threshold >> (above % 32)) {
        ++buckets[(keys[i] >> digit.shift) & mask];
      }
    }
    std::uint32_t bucket = mask;
    while (bucket > 0 && buckets[bucket] < wanted) {
      wanted -= buckets[bucket];
      --bucket;
    }
    threshold |= bucket << digit.shift;
  }
  // All above the threshold, and the first `wanted` that equal it.
  std::int32_t taken = 0;
  for (std::int64_t i = 0; i < count && taken < select; ++i) {
    if (keys[i] > threshold) {
      indices[taken++] = static_cast<std::int32_t>(i);
    } else if (keys[i] == threshold && keys[i] != 0 && wanted > 0) {
      --wanted;
      indices[taken++] = static_cast<std::int32_t>(i);
    }
  }
  return taken;
}

}  // namespace skv::cpu
