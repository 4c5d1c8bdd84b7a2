// Small dense linear algebra for the block subspace iteration of low_rank_factor: an orthonormal basis of a tall
// matrix by Cholesky QR, and the eigenvectors of a small symmetric matrix by one-sided Jacobi rotations.
//
// The inner products and the Cholesky factor are in fp64: a product with the Gram matrix spreads the columns over
// the square of the keys' spectrum, and their inner products over its fourth power, which fp32 cannot hold.
#pragma once

#include <cstdint>

#include "cuda/vector.cuh"

namespace skv::cuda {

// All widths of the block are multiples of this.
constexpr int kPanel = 32;
constexpr int kMaximumBlock = 320;

// --- Inner products -----------------------------------------------------------------------------

constexpr int kInnerTile = 16;
constexpr int kInnerDepth = 64;

// products [n][n] (lower triangle) = a^T . b, with a and b [rows][n]. One 16x16 tile a block.
// Bound by fp64 operations: rows*n*n.
__global__ void __launch_bounds__(kInnerTile* kInnerTile)
    inner_products_kernel(const float* a, const float* b, int rows, int n, double* products) {
  if (blockIdx.y < blockIdx.x) {
    return;
  }
  __shared__ double left[kInnerDepth][kInnerTile + 1], right[kInnerDepth][kInnerTile + 1];
  const int x = static_cast<int>(threadIdx.x) % kInnerTile, y = static_cast<int>(threadIdx.x) / kInnerTile;
  const int row = static_cast<int>(blockIdx.y) * kInnerTile, column = static_cast<int>(blockIdx.x) * kInnerTile;
  double sums[4] = {};
  for (int first = 0; first < rows; first += kInnerDepth) {
    __syncthreads();
    for (int k = y; k < kInnerDepth; k += kInnerTile) {
      const bool inside = first + k < rows;
      const std::int64_t at = static_cast<std::int64_t>(first + k) * n;
      left[k][x] = inside ? static_cast<double>(a[at + row + x]) : 0.0;
      right[k][x] = inside ? static_cast<double>(b[at + column + x]) : 0.0;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kInnerDepth; k += 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[j] = fma(left[k + j][y], right[k + j][x], sums[j]);
      }
    }
  }
  products[static_cast<std::int64_t>(row + y) * n + column + x] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// --- Cholesky -----------------------------------------------------------------------------------

constexpr int kCholeskyThreads = kPanel * kPanel;
constexpr int kCholeskyPitch = kPanel + 1;

inline std::size_t cholesky_shared_bytes(int n) {
  return sizeof(double) * static_cast<std::size_t>(n * kCholeskyPitch + 2 * kPanel * kCholeskyPitch + n + 2 * kPanel);
}

// In place: matrix [n][n] = L . L^T, of which the lower triangle is read and becomes L. Also writes L transposed,
// and the transposed inverses of L's diagonal blocks [n/32][32][32]. A column whose pivot is not above
// own_share of its diagonal element is dependent on those before it: it and its inverse become zero. One whose pivot is
// not above coupled_share of the largest diagonal element keeps the root of its pivot, but what lies below is taken for
// rounding, which the division by a small root would blow up, and becomes zero, as does its inverse. One block:
// left-looking panels of 32 columns, n^3/6 operations; bound by latency. n is at most 32 * kRowsOfWarp.
template <int kRowsOfWarp>
__global__ void __launch_bounds__(kCholeskyThreads)
    cholesky_kernel(double* matrix, double* transposed, double* inverses, int n, double own_share,
                    double coupled_share) {
  extern __shared__ double cholesky_shared[];
  double* const panel = cholesky_shared;                       // [n][33]
  double* const factor = panel + n * kCholeskyPitch;           // [32][33] rows of L beside the panel
  double* const inverse = factor + kPanel * kCholeskyPitch;    // [32][33]
  double* const diagonal = inverse + kPanel * kCholeskyPitch;  // [n]
  double* const over = diagonal + n;                           // [32] 1/pivot
  double* const unscale = over + kPanel;                       // [32] 1/sqrt(pivot)
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kCholeskyThreads) {
    diagonal[i] = matrix[static_cast<std::int64_t>(i) * n + i];
  }
  __syncthreads();
  double largest = 0;
  for (int i = 0; i < n; ++i) {
    largest = fmax(largest, diagonal[i]);
  }
  for (int begin = 0; begin < n; begin += kPanel) {
    const int warp_rows = (n - begin) / kPanel;
    double rest[kRowsOfWarp];
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      if (q < warp_rows) {
        // Nothing above the diagonal is ever read.
        rest[q] = q > 0 || lane <= warp
                      ? matrix[static_cast<std::int64_t>(begin + q * kPanel + warp) * n + begin + lane]
                      : 0.0;
      }
    }
    for (int before = 0; before < begin; before += kPanel) {
      __syncthreads();
      factor[lane * kCholeskyPitch + warp] = matrix[static_cast<std::int64_t>(begin + warp) * n + before + lane];
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kPanel; k += 2) {
        const double beside0 = factor[k * kCholeskyPitch + lane], beside1 = factor[(k + 1) * kCholeskyPitch + lane];
#pragma unroll
        for (int q = 0; q < kRowsOfWarp; ++q) {
          if (q < warp_rows) {
            const auto row = *reinterpret_cast<const double2*>(
                matrix + static_cast<std::int64_t>(begin + q * kPanel + warp) * n + before + k);
            rest[q] -= row.x * beside0;
            rest[q] -= row.y * beside1;
          }
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      if (q < warp_rows) {
        panel[(q * kPanel + warp) * kCholeskyPitch + lane] = rest[q];
      }
    }
    inverse[warp * kCholeskyPitch + lane] = warp == lane ? 1.0 : 0.0;
    // A pivot is inverted once, by the thread that made it.
    const auto settle = [&](int j, double pivot) {
      const bool independent = pivot > own_share * diagonal[begin + j] && pivot > coupled_share * largest && pivot > 0;
      over[j] = independent ? 1.0 / pivot : 0.0;
    };
    if (threadIdx.x == 0) {
      settle(0, rest[0]);
    }
    __syncthreads();
    // The diagonal block: thread (warp, lane) owns element (row, column); a step reads column j and changes
    // what lies behind it.
    for (int j = 0; j < kPanel; ++j) {
      if (warp > j) {
        const double multiple = panel[warp * kCholeskyPitch + j] * over[j];
        if (lane > j && lane <= warp) {
          const double changed = panel[warp * kCholeskyPitch + lane] - multiple * panel[lane * kCholeskyPitch + j];
          panel[warp * kCholeskyPitch + lane] = changed;
          if (warp == j + 1) {
            settle(j + 1, changed);
          }
        }
        // The same elimination on the identity gives the inverse, its rows not scaled yet.
        if (lane <= j) {
          inverse[warp * kCholeskyPitch + lane] -= multiple * inverse[j * kCholeskyPitch + lane];
        }
      }
      __syncthreads();
    }
    if (warp == 0) {
      unscale[lane] = sqrt(over[lane]);
    }
    __syncthreads();
    inverse[warp * kCholeskyPitch + lane] = lane <= warp ? inverse[warp * kCholeskyPitch + lane] * unscale[warp] : 0.0;
    double on_diagonal = lane <= warp ? panel[warp * kCholeskyPitch + lane] * unscale[lane] : 0.0;
    if (coupled_share > 0 && lane == warp && over[lane] == 0) {
      on_diagonal = sqrt(fmax(panel[warp * kCholeskyPitch + lane], 0.0));
    }
    __syncthreads();
    inverses[static_cast<std::int64_t>(begin) * kPanel + lane * kPanel + warp] = inverse[warp * kCholeskyPitch + lane];
    panel[warp * kCholeskyPitch + lane] = on_diagonal;
    // The rows below: times the block's inverse, transposed.
#pragma unroll
    for (int q = 1; q < kRowsOfWarp; ++q) {
      rest[q] = 0;
    }
#pragma unroll 4
    for (int k = 0; k < kPanel; ++k) {
      const double beside = inverse[lane * kCholeskyPitch + k];
#pragma unroll
      for (int q = 1; q < kRowsOfWarp; ++q) {
        if (q < warp_rows) {
          rest[q] = fma(panel[(q * kPanel + warp) * kCholeskyPitch + k], beside, rest[q]);
        }
      }
    }
    rest[0] = on_diagonal;
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kRowsOfWarp; ++q) {
      if (q < warp_rows) {
        panel[(q * kPanel + warp) * kCholeskyPitch + lane] = rest[q];
        matrix[static_cast<std::int64_t>(begin + q * kPanel + warp) * n + begin + lane] = rest[q];
      }
    }
    __syncthreads();
    // Transposed through shared memory; above the diagonal L is zero.
    for (int i = static_cast<int>(threadIdx.x) % 32; i < n; i += 32) {
      transposed[static_cast<std::int64_t>(begin + warp) * n + i] =
          i < begin ? 0.0 : panel[(i - begin) * kCholeskyPitch + warp];
    }
    __syncthreads();
  }
}

