// What the tests of the C ABI share: a context on the CPU, memory for operands, and the look at refusals.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "operations.h"
#include "shadowkv.h"

namespace abi {

inline skv_context* context = nullptr;
// Enough for every operand below; what a refused call would touch is never reached.
alignas(64) inline unsigned char memory[1 << 20];

inline std::string message() {
  char text[1024] = {};
  CHECK_EQUAL(skv_context_message(context, text, sizeof(text)), SKV_OK);
  return text;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline void expect_failure(skv_status actual, skv_status expected, const char* message, const char* function,
                           const char* part) {
  const std::string text = message;
  if (!CHECK(actual == expected && contains(text, function) && contains(text, part) && !contains(text, "\n"))) {
    std::fprintf(stderr, "%s: %s, expected %s with \"%s\"; message \"%s\"\n", function, skv_status_name(actual),
                 skv_status_name(expected), part, text.c_str());
  }
}

// The same with the message that the context keeps: read after the call, which made the first argument.
inline void expect_failure(skv_status actual, skv_status expected, const char* function, const char* part) {
  expect_failure(actual, expected, message().c_str(), function, part);
}

template <class Params>
struct Entry {
  skv_status (*function)(skv_context*, const Params*);
  const char* name;
  Params valid;

  void accepts() const {
    if (!CHECK_EQUAL(function(context, &valid), SKV_OK)) {
      std::fprintf(stderr, "%s\n", message().c_str());
    }
  }
  void refuses(const std::function<void(Params&)>& spoil, skv_status status, const char* part) const {
    Params p = valid;
    spoil(p);
    expect_failure(function(context, &p), status, name, part);
  }
};

template <class Params>
Params sized() {
  Params p = {};
  p.struct_size = sizeof(Params);
  return p;
}

inline skv_rope rope() {
  static float coarse[4 * 32], fine[64 * 32];
  for (int i = 0; i < 4 * 16; ++i) {
    coarse[2 * i] = 1;
  }
  for (int i = 0; i < 64 * 16; ++i) {
    fine[2 * i] = 1;
  }
  return {coarse, fine, 4, 64, 32, SKV_HALF_SPLIT, 1.0F};
}

inline skv_geometry geometry() {
  return {4, 2, 32, 8, 16, SKV_F32, SKV_F32, SKV_F32, SKV_F32, 16, 0};
}

inline constexpr skv_status kInvalid = SKV_INVALID_ARGUMENT, kUnsupported = SKV_UNSUPPORTED;
#define REFUSES(assignment, status, part) refuses([](auto& p) { p.assignment; }, status, part)

}  // namespace abi
