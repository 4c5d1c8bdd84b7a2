// Rotary embedding of one head of floats from the two tables of skv_rope.
#pragma once

#include <cstdint>
#include <string>

#include "error.h"
#include "shadowkv_types.h"

namespace skv::cpu {

// The rotation of one position, ready to be applied to any number of heads.
class Rotation {
 public:
  static constexpr int kMaximumPairs = SKV_MAX_HEAD_DIM / 2;

  // Throws Error(SKV_INVALID_ARGUMENT) for a position that the tables do not cover.
  Rotation(const skv_rope& rope, std::int64_t position, bool inverse = false)
      : pairs_(rope.rotary_dim / 2), interleaved_(rope.pairing == SKV_INTERLEAVED) {
    if (pairs_ == 0) {
      return;
    }
    const std::int64_t covered = static_cast<std::int64_t>(rope.coarse_rows) * rope.fine_rows;
    if (position < 0 || position >= covered) [[unlikely]] {
      throw Error(SKV_INVALID_ARGUMENT, "position " + std::to_string(position) +
                                            " is outside the rotary tables, which cover " + std::to_string(covered));
    }
    const float* const coarse = rope.coarse + position / rope.fine_rows * rope.rotary_dim;
    const float* const fine = rope.fine + position % rope.fine_rows * rope.rotary_dim;
    // An inverse rotation divides by the scale, which the tables have multiplied in.
    const float factor = inverse ? 1.0F / (rope.scale * rope.scale) : 1.0F;
    const float sine_factor = inverse ? -factor : factor;
    for (int pair = 0; pair < pairs_; ++pair) {
      const float c0 = coarse[2 * pair], s0 = coarse[2 * pair + 1];
      const float c1 = fine[2 * pair], s1 = fine[2 * pair + 1];
      cosine_[pair] = (c0 * c1 - s0 * s1) * factor;
      sine_[pair] = (s0 * c1 + c0 * s1) * sine_factor;
    }
  }

  // head [D], in place.
  void apply(float* head) const {
    if (interleaved_) {
      for (int pair = 0; pair < pairs_; ++pair) {
        const float x = head[2 * pair], y = head[2 * pair + 1];
        head[2 * pair] = x * cosine_[pair] - y * sine_[pair];
        head[2 * pair + 1] = x * sine_[pair] + y * cosine_[pair];
      }
    } else {
      float* const first = head;
      float* const second = head + pairs_;
      for (int pair = 0; pair < pairs_; ++pair) {
        const float x = first[pair], y = second[pair];
        first[pair] = x * cosine_[pair] - y * sine_[pair];
        second[pair] = x * sine_[pair] + y * cosine_[pair];
      }
    }
  }

 private:
  int pairs_;
  bool interleaved_;
  float cosine_[kMaximumPairs];
  float sine_[kMaximumPairs];
};

}  // namespace skv::cpu