// --- Triangular solve ---------------------------------------------------------------------------

constexpr int kSolveRows = 8;  // of a block, one a warp

// q [rows][n] = y [rows][n] . L^-T, row by row, from Cholesky's outputs. Bound by the latency of n/32 panels.
__global__ void __launch_bounds__(kSolveRows * 32)
    solve_kernel(const float* y, const double* transposed, const double* inverses, int rows, int n, float* q) {
  __shared__ double solved[kSolveRows][kMaximumBlock];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.x) * kSolveRows + warp;
  if (row >= rows) {
    return;
  }
  double* const x = solved[warp];
  for (int begin = 0; begin < n; begin += kPanel) {
    double rest = static_cast<double>(y[static_cast<std::int64_t>(row) * n + begin + lane]);
#pragma unroll 8
    for (int k = 0; k < begin; ++k) {
      rest -= x[k] * transposed[static_cast<std::int64_t>(k) * n + begin + lane];
    }
    const double* const inverse = inverses + static_cast<std::int64_t>(begin) * kPanel;
    double sum = 0;
#pragma unroll 8
    for (int k = 0; k < kPanel; ++k) {
      sum = fma(__shfl_sync(0xffffffffU, rest, k), inverse[k * kPanel + lane], sum);
    }
    x[begin + lane] = sum;
    __syncwarp();
    q[static_cast<std::int64_t>(row) * n + begin + lane] = static_cast<float>(sum);
  }
}

