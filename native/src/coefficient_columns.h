// Which column of coefficients stands for which direction. Of I8 coefficients one column of ten refines one of the
// first directions: they hold what keys have in common, and half a step of theirs is more than whole directions at the
// end. A refinement's step is the 254th part of its direction's, so that both together are as good as 16 bits.
#pragma once

#include "host_device.h"

namespace skv {

constexpr float kRefinementSteps = 254.0F;

// The scale of a direction whose largest coefficient that is. Those of later tokens are given room for twice as much:
// cut off, they miss more than all that rounding takes.
SKV_BOTH float coefficient_scale(float largest) {
  constexpr float kLargestNumber = 127.0F, kRoom = 2.0F;
  return largest * (kRoom / kLargestNumber);
}

SKV_BOTH int refined_directions(int rank) {
  constexpr int kColumnsOfOne = 10;
  return rank / kColumnsOfOne;
}

// A refinement stands behind the column that it refines.
SKV_BOTH bool is_refinement(int column, int rank) {
  return column % 2 == 1 && column < 2 * refined_directions(rank);
}

SKV_BOTH int direction_of(int column, int rank) {
  const int refined = refined_directions(rank);
  return column < 2 * refined ? column / 2 : column - refined;
}

// Directions that the first `columns` of `rank` columns stand for.
SKV_BOTH int directions_of(int columns, int rank) {
  return columns ? direction_of(columns - 1, rank) + 1 : 0;
}

}  // namespace skv
