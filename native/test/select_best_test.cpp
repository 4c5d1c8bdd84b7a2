// The best of many keys against sorting all of them.
#include "cpu/select_best.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "operands.h"

namespace {

std::mt19937_64 generator;

std::vector<std::int32_t> by_sorting(const std::vector<std::uint32_t>& keys, std::int32_t select) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] != 0) {
      ids.push_back(static_cast<std::int32_t>(i));
    }
  }
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
    return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
  });
  ids.resize(std::min(ids.size(), static_cast<std::size_t>(select)));
  std::sort(ids.begin(), ids.end());
  return ids;
}

void check_keys(const std::vector<std::uint32_t>& keys, std::int32_t select) {
  const std::int64_t count = static_cast<std::int64_t>(keys.size());
  constexpr std::uint32_t kGuard = 0xabcdef01;
  std::vector<std::uint32_t> scratch(static_cast<std::size_t>(skv::cpu::select_best_scratch(count)) + 1, kGuard);
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(select) + 1, -7);
  const std::int32_t taken = skv::cpu::select_best(keys.data(), count, select, chosen.data(), scratch.data());
  CHECK(scratch.back() == kGuard && chosen.back() == -7);
  chosen.resize(static_cast<std::size_t>(taken));
  if (!CHECK(chosen == by_sorting(keys, select))) {
    std::fprintf(stderr, "  %d of %d keys\n", static_cast<int>(select), static_cast<int>(count));
  }
}

void check_order() {
  const float inf = std::numeric_limits<float>::infinity();
  const float ascending[] = {-inf, -3e38F, -1.0F, -1e-40F, 0.0F, 1e-40F, 1.0F, 3e38F, inf};
  std::uint32_t before = skv::cpu::order_key(std::nanf(""));
  CHECK(before > 0 && skv::cpu::order_key(-std::nanf("")) == before);
  for (const float x : ascending) {
    CHECK(skv::cpu::order_key(x) > before);
    before = skv::cpu::order_key(x);
  }
  CHECK_EQUAL(skv::cpu::order_key(-0.0F), skv::cpu::order_key(0.0F));
}

}  // namespace

int main() {
  generator = check::fresh_generator();
  check_order();
  std::normal_distribution<float> normal(0, 4);
  const std::vector<std::function<std::uint32_t(std::size_t)>> kinds = {
      [&](std::size_t) { return skv::cpu::order_key(normal(generator)); },
      [&](std::size_t i) { return static_cast<std::uint32_t>(i / 3 + 1); },        // ascending, with ties
      [&](std::size_t i) { return 0xfffffff0U - static_cast<std::uint32_t>(i); },  // descending
      [&](std::size_t) { return static_cast<std::uint32_t>(generator() % 5); },    // many alike, many never taken
      [&](std::size_t i) { return i % 700 < 40 ? 0x80000000U + static_cast<std::uint32_t>(generator() % 100) : 1U; },
      [&](std::size_t) { return 0U; },
      [&](std::size_t) { return 17U; },
  };
  for (const auto& kind : kinds) {
    for (const std::size_t count : {0, 1, 7, 8, 9, 511, 512, 513, 520, 2049, 15356, 20001}) {
      std::vector<std::uint32_t> keys(count);
      for (std::size_t i = 0; i < count; ++i) {
        keys[i] = kind(i);
      }
      for (const std::int32_t select : {1, 2, 33, 256, 1024, 1 + static_cast<std::int32_t>(generator() % 3000)}) {
        check_keys(keys, select);
      }
    }
  }
  return check::verdict();
}
