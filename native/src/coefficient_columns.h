// Which column of coefficients stands for which direction. Of I8 coefficients every fortieth column refines one of the
// first directions: they hold what keys have in common, and half a step of theirs is as much as whole directions at the
// end. A refinement's step is the 254th part of its direction's, so that both together are as good as 16 bits.
#pragma once

#include "host_device.h"
#include "shadowkv_types.h"

namespace skv {

// Refinements are the last of the first columns, beside what they refine.
constexpr int kFirstColumns = SKV_MIN_RANK;
constexpr float kRefinementSteps = 254.0F;

// The scale of a direction whose largest coefficient that is. Those of later tokens are given room for twice as much:
// cut off, they miss more than all that rounding takes.
SKV_BOTH float coefficient_scale(float largest) {
  constexpr float kLargestNumber = 127.0F, kRoom = 2.0F;
  return largest * (kRoom / kLargestNumber);
}

SKV_BOTH int refined_directions(int rank) {
  constexpr int kColumnsOfOne = 40;
  static_assert(SKV_MAX_RANK / kColumnsOfOne <= kFirstColumns / 2);
  return rank / kColumnsOfOne;
}

SKV_BOTH bool is_refinement(int column, int rank) {
  return column < kFirstColumns && column >= kFirstColumns - refined_directions(rank);
}

// Of a column of I8 coefficients; a direction that is refined has its own column, of its number.
SKV_BOTH int direction_of(int column, int rank) {
  const int refined = refined_directions(rank), first = kFirstColumns - refined;
  return column < first ? column : column < kFirstColumns ? column - first : column - refined;
}

// Directions that the first `columns` of `rank` columns stand for.
SKV_BOTH int directions_of(int columns, int rank) {
  const int refined = refined_directions(rank), first = kFirstColumns - refined;
  return columns < first ? columns : columns < kFirstColumns ? first : columns - refined;
}

}  // namespace skv
