// What the tests of building a cache share: keys as models make them, and names of cases.
#pragma once

#include "gpu_test.h"

namespace gpu {

using Doubles = std::vector<double>;

inline std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

inline std::string label(const char* what, std::int64_t a, std::int64_t b, std::int64_t c) {
  return std::string(what) + " " + std::to_string(a) + "/" + std::to_string(b) + "/" + std::to_string(c);
}

// Keys as models make them: directions whose strength falls as a power, over a mean, times a token's own loudness.
inline std::vector<float> keys_of(std::mt19937_64& generator, std::int64_t tokens, std::int64_t width, double power,
                                  std::int64_t directions) {
  const auto mixing = normals(generator, directions * width, 1.0F / std::sqrt(static_cast<float>(width)));
  const auto mean = normals(generator, width, 0.3F);
  std::vector<float> keys(at(tokens * width));
  std::normal_distribution<float> normal;
  for (std::int64_t token = 0; token < tokens; ++token) {
    float* const key = &keys[at(token * width)];
    std::copy(mean.begin(), mean.end(), key);
    for (std::int64_t j = 0; j < directions; ++j) {
      const float strength = normal(generator) * static_cast<float>(8 * std::pow(static_cast<double>(j + 1), -power));
      const float* const direction = &mixing[at(j * width)];
      for (std::int64_t i = 0; i < width; ++i) {
        key[i] += strength * direction[i];
      }
    }
  }
  return rounded(keys, SKV_BF16);
}

}  // namespace gpu
