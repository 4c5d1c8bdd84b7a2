// Eigenvalues and eigenvectors of a small symmetric matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "blas/cpu_blas.h"

namespace skv::cpu {

struct SymmetricEigen {
  std::vector<double> values;   // [n], descending
  std::vector<double> vectors;  // [n][n], row i belongs to values[i]
};

// matrix [n][n], both triangles; is used up. By LAPACK when `library` has it (may be null), otherwise by Jacobi's
// rotations, which take about eight sweeps of 6*n^3 operations.
SymmetricEigen symmetric_eigen(std::vector<double> matrix, std::int64_t n, const blas::Cpu* library);

}  // namespace skv::cpu
