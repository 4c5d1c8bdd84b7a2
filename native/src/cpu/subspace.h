// The dominant directions of a symmetric positive matrix by block subspace iteration.
#pragma once

#include <cstdint>
#include <vector>

#include "blas/cpu_blas.h"
#include "cpu/execution.h"

namespace skv::cpu {

struct Subspace {
  std::vector<double> values;      // [count], descending, not negative
  std::vector<double> directions;  // [count][n], orthonormal rows
};

// matrix [n][n], both triangles. Iterates on `block` >= count directions; library may be null.
Subspace dominant_subspace(const std::vector<double>& matrix, std::int64_t n, std::int64_t count, std::int64_t block,
                           int iterations, Execution& execution, const blas::Cpu* library);

}  // namespace skv::cpu
