#include "cuda/cublas.h"

#include <limits>

#include "cuda/status.h"

namespace skv::cuda {
namespace {

// What NVIDIA recommends for Hopper. Given to cuBLAS once, because it must not allocate inside a capture.
constexpr std::size_t kWorkspaceBytes = 32u << 20;

int data_type(std::int32_t type) {
  switch (type) {
    case SKV_F32:
      return blas::Cublas::kFloat32;
    case SKV_BF16:
      return blas::Cublas::kBfloat16;
    case SKV_F16:
      return blas::Cublas::kFloat16;
    default:
      throw Error(SKV_UNSUPPORTED, "cuBLAS products take F32, BF16 and F16, not type " + std::to_string(type));
  }
}

int to_int(std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max()) {
    throw Error(SKV_UNSUPPORTED, "cuBLAS products take sizes up to 2^31 - 1, not " + std::to_string(value));
  }
  return static_cast<int>(value);
}

void check_blas(int status, const char* what) {
  if (status == blas::Cublas::kSuccess) {
    return;
  }
  const std::string text = std::string(what) + ": cuBLAS status " + std::to_string(status);
  throw Error(status == blas::Cublas::kAllocFailed ? SKV_OUT_OF_DEVICE_MEMORY : SKV_DEVICE_ERROR, text);
}

}  // namespace

void Cublas::close() noexcept {
  if (handle_) {
    (void)library_->destroy(handle_);
    handle_ = nullptr;
  }
  if (workspace_) {
    (void)cudaFree(workspace_);
    workspace_ = nullptr;
  }
}

void Cublas::open() {
  if (handle_) {
    return;
  }
  if (!library_) {
    library_ = blas::load_cublas(path_.empty() ? nullptr : path_.c_str());
  }
  if (!workspace_) {
    check(cudaMalloc(&workspace_, kWorkspaceBytes), "allocating cuBLAS's workspace");
  }
  blas::Cublas::Handle handle = nullptr;
  check_blas(library_->create(&handle), "cublasCreate");
  handle_ = handle;
  // Otherwise products split along their sums add the parts in the output's type: bf16 sums, not fp32.
  check_blas(library_->set_math_mode(handle_, blas::Cublas::kNoReducedPrecisionReduction), "cublasSetMathMode");
}

bool Cublas::available() {
  if (missing_) {
    return false;
  }
  try {
    open();
    return true;
  } catch (const Error& error) {
    missing_ = error.status() == SKV_NOT_AVAILABLE;
    if (missing_) {
      return false;
    }
    throw;
  }
}

std::string Cublas::describe() {
  try {
    open();
  } catch (const Error& error) {
    return error.what();
  }
  int version = 0;
  check_blas(library_->get_version(handle_, &version), "cublasGetVersion");
  return "cuBLAS " + std::to_string(version) + ", " + library_->path;
}

void Cublas::multiply(cudaStream_t stream, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Matrix& a,
                      const Matrix& b, float beta, void* output, std::int32_t output_type, std::int64_t output_stride) {
  open();
  check_blas(library_->set_stream(handle_, stream), "cublasSetStream");
  // Setting the stream resets the workspace to cuBLAS's own pool.
  check_blas(library_->set_workspace(handle_, workspace_, kWorkspaceBytes), "cublasSetWorkspace");
  // Row-major a.b is column-major b^T.a^T, with the memory as it lies.
  check_blas(library_->gemm_ex(handle_, b.transposed ? blas::Cublas::kTranspose : blas::Cublas::kNone,
                               a.transposed ? blas::Cublas::kTranspose : blas::Cublas::kNone, to_int(n), to_int(m),
                               to_int(k), &alpha, b.address, data_type(b.type), to_int(b.row_stride), a.address,
                               data_type(a.type), to_int(a.row_stride), &beta, output, data_type(output_type),
                               to_int(output_stride), blas::Cublas::kComputeFloat32, blas::Cublas::kDefaultAlgorithm),
             "cublasGemmEx");
}

void Cublas::multiply_batched(cudaStream_t stream, std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t k,
                              float alpha, const Matrix& a, std::int64_t a_step, const Matrix& b, std::int64_t b_step,
                              float beta, void* output, std::int32_t output_type, std::int64_t output_stride,
                              std::int64_t output_step) {
  open();
  check_blas(library_->set_stream(handle_, stream), "cublasSetStream");
  check_blas(library_->set_workspace(handle_, workspace_, kWorkspaceBytes), "cublasSetWorkspace");
  check_blas(library_->gemm_strided_batched_ex(
                 handle_, b.transposed ? blas::Cublas::kTranspose : blas::Cublas::kNone,
                 a.transposed ? blas::Cublas::kTranspose : blas::Cublas::kNone, to_int(n), to_int(m), to_int(k), &alpha,
                 b.address, data_type(b.type), to_int(b.row_stride), b_step, a.address, data_type(a.type),
                 to_int(a.row_stride), a_step, &beta, output, data_type(output_type), to_int(output_stride),
                 output_step, to_int(batch), blas::Cublas::kComputeFloat32, blas::Cublas::kDefaultAlgorithm),
             "cublasGemmStridedBatchedEx");
}

}  // namespace skv::cuda
