// Normally distributed numbers as both backends make them: Philox4x32-10 (Salmon, Moraes, Dror, Shaw:
// "Parallel random numbers: as easy as 1, 2, 3", 2011) on a counter, then Box-Muller. Element 4i + j of a
// sequence is output j of counter i, so any part can be made by anybody in any order.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SKV_EITHER_SIDE __host__ __device__
#else
#define SKV_EITHER_SIDE
#endif

namespace skv {

struct RandomWords {
  std::uint32_t at[4];
};

struct RandomNormals {
  float at[4];
};

SKV_EITHER_SIDE inline RandomWords philox(std::uint64_t counter, std::uint64_t seed) {
  constexpr std::uint32_t kMultiplier0 = 0xD2511F53U, kMultiplier1 = 0xCD9E8D57U;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9U, kWeyl1 = 0xBB67AE85U;
  std::uint32_t x0 = static_cast<std::uint32_t>(counter), x1 = static_cast<std::uint32_t>(counter >> 32), x2 = 0, x3 = 0;
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = static_cast<std::uint64_t>(kMultiplier0) * x0;
    const std::uint64_t product1 = static_cast<std::uint64_t>(kMultiplier1) * x2;
    const std::uint32_t y0 = static_cast<std::uint32_t>(product1 >> 32) ^ x1 ^ key0;
    const std::uint32_t y2 = static_cast<std::uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x1 = static_cast<std::uint32_t>(product1);
    x3 = static_cast<std::uint32_t>(product0);
    x0 = y0;
    x2 = y2;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return {{x0, x1, x2, x3}};
}

// Four independent numbers of mean 0 and deviation 1.
SKV_EITHER_SIDE inline RandomNormals random_normals(std::uint64_t counter, std::uint64_t seed) {
  const RandomWords words = philox(counter, seed);
  RandomNormals result;
  for (int pair = 0; pair < 2; ++pair) {
    // In (0, 1], so that the logarithm is finite; 24 bits, all that a float holds.
    const float u = (static_cast<float>(words.at[2 * pair] >> 8) + 1.0F) * 0x1p-24F;
    const float angle = static_cast<float>(words.at[2 * pair + 1] >> 8) * (0x1p-24F * 6.283185307179586F);
    const float length = sqrtf(-2.0F * logf(u));
    result.at[2 * pair] = length * cosf(angle);
    result.at[2 * pair + 1] = length * sinf(angle);
  }
  return result;
}

}  // namespace skv
