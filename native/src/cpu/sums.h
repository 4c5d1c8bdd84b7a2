// Sums of products of rows of floats, in sixteen lanes that the compiler makes vectors of.
#pragma once

#include <cstdint>

namespace skv::cpu {

template <class T, class Term>
inline T sum_in_lanes(std::int64_t count, Term&& term) {
  constexpr std::int64_t kLanes = 16;
  T lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += term(i + lane);
    }
  }
  for (; i < count; ++i) {
    lanes[0] += term(i);
  }
  T sum = 0;
  for (const T lane : lanes) {
    sum += lane;
  }
  return sum;
}

template <class T>
inline T dot(const T* a, const T* b, std::int64_t count) {
  return sum_in_lanes<T>(count, [&](std::int64_t i) { return a[i] * b[i]; });
}

inline float squared_distance(const float* a, const float* b, std::int64_t count) {
  return sum_in_lanes<float>(count, [&](std::int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); });
}

}  // namespace skv::cpu
