// The scales of skv_low_rank_factor_params.head_scales.
#pragma once

#include <cmath>

#include "host_device.h"

namespace skv {

// The power of two that brings a head with that sum of squares closest to the mean of the heads. Powers of two change
// no digit of a basis; the limit keeps a basis of F16 from vanishing.
SKV_BOTH float head_scale(float sum_of_squares, float mean) {
  constexpr float kMostBits = 6;
  if (!(sum_of_squares > 0)) {
    return 1.0F;
  }
  const float bits = rintf(0.5F * log2f(mean / sum_of_squares));
  return exp2f(fminf(fmaxf(bits, -kMostBits), kMostBits));
}

}  // namespace skv
