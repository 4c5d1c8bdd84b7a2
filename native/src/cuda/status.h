// CUDA's error codes as the library's own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "error.h"

namespace skv::cuda {

// Throws what a failed call means to the caller of the ABI. `what` says what was being done.
[[noreturn]] void raise(cudaError_t code, const std::string& what);

inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) [[unlikely]] {
    raise(code, what);
  }
}

// Whether the code is one of those that stay with a process: a kernel or the hardware went wrong before.
bool is_fault(cudaError_t code);

// Why there is no device to work on: no driver, too old a driver, no GPU, ... with CUDA's name of the error.
std::string unavailable_reason(cudaError_t code);

}  // namespace skv::cuda
