// What columns of I8 coefficients stand for, as shadowkv_types.h says it.
#pragma once

#include <cstdint>

// The column of the direction that a column refines, or -1.
inline std::int64_t refined_column(std::int64_t column, std::int64_t rank) {
  return column < rank / 10 * 2 && column % 2 == 1 ? column - 1 : -1;
}

// Directions that the first `columns` columns stand for.
inline std::int64_t column_directions(std::int64_t columns, std::int64_t rank) {
  std::int64_t directions = 0;
  for (std::int64_t column = 0; column < columns; ++column) {
    directions += refined_column(column, rank) < 0;
  }
  return directions;
}

inline std::int64_t column_direction(std::int64_t column, std::int64_t rank) {
  return column_directions(column + 1, rank) - 1;
}
