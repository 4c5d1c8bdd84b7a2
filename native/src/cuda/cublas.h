// The context's cuBLAS: loaded when an operation first needs it, and a row-major product on top of it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>

#include "blas/cublas.h"
#include "shadowkv_types.h"

namespace skv::cuda {

class Cublas {
 public:
  explicit Cublas(const char* path) : path_(path ? path : "") {}
  ~Cublas() { close(); }
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // Which library and version, or why there is none.
  std::string describe();
  bool available();
  // Gives everything back; the device must be current.
  void close() noexcept;

  struct Matrix {
    const void* address;
    std::int32_t type;          // SKV_F32, SKV_BF16, SKV_F16
    std::int64_t row_stride;    // elements
    bool transposed = false;    // the operand is the transpose of what is stored
  };

  // output[m][n] = alpha * a[m][k] . b[k][n] + beta * output, all row-major, accumulated in fp32.
  // Throws SKV_NOT_AVAILABLE with the places searched when there is no cuBLAS.
  void multiply(cudaStream_t stream, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Matrix& a,
                const Matrix& b, float beta, void* output, std::int32_t output_type, std::int64_t output_stride);

  // The same for `batch` products whose operands lie a fixed number of elements apart.
  void multiply_batched(cudaStream_t stream, std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t k,
                        float alpha, const Matrix& a, std::int64_t a_step, const Matrix& b, std::int64_t b_step,
                        float beta, void* output, std::int32_t output_type, std::int64_t output_stride,
                        std::int64_t output_step);

 private:
  void open();

  std::string path_;
  std::shared_ptr<const blas::Cublas> library_;
  blas::Cublas::Handle handle_ = nullptr;
  void* workspace_ = nullptr;
  bool missing_ = false;  // searched for in vain: not again for every product
};

}  // namespace skv::cuda
