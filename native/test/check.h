// What a native test needs: checks that print and count, a seed that is printed, a verdict.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <vector>

namespace check {

inline int failures = 0;
inline int checks = 0;

// Exit code that ctest takes as "skipped".
inline constexpr int kSkipped = 77;

inline bool report(bool passed, const char* what, const char* file, int line) {
  ++checks;
  if (!passed) {
    ++failures;
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  }
  return passed;
}

// True when actual is within tolerance of expected. NaN on either side is never within anything.
inline bool near(double actual, double expected, double tolerance) {
  return std::fabs(actual - expected) <= tolerance;
}

inline bool report_near(double actual, double expected, double tolerance, const char* what, const char* file,
                        int line) {
  ++checks;
  if (!near(actual, expected, tolerance)) {
    ++failures;
    std::fprintf(stderr, "%s:%d: failed: %s: %.9g is not within %.3g of %.9g\n", file, line, what, actual, tolerance,
                 expected);
    return false;
  }
  return true;
}

// A generator with a fresh seed every run; the seed is printed so that a failure can be repeated with
// SHADOWKV_TEST_SEED.
inline std::mt19937_64 fresh_generator() {
  const char* fixed = std::getenv("SHADOWKV_TEST_SEED");
  const std::uint64_t seed = fixed ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
  std::printf("seed: SHADOWKV_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return std::mt19937_64{seed};
}

// Whether fewer cases are wanted, because a checking tool makes every one of them many times slower.
inline bool small() {
  const char* const wish = std::getenv("SHADOWKV_TEST_SMALL");
  return wish && *wish && *wish != '0';
}

// The cases, or two of them where fewer are wanted. They share the kernels that they launch.
template <class T>
std::vector<T> cases(std::initializer_list<T> all) {
  std::vector<T> some(all);
  if (small() && some.size() > 2) {
    std::shuffle(some.begin(), some.end(), std::mt19937{std::random_device{}()});
    some.resize(2);
  }
  return some;
}

// The exit code of a test's main().
inline int verdict() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

inline int skip(const char* reason) {
  std::printf("skipped: %s\n", reason);
  return kSkipped;
}

}  // namespace check

#define CHECK(condition) check::report((condition), #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(actual, expected) \
  check::report((actual) == (expected), #actual " == " #expected, __FILE__, __LINE__)
#define CHECK_NEAR(actual, expected, tolerance) \
  check::report_near((actual), (expected), (tolerance), #actual " ~ " #expected, __FILE__, __LINE__)