// --- Jacobi -------------------------------------------------------------------------------------

constexpr int kJacobiGroup = 16;                   // columns that move together
constexpr int kJacobiColumns = 2 * kJacobiGroup;   // of a block: two groups
constexpr int kJacobiThreads = kJacobiGroup * 32;  // a warp a pair of columns
constexpr int kJacobiSweeps = 12;
constexpr int kJacobiWords = 1 + kJacobiSweeps;  // of `progress`, zero at first

static_assert(kPanel % kJacobiColumns == 0);
static_assert(sizeof(float) * kJacobiColumns * kMaximumBlock <= 48 * 1024, "more shared memory has to be asked for");

inline std::size_t jacobi_shared_bytes(int n) {
  return sizeof(float) * static_cast<std::size_t>(kJacobiColumns * n);
}

// Waits until every block of the grid has come here as often as this one, and sees what they wrote before.
// All blocks must be resident. What others wrote must be read past the first-level cache.
__device__ inline void grid_barrier(unsigned* arrivals, unsigned& expected) {
  __syncthreads();
  expected += gridDim.x;
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrivals, 1U);
    while (*static_cast<volatile unsigned*>(arrivals) < expected) {
    }
    __threadfence();
  }
  __syncthreads();
}

// Which two of `count` (even) take turns with each other as pair `pair` of round `round`: everybody meets everybody
// in count - 1 rounds.
__device__ inline void round_robin(int count, int round, int pair, int& first, int& second) {
  first = count - 1;
  second = round;
  if (pair > 0) {
    first = round + pair;
    first -= first >= count - 1 ? count - 1 : 0;
    second = round - pair;
    second += second < 0 ? count - 1 : 0;
  }
}

// Turns two columns, a lane's share of each, until they are orthogonal. Returns the cosine they had.
template <int kElements>
__device__ inline float turn(float (&a)[kElements], float (&b)[kElements]) {
  constexpr float kIgnoredCosine = 1e-5F;
  float aa = 0, bb = 0, ab = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    aa = fmaf(a[i], a[i], aa);
    bb = fmaf(b[i], b[i], bb);
    ab = fmaf(a[i], b[i], ab);
  }
  aa = warp_sum(aa);
  bb = warp_sum(bb);
  ab = warp_sum(ab);
  const float product = sqrtf(aa) * sqrtf(bb);
  const float cosine = product > 0 ? fabsf(ab) / product : 0.0F;
  if (cosine > kIgnoredCosine) {
    const float zeta = (bb - aa) / (2.0F * ab);
    const float tangent = copysignf(1.0F, zeta) / (fabsf(zeta) + sqrtf(1.0F + zeta * zeta));
    const float c = rsqrtf(1.0F + tangent * tangent), s = c * tangent;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const float before = a[i];
      a[i] = c * before - s * b[i];
      b[i] = s * before + c * b[i];
    }
  }
  return cosine;
}

