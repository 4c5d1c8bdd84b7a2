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
  return sizeof(double) * static_cast<std::size_t>(n * kCholeskyPitch + 2 * kPanel * kCholeskyPitch + n + kPanel);
}

// In place: matrix [n][n] = L . L^T, of which the lower triangle is read and becomes L. Also writes L transposed,
// and the transposed inverses of L's diagonal blocks [n/32][32][32]. A column whose pivot is not above
// own_share of its diagonal element and overall_share of the largest is dependent on those before it: it and
// its inverse become zero. One block: left-looking panels of 32 columns, n^3/6 operations; bound by latency.
__global__ void __launch_bounds__(kCholeskyThreads)
    cholesky_kernel(double* matrix, double* transposed, double* inverses, int n, double own_share,
                    double overall_share) {
  extern __shared__ double cholesky_shared[];
  double* const panel = cholesky_shared;                          // [n][33]
  double* const factor = panel + n * kCholeskyPitch;              // [32][33] rows of L beside the panel
  double* const inverse = factor + kPanel * kCholeskyPitch;       // [32][33]
  double* const diagonal = inverse + kPanel * kCholeskyPitch;     // [n]
  double* const unscale = diagonal + n;                           // [32] 1/sqrt(pivot)
  constexpr int kRowsOfWarp = kMaximumBlock / kPanel;
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
      for (int k = 0; k < kPanel; ++k) {
        const double beside = factor[k * kCholeskyPitch + lane];
#pragma unroll
        for (int q = 0; q < kRowsOfWarp; ++q) {
          if (q < warp_rows) {
            rest[q] -= matrix[static_cast<std::int64_t>(begin + q * kPanel + warp) * n + before + k] * beside;
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
    __syncthreads();
    // The diagonal block: thread (warp, lane) owns element (row, column); a step reads column j and changes
    // what lies behind it.
    for (int j = 0; j < kPanel; ++j) {
      const double pivot = panel[j * kCholeskyPitch + j];
      const bool independent = pivot > own_share * diagonal[begin + j] && pivot > overall_share * largest && pivot > 0;
      const double over = independent ? 1.0 / pivot : 0.0;
      if (threadIdx.x == 0) {
        unscale[j] = independent ? 1.0 / sqrt(pivot) : 0.0;
      }
      const double multiple = panel[warp * kCholeskyPitch + j] * over;
      double changed = 0;
      if (warp > j && lane > j && lane <= warp) {
        changed = panel[warp * kCholeskyPitch + lane] - multiple * panel[lane * kCholeskyPitch + j];
        panel[warp * kCholeskyPitch + lane] = changed;
      }
      // The same elimination on the identity gives the inverse, its rows not scaled yet.
      if (warp > j && lane <= j) {
        inverse[warp * kCholeskyPitch + lane] -= multiple * inverse[j * kCholeskyPitch + lane];
      }
      __syncthreads();
    }
    inverse[warp * kCholeskyPitch + lane] = lane <= warp ? inverse[warp * kCholeskyPitch + lane] * unscale[warp] : 0.0;
    const double on_diagonal = lane <= warp ? panel[warp * kCholeskyPitch + lane] * unscale[lane] : 0.0;
    __syncthreads();
    inverses[static_cast<std::int64_t>(begin) * kPanel + lane * kPanel + warp] = inverse[warp * kCholeskyPitch + lane];
    panel[warp * kCholeskyPitch + lane] = on_diagonal;
    // The rows below: times the block's inverse, transposed.
#pragma unroll
    for (int q = 1; q < kRowsOfWarp; ++q) {
      if (q < warp_rows) {
        double sum = 0;
        for (int k = 0; k < kPanel; ++k) {
          sum = fma(panel[(q * kPanel + warp) * kCholeskyPitch + k], inverse[lane * kCholeskyPitch + k], sum);
        }
        rest[q] = sum;
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

constexpr int kJacobiThreads = 768;
constexpr int kJacobiElements = 24;  // of a column a lane holds

// Eigenvectors of L.L^T by making the columns of L orthogonal (one-sided Jacobi, round-robin pairs): the columns
// become eigenvectors times the roots of the eigenvalues. kLanes lanes turn a pair, all pairs of a round at once.
//
// transposed [n][n]: row j is column j of L. vectors [taken][n] by descending eigenvalue, of length 1 or zero;
// values [taken]. columns [n][n] is scratch where shared memory is too small. One block: a sweep is n-1
// rounds of n/2 pairs, each a read and a write of two columns in shared memory; bound by that.
template <int kLanes, bool kShared>
__global__ void __launch_bounds__(kJacobiThreads, 1)
    jacobi_kernel(const double* transposed, int n, int taken, float* columns, float* vectors, float* values) {
  extern __shared__ __align__(16) float jacobi_shared[];
  __shared__ float squares[kMaximumBlock];
  __shared__ int worst;
  constexpr int kPieces = kJacobiElements / 4;
  constexpr int kMaximumSweeps = 12;
  // Columns are turned until a whole sweep met no angle above this one; the sweep itself then left its square.
  constexpr float kSmallCosine = 1e-2F;
  constexpr float kIgnoredCosine = 1e-5F;
  float* const w = kShared ? jacobi_shared : columns;
  for (int i = static_cast<int>(threadIdx.x); i < n * n; i += kJacobiThreads) {
    w[i] = static_cast<float>(transposed[i]);
  }
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int teams = kJacobiThreads / kLanes, team = static_cast<int>(threadIdx.x) / kLanes;
  const int pairs = n / 2;
  const int turns = (pairs + teams - 1) / teams;
  for (int sweep = 0; sweep < kMaximumSweeps; ++sweep) {
    __syncthreads();
    if (threadIdx.x == 0) {
      worst = 0;
    }
    float met = 0;
    for (int round = 0; round < n - 1; ++round) {
      __syncthreads();
      for (int turn = 0; turn < turns; ++turn) {
        const int pair = team + turn * teams;
        const bool active = pair < pairs;
        int first = n - 1, second = round;
        if (pair > 0 && active) {
          first = round + pair;
          first -= first >= n - 1 ? n - 1 : 0;
          second = round - pair;
          second += second < 0 ? n - 1 : 0;
        }
        if (first > second) {
          const int swap = first;
          first = second;
          second = swap;
        }
        float4 a[kPieces], b[kPieces];
        float aa = 0, bb = 0, ab = 0;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          const int at = (i * kLanes + lane) * 4;
          const bool inside = active && at < n;
          a[i] = inside ? *reinterpret_cast<const float4*>(w + first * n + at) : make_float4(0, 0, 0, 0);
          b[i] = inside ? *reinterpret_cast<const float4*>(w + second * n + at) : make_float4(0, 0, 0, 0);
          aa += a[i].x * a[i].x + a[i].y * a[i].y + a[i].z * a[i].z + a[i].w * a[i].w;
          bb += b[i].x * b[i].x + b[i].y * b[i].y + b[i].z * b[i].z + b[i].w * b[i].w;
          ab += a[i].x * b[i].x + a[i].y * b[i].y + a[i].z * b[i].z + a[i].w * b[i].w;
        }
#pragma unroll
        for (int step = kLanes / 2; step; step >>= 1) {
          aa += __shfl_xor_sync(0xffffffffU, aa, step);
          bb += __shfl_xor_sync(0xffffffffU, bb, step);
          ab += __shfl_xor_sync(0xffffffffU, ab, step);
        }
        const float product = sqrtf(aa) * sqrtf(bb);
        const float cosine = product > 0 ? fabsf(ab) / product : 0.0F;
        met = fmaxf(met, cosine);
        if (active && cosine > kIgnoredCosine) {
          const float zeta = (bb - aa) / (2.0F * ab);
          const float tangent = copysignf(1.0F, zeta) / (fabsf(zeta) + sqrtf(1.0F + zeta * zeta));
          const float c = rsqrtf(1.0F + tangent * tangent), s = c * tangent;
#pragma unroll
          for (int i = 0; i < kPieces; ++i) {
            const int at = (i * kLanes + lane) * 4;
            if (at < n) {
              *reinterpret_cast<float4*>(w + first * n + at) =
                  make_float4(c * a[i].x - s * b[i].x, c * a[i].y - s * b[i].y, c * a[i].z - s * b[i].z,
                              c * a[i].w - s * b[i].w);
              *reinterpret_cast<float4*>(w + second * n + at) =
                  make_float4(s * a[i].x + c * b[i].x, s * a[i].y + c * b[i].y, s * a[i].z + c * b[i].z,
                              s * a[i].w + c * b[i].w);
            }
          }
        }
      }
    }
    atomicMax(&worst, __float_as_int(met));
    __syncthreads();
    if (__int_as_float(worst) < kSmallCosine) {
      break;
    }
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32, warp_lane = static_cast<int>(threadIdx.x) % 32;
  for (int j = warp; j < n; j += kJacobiThreads / 32) {
    float sum = 0;
    for (int i = warp_lane; i < n; i += 32) {
      sum += w[j * n + i] * w[j * n + i];
    }
    sum = warp_sum(sum);
    if (warp_lane == 0) {
      squares[j] = sum;
    }
  }
  __syncthreads();
  for (int j = warp; j < n; j += kJacobiThreads / 32) {
    const float mine = squares[j];
    int place = 0;
    for (int i = warp_lane; i < n; i += 32) {
      place += squares[i] > mine || (squares[i] == mine && i < j) ? 1 : 0;
    }
    for (int step = 16; step; step >>= 1) {
      place += __shfl_xor_sync(0xffffffffU, place, step);
    }
    if (place >= taken) {
      continue;
    }
    const float scale = mine > 0 ? rsqrtf(mine) : 0.0F;
    for (int i = warp_lane; i < n; i += 32) {
      vectors[place * n + i] = w[j * n + i] * scale;
    }
    if (warp_lane == 0) {
      values[place] = mine;
    }
  }
}

}  // namespace skv::cuda
