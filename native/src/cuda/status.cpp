#include "cuda/status.h"

namespace skv::cuda {

bool is_fault(cudaError_t code) {
  switch (code) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return true;
    default:
      return false;
  }
}

std::string unavailable_reason(cudaError_t code) {
  const std::string name = std::string(" (") + cudaGetErrorName(code) + ")";
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "there is no NVIDIA driver: libcuda.so.1 was not found or does not work" + name;
  }
  const auto version = [](int number) {
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
  };
  switch (code) {
    case cudaErrorInsufficientDriver:
      return "the NVIDIA driver supports CUDA " + version(driver) + ", this library was built with CUDA " +
             version(CUDART_VERSION) + name;
    case cudaErrorNoDevice:
      return "the NVIDIA driver finds no GPU" + name;
    default:
      return std::string(cudaGetErrorString(code)) + name;
  }
}

void raise(cudaError_t code, const std::string& what) {
  // Takes an error that is not sticky off this thread, so that it is not reported a second time.
  (void)cudaGetLastError();
  const std::string text = what + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")";
  switch (code) {
    case cudaErrorMemoryAllocation:
      throw Error(SKV_OUT_OF_DEVICE_MEMORY, text);
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorStubLibrary:
      throw Error(SKV_NOT_AVAILABLE, what + ": " + unavailable_reason(code));
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorNotSupported:
      throw Error(SKV_UNSUPPORTED, text);
    case cudaErrorInvalidDevice:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureImplicit:
      throw Error(SKV_INVALID_ARGUMENT, text);
    default:
      throw Error(SKV_DEVICE_ERROR, text);
  }
}

}  // namespace skv::cuda
