#include "cpu/select_best.h"

#include <algorithm>
#include <array>

namespace skv::cpu {
namespace {

// The key is found digit by digit, from the highest: 11, 11 and 10 bits.
struct Digit {
  int shift, bits;
};
constexpr std::array<Digit, 3> kDigits = {{{21, 11}, {10, 11}, {0, 10}}};
constexpr std::size_t kBuckets = std::size_t{1} << 11;

// The key at place `wanted`, counted from the largest as 1, and how many of its equals are among the `wanted` largest.
struct Threshold {
  std::uint32_t key;
  std::int64_t equals;
};

Threshold find_threshold(const std::uint32_t* keys, std::int64_t count, std::int64_t wanted) {
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
  return {threshold, wanted};
}

// Keys of one strip are looked at for their largest first.
constexpr std::int64_t kStrip = 8;
// Fewer candidates than this are not worth finding.
constexpr std::int64_t kFew = 512;

std::uint32_t largest_of(const std::uint32_t* keys, std::int64_t count) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, keys[i]);
  }
  return largest;
}

}  // namespace

std::int64_t select_best_scratch(std::int64_t count) {
  return count / kStrip + 1 + 2 * count;
}

// A few instructions a key: the `select`-th largest of the strips' largest keys is at most the key sought, and hardly
// more than `select` keys are as large; the digits are looked at for those alone.
std::int32_t select_best(const std::uint32_t* keys, std::int64_t count, std::int32_t select, std::int32_t* indices,
                         std::uint32_t* scratch) {
  const std::int64_t strips = (count + kStrip - 1) / kStrip;
  std::uint32_t* const largest = scratch;
  std::uint32_t* const candidate_key = largest + count / kStrip + 1;
  std::uint32_t* const candidate = candidate_key + count;
  std::int64_t candidates = 0;
  std::uint32_t least = 1;  // 0 is never taken
  if (count > kFew && strips > select) {
    for (std::int64_t strip = 0; strip < strips; ++strip) {
      const std::int64_t first = strip * kStrip;
      largest[strip] =
          first + kStrip <= count ? largest_of(keys + first, kStrip) : largest_of(keys + first, count - first);
    }
    least = std::max(least, find_threshold(largest, strips, select).key);
  }
  for (std::int64_t first = 0; first < count; first += kStrip) {
    if (count > kFew && strips > select && largest[first / kStrip] < least) {
      continue;
    }
    for (std::int64_t i = first; i < std::min(first + kStrip, count); ++i) {
      candidate_key[candidates] = keys[i];
      candidate[candidates] = static_cast<std::uint32_t>(i);
      candidates += keys[i] >= least ? 1 : 0;
    }
  }
  Threshold threshold = {0, 0};
  if (candidates > select) {
    threshold = find_threshold(candidate_key, candidates, select);
  }
  // All above the threshold, and the first that equal it.
  std::int32_t taken = 0;
  for (std::int64_t i = 0; i < candidates && taken < select; ++i) {
    const bool equal = candidate_key[i] == threshold.key;
    if (candidate_key[i] > threshold.key || (equal && threshold.equals > 0)) {
      threshold.equals -= equal ? 1 : 0;
      indices[taken++] = static_cast<std::int32_t>(candidate[i]);
    }
  }
  return taken;
}

}  // namespace skv::cpu
