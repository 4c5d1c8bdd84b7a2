#include "cpu/symmetric_eigen.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "error.h"

namespace skv::cpu {
namespace {

// Rows p and q of a [n][n] turned by the angle with this cosine and sine.
void turn_rows(double* p, double* q, std::int64_t n, double cosine, double sine) {
  for (std::int64_t k = 0; k < n; ++k) {
    const double x = p[k], y = q[k];
    p[k] = cosine * x - sine * y;
    q[k] = sine * x + cosine * y;
  }
}

// Cyclic Jacobi: turns pairs of coordinates until nothing off the diagonal is left that the diagonal would notice.
// Golub, Van Loan, "Matrix Computations", section 8.5.
void jacobi(std::vector<double>& a, std::vector<double>& vectors, std::int64_t n) {
  constexpr int kMostSweeps = 40;
  constexpr double kNegligible = 1e-15;
  for (std::int64_t i = 0; i < n; ++i) {
    vectors[static_cast<std::size_t>(i * n + i)] = 1;
  }
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::fabs(a[static_cast<std::size_t>(i * n + i)]));
  }
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    bool turned = false;
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = p + 1; q < n; ++q) {
        double* const row_p = a.data() + p * n;
        double* const row_q = a.data() + q * n;
        const double off = row_p[q], app = row_p[p], aqq = row_q[q];
        const double scale = std::sqrt(std::fabs(app)) * std::sqrt(std::fabs(aqq));
        if (!(std::fabs(off) > kNegligible * std::max(scale, kNegligible * largest))) {
          continue;
        }
        turned = true;
        const double theta = (aqq - app) / (2 * off);
        const double tangent = std::copysign(1.0, theta) / (std::fabs(theta) + std::hypot(1.0, theta));
        const double cosine = 1 / std::hypot(1.0, tangent), sine = tangent * cosine;
        turn_rows(row_p, row_q, n, cosine, sine);
        turn_rows(vectors.data() + p * n, vectors.data() + q * n, n, cosine, sine);
        // The columns follow from the rows by symmetry, but for the four elements that both turns meet.
        for (std::int64_t k = 0; k < n; ++k) {
          if (k != p && k != q) {
            a[static_cast<std::size_t>(k * n + p)] = row_p[k];
            a[static_cast<std::size_t>(k * n + q)] = row_q[k];
          }
        }
        row_p[p] = app - tangent * off;
        row_q[q] = aqq + tangent * off;
        row_p[q] = row_q[p] = 0;
      }
    }
    if (!turned) {
      return;
    }
  }
}

}  // namespace

SymmetricEigen symmetric_eigen(std::vector<double> matrix, std::int64_t n, const blas::Cpu* library) {
  const std::size_t size = static_cast<std::size_t>(n);
  for (const double x : matrix) {
    if (!std::isfinite(x)) {
      throw Error(SKV_INVALID_ARGUMENT, "the matrix has an element that is not finite");
    }
  }
  std::vector<double> values(size), vectors(size * size);
  if (library && library->dsyevd) {
    const blas::SingleThreaded alone(*library);
    const int order = static_cast<int>(n), ask = -1;
    double work_size = 0;
    int integer_size = 0, information = 0;
    library->dsyevd("V", "U", &order, matrix.data(), &order, values.data(), &work_size, &ask, &integer_size, &ask,
                    &information);
    std::vector<double> work(static_cast<std::size_t>(work_size));
    std::vector<int> integers(static_cast<std::size_t>(integer_size));
    const int work_length = static_cast<int>(work.size()), integer_length = integer_size;
    library->dsyevd("V", "U", &order, matrix.data(), &order, values.data(), work.data(), &work_length, integers.data(),
                    &integer_length, &information);
    if (information != 0) {
      throw Error(SKV_INTERNAL, "LAPACK's dsyevd returned " + std::to_string(information));
    }
    vectors = matrix;  // column i of LAPACK's matrix is row i here
  } else {
    jacobi(matrix, vectors, n);
    for (std::size_t i = 0; i < size; ++i) {
      values[i] = matrix[i * size + i];
    }
  }
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t i, std::size_t j) { return values[i] > values[j]; });
  SymmetricEigen result{std::vector<double>(size), std::vector<double>(size * size)};
  for (std::size_t i = 0; i < size; ++i) {
    result.values[i] = values[order[i]];
    std::copy_n(vectors.begin() + static_cast<std::ptrdiff_t>(order[i] * size), size,
                result.vectors.begin() + static_cast<std::ptrdiff_t>(i * size));
  }
  return result;
}

}  // namespace skv::cpu