// Eigenvectors of L.L^T by making the columns of L orthogonal (one-sided Jacobi): the columns become eigenvectors
// times the roots of the eigenvalues.
//
// transposed [n][n]: row j is column j of L. vectors [taken][n] by descending eigenvalue, of length 1 or zero;
// values [taken]. columns [n][n] and progress [kJacobiWords] are scratch. n/32 blocks that wait for each other: the
// columns go in groups of 16, each block turns the columns of two groups against each other in shared memory, and
// after n/16 - 1 such rounds every group has met every other, which is a sweep. A lane holds at most kElements
// of a column. Bound by latency: of n steps a sweep, and of the exchange through the L2 cache each round.
template <int kElements>
__global__ void __launch_bounds__(kJacobiThreads, 1)
    jacobi_kernel(const double* transposed, int n, int taken, float* columns, unsigned* progress, float* vectors,
                  float* values) {
  extern __shared__ __align__(16) float jacobi_shared[];  // [32][n]
  __shared__ float squares[kMaximumBlock];
  // Columns are turned until a whole sweep met no angle above this one; the sweep itself then left about its square.
  constexpr float kSmallCosine = 1e-2F;
  float* const w = jacobi_shared;
  unsigned* const arrivals = progress;
  unsigned* const worst = progress + 1;  // of each sweep, as the bits of a float that is not negative
  unsigned expected = 0;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int groups = n / kJacobiGroup, block = static_cast<int>(blockIdx.x);
  for (int i = static_cast<int>(threadIdx.x); i < kJacobiColumns * n; i += kJacobiThreads) {
    columns[block * kJacobiColumns * n + i] = static_cast<float>(transposed[block * kJacobiColumns * n + i]);
  }
  grid_barrier(arrivals, expected);

  const auto take = [&](float(&x)[kElements], int column) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      x[i] = i * 32 < n ? w[column * n + i * 32 + lane] : 0.0F;
    }
  };
  const auto put = [&](const float(&x)[kElements], int column) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (i * 32 < n) {
        w[column * n + i * 32 + lane] = x[i];
      }
    }
  };
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    float met = 0;
    for (int round = 0; round < groups - 1; ++round) {
      int first_group, second_group;
      round_robin(groups, round, block, first_group, second_group);
      const int words = kJacobiGroup * n / 4;
      for (int i = static_cast<int>(threadIdx.x); i < 2 * words; i += kJacobiThreads) {
        const int half = i / words, within = i % words;
        reinterpret_cast<float4*>(w)[i] = __ldcg(
            reinterpret_cast<const float4*>(columns + (half ? second_group : first_group) * kJacobiGroup * n) + within);
      }
      __syncthreads();
      float a[kElements], b[kElements];
      if (round == 0) {
        // Each group within itself: half of the warps for each.
        for (int step = 0; step < kJacobiGroup - 1; ++step) {
          int first, second;
          round_robin(kJacobiGroup, step, warp % (kJacobiGroup / 2), first, second);
          const int base = warp / (kJacobiGroup / 2) * kJacobiGroup;
          take(a, base + first);
          take(b, base + second);
          met = fmaxf(met, turn(a, b));
          put(a, base + first);
          put(b, base + second);
          __syncthreads();
        }
      }
      take(a, warp);
      for (int step = 0; step < kJacobiGroup; ++step) {
        const int other = kJacobiGroup + (warp + step) % kJacobiGroup;
        take(b, other);
        met = fmaxf(met, turn(a, b));
        put(b, other);
        __syncthreads();
      }
      put(a, warp);
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < 2 * words; i += kJacobiThreads) {
        const int half = i / words, within = i % words;
        reinterpret_cast<float4*>(columns + (half ? second_group : first_group) * kJacobiGroup * n)[within] =
            reinterpret_cast<const float4*>(w)[i];
      }
      if (round == groups - 2 && lane == 0) {
        atomicMax(worst + sweep, __float_as_uint(met));
      }
      grid_barrier(arrivals, expected);
    }
    if (__uint_as_float(__ldcg(worst + sweep)) < kSmallCosine) {
      break;
    }
  }
  for (int j = warp; j < n; j += kJacobiGroup) {
    float sum = 0;
    for (int i = lane; i < n; i += 32) {
      const float x = __ldcg(columns + j * n + i);
      sum = fmaf(x, x, sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      squares[j] = sum;
    }
  }
  __syncthreads();
  for (int j = block * kJacobiColumns + warp; j < (block + 1) * kJacobiColumns; j += kJacobiGroup) {
    const float mine = squares[j];
    int place = 0;
    for (int i = lane; i < n; i += 32) {
      place += squares[i] > mine || (squares[i] == mine && i < j) ? 1 : 0;
    }
#pragma unroll
    for (int step = 16; step; step >>= 1) {
      place += __shfl_xor_sync(0xffffffffU, place, step);
    }
    if (place >= taken) {
      continue;
    }
    const float scale = mine > 0 ? rsqrtf(mine) : 0.0F;
    for (int i = lane; i < n; i += 32) {
      vectors[place * n + i] = __ldcg(columns + j * n + i) * scale;
    }
    if (lane == 0) {
      values[place] = mine;
    }
  }
}

}  // namespace skv::cuda
