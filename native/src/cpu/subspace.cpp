#include "cpu/subspace.h"

#include <algorithm>
#include <cmath>

#include "cpu/sums.h"
#include "cpu/symmetric_eigen.h"
#include "random.h"

namespace skv::cpu {
namespace {

constexpr std::uint64_t kSeed = 0x5eed0fba51c5ULL;

class Iteration {
 public:
  Iteration(const std::vector<double>& matrix, std::int64_t n, std::int64_t block, Execution& execution,
            const blas::Cpu* library)
      : matrix_(matrix), n_(n), block_(block), execution_(execution), library_(library) {}

  // [count][n] of normal numbers; different ones for every `draw`.
  std::vector<double> random_rows(std::int64_t count, std::uint64_t draw) const {
    std::vector<double> rows(static_cast<std::size_t>(count * n_));
    constexpr std::size_t kNumbers = 4;
    for (std::size_t i = 0; i < rows.size(); i += kNumbers) {
      const RandomNormals normals = random_normals(i / kNumbers, kSeed + draw);
      for (std::size_t j = 0; j < std::min(kNumbers, rows.size() - i); ++j) {
        rows[i + j] = static_cast<double>(normals.at[j]);
      }
    }
    return rows;
  }

  // [block][n]: row i = matrix . rows i.
  std::vector<double> apply(const std::vector<double>& rows) const {
    std::vector<double> result(rows.size());
    multiply(rows.data(), matrix_.data(), block_, n_, n_, result.data());
    return result;
  }

  // out [count][other_count] = a [count][length] . b [other_count][length]^T.
  void multiply(const double* a, const double* b, std::int64_t count, std::int64_t other_count, std::int64_t length,
                double* out) const {
    constexpr std::int64_t kColumns = 32;
    const auto by_columns = [&](auto&& columns) { execution_.pool.parallel_ranges(other_count, kColumns, columns); };
    if (library_ && library_->concurrent_calls >= execution_.pool.threads()) {
      const blas::SingleThreaded alone(*library_);
      by_columns([&](std::int64_t begin, std::int64_t end) {
        library_->dgemm(blas::Cpu::kRowMajor, blas::Cpu::kNoTranspose, blas::Cpu::kTranspose, static_cast<int>(count),
                        static_cast<int>(end - begin), static_cast<int>(length), 1.0, a, static_cast<int>(length),
                        b + begin * length, static_cast<int>(length), 0.0, out + begin, static_cast<int>(other_count));
      });
      return;
    }
    by_columns([&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t j = begin; j < end; ++j) {
          out[i * other_count + j] = dot(a + i * length, b + j * length, length);
        }
      }
    });
  }

  // Gram-Schmidt, each row against those before it, twice, because once loses what it takes out of rows that
  // are nearly dependent. A row of which nothing is left becomes a random one: the block stays orthonormal
  // whatever the rank of the matrix.
  void orthonormalize(std::vector<double>& rows) const {
    constexpr double kDependent = 1e-12;
    std::vector<double> parts(static_cast<std::size_t>(block_));
    for (std::int64_t i = 0; i < block_; ++i) {
      double* const row = rows.data() + i * n_;
      for (std::uint64_t attempt = 0;; ++attempt) {
        const double before = std::sqrt(dot(row, row, n_));
        for (int pass = 0; pass < 2; ++pass) {
          take_out(rows, i, parts);
        }
        const double left = std::sqrt(dot(row, row, n_));
        if (left > kDependent * before) {
          for (std::int64_t k = 0; k < n_; ++k) {
            row[k] /= left;
          }
          break;
        }
        const std::vector<double> fresh =
            random_rows(1, 1 + static_cast<std::uint64_t>(i) + attempt * static_cast<std::uint64_t>(block_));
        std::copy(fresh.begin(), fresh.end(), row);
      }
    }
  }

 private:
  // Takes the rows before i out of row i.
  void take_out(std::vector<double>& rows, std::int64_t i, std::vector<double>& parts) const {
    double* const row = rows.data() + i * n_;
    for (std::int64_t j = 0; j < i; ++j) {
      parts[static_cast<std::size_t>(j)] = dot(rows.data() + j * n_, row, n_);
    }
    for (std::int64_t j = 0; j < i; ++j) {
      const double part = parts[static_cast<std::size_t>(j)];
      const double* const other = rows.data() + j * n_;
      for (std::int64_t k = 0; k < n_; ++k) {
        row[k] -= part * other[k];
      }
    }
  }

  const std::vector<double>& matrix_;
  std::int64_t n_, block_;
  Execution& execution_;
  const blas::Cpu* library_;
};

std::vector<double> identity(std::int64_t n) {
  std::vector<double> rows(static_cast<std::size_t>(n * n), 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    rows[static_cast<std::size_t>(i * n + i)] = 1;
  }
  return rows;
}

}  // namespace

Subspace dominant_subspace(const std::vector<double>& matrix, std::int64_t n, std::int64_t count, std::int64_t block,
                           int iterations, Execution& execution, const blas::Cpu* library) {
  const Iteration iteration(matrix, n, block, execution, library);
  std::vector<double> rows;
  std::vector<double> projected = matrix;  // of a block as wide as the matrix
  if (block < n) {
    rows = iteration.random_rows(block, 0);
    for (int i = 0; i < iterations; ++i) {
      rows = iteration.apply(rows);
      iteration.orthonormalize(rows);
    }
    if (iterations == 0) {
      iteration.orthonormalize(rows);
    }
    const std::vector<double> applied = iteration.apply(rows);
    projected.assign(static_cast<std::size_t>(block * block), 0.0);
    iteration.multiply(rows.data(), applied.data(), block, block, n, projected.data());
    for (std::int64_t i = 0; i < block; ++i) {
      for (std::int64_t j = 0; j < i; ++j) {
        double& lower = projected[static_cast<std::size_t>(i * block + j)];
        double& upper = projected[static_cast<std::size_t>(j * block + i)];
        lower = upper = (lower + upper) / 2;
      }
    }
  } else {
    rows = identity(n);
  }
  // Rayleigh-Ritz: the best directions within the subspace.
  const SymmetricEigen eigen = symmetric_eigen(std::move(projected), block, library);
  Subspace result;
  result.values.resize(static_cast<std::size_t>(count));
  result.directions.assign(static_cast<std::size_t>(count * n), 0.0);
  execution.pool.parallel_for(count, [&](std::int64_t i) {
    result.values[static_cast<std::size_t>(i)] = std::max(0.0, eigen.values[static_cast<std::size_t>(i)]);
    double* const direction = result.directions.data() + i * n;
    for (std::int64_t j = 0; j < block; ++j) {
      const double weight = eigen.vectors[static_cast<std::size_t>(i * block + j)];
      const double* const row = rows.data() + j * n;
      for (std::int64_t k = 0; k < n; ++k) {
        direction[k] += weight * row[k];
      }
    }
  });
  return result;
}

}  // namespace skv::cpu
