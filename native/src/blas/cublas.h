// cuBLAS as it is found at run time: a table of the functions used here, so that nothing of NVIDIA's is
// needed to link or to load the library. The types are cuBLAS's own, spelled without its headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace skv::blas {

struct Cublas {
  using Handle = void*;  // cublasHandle_t
  using Stream = void*;  // cudaStream_t

  // Values of cuBLAS's enumerations (cublasStatus_t, cublasOperation_t, cudaDataType_t, ...).
  enum Status : int { kSuccess = 0, kNotInitialized = 1, kAllocFailed = 3 };
  enum Operation : int { kNone = 0, kTranspose = 1 };
  enum DataType : int { kFloat32 = 0, kFloat16 = 2, kBfloat16 = 14 };
  enum ComputeType : int { kComputeFloat32 = 68 };
  enum Algorithm : int { kDefaultAlgorithm = -1 };
  enum MathMode : int { kNoReducedPrecisionReduction = 16 };

  int (*create)(Handle* handle) = nullptr;                                            // cublasCreate_v2
  int (*destroy)(Handle handle) = nullptr;                                            // cublasDestroy_v2
  int (*get_version)(Handle handle, int* version) = nullptr;                          // cublasGetVersion_v2
  int (*set_stream)(Handle handle, Stream stream) = nullptr;                          // cublasSetStream_v2
  int (*set_math_mode)(Handle handle, int mode) = nullptr;                            // cublasSetMathMode
  int (*set_workspace)(Handle handle, void* workspace, std::size_t bytes) = nullptr;  // cublasSetWorkspace_v2
  // cublasGemmEx
  int (*gemm_ex)(Handle handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                 int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type,
                 int ldc, int compute_type, int algorithm) = nullptr;
  // cublasGemmStridedBatchedEx
  int (*gemm_strided_batched_ex)(Handle handle, int transpose_a, int transpose_b, int m, int n, int k,
                                 const void* alpha, const void* a, int a_type, int lda, long long stride_a,
                                 const void* b, int b_type, int ldb, long long stride_b, const void* beta, void* c,
                                 int c_type, int ldc, long long stride_c, int batch, int compute_type,
                                 int algorithm) = nullptr;

  std::string path;  // of the library that was loaded
};

// Loads cuBLAS 13 or 12, once for each path. `path` names files or folders to look in first, separated by
// ':'; it may be null. Throws Error(SKV_NOT_AVAILABLE) with the places searched and what to add.
std::shared_ptr<const Cublas> load_cublas(const char* path);

}  // namespace skv::blas
